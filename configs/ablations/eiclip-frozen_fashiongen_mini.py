"""How far do entities alone lead? the mini Fashion-Gen, both towers frozen.

Run     python tools/train.py configs/ablations/eiclip-frozen_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.towers: frozen, their features computed once,
        of photos as in evaluation: a crop that is drawn anew has no one feature
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(towers=dict(image_unlocked=0, text_unlocked=0))
load_feature = dict(type='LoadImageFeature', pipeline=_base_.test_pipeline[:-1])
train_pipeline = [load_feature, dict(type='EntityDropout', prob=0.1), dict(type='PackProduct')]
test_pipeline = [load_feature, dict(type='PackProduct')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
custom_hooks = [*_base_.custom_hooks, dict(type='TextFeatureCache')]
