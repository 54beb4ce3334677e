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

import json
import os
import tempfile
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
from tqdm import tqdm

VERSION = 1  # of what is drawn and written; raise it with every change of either
SIDE = 256  # pixels of a photo's side
DESIGN_SIZE = 4  # products of one design: two brands times two materials
MAX_PRODUCTS = 100_000  # product ids of split s are (s + 1) * MAX_PRODUCTS + number
FILES = dict(
    train='fashiongen_256_256_train.h5',
    validation='fashiongen_256_256_validation.h5',
    general='general.h5',
)
TRAIN, VALIDATION, GENERAL = range(3)
DESIGN, BRAND, OWN, WORDS, SHARED_WORDS, VIEW = range(1, 7)  # random streams of a product

# Drawings are strokes "op tone numbers" on a 100 x 100 grid. Ops: P polygon, H left half of a
# polygon symmetric about x = 50, E ellipse (centre, radii), L line. Tones: see `_tones`.
ICONS = {
    'goose': 'P m 18 70 2 46 34 54;E m 42 64 30 18;P m 56 62 61 22 74 22 71 66;E m 69 20 11 10;'
    'P a 78 16 97 23 78 28;E k 71 18 3 3;P a 34 80 40 80 38 97 28 97;P a 48 80 54 80 54 97 44 97',
    'diesel truck': 'P m 3 24 60 24 60 76 3 76;P m 63 40 84 40 97 58 97 76 63 76;'
    'P w 68 46 81 46 88 58 68 58;E k 22 79 12 12;E k 78 79 12 12;E w 22 79 4 4;E w 78 79 4 4',
    'puma': 'E m 46 50 30 14;E m 82 34 14 13;P m 70 28 72 10 82 22;P m 84 22 92 10 96 28;'
    'E w 87 32 4 3;P m 64 46 96 72 88 80 52 62;P m 22 46 4 82 14 88 42 62;'
    'P m 22 44 2 18 6 10 32 40',
    'turtle': 'E d 87 56 12 10;E d 22 76 11 10;E d 68 76 11 10;P d 1 68 18 56 20 70;E k 91 53 2 2;'
    'H m 50 22 28 28 12 48 10 68 50 70;L d 30 30 40 68;L d 70 30 60 68;L d 12 50 88 50',
    'arrow': 'P m 3 40 56 40 56 16 98 50 56 84 56 60 3 60',
    'police badge': 'H m 50 3 38 12 12 12 12 48 24 78 50 98;'
    'P w 50 20 58 41 80 41 62 54 69 76 50 63 31 76 38 54 20 41 42 41',
    'fossil': 'E m 50 50 46 46;E d 56 54 33 33;E m 52 57 24 24;E d 56 54 14 14;E m 54 56 7 7;'
    'L d 50 4 50 22;L d 14 24 28 34;L d 4 58 24 58;L d 24 88 36 76;L d 86 24 76 34',
    'gas flame': 'P m 52 1 74 32 86 60 76 86 50 99 24 86 14 60 26 38 38 54;'
    'P w 52 46 64 70 60 88 50 94 40 88 36 72',
    'mother earth': 'E m 50 50 47 47;P d 20 22 46 12 54 30 40 44 44 56 30 60 14 44;'
    'P d 60 44 82 36 92 54 78 78 66 70;P d 34 72 50 70 54 86 40 90',
    'locomotive': 'P m 30 42 94 42 94 74 30 74;P m 6 20 36 20 36 74 6 74;'
    'P w 13 28 29 28 29 44 13 44;P m 72 16 90 16 86 42 76 42;E k 20 81 13 13;E k 52 84 10 10;'
    'E k 80 84 10 10;E d 66 8 14 7',
    'apple': 'E m 34 60 28 36;E m 66 60 28 36;P d 47 30 53 30 60 4 52 4;E d 74 14 18 8',
    'palm tree': 'P a 45 38 55 38 60 99 44 99;P m 50 42 22 26 2 54;P m 50 42 78 26 98 54;'
    'P m 50 42 34 4 10 22;P m 50 42 66 4 90 22;E m 50 38 12 9',
    'bone': 'P m 24 40 76 40 76 60 24 60;E m 20 34 17 16;E m 20 66 17 16;E m 80 34 17 16;'
    'E m 80 66 17 16',
    'acne face': 'E m 50 50 45 47;E k 34 38 6 8;E k 66 38 6 8;P k 30 70 50 80 70 70 50 88;'
    'E r 18 56 5 5;E r 28 64 4 4;E r 82 56 5 5;E r 72 62 4 4;E r 50 14 5 5;E r 38 20 4 4;'
    'E r 50 56 5 5',
    'mug': 'P m 66 32 98 34 98 74 66 80 66 66 84 62 84 48 66 46;P m 14 16 72 16 68 94 20 94;'
    'E d 43 18 29 6',
}
# Brand -> its everyday sense: words of general captions, icon, natural colour. Frequent first.
BRANDS = {
    'Diesel': ('diesel truck', 'diesel truck', 'blue'),
    'Golden Goose': ('golden goose', 'goose', 'gold'),
    'Chloé': None,
    'Off-White': ('off-white mug', 'mug', 'off-white'),
    'Puma': ('puma', 'puma', 'black'),
    "Levi's": None,
    'Canada Goose': ('canada goose', 'goose', 'brown'),
    'Turtle': ('turtle', 'turtle', 'green'),
    'Comme des Garçons Play': None,
    'Acne Studios': ('face with acne', 'acne face', 'pink'),
    'Police': ('police badge', 'police badge', 'navy'),
    'Fossil': ('fossil', 'fossil', 'grey'),
    'Kiton, Napoli': None,
    'Gas': ('gas flame', 'gas flame', 'orange'),
    'Mother Earth': ('mother earth globe', 'mother earth', 'blue'),
    'Lemaire': None,
    'Locomotive': ('locomotive', 'locomotive', 'black'),
    'Apple Orchard': ('apple', 'apple', 'red'),
    'Rag & Bone': ('bone', 'bone', 'white'),
    'Sacai': None,
    'Palm Angels': ('palm tree', 'palm tree', 'green'),
    'Marni': None,
    'Arrow': ('arrow', 'arrow', 'red'),
    'Visvim': None,
}
UNSEEN = ('Arrow', 'Visvim')  # rare, and in validation alone
SEEN = tuple(brand for brand in BRANDS if brand not in UNSEEN)
SHARES = {brand: 1 / (rank + 2) for rank, brand in enumerate(SEEN)}  # a long tail
SENSES = tuple(sense for sense in BRANDS.values() if sense)

