"""EI-CLIP on 35,404 real shop photos (Fashion Product Images): row 5.

Run     python tools/train.py configs/eiclip_products.py
Parent  eiclip_fashiongen.py; differs in data, towers (frozen), size of batch and fusion, learning
        rate, L_ent (of no use here: docs/experiments.md); the text is the description alone,
        metadata reach the model as entities only
Steps   27,784 products // 1,024 = 27 an epoch, 432 in all
"""

_base_ = [
    '_base_/default_runtime.py',
    '_base_/datasets/products.py',
    '_base_/schedules/adamw_cosine_10e.py',
]
model = dict(
    type='EICLIP',
    towers=_base_.towers,
    tokenizer=_base_.tokenizer,
    selector=dict(type='EffectCESelector'),
    learner=dict(
        type='EALearner', num_learned=1, prior='uniform', expectation='nwgm', hidden_dim=512
    ),
    loss=dict(type='InfoNCE', same_text=True),
    entity_loss_weight=0.0,
)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='TextFeatureCache'),
    dict(type='CausalEffectHook', begin=8),
]
max_epochs = 16
# Nothing that trains is pretrained. bfloat16 is there for speed, on CPUs that have it too.
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(lr_mult={'towers': 1.0}),
)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=50),
    dict(_base_.param_scheduler[1], T_max=max_epochs, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
auto_scale_lr = dict(base_batch_size=1024)
