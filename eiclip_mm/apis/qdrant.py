"""Where points lie: Qdrant's engine in this process, on a folder, or a Qdrant server or cluster.

Two classes of the same methods, thin: what a point is and what a filter means stands in index.py
and filters.py.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from eiclip_mm.utils.whole_file import write_whole_text
from eiclip_mm.utils.whole_together import whole_folder

from .filters import NUMBERS, TEXTS

SIDES = ('image', 'product')
# recall@10 >= 0.98 at 100,000 x 512, measured: docs/scale.md; the threshold in KB of vectors
GRAPH: dict[str, Any] = dict(m=16, ef_construct=200, full_scan_threshold=10_000)
EF = 128  # candidates a search keeps
# bytes; the engine maps its files into memory, so a full disk kills the process: SIGBUS. Opening an
# index of one item took 79 MB of a tmpfs
FREE = 128 * 2**20
DAMAGED = 'index {} is damaged ({!s:.200}); build it anew.'
NOT_INSTALLED = "{} is not installed; an index needs pip install 'eiclip_mm[search]'."


def store_at(where: str | os.PathLike) -> 'Folder | Server':
    """The store that a folder or ``http(s)://host:port/collection`` names, not opened yet."""
    text = str(where)
    if not text.startswith(('http://', 'https://')):
        return Folder(where)
    url = urlsplit(text)
    name = url.path.strip('/')
    if not name or '/' in name:
        raise ValueError(f'{text} must name a collection: http://HOST:PORT/COLLECTION.')
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise ImportError(NOT_INSTALLED.format('qdrant-client')) from error
    client = QdrantClient(
        url=f'{url.scheme}://{url.netloc}',
        port=url.port or (443 if url.scheme == 'https' else 6333),
        api_key=os.environ.get('QDRANT_API_KEY'),
        timeout=60,
        check_compatibility=False,  # it warns; what fails is reported by what was called
    )
    return Server(client, name)


