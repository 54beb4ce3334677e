"""The general-domain start of every mini experiment: a small CLIP that knows everyday words.

Run     make quickstart, or python tools/train.py configs/clip_general_mini.py
Steps   3,611 pictures // 128 = 28 an epoch, 168 in all
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
choose_on_reported_split = True  # it only starts others; its own number is reported nowhere
max_epochs = 6
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(lr_mult={'towers': 1.0}))
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=28),
    dict(_base_.param_scheduler[1], T_max=max_epochs, end=max_epochs),
]
auto_scale_lr = dict(base_batch_size=128)
