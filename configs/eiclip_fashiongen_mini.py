"""EI-CLIP on the mini Fashion-Gen: the twin of eiclip_fashiongen.py in data and size.

Run     make quickstart, or python tools/train.py configs/eiclip_fashiongen_mini.py after it
Parent  eiclip_fashiongen.py; differs in data, towers, epochs
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
# The small towers are far from what they can learn: they take the full rate.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'towers': dict(lr_mult=1.0),
            'towers.clip.logit_scale': dict(lr_mult=1.0, decay_mult=0),
        }
    )
)