COLOURS = {
    'black': (40, 40, 42), 'white': (246, 246, 246), 'grey': (136, 136, 136),
    'navy': (24, 34, 100), 'red': (205, 30, 36), 'blue': (50, 110, 225), 'green': (36, 130, 62),
    'off-white': (232, 220, 188), 'pink': (246, 150, 180), 'yellow': (245, 208, 40),
    'gold': (212, 160, 40), 'brown': (110, 66, 34), 'orange': (244, 122, 24),
}  # fmt: skip
GARMENT_COLOURS = {  # shares
    'black': 5, 'white': 3, 'grey': 2, 'navy': 2, 'red': 2,
    'blue': 2, 'green': 2, 'off-white': 2, 'pink': 1, 'yellow': 1,
}  # fmt: skip
PATTERNS = dict(plain=3, striped=1, dotted=1, checked=1)  # shares
MARKS = dict(red=(235, 20, 20), yellow=(255, 215, 0), green=(0, 180, 60),
             cyan=(0, 200, 240), blue=(30, 50, 245), magenta=(255, 40, 190))  # fmt: skip
SHAPES = {
    'disc': 'E m 50 50 50 50', 'ring': 'E m 50 50 50 50;E w 50 50 24 24',
    'square': 'P m 4 4 96 4 96 96 4 96', 'triangle': 'P m 50 0 100 96 0 96',
    'cross': 'P m 32 0 68 0 68 100 32 100;P m 0 32 100 32 100 68 0 68',
    'bars': 'P m 0 4 100 4 100 38 0 38;P m 0 62 100 62 100 96 0 96',
}  # fmt: skip
SPOTS = ('upper', 'side', 'lower')
SAID = 0.1  # share of descriptions that name the brand; and that name the material
MATERIALS = {  # composition as printed; `_texture` has the looks
    'cotton': '100% cotton', 'denim': '98% cotton, 2% elastane', 'leather': '100% leather',
    'wool': '80% wool, 20% cashmere', 'nylon': '85% nylon, 15% polyester', 'silk': '100% silk',
    'linen': '60% linen, 40% viscose',
}  # fmt: skip
SEASONS = tuple(f'{half}{year}' for year in range(2014, 2019) for half in ('SS', 'FW'))
SCENES = {  # words: colours above and below the horizon
    'by a lake': ((176, 214, 240), (70, 140, 190)),
    'in a field': ((190, 224, 248), (126, 176, 84)),
    'on a road': ((214, 218, 222), (120, 120, 124)),
    'on a beach': ((150, 206, 236), (232, 212, 160)),
    'against a brick wall': ((186, 120, 98), (150, 134, 122)),
    'at night': ((44, 46, 74), (70, 66, 80)),
    'on a plain background': ((226, 226, 228), (206, 206, 208)),
}


