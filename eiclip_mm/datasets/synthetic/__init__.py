"""A small catalogue in the shape of Fashion-Gen whose confounding is known: it is planted.

Photos are drawn from attributes, so ``truth.json`` can say what each entity type is worth:

- *brand* is a confounder. It shows as an emblem and a trim stripe, is seldom named in the
  description, and its words mean something else in everyday language ("Turtle", "Golden Goose").
  That everyday thing fills the general-domain split and is printed on garments of any brand.
- *composition* shows as the texture of the fabric and is seldom named in the description.
- *category*, *subcategory* and *department* show, and the description says them already.
- *gender* shows weakly, in the width of the garment. *Season* is drawn at random: useless.

Four products share a *design* (garment, colour, pattern, motif): two brands, each in two materials.
So a description narrows the choice to about four, brand or composition to two, both to one.
Source: ours; keys, dtypes and trouble are Fashion-Gen's.
"""

from .drawing import draw
from .files import FILES, is_written, write_mini_fashiongen
from .products import Product, make_picture, make_product, signature
from .words import BRANDS, GENERAL, ICONS, MATERIALS, SENSES, TRAIN, UNSEEN, VALIDATION

__all__ = [
    'BRANDS',
    'FILES',
    'GENERAL',
    'ICONS',
    'MATERIALS',
    'SENSES',
    'TRAIN',
    'UNSEEN',
    'VALIDATION',
    'Product',
    'draw',
    'is_written',
    'make_picture',
    'make_product',
    'signature',
    'write_mini_fashiongen',
]
