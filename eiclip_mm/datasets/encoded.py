"""What a model sees of texts and metadata: of one product with its story, of many as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .matcher import Mention


@dataclass(frozen=True)
class Encoded:
    """What a model sees of a product's text and metadata.

    Attributes:
        text: (L,) int64 token ids, padded.
        entity_ids: (K, M) int64, 0 where there is none or it is unknown.
        text_id: 63-bit hash of the text: equal texts have equal ids.
        composed: the text that was encoded, for people.
        mentions: the names found in it.
        dropped: sub-words that did not fit into L.
    """

    text: np.ndarray
    entity_ids: np.ndarray
    text_id: int
    composed: str
    mentions: tuple[Mention, ...]
    dropped: int


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """What a model sees of T products, as arrays; row i is what a call gives for product i.

    Attributes:
        text: (T, L) int32 token ids, padded.
        length: (T,) int32, tokens up to and including the end token.
        entity_ids: (T, K, M) int32, 0 where there is none or it is unknown.
        text_id: (T,) int64 hash of the text: equal texts have equal ids.
    """

    text: np.ndarray
    length: np.ndarray
    entity_ids: np.ndarray
    text_id: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence['EncodedTexts'], row: Sequence[int]) -> 'EncodedTexts':
        """The rows of several, in the order of ``row`` (T,)."""
        whole = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)}
        rows = np.asarray(row, dtype=np.int64)
        return cls(**{name: column[rows] for name, column in whole.items()})