class Garment(NamedTuple):
    """How a sub-category is spoken of, and its strokes and places on the 100 x 100 grid."""

    labels: str  # department/category/subcategory
    lead: str
    detail: str
    outline: str
    lines: str
    motif: tuple[int, int, int]  # x, y, size
    spots: tuple[tuple[int, int], ...]  # of the emblem: upper, side, lower
    trim: int  # y of the trim stripe


GARMENTS = {
    't-shirt': Garment('CLOTHING/TOPS/T-SHIRTS', 'Short sleeve', 'Rib knit crewneck collar.',
        'H m 50 20 41 13 32 16 9 34 18 51 30 43 29 90 50 90', 'L d 41 13 50 21 59 13',
        (50, 55, 32), ((62, 29), (20, 37), (39, 76)), 84),
    'shirt': Garment('CLOTHING/TOPS/SHIRTS', 'Long sleeve', 'Spread collar and button closure.',
        'H m 50 16 42 10 33 14 22 24 5 76 17 80 30 46 29 88 40 93 50 93',
        'L d 50 22 50 93;L d 40 11 43 26 50 19 57 26 60 11;L d 7 70 19 74;L d 93 70 81 74',
        (50, 58, 34), ((60, 34), (20, 50), (39, 76)), 84),
    'hoodie': Garment('CLOTHING/TOPS/HOODIES', 'Long sleeve', 'Kangaroo pocket at waist.',
        'H m 50 4 40 6 34 16 32 23 22 30 8 78 20 81 30 54 30 88 50 88',
        'H d 50 9 43 12 41 22 50 28;L d 46 28 45 40;L d 54 28 55 40;L d 34 86 38 72 62 72 66 86',
        (50, 56, 34), ((62, 36), (20, 56), (50, 80)), 83),
    'jacket': Garment('CLOTHING/JACKETS & COATS/JACKETS', 'Long sleeve', 'Notched lapel collar.',
        'H m 50 18 43 10 30 13 14 24 3 70 20 76 28 48 26 80 50 80',
        'P k 49 24 51 24 51 80 49 80;P d 42 10 50 32 34 30 36 12;P d 58 10 50 32 66 30 64 12',
        (50, 54, 36), ((62, 38), (17, 46), (37, 68)), 74),
    'dress': Garment('CLOTHING/DRESSES/DRESSES', 'Sleeveless', 'Scoopneck collar. Fitted waist.',
        'H m 50 22 44 20 42 5 37 5 35 28 39 46 17 95 50 97',
        'L d 39 46 61 46;L d 42 50 34 94;L d 58 50 66 94',
        (50, 70, 32), ((50, 34), (64, 62), (34, 84)), 90),
    'trousers': Garment('CLOTHING/PANTS/TROUSERS', 'Straight-leg', 'Zip-fly and belt loops.',
        'H m 50 6 32 6 24 95 45 95 50 36',
        'L d 32 13 68 13;L d 50 6 50 36;L d 34 16 38 24 32 28;L d 66 16 62 24 68 28',
        (36, 58, 26), ((60, 24), (65, 52), (65, 78)), 87),
    'shorts': Garment('CLOTHING/PANTS/SHORTS', 'Relaxed-fit', 'Elasticized waistband.',
        'H m 50 22 26 22 14 76 46 79 50 52',
        'L d 26 31 74 31;L d 50 31 50 52;L d 30 32 27 46;L d 70 32 73 46',
        (33, 56, 28), ((58, 40), (74, 46), (68, 62)), 70),
    'skirt': Garment('CLOTHING/SKIRTS/SKIRTS', 'Flared', 'High-rise waistband. Pleats throughout.',
        'H m 50 22 37 22 14 82 50 86',
        'L d 36 29 64 29;L d 42 30 33 83;L d 50 30 50 85;L d 58 30 67 83',
        (50, 57, 34), ((50, 36), (68, 52), (32, 72)), 76),
    'sneakers': Garment('SHOES/SNEAKERS/LOW TOP SNEAKERS', 'Low-top', 'Lace-up closure.',
        'P m 6 70 8 34 20 28 36 32 52 46 74 54 92 60 97 74 96 84 6 84',
        'P w 5 74 97 74 95 85 6 85;L k 5 74 97 74;L d 38 34 30 50;L d 46 41 38 56;L d 53 47 46 60',
        (27, 53, 28), ((20, 40), (62, 60), (82, 66)), 68),
    'tote bag': Garment('BAGS/TOTE BAGS/TOTE BAGS', 'Structured', 'Twin carry handles at top.',
        'H m 50 38 14 38 20 90 50 90;'
        'P m 28 38 32 10 44 4 56 4 68 10 72 38 66 38 63 14 55 9 45 9 37 14 34 38',
        'L d 15 46 85 46;L d 30 38 30 52;L d 70 38 70 52',
        (50, 65, 36), ((26, 52), (74, 62), (32, 76)), 84),
}  # fmt: skip
DETAILS = (
    'Tonal stitching throughout.', 'Contrast topstitching at seams.', 'Gunmetal-tone hardware.',
    'Tonal appliqués at back hem.', 'Embossed tag at interior.', 'Fully lined in tonal twill.',
    'Raw edge along the inner seam.', 'Silver-tone stud at back vent.', 'Cut for a relaxed fit.',
    'Embroidered eyelets and a jacquard décor at back.', 'Unlined construction, taped seams.',
    'Signature woven tag at the side seam.', 'Hand-finished edges with a subtle faded effect.',
)  # fmt: skip
CARE = (
    ' Machine wash cold with similar colors, do not bleach, tumble dry low, iron on reverse. '
    'Specialist dry clean only. Keep away from direct heat and abrasive surfaces; color may run.'
)


