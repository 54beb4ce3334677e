"""Mentions in the text are replaced by one neutral token, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-cut_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in tokenizer.mention
"""

_base_ = '../eiclip_fashiongen_mini.py'
reading = dict(tokenizer=dict(mention='cut'))
model = reading
train_dataloader = dict(dataset=reading)
val_dataloader = dict(dataset=reading)
test_dataloader = dict(dataset=reading)