class Folder:
    """Points in a folder, ``points/`` beside ``index.json``; one process opens it at a time."""

    def __init__(self, where: str | os.PathLike):
        try:
            import qdrant_edge
        except ImportError as error:
            raise ImportError(NOT_INSTALLED.format('qdrant-edge-py')) from error
        self.models = qdrant_edge
        self.where = Path(where)
        self._meta, self._points = self.where / 'index.json', self.where / 'points'
        self._writing = threading.Lock()

    def create(self, dim: int, meta: Mapping) -> None:
        """An empty index of vectors of width ``dim``."""
        self._check_room()
        edge = self.models
        params = edge.EdgeVectorParams(size=dim, distance=edge.Distance.Dot)
        config = edge.EdgeConfig(
            vectors=dict.fromkeys(SIDES, params), hnsw_config=edge.HnswIndexConfig(**GRAPH)
        )
        with whole_folder(self.where) as part:  # one without index.json could not be opened
            (part / self._points.name).mkdir()
            edge.EdgeShard.create(str(part / self._points.name), config).close()
            text = json.dumps(meta, ensure_ascii=False, indent=1)
            (part / self._meta.name).write_text(text, encoding='utf-8')
        self._load()

    def open(self) -> None:
        """The index that is there."""
        if not self.where.exists():
            raise FileNotFoundError(
                f'index {self.where} does not exist; tools/search/build_index.py makes one.'
            )
        if not self._meta.is_file():
            raise ValueError(f'{self.where} is no index: it holds no index.json.')
        meta = self.meta()
        self._check_room()
        self._load()
        items = meta.pop('items', None)  # the engine passes over segments that lack a file
        if items not in (None, there := self.count()):
            self._shard.close()
            raise ValueError(DAMAGED.format(self.where, f'it has {there} of {items} items'))
        self._write(meta)

    def _load(self) -> None:
        try:
            self._shard: Any = self.models.EdgeShard.load(str(self._points))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the engine's panics are no Exceptions
            if 'WouldBlock' in str(error):
                raise ValueError(
                    f'index {self.where} is open elsewhere; close it there, or let several '
                    'processes share a Qdrant server: http://HOST:PORT/COLLECTION.'
                ) from error
            raise ValueError(DAMAGED.format(self.where, error)) from error

    def _check_room(self, more: int = 0) -> None:
        needed = FREE + more
        where = self.where.absolute()
        place = next(folder for folder in (where, *where.parents) if folder.exists())
        if (free := shutil.disk_usage(place).free) < needed:
            raise OSError(
                f'the disk of index {self.where} has {free / 2**20:.0f} MiB free, it needs '
                f'{needed / 2**20:.0f}; make room, or keep it on another disk. What it holds stays.'
            )

    def meta(self) -> dict:
        """What :meth:`create` and :meth:`add_meta` were given."""
        try:
            return dict(json.loads(self._meta.read_text(encoding='utf-8')))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(DAMAGED.format(self._meta, error)) from error

    def add_meta(self, more: Mapping) -> None:
        """Set these keys."""
        with self._writing:
            self._write(self.meta() | dict(more))

    def _write(self, meta: Mapping) -> None:
        write_whole_text(self._meta, json.dumps(meta, ensure_ascii=False, indent=1))

    def add_field(self, path: str, kind: str) -> None:
        """Let filters by a field be fast."""
        types = self.models.PayloadSchemaType
        schema = {TEXTS: types.Keyword, NUMBERS: types.Float}[kind]
        self._shard.update(self.models.UpdateOperation.create_field_index(path, schema))

    def upsert(self, points: Sequence[tuple[str, dict, dict]]) -> None:
        """Add or replace points: id, vectors by name, payload."""
        self._check_room()
        made = [self.models.Point(*point) for point in points]
        self._shard.update(self.models.UpdateOperation.upsert_points(made))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        self._shard.update(self.models.UpdateOperation.delete_points(list(ids)))

    def retrieve(self, ids: Sequence[str]) -> list:
        """Those of the points that are there."""
        return self._shard.retrieve(list(ids), True, False)

    def query(self, vector: np.ndarray, side: str, k: int, filter_: Any, exact: bool) -> list:
        """The k nearest, best first."""
        edge = self.models
        request = edge.SearchRequest(
            query=edge.Query.Nearest(vector, using=side),
            limit=k,
            filter=filter_,
            params=edge.SearchParams(exact=exact, hnsw_ef=max(EF, k)),
            with_payload=True,
        )
        return self._shard.search(request)

    def scroll(
        self, filter_: Any = None, limit: int = 1000, vectors: bool = False
    ) -> Iterator[list]:
        """All points, ``limit`` at a time."""
        offset, more = None, True
        while more:
            request = self.models.ScrollRequest(offset, limit, filter_, True, vectors)
            points, offset = self._shard.scroll(request)
            more = offset is not None
            yield points

    def count(self) -> int:
        """Of points."""
        return self._shard.count(self.models.CountRequest(exact=True))

    def facet(self, path: str, filter_: Any, limit: int) -> dict[str, int]:
        """How many points have each value of a text field, most frequent first."""
        request = self.models.FacetRequest(path, limit, True, filter_)
        return _counts(self._shard.facet(request).hits)

    def optimize(self) -> None:
        """Build the graphs of points that have none."""
        written = sum(p.stat().st_blocks * 512 for p in self._points.rglob('*') if p.is_file())
        self._check_room(written)  # segments are written anew beside the old ones
        self._shard.optimize()
        self._shard.flush()

    def close(self) -> None:
        """Write what is pending, and how many items there must be."""
        if self._shard is not None:
            self.add_meta(dict(items=self.count()))
            self._shard.flush()
            self._shard.close()
            self._shard = None


