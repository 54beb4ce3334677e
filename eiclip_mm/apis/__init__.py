"""After training: a checkpoint that embeds photos, products and queries."""

from .checkpoint import Checkpoint, open_checkpoint
from .encoder import Encoder, Entity, Reading
from .inferencer import EICLIPInferencer
from .photos import read_photo

__all__ = [
    'Checkpoint',
    'EICLIPInferencer',
    'Encoder',
    'Entity',
    'Reading',
    'open_checkpoint',
    'read_photo',
]
