"""After training: a checkpoint that embeds, and the catalogue it searches.

The web service is :mod:`eiclip_mm.apis.service`, which needs the extra ``[serve]``.
"""

from .catalogue import Catalogue, Item, open_photo, read_catalogue
from .checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from .encoder import Encoder, Entity, Reading
from .index import CatalogueIndex, Condition, Hit, parse_filters, recall_at_k
from .inferencer import EICLIPInferencer
from .onnx import OnnxEncoder
from .photos import PhotoSizing, read_photo
from .search import Answer, CatalogueSearch

__all__ = [
    'Answer',
    'Catalogue',
    'CatalogueIndex',
    'CatalogueSearch',
    'Checkpoint',
    'Condition',
    'EICLIPInferencer',
    'Encoder',
    'Entity',
    'Hit',
    'Item',
    'OnnxEncoder',
    'PhotoSizing',
    'Reading',
    'open_checkpoint',
    'open_photo',
    'parse_filters',
    'read_catalogue',
    'read_photo',
    'recall_at_k',
    'save_checkpoint',
]
