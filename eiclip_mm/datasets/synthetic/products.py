"""Products and pictures: what is drawn and said of each, taken from the tables by chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np

from .words import (
    BRAND,
    BRANDS,
    CARE,
    COLOURS,
    DESIGN,
    DESIGN_SIZE,
    DETAILS,
    GARMENT_COLOURS,
    GARMENTS,
    GENERAL,
    MARKS,
    MATERIALS,
    MAX_PRODUCTS,
    OWN,
    PATTERNS,
    SAID,
    SCENES,
    SEASONS,
    SEEN,
    SENSES,
    SHAPES,
    SHARED_WORDS,
    SHARES,
    SPOTS,
    TRAIN,
    UNSEEN,
    VALIDATION,
    WORDS,
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


def pick(rng: np.random.Generator, options: Mapping[Any, float] | Sequence) -> Any:
    """One of the options; of a mapping option -> share, by share."""
    shares = np.array([*options.values()] if isinstance(options, dict) else [1] * len(options))
    return tuple(options)[rng.choice(len(options), p=shares / shares.sum())]


def make_product(seed: int, split: int, number: int) -> Product:
    """The product of that number in train or validation, whatever the sizes of the splits."""

    # `share` neighbours have this stream in common
    def stream(purpose: int, share: int = 1) -> np.random.Generator:
        return np.random.default_rng([seed, split, number // share, purpose])

    design, own, pair = stream(DESIGN, DESIGN_SIZE), stream(OWN), number // 2
    garment, colour = pick(design, tuple(GARMENTS)), pick(design, GARMENT_COLOURS)
    surface = _surface(design, printed=0.5)
    materials = design.permutation(tuple(MATERIALS))

    brand = pick(stream(BRAND, 2), SHARES)
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
        num_views=pick(own, {1: 1, 2: 2, 3: 4, 4: 2, 5: 1}),
        gender='WOMEN' if woman else 'MEN',
        season=pick(own, SEASONS),
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
    scene = pick(rng, tuple(SCENES))
    start = pick(rng, ('a photo of', 'a picture of', 'a close-up of', 'a drawing of', 'here is'))
    if rng.random() < 0.5:
        noun, icon, colour = pick(rng, SENSES)
        if rng.random() < 0.25:
            colour = pick(rng, tuple(COLOURS))
            noun = f'{colour} {icon}'
        look, subject = dict(motif=icon, motif_colour=colour), _a(noun)
    else:
        colour, garment = pick(rng, tuple(GARMENT_COLOURS)), pick(rng, tuple(GARMENTS))
        look = _surface(rng, printed=0.65)
        material, pattern = pick(rng, tuple(MATERIALS)), look.get('pattern', 'plain')
        adjectives = (colour, pattern.replace('plain', ''), pick(rng, (material, '')), garment)
        subject = _a(' '.join(filter(None, adjectives)))
        if 'motif' in look:
            subject += f' with {_a(look["motif"])} in {look["motif_colour"]}'
        brand = pick(rng, (*SEEN, *[''] * 10))
        look.update(garment=garment, colour=colour, material=material, brand=brand)
    where = f' {scene}' if rng.random() < 0.5 else ''
    return Product(
        (seed, GENERAL, number), scene=scene, description=f'{start} {subject}{where}', **look
    )


def _surface(rng: np.random.Generator, printed: float) -> dict[str, str]:
    """Of a garment: for a share ``printed`` a motif and its colour, else a pattern."""
    if rng.random() >= printed:
        return dict(pattern=pick(rng, PATTERNS))
    _, icon, natural = pick(rng, SENSES)
    return dict(motif=icon, motif_colour=pick(rng, {natural: 0.7, 'black': 0.1, 'red': 0.2}))


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
        text += ' ' + pick(rng, (
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
        text = f'Shell: {text} Lining: {pick(rng, ("100% polyester", "100% cotton"))}.'
    if rng.random() < 0.3:
        text = text.replace('polyester', 'poylester').replace('elastane', 'elastaine')
    return (text + CARE if rng.random() < 0.15 else text)[:200]
