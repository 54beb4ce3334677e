"""EI-CLIP on 35,404 real shop photos (Fashion Product Images).

Run     python tools/train.py configs/eiclip_products.py
Parent  eiclip_fashiongen.py; differs in data, towers, batch size
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
    learner=dict(type='EALearner', num_learned=1, prior='uniform', expectation='nwgm'),
    loss=dict(type='InfoNCE', same_text=True),
    entity_loss_weight=0.1,
)
custom_hooks = [*_base_.custom_hooks, dict(type='CausalEffectHook', begin=3)]
# Only MiniLM's own layers are pretrained here: all else learns at the full rate. bfloat16 is
# there for speed, on CPUs that have it too.
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    dtype='bfloat16',
    paramwise_cfg=dict(lr_mult={'towers': 1.0, 'towers.clip.text.transformer': 0.1}),
)
auto_scale_lr = dict(base_batch_size=256)
