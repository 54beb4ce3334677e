"""EI-CLIP on the mini Fashion-Gen: the twin of eiclip_fashiongen.py in data and size.

Run     make quickstart, or python tools/train.py configs/eiclip_fashiongen_mini.py after it
Parent  eiclip_fashiongen.py; differs in data, towers, learning rates
Steps   1,066 products // 64 = 16 an epoch, 160 in all
"""

_base_ = [
    '_base_/default_runtime.py',
    '_base_/datasets/mini_fashiongen.py',
    '_base_/schedules/adamw_cosine_10e.py',
]
model = dict(
    type='EICLIP',
    towers=dict(
        type='OpenCLIPTowers',
        model=_base_.architecture,
        pretrained='work_dirs/clip_general_mini/epoch_6.pth',
    ),
    tokenizer=_base_.tokenizer,
    selector=dict(type='EffectCESelector'),
    learner=dict(type='EALearner', num_learned=1, prior='uniform', expectation='nwgm'),
    loss=dict(type='InfoNCE', same_text=True),
    entity_loss_weight=0.1,
)
custom_hooks = [*_base_.custom_hooks, dict(type='CausalEffectHook', begin=3)]
# The small towers are far from what they can learn: they take the full rate, after one epoch.
optim_wrapper = dict(paramwise_cfg=dict(lr_mult={'towers': 1.0}))
param_scheduler = [dict(_base_.param_scheduler[0], end=16), _base_.param_scheduler[1]]
train_cfg = dict(val_interval=2)
