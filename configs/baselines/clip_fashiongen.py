"""CLIP fine-tuned on the description alone, Fashion-Gen: row 2.

Run     python tools/train.py configs/baselines/clip_fashiongen.py
Parent  clip-meta_fashiongen.py; differs in tokenizer.fields
"""

_base_ = 'clip-meta_fashiongen.py'
description = dict(tokenizer=dict(fields=('description',)))
model = description
train_dataloader = dict(dataset=description)
val_dataloader = dict(dataset=description)
test_dataloader = dict(dataset=description)
