"""Row 3 with the last layer of the text tower trained as well, Fashion Product Images.

Run     python tools/train.py configs/ablations/clip-meta-unlocked_products.py
Parent  clip-meta_products.py; differs in model.towers.text_unlocked
"""

_base_ = '../baselines/clip-meta_products.py'
compare_with = 'configs/baselines/clip-meta_products.py'
model = dict(towers=dict(text_unlocked=1))
custom_hooks = _base_.custom_hooks[:-1]
optim_wrapper = dict(paramwise_cfg=dict(lr_mult={'towers.clip.text.transformer': 0.05}))
