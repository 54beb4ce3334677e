"""A small catalogue in the shape of Fashion-Gen whose confounding is known: it is planted.

Photos are drawn from attributes, so ``truth.json`` can say what each entity type is worth:

- *brand* is a confounder. It shows as an emblem and a trim stripe, is seldom named in the
  description, and its words mean something else in everyday language ("Turtle", "Golden Goose").
  That everyday thing fills the general-domain split and is printed on garments of any brand.
- *composition* shows as the texture of the fabric and is seldom named in the description.
- *category*, *subcategory* and *department* show, and the description says them already.
- *gender* shows weakly, in the width of the garment. *Season* is drawn at random: useless.

Two types are planted for studies of CE-Selector, in files of their own: *label* is as useless as
season, and *code*, which few products share, is harmful: train's photos can be learnt by it.
``general_neutral.h5`` shows the general pictures with captions that lack the brands' words.

Four products share a *design* (garment, colour, pattern, motif): two brands, each in two materials.
So a description narrows the choice to about four, brand or composition to two, both to one.
Source: ours; keys, dtypes and trouble are Fashion-Gen's.
"""

from .drawing import draw
from .files import FILES, is_written, write_mini_fashiongen
from .planted import LINKED, codes, labels, neutral
from .products import Product, make_picture, make_product, signature
from .words import BRANDS, GENERAL, ICONS, MATERIALS, NEUTRAL, SENSES, TRAIN, UNSEEN, VALIDATION

__all__ = [
    'BRANDS',
    'FILES',
    'GENERAL',
    'ICONS',
    'LINKED',
    'MATERIALS',
    'NEUTRAL',
    'SENSES',
    'TRAIN',
    'UNSEEN',
    'VALIDATION',
    'Product',
    'codes',
    'draw',
    'is_written',
    'labels',
    'make_picture',
    'make_product',
    'neutral',
    'signature',
    'write_mini_fashiongen',
]
