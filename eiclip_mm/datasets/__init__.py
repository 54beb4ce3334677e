"""Product data: data sets, the entity-aware tokenizer, transforms, batches."""

import mmpretrain.datasets  # noqa: F401  (fills the parent registries; a child does not)

from .batches import PackProduct, stack_products
from .coco_products import CocoProducts
from .fashiongen import FashionGen
from .product_dataset import ProductDataset
from .sampler import ProductSampler
from .tokenizer import EntityMatcher, EntityTokenizer
from .transforms import EntityDropout, LoadImageFeature, LoadProductImage

__all__ = [
    'CocoProducts',
    'EntityDropout',
    'EntityMatcher',
    'EntityTokenizer',
    'FashionGen',
    'LoadImageFeature',
    'LoadProductImage',
    'PackProduct',
    'ProductDataset',
    'ProductSampler',
    'stack_products',
]
