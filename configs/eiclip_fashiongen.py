"""EI-CLIP on Fashion-Gen: row 5 of the poster's table.

Run     python tools/train.py configs/eiclip_fashiongen.py
Steps   60,147 products, 90 % of them // 64 = 845 an epoch, 8,450 in all
Expect  not run here: the files are not public any more; the poster gives SumR 302
"""

_base_ = [
    '_base_/default_runtime.py',
    '_base_/datasets/fashiongen.py',
    '_base_/schedules/adamw_cosine_10e.py',
]
model = dict(
    type='EICLIP',
    towers=dict(type='OpenCLIPTowers', model='ViT-B-32-quickgelu', pretrained='openai'),
    tokenizer=_base_.tokenizer,
    selector=dict(type='EffectCESelector'),
    learner=dict(type='EALearner', num_learned=1, prior='uniform', expectation='nwgm'),
    loss=dict(type='InfoNCE', same_text=True),
    entity_loss_weight=0.1,
)
custom_hooks = [*_base_.custom_hooks, dict(type='CausalEffectHook', begin=3)]
