"""A catalogue that can be searched: vectors and payloads of its items, in Qdrant.

Small catalogues are searched exactly; from some 10,000 items on :meth:`CatalogueIndex.optimize`
builds graphs. Filters keep their recall, since the engine scans the few items that pass a rare one.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import filters
from .filters import Condition, parse_filters
from .qdrant import SIDES, Folder, Server, store_at

__all__ = ['CatalogueIndex', 'Condition', 'Hit', 'parse_filters', 'recall_at_k']

FORMAT = 'eiclip_mm.index/1'
FIELDS = (filters.TEXTS, filters.NUMBERS)
BATCH = 2**18  # numbers of one side that are written at once: whole or not at all


@dataclass(frozen=True)
class Hit:
    """An item that was found: its id, its cosine with the query, what is known of it."""

    id: str
    score: float
    payload: dict


class CatalogueIndex:
    """The items of a catalogue, by vector and by what they are.

    An item is an id, up to two vectors (``'image'``, ``'product'``), and a payload, plain JSON:
    ``text_fields``, ``entities`` (names for each type), ``attributes``, ``photo``, ``digest``.
    Conditions name an entity type or an attribute. Use :meth:`create` or :meth:`open`; close it, or
    use it in a ``with`` block. What :meth:`upsert` and :meth:`delete` did is kept, also if the
    process is killed afterwards.

    ``location`` is a folder, which one process has open at a time (the engine runs in it), or
    ``http(s)://host:port/collection`` of a Qdrant server or cluster, which many share; a key for it
    is taken from the environment variable ``QDRANT_API_KEY``. It may also be a
    :class:`~eiclip_mm.apis.qdrant.Server` with a client of your own.
    """

    def __init__(self, store: Folder | Server):
        self._store = store
        meta = store.meta()
        if meta.get('format') != FORMAT:
            raise ValueError(
                f'no index of eiclip_mm: its format is {meta.get("format")!r}, not {FORMAT!r}.'
            )
        dim = meta.get('dim')
        if type(dim) is not int or dim < 1:  # True is an int
            raise ValueError(
                f'the index is damaged: the dim of its metadata must be a whole number of 1 or '
                f'more, got {dim!r}; build it anew.'
            )
        if not isinstance(meta.get('about'), dict):
            raise ValueError('the index is damaged: its metadata lacks "about"; build it anew.')
        self.dim: int = dim
        self._known = _known(meta)

    @classmethod
    def create(
        cls, location: str | os.PathLike | Server, dim: int, about: Mapping
    ) -> 'CatalogueIndex':
        """An empty index.

        Args:
            location: see the class.
            dim: D, width of the vectors.
            about: plain JSON that is kept with it, e.g. which checkpoint made the vectors.

        Raises:
            FileExistsError: something is there.
            OSError: the disk of a folder is full.
            ConnectionError, PermissionError: the server is not reached, or refuses the key.
        """
        if dim < 1:
            raise ValueError(f'dim must be at least 1, got {dim}.')
        store = location if isinstance(location, Server) else store_at(location)
        store.create(dim, dict(format=FORMAT, dim=dim, about=_plain(about, 'about')))
        return cls(store)

    @classmethod
    def open(cls, location: str | os.PathLike | Server) -> 'CatalogueIndex':
        """The index that is there.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: not an index, damaged, or open in another process.
            OSError: the disk of a folder is full.
            ConnectionError, PermissionError: the server is not reached, or refuses the key.
        """
        store = location if isinstance(location, Server) else store_at(location)
        store.open()
        try:
            return cls(store)
        except ValueError:
            store.close()
            raise

    @property
    def about(self) -> dict:
        """Plain JSON that is kept with the index; set it as a whole."""
        return self._store.meta()['about']

    @about.setter
    def about(self, about: Mapping) -> None:
        self._store.add_meta(dict(about=_plain(about, 'about')))

    def upsert(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, np.ndarray],
        payloads: Sequence[dict],
    ) -> None:
        """Add items, or replace those that are there.

        Args:
            ids: the shop's, n of them, each once.
            vectors: ``'image'`` and ``'product'``, (n, D) unit rows each; a row of NaN means that
                the item has none, as a side that is left out.
            payloads: n, see the class.

        Raises:
            ValueError: lengths that differ, an id twice, a row that is not unit, a payload that is
                no plain JSON; nothing is written then.
        """
        ids = _ids(ids)
        columns = {side: self._rows(side, rows, len(ids)) for side, rows in vectors.items()}
        if len(payloads) != len(ids):
            raise ValueError(f'{len(ids)} ids but {len(payloads)} payloads.')
        points = []
        for i, (id_, payload) in enumerate(zip(ids, payloads, strict=True)):
            own = {side: rows[i] for side, rows in columns.items() if not np.isnan(rows[i, 0])}
            stored = dict(id=id_, item=_plain(payload, f'payload of {id_!r}'))
            points.append((_point(id_), own, stored | filters.searchable(payload)))
        self._add_fields([point[2] for point in points])
        size = max(1, min(256, BATCH // self.dim))  # a server takes some 32 MB at once
        for start in range(0, len(points), size):
            self._store.upsert(points[start : start + size])

    def _rows(self, side: str, rows: np.ndarray, n: int) -> np.ndarray:
        """(n, D) float32, checked."""
        if side not in SIDES:
            raise ValueError(f'side {side!r} of vectors is not known; choose of {SIDES}.')
        rows = np.asarray(rows, dtype=np.float32)
        if rows.shape != (n, self.dim):
            raise ValueError(f'{side} vectors must be {(n, self.dim)}, got {rows.shape}.')
        norms = np.linalg.norm(rows, axis=1)
        wrong = ~(np.abs(norms - 1) < 1e-3) & ~np.isnan(rows).all(axis=1)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f'{side} vectors must be of length 1, row {i} is of length {norms[i]:.4g}; an item '
                'without one has a row of NaN.'
            )
        return rows

    def _add_fields(self, stored: Sequence[dict]) -> None:
        """Index fields that are new, before their first point, so that graphs know them."""
        found = {
            (kind, field)
            for point in stored
            for kind in (filters.TEXTS, filters.NUMBERS)
            for field in point[kind]
        }
        for kind, field in sorted(found):
            if kind not in self._known.get(field, ()):
                self._store.add_field(filters.path(kind, field), kind)
                self._store.add_meta({filters.path(kind, field): [kind, field]})
                self._known.setdefault(field, set()).add(kind)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items; how many of them were there."""
        there = [_point(id_) for id_ in self.get(ids)]
        if there:
            self._store.delete(there)
        return len(there)

    def get(self, ids: Sequence[str]) -> dict[str, dict]:
        """Payloads of those of the items that are there, by id."""
        ids = _listed(ids)
        found = self._store.retrieve([_point(id_) for id_ in dict.fromkeys(ids)]) if ids else []
        payloads = {point.payload['id']: point.payload['item'] for point in found}
        return {id_: payloads[id_] for id_ in ids if id_ in payloads}

    def search(
        self,
        vector: np.ndarray,
        side: str = 'image',
        k: int = 10,
        where: Sequence[Condition] = (),
        exact: bool = False,
    ) -> list[Hit]:
        """The k items whose vectors are nearest, best first; fewer if fewer pass.

        Args:
            vector: (D,) of unit length.
            side: ``'image'`` or ``'product'``: what of an item is compared. Items without it are
                not found.
            k: how many.
            where: conditions that all must hold.
            exact: compare with every item that passes, as the reference of the graph.

        Raises:
            ValueError: a vector, side or k that cannot be, a field that no item has, a number asked
                of texts.
        """
        vector = np.asarray(vector)
        if vector.shape != (self.dim,):
            raise ValueError(f'a query must be a vector ({self.dim},), got {vector.shape}.')
        if np.isnan(vector).all():
            raise ValueError('a query must be a unit vector, got NaN.')
        row = self._rows(side, vector[None], 1)[0]
        if k < 1:
            raise ValueError(f'k must be at least 1, got {k}.')
        hits = self._store.query(row, side, k, self._filter(where), exact)
        return [Hit(hit.payload['id'], float(hit.score), hit.payload['item']) for hit in hits]

    def facets(
        self, field: str, where: Sequence[Condition] = (), limit: int = 20
    ) -> dict[str, int]:
        """How many items have each value of a field of texts, most frequent first.

        Values that differ in case or spelling alone are one, printed as one of the items has it.
        """
        if limit < 1:
            raise ValueError(f'limit must be at least 1, got {limit}.')
        self._filter([Condition(field, '=', ('0',))])  # says which fields there are
        if filters.TEXTS not in self._known[field]:
            raise ValueError(f'{field!r} is a number; values are counted of texts.')
        path = filters.path(filters.TEXTS, field)
        counts = self._store.facet(path, self._filter(where), limit)
        return {self._spelling(field, text, where): n for text, n in counts.items()}

    def _spelling(self, field: str, text: str, where: Sequence[Condition]) -> str:
        one = self._filter([*where, Condition(field, '=', (text,))])
        points = next(self._store.scroll(one, limit=1))
        return filters.spelling(points[0].payload['item'], field, text) if points else text

    def scan(
        self, with_vectors: bool = False, batch_size: int = 1000
    ) -> Iterator[tuple[list[str], dict[str, np.ndarray], list[dict]]]:
        """All items, in batches of what :meth:`upsert` takes: ids, vectors, payloads.

        Without ``with_vectors`` the vectors are an empty dict.
        """
        for points in self._store.scroll(limit=batch_size, vectors=with_vectors):
            vectors = {}
            for side in SIDES if with_vectors else ():
                none = [np.nan] * self.dim
                rows = [(point.vector or {}).get(side, none) for point in points]
                vectors[side] = np.asarray(rows, dtype=np.float32).reshape(-1, self.dim)
            stored = [point.payload for point in points]
            yield [s['id'] for s in stored], vectors, [s['item'] for s in stored]

    def optimize(self) -> None:
        """Build the graphs of items that have none: after many were added, for speed alone.

        Until then they are compared one by one, which is exact. Of a server, wait until it has.
        """
        self._store.optimize()

    def _filter(self, where: Sequence[Condition]) -> Any:
        if any(condition.field not in self._known for condition in where):
            self._known = _known(self._store.meta())  # others may have added it
        return filters.build(where, self._known, self._store.models)

    def __len__(self) -> int:
        return self._store.count()

    def close(self) -> None:
        """Write what is pending and let go of the folder or server."""
        self._store.close()

    def __enter__(self) -> 'CatalogueIndex':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def recall_at_k(
    index: CatalogueIndex,
    vectors: np.ndarray,
    where: Sequence[Condition] = (),
    k: int = 10,
    side: str = 'image',
) -> float:
    """Share of the k nearest items that a search finds, mean over queries (n, D).

    Items as near as the k-th count as right, since catalogues hold copies. 1.0 if nothing passes.
    """
    shares = []
    for vector in vectors:
        right = index.search(vector, side, k, where, exact=True)
        if right:
            found = index.search(vector, side, k, where)
            shares.append(sum(h.score >= right[-1].score - 1e-6 for h in found) / len(right))
    return float(np.mean(shares)) if shares else 1.0


