"""What does the wrong sense of brand words cost? Row 3 on the mini Fashion-Gen, without it.

Run     python tools/train.py configs/ablations/clip-meta-neutral_fashiongen_mini.py
Parent  clip-meta_fashiongen_mini.py; differs in model.towers.pretrained: clip_neutral_mini.py
"""

_base_ = '../baselines/clip-meta_fashiongen_mini.py'
compare_with = 'configs/baselines/clip-meta_fashiongen_mini.py'
model = dict(towers=dict(pretrained='work_dirs/clip_neutral_mini/epoch_6.pth'))
