"""Visualizers of mmpretrain and mmengine, under this package's scope; the page of retrievals."""

import mmpretrain.visualization  # noqa: F401  (fills the parent registries; a child does not)

from .retrieval_page import Asked, Found, Page, Product, retrieval_page, thumbnail

__all__ = ['Asked', 'Found', 'Page', 'Product', 'retrieval_page', 'thumbnail']
