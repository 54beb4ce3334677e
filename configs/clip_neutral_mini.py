"""An oracle's start: a small CLIP that knows everyday things, but not by the words of brands.

Run     python tools/train.py configs/clip_neutral_mini.py --no-validate
Parent  clip_general_mini.py; differs in data: the captions of general_neutral.h5
"""

_base_ = 'clip_general_mini.py'
neutral = dict(ann_file='general_neutral.h5')
train_dataloader = dict(dataset=neutral)
val_dataloader = dict(dataset=neutral)
test_dataloader = dict(dataset=neutral)