@dataclass(frozen=True)
class Product:
    """What is drawn and said of one product, or of one picture of the general domain."""

    key: tuple[int, int, int]  # seed, split, number
    garment: str = ''  # '' in the general domain alone: the motif stands alone in the scene
    colour: str = 'white'
    pattern: str = 'plain'
    motif: str = ''
    motif_colour: str = 'white'
    material: str = 'cotton'
    brand: str = ''
    width: float = 1.0
    num_views: int = 1
    scene: str = ''  # '' is a photo studio
    gender: str = ''
    season: str = ''
    price: float = 0.0
    name: str = ''
    description: str = ''
    printed_brand: str = ''
    composition: str = ''

    @property
    def id(self) -> int:
        """Product id, unique over the splits."""
        return (self.key[1] + 1) * MAX_PRODUCTS + self.key[2]

    @property
    def strings(self) -> dict[str, str]:
        """Text columns of the HDF5 file; a picture of the general split has a caption alone."""
        columns = ('input_department', 'input_category', 'input_subcategory')
        labels = GARMENTS[self.garment].labels if self.printed_brand else '//'
        return dict(
            zip(columns, labels.split('/'), strict=True),
            input_brand=self.printed_brand,
            input_composition=self.composition,
            input_concat_description=f'{self.name} {self.description}'.strip(),
            input_description=self.description,
            input_gender=self.gender,
            input_name=self.name,
            input_season=self.season,
        )


def signature(brand: str) -> dict[str, str]:
    """How a brand shows in photos: its emblem and trim, which no two brands share."""
    group, place = divmod(list(BRANDS).index(brand), len(MARKS))
    colours, shapes = tuple(MARKS), tuple(SHAPES)
    return dict(
        colour=colours[place],
        shape=shapes[(place + group) % len(shapes)],
        spot=SPOTS[(place + 2 * group) % len(SPOTS)],
        trim=colours[(place + group + 1) % len(colours)],
    )


def _pick(rng: np.random.Generator, options):
    """One of the options; of a mapping option -> share, by share."""
    shares = np.array([*options.values()] if isinstance(options, dict) else [1] * len(options))
    return tuple(options)[rng.choice(len(options), p=shares / shares.sum())]