class Server:
    """Points in a collection of a Qdrant server or cluster, 1.16 or newer.

    Args:
        client: a ``qdrant_client.QdrantClient``.
        collection: its name.
    """

    def __init__(self, client: Any, collection: str):
        from qdrant_client import models

        self.models, self.client, self.collection = models, client, collection

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What a method of the client says of the collection."""
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        try:
            return getattr(self.client, method)(self.collection, *args, **kwargs)
        except ResponseHandlingException as error:
            raise ConnectionError(
                f'the Qdrant server of collection {self.collection!r} cannot be reached ({error}); '
                'is it running, and is the address right?'
            ) from error
        except UnexpectedResponse as error:
            if error.status_code not in (401, 403):
                raise
            raise PermissionError(
                'the Qdrant server refuses the key; set QDRANT_API_KEY to one that may use '
                f'collection {self.collection!r}.'
            ) from error

    def create(self, dim: int, meta: Mapping) -> None:
        """An empty index of vectors of width ``dim``."""
        if self._ask('collection_exists'):
            raise FileExistsError(f'collection {self.collection!r} is there; delete it or open it.')
        params = self.models.VectorParams(size=dim, distance=self.models.Distance.DOT)
        self._ask(
            'create_collection',
            vectors_config=dict.fromkeys(SIDES, params),
            hnsw_config=self.models.HnswConfigDiff(**GRAPH),
            metadata=dict(meta),
        )

    def open(self) -> None:
        """The index that is there."""
        if not self._ask('collection_exists'):
            raise FileNotFoundError(
                f'the server has no collection {self.collection!r}; '
                'tools/search/build_index.py makes one.'
            )

    def meta(self) -> dict:
        """What :meth:`create` and :meth:`add_meta` were given."""
        return self._ask('get_collection').config.metadata or {}

    def add_meta(self, more: Mapping) -> None:
        """Set these keys."""
        self._ask('update_collection', metadata=dict(more))

    def add_field(self, path: str, kind: str) -> None:
        """Let filters by a field be fast."""
        types = self.models.PayloadSchemaType
        schema = {TEXTS: types.KEYWORD, NUMBERS: types.FLOAT}[kind]
        self._ask('create_payload_index', path, schema, wait=True)

    def upsert(self, points: Sequence[tuple[str, dict, dict]]) -> None:
        """Add or replace points: id, vectors by name, payload."""
        make = self.models.PointStruct
        made = [
            make(id=id_, vector={side: row.tolist() for side, row in rows.items()}, payload=payload)
            for id_, rows, payload in points
        ]
        self._ask('upsert', made, wait=True)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        self._ask('delete', list(ids), wait=True)

    def retrieve(self, ids: Sequence[str]) -> list:
        """Those of the points that are there."""
        return self._ask('retrieve', list(ids))

    def query(self, vector: np.ndarray, side: str, k: int, filter_: Any, exact: bool) -> list:
        """The k nearest, best first."""
        params = self.models.SearchParams(exact=exact, hnsw_ef=max(EF, k))
        options = dict(using=side, limit=k, query_filter=filter_, search_params=params)
        return self._ask('query_points', vector.tolist(), **options).points

    def scroll(
        self, filter_: Any = None, limit: int = 1000, vectors: bool = False
    ) -> Iterator[list]:
        """All points, ``limit`` at a time."""
        offset, more = None, True
        while more:
            options = dict(limit=limit, offset=offset, with_vectors=vectors)
            points, offset = self._ask('scroll', filter_, **options)
            more = offset is not None
            yield points

    def count(self) -> int:
        """Of points."""
        return self._ask('count', exact=True).count

    def facet(self, path: str, filter_: Any, limit: int) -> dict[str, int]:
        """How many points have each value of a text field, most frequent first."""
        return _counts(self._ask('facet', path, filter_, limit, exact=True).hits)

    def optimize(self) -> None:
        """Wait until the server has built the graphs."""
        while self._ask('get_collection').status == 'yellow':
            time.sleep(0.5)

    def close(self) -> None:
        """Hang up."""
        self.client.close()


def _counts(hits: Sequence) -> dict[str, int]:
    """Without the values whose points were all deleted: the engine remembers them."""
    return {hit.value: hit.count for hit in hits if hit.count}
