"""Visualizers of mmpretrain and mmengine, under this package's scope; our own pages."""

import mmpretrain.visualization  # noqa: F401  (fills the parent registries; a child does not)

from .browse_page import Browse, Browsed, Named, ReadText, Token, TypeCount, browse_page
from .gallery_page import Agreement, Candidate, Gallery, Group, Query, gallery_page
from .product import Product, thumbnail
from .retrieval_page import Asked, Found, Page, retrieval_page

__all__ = [
    'Agreement',
    'Asked',
    'Browse',
    'Browsed',
    'Candidate',
    'Found',
    'Gallery',
    'Group',
    'Named',
    'Page',
    'Product',
    'Query',
    'ReadText',
    'Token',
    'TypeCount',
    'browse_page',
    'gallery_page',
    'retrieval_page',
    'thumbnail',
]
