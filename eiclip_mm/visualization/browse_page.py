"""Products as a model gets them, as one HTML file: photos, text, sub-words, entities.

The words around the data are in ``browse_page.html``. Source: ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .product import hues, marked, photo_uri, render


@dataclass(frozen=True)
class Token:
    """A token of a text: how it is written, the entity type it stands for, if it fits."""

    text: str
    type: str | None = None
    dropped: bool = False


@dataclass(frozen=True)
class Named:
    """An entity of a product.

    Attributes:
        type, name: as the metadata or the vocabulary print them.
        id: in the vocabulary; 0 is unknown.
        count: training products that have it.
        origin: ``'metadata'`` or ``'text'``.
        left_out: whether the model does not get it though the vocabulary has it.
    """

    type: str
    name: str
    id: int
    count: int
    origin: str
    left_out: bool = False


@dataclass(frozen=True, eq=False)
class ReadText:
    """A text as it is read: with its mentions, as tokens, with its entities."""

    text: str
    mentions: Sequence[tuple[int, int, Sequence[str]]]
    tokens: Sequence[Token]
    entities: Sequence[Named]

    @property
    def pieces(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The text, cut at its mentions."""
        return marked(self.text, self.mentions)

    @property
    def dropped(self) -> int:
        """How many tokens did not fit."""
        return sum(token.dropped for token in self.tokens)


@dataclass(frozen=True, eq=False)
class Browsed:
    """A product.

    Attributes:
        product_id: its number.
        photos: of each view two JPEGs: as it is stored, and as the pipeline gives it.
        views: how many views there are; no more than the first are shown.
        texts: its captions.
    """

    product_id: int
    photos: Sequence[tuple[bytes, bytes]]
    views: int
    texts: Sequence[ReadText]

    @property
    def uris(self) -> list[tuple[str, str]]:
        """The photos, to stand in a page."""
        return [(photo_uri(stored), photo_uri(sized)) for stored, sized in self.photos]


@dataclass(frozen=True)
class TypeCount:
    """An entity type over all texts of a split; shares are in [0, 1].

    Attributes:
        type, names: the type, and how many names the vocabulary has.
        given: share of texts whose product has it in its metadata.
        unknown: of these, with a name that the vocabulary lacks.
        mentioned: of these, with a name that stands in the text.
        reaches: share of texts with which the model gets an entity of the type.
    """

    type: str
    names: int
    given: float
    unknown: float
    mentioned: float
    reaches: float


@dataclass(frozen=True, eq=False)
class Browse:
    """What the page shows.

    Attributes:
        title: of what.
        steps: the pipeline, and how texts are read, each a name and what it says.
        products, photos, texts: how many the split has.
        limit: tokens of a text, the special ones included.
        truncated: texts that are longer.
        types: the entity types.
        shown: the products that are shown.
        picked: how they were picked, in words.
    """

    title: str
    steps: Sequence[tuple[str, str]]
    products: int
    photos: int
    texts: int
    limit: int
    truncated: int
    types: Sequence[TypeCount]
    shown: Sequence[Browsed]
    picked: str


def browse_page(browse: Browse) -> str:
    """The page as HTML: no script, nothing from outside; all text in it is escaped."""
    types = {row.type for row in browse.types}
    for product in browse.shown:
        for text in product.texts:
            types |= {entity.type for entity in text.entities}
    return render('browse_page.html', page=browse, hues=hues(types))
