"""A catalogue asked with words or with a photo."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .encoder import Encoder, Reading
from .index import CatalogueIndex, Condition, Hit
from .photos import Photo


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        reading: how the query was read, ``None`` of a photo.
        hits: best first.
    """

    reading: Reading | None
    hits: list[Hit]

    def to_dict(self) -> dict:
        """Plain JSON."""
        return asdict(self)


class CatalogueSearch:
    """A model and the index that it made.

    Args:
        encoder: what embeds queries.
        index: of the catalogue.

    Raises:
        ValueError: the index holds vectors of another checkpoint.
    """

    def __init__(self, encoder: Encoder, index: CatalogueIndex):
        check_same(encoder, index)
        self.encoder, self.index = encoder, index

    def text(
        self,
        query: str,
        k: int = 10,
        where: Sequence[Condition] = (),
        entities: bool = True,
        side: str = 'image',
    ) -> Answer:
        """The k products nearest to what a shopper writes.

        Args:
            query: words; the entities among them are found.
            k: how many; fewer come where fewer pass.
            where: conditions that all must hold, see :func:`~eiclip_mm.apis.parse_filters`.
            entities: ``False`` reads the words without the intervention.
            side: compared with photos, ``'image'``, or with texts, ``'product'``.

        Raises:
            TypeError: the query is no text.
            ValueError: it is empty, or see :meth:`CatalogueIndex.search`.
        """
        vector, reading = self.embed(query, entities)
        return Answer(reading, self.nearest(vector, k, where, side))

    def photo(
        self, photo: Photo, k: int = 10, where: Sequence[Condition] = (), side: str = 'image'
    ) -> Answer:
        """The k products nearest to a photo; see :meth:`text`.

        Raises:
            FileNotFoundError, ValueError, TypeError: see :func:`~eiclip_mm.apis.read_photo`.
        """
        vectors = np.asarray(self.encoder.encode_images(photo, output='numpy', progress=False))
        return Answer(None, self.nearest(vectors[0], k, where, side))

    def embed(self, query: str, entities: bool = True) -> tuple[np.ndarray, Reading]:
        """(D,) unit vector of a query, and how it was read; see :meth:`text`."""
        if not isinstance(query, str):
            raise TypeError(f'a query must be a str, got {type(query).__name__}.')
        if not query.strip():
            raise ValueError('the query is empty; give a word, or search by photo.')
        vectors, (reading,) = self.encoder.encode_and_explain(
            query, entities=entities, output='numpy', progress=False
        )
        return np.asarray(vectors)[0], reading

    def nearest(
        self,
        vector: np.ndarray,
        k: int = 10,
        where: Sequence[Condition] = (),
        side: str = 'image',
    ) -> list[Hit]:
        """The k products nearest to a unit vector (D,), best first; see :meth:`text`."""
        return self.index.search(vector, side, min(k, max(len(self.index), 1)), where)


def about(encoder: Encoder) -> dict:
    """What an index keeps of the model that made its vectors, plain JSON."""
    path = getattr(encoder, 'checkpoint', None)
    found = dict(model=encoder.name, sha256=encoder.sha256)
    return found | dict(checkpoint=os.path.abspath(path)) if path else found


def check_same(encoder: Encoder, index: CatalogueIndex) -> None:
    """Refuse a model that did not make the vectors of an index.

    Raises:
        ValueError: says which did.
    """
    made, asked = index.about, about(encoder)
    if made.get('sha256') != asked['sha256']:
        raise ValueError(
            f'the index was built with {made.get("model")} (sha256 '
            f'{str(made.get("sha256"))[:12]}), not with {asked["model"]} '
            f'({asked["sha256"][:12]}), whose vectors mean something else. Give that checkpoint, '
            'or build another index with this one.'
        )
