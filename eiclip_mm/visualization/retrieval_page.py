"""What two models retrieve for the same queries, as one HTML file that needs no other.

The words around them are in ``retrieval_page.html``. Source: ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .product import Product, hues, render


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


def retrieval_page(page: Page) -> str:
    """The page as HTML: no script, nothing from outside; all text in it is escaped."""
    products = [asked.product for asked in page.shown]
    products += [item.product for asked in page.shown for side in asked.found for item in side]
    return render(
        'retrieval_page.html',
        page=page,
        bars=histogram(page.gain),
        hues=hues(set().union(*(product.types for product in products))),
        kinds=('photo', 'text') if page.direction == 'i2t' else ('text', 'photo'),
    )
