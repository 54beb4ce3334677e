"""Mentions in the text are tokens of their own, one an entity, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-token_products.py
Parent  eiclip_products.py; differs in tokenizer.mention
"""

_base_ = '../eiclip_products.py'
reading = dict(tokenizer=dict(mention='token'))
model = reading
train_dataloader = dict(dataset=reading)
val_dataloader = dict(dataset=reading)
test_dataloader = dict(dataset=reading)
