"""The general-domain start of every mini experiment: a small CLIP that knows everyday words.

Run     make quickstart, or python tools/train.py configs/clip_general_mini.py
Data    general.h5, where "golden goose" is a bird and "diesel" a truck
"""

_base_ = [
    '_base_/default_runtime.py',
    '_base_/datasets/mini_fashiongen.py',
    '_base_/schedules/adamw_cosine_10e.py',
]
tokenizer = dict(_base_.tokenizer, fields=('description',))
model = dict(
    type='OpenCLIP',
    towers=dict(type='OpenCLIPTowers', model=_base_.architecture),
    tokenizer=tokenizer,
    loss=dict(type='InfoNCE', same_text=True),
)
general = dict(ann_file='general.h5', tokenizer=tokenizer)
train_dataloader = dict(batch_size=128, dataset=general)
val_dataloader = dict(dataset=general)
test_dataloader = dict(dataset=general)
test_evaluator = dict(protocols=['full/first-image'])
max_epochs = 6
optim_wrapper = dict(
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(towers=dict(lr_mult=1.0)))
)
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        by_epoch=True,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
