"""One model's failures as one HTML file: what stands before the right item, and what it shares.

The words around the data are in ``gallery_page.html``. Source: ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from .product import Product, hues, render


@dataclass(frozen=True, eq=False)
class Candidate:
    """An item that was found.

    Attributes:
        product, score: whose item it is, and how alike it is to the query.
        rank: its place, from 1.
        right: whether it is the item that was asked for.
        shared: for each entity type of the query's product, whether this product shares a value;
            types that either has no value of are left out.
        alike: what makes it a near-duplicate of the right item, ``'text'`` or ``'photo'`` or both.
    """

    product: Product
    score: float
    rank: int
    right: bool
    shared: Mapping[str, bool] = field(default_factory=dict)
    alike: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Query:
    """A query, the first items found for it, and the right one if it is not among them."""

    product: Product
    rank: int
    found: Sequence[Candidate]
    group: str | None = None


@dataclass(frozen=True)
class Agreement:
    """How often a failure's first result shares an entity type with the right item.

    Attributes:
        type: the entity type.
        failures: those whose product has a value of the type.
        same: share of them whose first result shares one.
        chance: the same, were the first result any other product, each as likely.
    """

    type: str
    failures: int
    same: float
    chance: float


@dataclass(frozen=True)
class Group:
    """The queries of one value: how many, share whose first result is right, median rank."""

    name: str
    queries: int
    right: float
    median_rank: float


@dataclass(frozen=True, eq=False)
class Gallery:
    """What the page shows.

    Attributes:
        name: of the model.
        direction: ``'t2i'``, texts ask for photos, or ``'i2t'``, photos ask for texts.
        protocol: name of the protocol that ranks are taken under.
        queries, failures: how many there are, and how many find another item first.
        alike: of the failures, how many find first an item of a near-duplicate: by ``'text'``, by
            ``'photo'``, by ``'any'`` of both.
        agreements: by entity type.
        group_by, groups: the entity type whose values are told apart, if any, and its values.
        shown: the queries that are shown, those of a group one after the other.
        picked: how they were picked, in words.
    """

    name: str
    direction: str
    protocol: str
    queries: int
    failures: int
    alike: Mapping[str, int]
    agreements: Sequence[Agreement]
    shown: Sequence[Query]
    picked: str
    group_by: str | None = None
    groups: Sequence[Group] = ()


def gallery_page(gallery: Gallery) -> str:
    """The page as HTML: no script, nothing from outside; all text in it is escaped."""
    products = [query.product for query in gallery.shown]
    products += [item.product for query in gallery.shown for item in query.found]
    types = set().union(*(p.types for p in products), (a.type for a in gallery.agreements))
    return render(
        'gallery_page.html',
        gallery=gallery,
        sections=[(name, list(own)) for name, own in groupby(gallery.shown, lambda q: q.group)],
        hues=hues(types),
        kinds=('photo', 'text') if gallery.direction == 'i2t' else ('text', 'photo'),
    )
