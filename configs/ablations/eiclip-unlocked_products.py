"""Row 5 with the last layer of the text tower trained as well, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-unlocked_products.py
Parent  eiclip_products.py; differs in model.towers.text_unlocked
"""

_base_ = '../eiclip_products.py'
model = dict(towers=dict(text_unlocked=1))
custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'TextFeatureCache']
optim_wrapper = dict(paramwise_cfg=dict(lr_mult={'towers.clip.text.transformer': 0.05}))
compare_with = 'configs/ablations/clip-meta-unlocked_products.py'