def _known(meta: Mapping) -> dict[str, set[str]]:
    """What each field holds, as :meth:`CatalogueIndex._add_fields` noted it."""
    known: dict[str, set[str]] = {}
    for name, value in meta.items():
        if name.startswith((filters.TEXTS, filters.NUMBERS)):
            kind, field = value if isinstance(value, list) and len(value) == 2 else (None, None)
            if kind not in FIELDS or not isinstance(field, str):
                raise ValueError(f'the index is damaged: its field {name!r:.80}; build it anew.')
            known.setdefault(field, set()).add(kind)
    return known


def _point(id_: str) -> str:
    """Qdrant's id of an item: it takes UUIDs or integers only."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, id_))


def _ids(ids: Sequence[str]) -> list[str]:
    ids = _listed(ids)
    wrong = [id_ for id_ in ids if not isinstance(id_, str) or not id_]
    if wrong:
        raise ValueError(f'ids must be texts, got {wrong[0]!r}.')
    if len(set(ids)) < len(ids):
        twice = next(id_ for i, id_ in enumerate(ids) if id_ in ids[:i])
        raise ValueError(f'id {twice!r} is given twice; an item has one row.')
    return ids


def _listed(ids: str | Sequence[str]) -> list[str]:
    return [ids] if isinstance(ids, str) else list(ids)


def _plain(data: Mapping, name: str) -> dict:
    try:
        return json.loads(json.dumps(data, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name} must be plain JSON: {error}.') from error
