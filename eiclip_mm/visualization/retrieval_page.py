"""What two models retrieve for the same queries, as one HTML file that needs no other.

It takes plain data, so it knows neither data sets nor evaluation; the words around them are in
``retrieval_page.html``. Source: ours.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

SIDE = 96  # pixels of the longer side of a photo
HUE = 137.5  # degrees between the colours of two types, so that no two of a few come close


@dataclass(frozen=True, eq=False)
class Product:
    """A product as a reader sees it.

    Attributes:
        product_id: its number.
        text: the description.
        entities: its metadata, for each type the names.
        photo: JPEG, as :func:`thumbnail` makes it.
        mentions: names in the text, in order and without overlap: first character, the character
            after the last, and the entity types that the name belongs to.
    """

    product_id: int
    text: str
    entities: Mapping[str, Sequence[str]]
    photo: bytes
    mentions: Sequence[tuple[int, int, Sequence[str]]] = ()

    @cached_property
    def uri(self) -> str:
        """The photo, to stand in a page."""
        return 'data:image/jpeg;base64,' + base64.b64encode(self.photo).decode()

    @property
    def types(self) -> set[str]:
        """The entity types it shows."""
        mentioned = {type_ for *_, types in self.mentions for type_ in types}
        return mentioned | {type_ for type_, names in self.entities.items() if names}

    @property
    def pieces(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The text, cut at its mentions; types are empty for what is none."""
        done = 0
        for start, end, types in self.mentions:
            yield self.text[done:start], ()
            yield self.text[start:end], types
            done = end
        yield self.text[done:], ()


@dataclass(frozen=True, eq=False)
class Found:
    """An item that a model puts among the first, its score and whether it is the right one."""

    product: Product
    score: float
    right: bool


@dataclass(frozen=True, eq=False)
class Asked:
    """A query: its product, rank of the right item and first items, each under A and under B."""

    product: Product
    ranks: tuple[int, int]
    found: tuple[Sequence[Found], Sequence[Found]]


@dataclass(frozen=True, eq=False)
class Page:
    """What the page shows.

    Attributes:
        names: of the models A and B.
        direction: ``'t2i'``, texts ask for photos, or ``'i2t'``, photos ask for texts.
        ranks: (2, Q) integers from 1, the rank of the right item of every query under A and B.
        gallery: how many items a query is asked among.
        shown: the queries that are shown.
        picked: how they were picked, in words.
        protocol: name of the protocol that the ranks are taken under.
    """

    names: tuple[str, str]
    direction: str
    ranks: np.ndarray
    gallery: int
    shown: Sequence[Asked] = field(repr=False)
    picked: str
    protocol: str

    @property
    def gain(self) -> np.ndarray:
        """(Q,) places by which the right item stands further in front under B."""
        return self.ranks[0] - self.ranks[1]


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram: of which changes, in words and by sign, and how many queries."""

    label: str
    sign: int
    count: int


def histogram(gain: np.ndarray) -> list[Bar]:
    """How many queries moved by 1 to 9 places, by 10 to 99 and so on, best first.

    Args:
        gain: (Q,) integers, places gained; negative: lost.

    >>> [(bar.label, bar.count) for bar in histogram(np.array([12, 3, 0, 0, -1]))]
    [('+10 to 99', 1), ('+1 to 9', 1), ('0', 2), ('−1 to 9', 1), ('−10 to 99', 0)]
    """
    decades = len(str(np.abs(gain).max(initial=1)))
    edges = [(10**d, 10 ** (d + 1) - 1) for d in range(decades)]

    def bar(sign: int, low: int, high: int) -> Bar:
        count = int(((sign * gain >= low) & (sign * gain <= high)).sum())
        return Bar(f'{"+" if sign > 0 else "−"}{low:,} to {high:,}', sign, count)

    ups = [bar(1, *edge) for edge in reversed(edges)]
    downs = [bar(-1, *edge) for edge in edges]
    return [*ups, Bar('0', 0, int((gain == 0).sum())), *downs]


def thumbnail(pixels: np.ndarray) -> bytes:
    """A photo (height, width, 3) uint8 RGB as a small JPEG, its longer side at most ``SIDE``."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(file, 'JPEG', quality=80, optimize=True)
    return file.getvalue()


def retrieval_page(page: Page) -> str:
    """The page as HTML: no script, nothing from outside; all text in it is escaped."""
    products = [asked.product for asked in page.shown]
    products += [item.product for asked in page.shown for side in asked.found for item in side]
    types = sorted(set().union(*(product.types for product in products)))
    # Texts come from shops: whatever is put into the template is escaped.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = Path(__file__).with_suffix('.html').read_text(encoding='utf-8')
    return environment.from_string(template).render(
        page=page,
        bars=histogram(page.gain),
        hues={type_: round(number * HUE % 360) for number, type_ in enumerate(types)},
        kinds=('photo', 'text') if page.direction == 'i2t' else ('text', 'photo'),
    )
