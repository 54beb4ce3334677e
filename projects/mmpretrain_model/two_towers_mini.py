"""A config of mmpretrain: model, transforms and loop are its own, data and metric are ours."""

default_scope = 'mmpretrain'
custom_imports = dict(
    imports=[
        'eiclip_mm.datasets',
        'eiclip_mm.evaluation',
        'projects.mmpretrain_model.two_towers',
    ]
)

model = dict(
    type='TwoTowers',
    backbone=dict(type='ResNet', depth=18),
    neck=dict(type='GlobalAveragePooling'),
    width=512,
    dim=128,
    data_preprocessor=dict(type='MultiModalDataPreprocessor', mean=[127] * 3, std=[64] * 3),
)

load = dict(type='eiclip_mm.LoadProductImage')
pack = dict(
    type='PackInputs',
    algorithm_keys=['text'],
    meta_keys=['sample_idx', 'product_id', 'view', 'caption'],
)
train_pipeline = [
    load,
    dict(type='RandomResizedCrop', scale=64),
    dict(type='RandomFlip', prob=0.5),
    pack,
]
test_pipeline = [load, dict(type='Resize', scale=(64, 64)), pack]
dataset = dict(
    type='eiclip_mm.FashionGen',
    data_root='data/mini_fashiongen',
    tokenizer=dict(
        type='eiclip_mm.EntityTokenizer',
        model='ViT-B-32',  # its sub-words
        vocab='data/mini_fashiongen/entities.json',
        fields=('brand', 'composition', 'description'),
        context_length=48,
    ),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    sampler=dict(type='eiclip_mm.ProductSampler', shuffle=True),
    dataset=dict(dataset, ann_file='fashiongen_256_256_train.h5', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        dataset, ann_file='fashiongen_256_256_validation.h5', views='all', pipeline=test_pipeline
    ),
)
val_evaluator = dict(type='eiclip_mm.RetrievalMetric', protocols=['full/first-image'])

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(by_epoch=True, max_epochs=3)
val_cfg = dict()
randomness = dict(seed=0)
