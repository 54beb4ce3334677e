"""Mentions in the text are tokens of their own, one an entity, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-token_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in tokenizer.mention
"""

_base_ = '../eiclip_fashiongen_mini.py'
reading = dict(tokenizer=dict(mention='token'))
model = reading
train_dataloader = dict(dataset=reading)
val_dataloader = dict(dataset=reading)
test_dataloader = dict(dataset=reading)
