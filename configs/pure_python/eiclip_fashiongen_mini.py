"""configs/eiclip_fashiongen_mini.py, in mmengine's pure-Python style: classes, not their names.

Run     python tools/train.py configs/pure_python/eiclip_fashiongen_mini.py
Twin    configs/eiclip_fashiongen_mini.py: the same experiment, to the last setting
Inherit by read_base alone, for mmengine cannot mix both styles; what _base_ holds serves both
"""
# ruff: noqa: F403, F405

from mmengine.config import read_base

from eiclip_mm.engine import CausalEffectHook
from eiclip_mm.models import EICLIP, EALearner, EffectCESelector, InfoNCE, OpenCLIPTowers

with read_base():
    from .._base_.datasets.mini_fashiongen import *
    from .._base_.default_runtime import *
    from .._base_.schedules.adamw_cosine_10e import *

model = dict(
    type=EICLIP,
    towers=dict(
        type=OpenCLIPTowers,
        model=architecture,
        pretrained='work_dirs/clip_general_mini/epoch_6.pth',
    ),
    tokenizer=tokenizer,
    selector=dict(type=EffectCESelector),
    learner=dict(type=EALearner, num_learned=1, prior='uniform', expectation='nwgm'),
    loss=dict(type=InfoNCE, same_text=True),
    entity_loss_weight=0.1,
)
custom_hooks = [*custom_hooks, dict(type=CausalEffectHook, begin=3)]
optim_wrapper.merge(dict(paramwise_cfg=dict(lr_mult={'towers': 1.0})))
param_scheduler[0].update(end=16)
train_cfg.update(val_interval=2)