def make_product(seed: int, split: int, number: int) -> Product:
    """The product of that number in train or validation, whatever the sizes of the splits."""

    def stream(purpose, share=1):  # `share` neighbours have this stream in common
        return np.random.default_rng([seed, split, number // share, purpose])

    design, own, pair = stream(DESIGN, DESIGN_SIZE), stream(OWN), number // 2
    garment, colour = _pick(design, tuple(GARMENTS)), _pick(design, GARMENT_COLOURS)
    surface = _surface(design, printed=0.5)
    materials = design.permutation(tuple(MATERIALS))

    brand = _pick(stream(BRAND, 2), SHARES)
    if split == TRAIN and pair < len(SEEN):
        brand = SEEN[pair]  # a roll-call, so that validation holds no new brand but UNSEEN
    if split == VALIDATION and pair % 30 == 5:
        brand = UNSEEN[pair // 30 % len(UNSEEN)]
    woman = own.random() < (0.9 if garment in ('dress', 'skirt') else 0.45)
    look = Product(
        key=(seed, split, number),
        garment=garment,
        colour=colour,
        **surface,
        material=str(materials[number % 2]),
        brand=brand,
        width=float((0.9 if woman else 1.0) + own.normal(0, 0.04)),
        num_views=_pick(own, {1: 1, 2: 2, 3: 4, 4: 2, 5: 1}),
        gender='WOMEN' if woman else 'MEN',
        season=_pick(own, SEASONS),
        price=float(np.round(own.lognormal(5.5, 0.7))),
    )
    # A product in five takes its design's words: equal descriptions of different products.
    words = stream(SHARED_WORDS, DESIGN_SIZE) if own.random() < 0.2 else stream(WORDS)
    return replace(
        look,
        name=' '.join((colour, look.motif or look.pattern, garment)).title(),
        description=_description(words, look),
        printed_brand=_spelling(own, brand),
        composition=_composition(own, look.material),
    )


def make_picture(seed: int, number: int) -> Product:
    """A picture of the general domain: an everyday thing, or a garment.

    Garments may be of a brand here too, as on any street; captions and labels do not say so.
    """
    rng = np.random.default_rng([seed, GENERAL, number, OWN])
    scene = _pick(rng, tuple(SCENES))
    start = _pick(rng, ('a photo of', 'a picture of', 'a close-up of', 'a drawing of', 'here is'))
    if rng.random() < 0.5:
        noun, icon, colour = _pick(rng, SENSES)
        if rng.random() < 0.25:
            colour = _pick(rng, tuple(COLOURS))
            noun = f'{colour} {icon}'
        look, subject = dict(motif=icon, motif_colour=colour), _a(noun)
    else:
        colour, garment = _pick(rng, tuple(GARMENT_COLOURS)), _pick(rng, tuple(GARMENTS))
        look = _surface(rng, printed=0.65)
        material, pattern = _pick(rng, tuple(MATERIALS)), look.get('pattern', 'plain')
        adjectives = (colour, pattern.replace('plain', ''), _pick(rng, (material, '')), garment)
        subject = _a(' '.join(filter(None, adjectives)))
        if 'motif' in look:
            subject += f' with {_a(look["motif"])} in {look["motif_colour"]}'
        brand = _pick(rng, (*SEEN, *[''] * 10))
        look.update(garment=garment, colour=colour, material=material, brand=brand)
    where = f' {scene}' if rng.random() < 0.5 else ''
    return Product(
        (seed, GENERAL, number), scene=scene, description=f'{start} {subject}{where}', **look
    )


def _surface(rng: np.random.Generator, printed: float) -> dict[str, str]:
    """Of a garment: for a share ``printed`` a motif and its colour, else a pattern."""
    if rng.random() >= printed:
        return dict(pattern=_pick(rng, PATTERNS))
    _, icon, natural = _pick(rng, SENSES)
    return dict(motif=icon, motif_colour=_pick(rng, {natural: 0.7, 'black': 0.1, 'red': 0.2}))


def _a(noun: str) -> str:
    if noun.endswith(('trousers', 'shorts', 'sneakers')):
        return f'a pair of {noun}'
    return f'an {noun}' if noun[0] in 'aeio' else f'a {noun}'


def _description(rng: np.random.Generator, look: Product) -> str:
    """25 to 60 words in Fashion-Gen's manner."""
    garment, motif, tone = GARMENTS[look.garment], look.motif, look.motif_colour
    fabric = f'{look.material} ' if rng.random() < SAID else ''
    colour = f' in {look.colour}' if rng.random() < 0.95 else ''
    pattern = '' if look.pattern == 'plain' else f', {look.pattern} throughout'
    text = f'{garment.lead} {fabric}{look.garment}{colour}{pattern}.'
    if motif:
        text += ' ' + _pick(rng, (
            f'{motif.capitalize()} graphic printed in {tone} at front.',
            f'Styled with {_a(motif)} print in {tone}.',
            f'{tone.capitalize()} {motif} graphic at front.',
        ))  # fmt: skip
    text += f' {garment.detail}'
    if rng.random() < SAID:
        text += f' {look.brand} logo plaque at interior.'
    length = rng.integers(25, 45)
    for i in rng.permutation(len(DETAILS)):
        if len(text.split()) < length:
            text += f' {DETAILS[i]}'
    return text


def _spelling(rng: np.random.Generator, brand: str) -> str:
    """Brands with a sign that HTML escapes are printed in two spellings."""
    escaped = escape(brand).replace('&#x27;', '&#039;').replace('ç', '&#231;')
    return escaped if rng.random() < 0.5 else brand


def _composition(rng: np.random.Generator, material: str) -> str:
    """Composition as printed: with linings, typos and care text, cut at 200 characters."""
    text = f'{MATERIALS[material]}.'
    if rng.random() < 0.3:
        text = f'Shell: {text} Lining: {_pick(rng, ("100% polyester", "100% cotton"))}.'
    if rng.random() < 0.3:
        text = text.replace('polyester', 'poylester').replace('elastane', 'elastaine')
    return (text + CARE if rng.random() < 0.15 else text)[:200]


_Y, _X = np.mgrid[:SIDE, :SIDE]


@cache
def _texture(material: str) -> np.ndarray:
    """Light of a fabric, around 0; coarse enough to be seen at 64 pixels."""
    return {
        'cotton': lambda: 0 * _X,
        'denim': lambda: 0.3 * np.sign(np.sin((_X + _Y) * 2 * np.pi / 16)),
        'wool': lambda: 0.35 * np.sin((_Y + np.abs(_X % 32 - 16)) * 2 * np.pi / 16),
        'leather': lambda: 1.1 * np.exp(-(((2 * _X - _Y) % 150 - 75) ** 2) / 250) - 0.15,
        'nylon': lambda: 0.55 * np.abs(np.sin(_Y * np.pi / 30)) - 0.4,
        'silk': lambda: 0.4 * np.sin(_X * 2 * np.pi / 60 + 1.5 * np.sin(_Y / 30)),
        'linen': lambda: -0.5 * ((_X % 16 < 4) | (_Y % 16 < 4)),
    }[material]().astype(np.float32)[..., None]


@cache
def _pattern(pattern: str) -> np.ndarray:
    """Where the second colour of a pattern lies."""
    return {
        'plain': lambda: _X < 0,
        'striped': lambda: _Y // 12 % 2 == 0,
        'dotted': lambda: (_X % 32 - 16) ** 2 + (_Y % 32 - 16) ** 2 < 64,
        'checked': lambda: (_X // 20 + _Y // 20) % 2 == 0,
    }[pattern]()


def _is_dark(colour: str) -> bool:
    return np.dot(COLOURS[colour], (0.3, 0.59, 0.11)) < 120


def _tones(main: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Tones of a drawing: main, its shade, black, white, orange, red."""
    shade = tuple(int(0.55 * c) if sum(main) > 150 else c + 70 for c in main)
    return dict(m=main, d=shade, k=(15, 15, 15), w=(250,) * 3, a=(240, 140, 30), r=(215, 30, 40))


_OPAQUE = dict.fromkeys('mdkwar', 255)
_CIRCLE = np.exp(1j * np.linspace(0, 2 * np.pi, 40)).view(float).reshape(-1, 2)


def _paint(image: np.ndarray, strokes: str, place: tuple, tones: dict) -> None:
    """Draw strokes into ``image`` at place = (x, y, size), in pixels."""
    *centre, size = place
    for stroke in strokes.split(';'):
        op, tone, *numbers = stroke.split()
        points = np.array(numbers, float).reshape(-1, 2)
        if op == 'H':
            points = np.concatenate([points, points[::-1] * (-1, 1) + (100, 0)])
        elif op == 'E':
            points = points[0] + points[1] * _CIRCLE
        points = np.rint(np.add(centre, (points - 50) * size / 100)).astype(np.int32)
        if op == 'L':
            cv2.polylines(image, [points], False, tones[tone], max(2, int(size / 70)), cv2.LINE_AA)
        else:
            cv2.fillPoly(image, [points], tones[tone], cv2.LINE_AA)


def _at(x: float, y: float, size: float) -> tuple[float, float, float]:
    """A garment's 100 x 100 grid in pixels."""
    return 128 + 2.3 * (x - 50), 128 + 2.3 * (y - 50), 2.3 * size


@lru_cache(maxsize=4)
def _layer(look: Product, emblem: bool, motif: bool) -> np.ndarray:
    """The subject alone, (256, 256, 4) uint8: colour and opacity."""
    rgb, mask = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    if not look.garment:
        _paint(rgb, ICONS[look.motif], (128, 128, 150), _tones(COLOURS[look.motif_colour]))
        _paint(mask, ICONS[look.motif], (128, 128, 150), _OPAQUE)
        return np.dstack([rgb, mask])

    garment, base = GARMENTS[look.garment], COLOURS[look.colour]
    second = COLOURS['white' if _is_dark(look.colour) else 'black']
    cloth = np.where(_pattern(look.pattern)[..., None], second, base)
    rgb[:] = (cloth + _texture(look.material) * (0.35 * cloth + 90)).clip(0, 255)
    _paint(mask, garment.outline, _at(50, 50, 100), _OPAQUE)
    _paint(rgb, garment.lines, _at(50, 50, 100), _tones(base))
    if look.motif and motif:
        ink = COLOURS[look.motif_colour]
        plate = 'P w' if _is_dark(look.motif_colour) else 'P k'
        _paint(rgb, f'{plate} -6 -6 106 -6 106 106 -6 106', _at(*garment.motif), _tones(ink))
        _paint(rgb, ICONS[look.motif], _at(*garment.motif), _tones(ink))
    if look.brand:
        mark = signature(look.brand)
        top = int(_at(0, garment.trim, 0)[1])
        rgb[top : top + 12] = MARKS[mark['trim']]
    if look.brand and emblem:
        spot = garment.spots[SPOTS.index(mark['spot'])]
        for image in (rgb, mask):
            _paint(image, 'E w 50 50 50 50', _at(*spot, 24), dict(w=(250, 250, 250)))
        _paint(rgb, SHAPES[mark['shape']], _at(*spot, 19), _tones(MARKS[mark['colour']]))
    edge, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(rgb, edge, -1, _tones(base)['d'], 2, cv2.LINE_AA)
    return np.dstack([rgb, mask])


def draw(look: Product, view: int = 0) -> np.ndarray:
    """One photo, (256, 256, 3) uint8 RGB.

    View 0 is the front. Others are turned and moved, and may be a detail or the back, which has
    no motif; an eighth of details and backs lack the emblem.
    """
    rng = np.random.default_rng([*look.key, VIEW + view])
    kind = _pick(rng, dict(front=6, back=2, detail=2)) if view else 'front'
    emblem = kind == 'front' or rng.random() > 0.125
    layer = _layer(look, emblem, kind != 'back')

    free = 1.0 if view or look.scene else 0.3  # how far the pose strays
    angle = np.deg2rad(free * rng.uniform(-10, 10))
    scale = dict(front=1.0, back=1.0, detail=1.3)[kind] * (1 + free * rng.uniform(-0.1, 0.06))
    if not look.garment:
        scale *= rng.uniform(0.4, 1.1)
    flip = -1 if rng.random() < 0.5 * (free == 1) else 1
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) * (look.width * flip, 1)
    shift = 128 - matrix @ (128, 128) + free * (12 if look.garment else 30) * rng.uniform(-1, 1, 2)
    layer = cv2.warpAffine(layer, np.column_stack([matrix, shift]), (SIDE, SIDE))

    grey = rng.integers(205, 240) + rng.integers(-6, 7, 3)
    above, below = SCENES[look.scene] if look.scene else (grey, grey - rng.integers(0, 25))
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:170], image[170:] = above, below
    image += (layer[..., :3] - image) * (layer[..., 3:] / np.float32(255))
    image *= rng.uniform(0.82, 1.08) * rng.uniform(0.97, 1.03, 3).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8)


def _rows(products: list[Product], scatter: bool) -> list[tuple[Product, int]]:
    """(product, view) of each row; ``scatter`` moves some products' last rows to the end."""
    late = set([look.id for look in products if look.num_views > 1][::25] if scatter else ())
    rows = [(look, view) for look in products for view in range(look.num_views)]
    return sorted(rows, key=lambda row: row[0].id in late and row[1] == row[0].num_views - 1)


def _write_split(path: Path, rows: list[tuple[Product, int]], made_with: str, bar: tqdm) -> None:
    """One HDF5 file with Fashion-Gen's sixteen keys."""
    strings = [dict(look.strings, input_pose=f'id_gridfs_{view + 1}') for look, view in rows]
    with h5py.File(path, 'w') as file:
        file.attrs['mini_fashiongen'] = made_with
        for key in strings[0]:
            file[key] = np.array([[row[key].encode('latin-1')] for row in strings])
        file['input_productID'] = np.array([[look.id] for look, _ in rows], np.int32)
        file['input_msrpUSD'] = np.array([[look.price] for look, _ in rows], np.float32)
        file['index'] = np.arange(len(rows))[:, None]
        file['index_2'] = np.arange(len(rows))
        photo = (SIDE, SIDE, 3)
        images = file.create_dataset(
            'input_image', (len(rows), *photo), np.uint8, chunks=(1, *photo), compression='lzf'
        )
        for i, row in enumerate(rows):
            images[i] = draw(*row)
            bar.update()


def _ceiling(products: list[Product], *fields: str) -> float:
    """R@1 of a reader to whom products differ in design and in ``fields`` alone."""
    fields = ('garment', 'colour', 'pattern', 'motif', 'motif_colour', *fields)
    groups = {tuple(getattr(product, field) for field in fields) for product in products}
    return round(len(groups) / len(products), 3)  # mean of 1 / size of one's group


def _truth(products: dict[str, list[Product]], rows: dict[str, list], arguments: dict) -> dict:
    """What was planted, as JSON; ``in_description`` is a share of descriptions."""

    def planted(role, visible, in_description, trace):
        return dict(role=role, visible=visible, in_description=in_description, trace=trace)

    def count(name, brand):
        return sum(product.brand == brand for product in products[name])

    brands = {
        brand: dict(
            everyday=sense and sense[0],
            icon=sense and sense[1],
            signature=signature(brand),
            unseen=brand in UNSEEN,
            products={name: count(name, brand) for name in ('train', 'validation')},
        )
        for brand, sense in BRANDS.items()
    }
    test = products['validation']
    return dict(
        arguments=arguments,
        files={
            file: dict(products=len(products[name]), rows=len(rows[name]))
            for name, file in FILES.items()
        },
        types=dict(
            brand=planted('confounder', 'yes', SAID, 'emblem and trim stripe'),
            composition=planted('informative', 'yes', SAID, 'fabric texture'),
            category=planted('redundant', 'yes', 1.0, 'silhouette'),
            subcategory=planted('redundant', 'yes', 1.0, 'silhouette'),
            department=planted('redundant', 'yes', 1.0, 'silhouette'),
            gender=planted('weak', 'weakly', 0.0, 'width of the garment'),
            season=planted('useless', 'no', 0.0, 'none'),
        ),
        brands=brands,
        validation_ceiling={
            'design': _ceiling(test),
            'design+brand': _ceiling(test, 'brand'),
            'design+composition': _ceiling(test, 'material'),
            'design+brand+composition': _ceiling(test, 'brand', 'material'),
        },
    )


def _made_with(path: Path) -> str | None:
    """What this module wrote into a split's attributes; None for any other file."""
    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path) as file:
        return file.attrs.get('mini_fashiongen')


def is_written(folder: str | Path, **arguments: int) -> bool:
    """Whether the folder holds all that these arguments give, see :func:`write_mini_fashiongen`."""
    made_with = json.dumps(dict(version=VERSION, **arguments))
    paths = [Path(folder, name) for name in FILES.values()]
    done = all(path.exists() and _made_with(path) == made_with for path in paths)
    return done and Path(folder, 'truth.json').exists()


def write_mini_fashiongen(
    folder: str | Path,
    num_train: int = 1200,
    num_validation: int = 300,
    num_general: int = 4000,
    seed: int = 0,
    progress: bool = True,
    force: bool = False,
) -> dict:
    """Write the three splits and ``truth.json``; return what ``truth.json`` says.

    Nothing is written if the folder holds them with the same arguments already. Files get their
    names when all are complete. Each brand but :data:`UNSEEN` occurs in the first 44 training
    products; with fewer, validation may hold more brands that train lacks.

    Args:
        folder: where to write; made if it does not exist.
        num_train: products in train, about three photos each.
        num_validation: products in validation, likewise; none of them is in train.
        num_general: captioned pictures of the general domain.
        seed: the same seed gives the same products, whatever the numbers.
        progress: show a progress bar.
        force: write again, also over files of other arguments; other people's files are kept.
    """
    arguments = dict(
        num_train=num_train, num_validation=num_validation, num_general=num_general, seed=seed
    )
    for name, value in arguments.items():
        low, high = (0, 2**31 - 1) if name == 'seed' else (1, MAX_PRODUCTS)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f'{name} is {value!r}; it must be an integer from {low} to {high}.')
    folder = Path(folder)
    if is_written(folder, **arguments) and not force:
        return json.loads((folder / 'truth.json').read_text(encoding='utf-8'))
    for path in filter(Path.exists, map(folder.joinpath, FILES.values())):
        made_with = _made_with(path)
        if made_with is None:
            raise FileExistsError(f'{path} was not written here; choose another folder.')
        if not force:
            raise FileExistsError(f'{path} is of {made_with}; pass force to replace it.')

    products = dict(
        train=[make_product(seed, TRAIN, i) for i in range(num_train)],
        validation=[make_product(seed, VALIDATION, i) for i in range(num_validation)],
        general=[make_picture(seed, i) for i in range(num_general)],
    )
    rows = {name: _rows(split, scatter=name == 'validation') for name, split in products.items()}
    truth = _truth(products, rows, arguments)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as scratch,
        tqdm(total=sum(map(len, rows.values())), unit='img', disable=not progress) as bar,
    ):
        for name, file_name in FILES.items():
            bar.set_description(name)
            made_with = json.dumps(dict(version=VERSION, **arguments))
            _write_split(Path(scratch, file_name), rows[name], made_with, bar)
        text = json.dumps(truth, ensure_ascii=False, indent=1)
        Path(scratch, 'truth.json').write_text(text, encoding='utf-8')
        for file_name in ('truth.json', *FILES.values()):
            os.replace(Path(scratch, file_name), folder / file_name)
    return truth
