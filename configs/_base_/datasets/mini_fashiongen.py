"""Mini Fashion-Gen, drawn by tools/dataset_converters/make_mini_fashiongen.py; 64 pixels."""

data_root = 'data/mini_fashiongen/'
entity_types = ('composition', 'subcategory', 'brand', 'season')
train_file = 'fashiongen_256_256_train.h5'
test_file = 'fashiongen_256_256_validation.h5'

# open_clip's own kind of model, small enough to train in a minute on two cores
architecture = dict(
    embed_dim=128,
    vision_cfg=dict(image_size=64, patch_size=8, width=96, layers=3, head_width=32),
    text_cfg=dict(context_length=77, vocab_size=49408, width=96, heads=3, layers=2),
)
tokenizer = dict(
    type='EntityTokenizer',
    model=architecture,
    vocab=data_root + 'entities.json',
    fields=entity_types + ('description',),
    mention='keep',
    tags='given',
)
# From the pack that tools/dataset_converters/pack_images.py wrote, where there is one.
load_image = dict(type='LoadProductImage', packed=data_root + 'packed')
train_pipeline = [
    load_image,
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='EntityDropout', prob=0.1),
    dict(type='PackProduct'),
]
test_pipeline = [
    load_image,
    dict(type='ResizeEdge', scale=64, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackProduct'),
]

dataset = dict(
    type='FashionGen',
    data_root=data_root,
    entity_types=entity_types,
    tokenizer=tokenizer,
    batched=True,
)
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='ProductSampler', shuffle=True),
    collate_fn=dict(type='stack_products'),
    dataset=dict(
        ann_file=train_file, views='random', fold='fit', pipeline=train_pipeline, **dataset
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='stack_products'),
    dataset=dict(
        ann_file=train_file, views='first', fold='select', pipeline=test_pipeline, **dataset
    ),
)
test_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='stack_products'),
    dataset=dict(ann_file=test_file, views='all', pipeline=test_pipeline, **dataset),
)
val_evaluator = dict(type='RetrievalMetric', protocols=['full/first-image'])
test_evaluator = dict(type='RetrievalMetric', protocols=['full/first-image', 'full/product'])
