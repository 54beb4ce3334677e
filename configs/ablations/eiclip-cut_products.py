"""Mentions in the text are replaced by one neutral token, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-cut_products.py
Parent  eiclip_products.py; differs in tokenizer.mention
"""

_base_ = '../eiclip_products.py'
reading = dict(tokenizer=dict(mention='cut'))
model = reading
train_dataloader = dict(dataset=reading)
val_dataloader = dict(dataset=reading)
test_dataloader = dict(dataset=reading)
