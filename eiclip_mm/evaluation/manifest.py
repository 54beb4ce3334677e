"""Which candidates each query has, kept in a file: the same lists for every model, for ever."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from eiclip_mm.utils.untrusted import shown
from eiclip_mm.utils.whole_file import whole_file

from .embeddings import Embeddings
from .files import UNREADABLE, integers, json_object, npz_path
from .npz import open_npz

DIRECTIONS = ('i2t', 't2i')


@dataclass(frozen=True, eq=False)
class Manifest:
    """The candidates of every query, by product id and number of the view or caption.

    Attributes:
        i2t_query: (Q, 2) product id and view of each image that is asked.
        i2t_candidates: (Q, C, 2) product id and caption of its candidates, the right one first;
            -1 fills lists that are shorter.
        t2i_query: (Q', 2) product id and caption of each text that is asked.
        t2i_candidates: (Q', C', 2) product id and view.
        origin: what it was drawn from, as plain JSON.
    """

    i2t_query: np.ndarray
    i2t_candidates: np.ndarray
    t2i_query: np.ndarray
    t2i_candidates: np.ndarray
    origin: dict

    def __post_init__(self) -> None:
        for direction in DIRECTIONS:
            query, listed = (getattr(self, f'{direction}_{n}') for n in ('query', 'candidates'))
            fits = query.ndim == 2 and listed.ndim == 3 and len(query) == len(listed)
            if not fits or query.shape[-1] != 2 or listed.shape[-1] != 2 or not len(query):
                raise ValueError(
                    f'{direction}_query must be (Q, 2) and {direction}_candidates (Q, C, 2) with '
                    f'one query or more, got {query.shape} and {listed.shape}'
                )
            if query.dtype.kind not in 'iu' or listed.dtype.kind not in 'iu':
                raise ValueError(
                    f'{direction}_query and {direction}_candidates must be integers, got '
                    f'{query.dtype} and {listed.dtype}'
                )
            empty = (listed[:, :, 1] >= 0).sum(1) == 0
            if empty.any():
                raise ValueError(
                    f'{int(empty.sum())} of {len(query)} {direction} queries have an empty list '
                    f'of candidates, first that of (product, number) {query[empty][0].tolist()}'
                )
            wrong = (query[:, 1] < 0) | (listed[:, 0, 1] < 0) | (query != listed[:, 0])[:, 0]
            if wrong.any():
                raise ValueError(
                    f'the first candidate of a query must be the right one, of the same product; '
                    f'{int(wrong.sum())} of {len(query)} {direction} queries have another, first '
                    f'(product, number) {query[wrong][0].tolist()} with '
                    f'{listed[wrong][0, 0].tolist()}'
                )

    @property
    def hash(self) -> str:
        """The first 16 hex digits of a SHA-256 of all lists: equal lists, equal hash."""
        digest = hashlib.sha256()
        for direction in DIRECTIONS:
            for part in ('query', 'candidates'):
                array = np.ascontiguousarray(getattr(self, f'{direction}_{part}'), dtype='<i8')
                digest.update(repr(array.shape).encode())
                digest.update(array.data)
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the arrays of the class to a compressed .npz."""
        path = npz_path(path, 'manifests')
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez_compressed(
                file,
                i2t_query=self.i2t_query,
                i2t_candidates=self.i2t_candidates,
                t2i_query=self.t2i_query,
                t2i_candidates=self.t2i_candidates,
                origin=np.array(json.dumps(self.origin)),
            )

    @classmethod
    def load(cls, path: str | Path) -> 'Manifest':
        """Read what :meth:`save` wrote, or lists made elsewhere; ``origin`` may be missing."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'manifest {path} does not exist; write one with report.py --save-manifests DIR'
            )
        names = [f'{d}_{part}' for d in DIRECTIONS for part in ('query', 'candidates')]
        try:
            with open(path, 'rb') as file, open_npz(file) as stored:
                arrays = {name: integers(name, stored[name]) for name in names}
                origin = json_object('origin', stored['origin']) if 'origin' in stored else {}
            return cls(**arrays, origin=origin)
        except UNREADABLE as error:
            raise ValueError(
                f'{path} is not a manifest with {names}: {shown(error, 500)}'
            ) from error

    def lists(self, embeddings: Embeddings) -> 'Lists':
        """The same by rows of these embeddings.

        Raises:
            ValueError: the manifest names products, views or captions that the embeddings lack.
        """
        images = _row_of(embeddings.image_product_id, embeddings.image_view)
        texts = _row_of(embeddings.product_id, embeddings.product_caption)
        return Lists(
            i2t_query=images(self.i2t_query, 'i2t queries (product, view)'),
            i2t=texts(self.i2t_candidates, 'i2t candidates (product, caption)'),
            t2i_query=texts(self.t2i_query, 't2i queries (product, caption)'),
            t2i=images(self.t2i_candidates, 't2i candidates (product, view)'),
        )


@dataclass(frozen=True, eq=False)
class Lists:
    """A :class:`Manifest` by rows of some embeddings: (Q,), (Q, C), (Q',) and (Q', C') int64."""

    i2t_query: np.ndarray
    i2t: np.ndarray
    t2i_query: np.ndarray
    t2i: np.ndarray

    def manifest(self, embeddings: Embeddings, origin: dict) -> Manifest:
        """The lists by product ids."""

        def names(ids: Tensor, numbers: Tensor) -> np.ndarray:  # one more row, which -1 finds
            return np.pad(
                np.stack([ids.cpu(), numbers.cpu()], 1), [(0, 1), (0, 0)], constant_values=-1
            )

        images = names(embeddings.image_product_id, embeddings.image_view)
        texts = names(embeddings.product_id, embeddings.product_caption)
        return Manifest(
            i2t_query=images[self.i2t_query],
            i2t_candidates=texts[self.i2t],
            t2i_query=texts[self.t2i_query],
            t2i_candidates=images[self.t2i],
            origin=origin,
        )


def _row_of(ids: Tensor, numbers: Tensor) -> Callable[[np.ndarray, str], np.ndarray]:
    """A function from (..., 2) pairs of id and number to their rows, -1 for pairs of number -1."""
    known_ids, id_rank = np.unique(ids.cpu().numpy(), return_inverse=True)
    known_numbers, number_rank = np.unique(numbers.cpu().numpy(), return_inverse=True)
    keys = id_rank * len(known_numbers) + number_rank  # of ranks: numbers may be of any size
    order = keys.argsort()
    keys = keys[order]

    def rows(pairs: np.ndarray, what: str) -> np.ndarray:
        id_, number = pairs[..., 0], pairs[..., 1]
        id_place = np.searchsorted(known_ids, id_).clip(max=len(known_ids) - 1)
        place = np.searchsorted(known_numbers, number).clip(max=len(known_numbers) - 1)
        wanted = id_place * len(known_numbers) + place
        found = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        known = (known_ids[id_place] == id_) & (known_numbers[place] == number)
        known &= keys[found] == wanted
        lost = pairs[~known & (number >= 0)]
        if len(lost):
            raise ValueError(
                f'the manifest is of another split: {len(lost)} of its {what} are not in the '
                f'embeddings, e.g. {lost[:3].tolist()}'
            )
        return np.where(number < 0, -1, order[found])

    return rows
