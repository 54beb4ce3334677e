"""The engines of benchmark_search.py: each builds itself and gives back how it searches.

A function takes the catalogue, a folder of its own and the command line's arguments. It returns
``search(vector, asked, query) -> row numbers`` and ``size() -> bytes on disk``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

M, EF_BUILD, EF, K = 16, 200, 128, 10  # edges, candidates while building and searching, answers


def on_disk(folder: Path) -> int:
    """Bytes that files take; those with holes less than their length."""
    return sum(f.stat().st_blocks * 512 for f in folder.rglob('*') if f.is_file())


def exact(catalogue, folder: Path, args: argparse.Namespace):
    """One matrix product, of the rows that pass."""

    def search(query, asked, i):
        passing = catalogue.passing(asked, i)
        rows = slice(None) if passing is None else np.flatnonzero(passing)
        scores = catalogue.vectors[rows] @ query
        best = np.argsort(scores)[-K:] if len(scores) <= K else np.argpartition(scores, -K)[-K:]
        return best if passing is None else rows[best]

    return search, lambda: catalogue.vectors.nbytes


def qdrant_edge(catalogue, folder: Path, args: argparse.Namespace):
    """This package's index in a folder."""
    return catalogue_index(catalogue, folder / 'index'), lambda: on_disk(folder)


def qdrant_server(catalogue, folder: Path, args: argparse.Namespace):
    """This package's index on a server."""
    return catalogue_index(catalogue, args.qdrant), lambda: 0


def catalogue_index(catalogue, where: str | Path) -> Callable:
    """Our index, filled through its public methods."""
    from eiclip_mm.apis.index import CatalogueIndex, Condition

    index = CatalogueIndex.create(where, catalogue.vectors.shape[1], {})
    for start in range(0, len(catalogue.vectors), 1000):
        rows = range(start, min(start + 1000, len(catalogue.vectors)))
        payloads = [
            dict(
                entities=dict(brand=[f'b{catalogue.brand[r]}']),
                attributes=dict(category=f'c{catalogue.category[r]}', price=catalogue.price[r]),
            )
            for r in rows
        ]
        index.upsert([str(r) for r in rows], dict(image=catalogue.vectors[rows]), payloads)
    index.optimize()
    low, high = catalogue.prices

    def search(query, asked, i):
        where = {
            'all': [],
            'category': [Condition('category', '=', (f'c{catalogue.query_category[i]}',))],
            'rare brand': [Condition('brand', '=', (f'b{catalogue.rare}',))],
            'price range': [Condition('price', '>=', (low,)), Condition('price', '<', (high,))],
        }[asked]
        return [int(hit.id) for hit in index.search(query, 'image', K, where)]

    return search


def faiss(catalogue, folder: Path, args: argparse.Namespace):
    """HNSW in memory; a filter is a bitmap that the walk over the graph heeds."""
    import faiss as engine

    index = engine.IndexHNSWFlat(catalogue.vectors.shape[1], M, engine.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_BUILD
    index.add(catalogue.vectors)
    engine.write_index(index, str(folder / 'index'))
    engine.omp_set_num_threads(1)

    def search(query, asked, i):
        passing, options = catalogue.passing(asked, i), dict(efSearch=EF)
        if passing is not None:
            options['sel'] = engine.IDSelectorBatch(np.flatnonzero(passing))
        parameters = engine.SearchParametersHNSW(**options)
        rows = index.search(query[None], K, params=parameters)[1][0]
        return rows[rows >= 0]

    return search, lambda: on_disk(folder)


def lancedb(catalogue, folder: Path, args: argparse.Namespace):
    """IVF with HNSW of 8-bit codes in each list, looked at again in float32."""
    import lancedb as engine
    import pyarrow as pa

    dim = catalogue.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(catalogue.vectors.ravel(), dim)
    columns = {name: getattr(catalogue, name) for name in ('category', 'brand', 'price')}
    data = pa.table(dict(id=np.arange(len(vectors)), vector=vectors, **columns))
    made = engine.connect(str(folder)).create_table('items', data)
    made.create_index(
        metric='dot', index_type='IVF_HNSW_SQ', m=M, ef_construction=EF_BUILD, num_partitions=1
    )
    for name in columns:
        made.create_scalar_index(name)

    def search(query, asked, i):
        asking = made.search(query).distance_type('dot').ef(EF).refine_factor(5).limit(K)
        if where := catalogue.where(asked, i):
            asking = asking.where(where, prefilter=True)
        return asking.select(['id']).to_arrow()['id'].to_numpy()

    return search, lambda: on_disk(folder)


def milvus(catalogue, folder: Path, args: argparse.Namespace):
    """HNSW and indexes of the three columns, in a file or on a server."""
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(args.milvus or str(folder / 'milvus.db'))
    schema = client.create_schema(auto_id=False)
    schema.add_field('id', DataType.INT64, is_primary=True)
    schema.add_field('vector', DataType.FLOAT_VECTOR, dim=catalogue.vectors.shape[1])
    columns = dict(category=DataType.INT64, brand=DataType.INT64, price=DataType.DOUBLE)
    index = client.prepare_index_params()
    graph = dict(M=M, efConstruction=EF_BUILD)
    index.add_index('vector', index_type='HNSW', metric_type='IP', params=graph)
    for name, type_ in columns.items():
        schema.add_field(name, type_)
        index.add_index(name, index_type='STL_SORT' if args.milvus else 'INVERTED')
    if client.has_collection('items'):
        client.drop_collection('items')
    client.create_collection('items', schema=schema)
    for start in range(0, len(catalogue.vectors), 1000):
        rows = range(start, min(start + 1000, len(catalogue.vectors)))
        data = [
            dict(id=r, vector=catalogue.vectors[r].tolist())
            | {name: getattr(catalogue, name)[r].item() for name in columns}
            for r in rows
        ]
        client.insert('items', data)
    client.flush('items')
    client.create_index('items', index)
    client.load_collection('items')

    def search(query, asked, i):
        where, options = catalogue.where(asked, i, 'and').replace(' = ', ' == '), dict(ef=EF)
        hits = client.search(
            'items', [query.tolist()], filter=where, limit=K, search_params=dict(params=options)
        )
        return [hit['id'] for hit in hits[0]]

    return search, lambda: on_disk(folder)


def pgvector(catalogue, folder: Path, args: argparse.Namespace):
    """HNSW and b-trees; the walk goes on until enough rows pass (pgvector 0.8 or newer)."""
    import psycopg
    from pgvector.psycopg import register_vector

    base = psycopg.connect(args.postgres, autocommit=True)
    base.execute('CREATE EXTENSION IF NOT EXISTS vector')
    register_vector(base)
    dim = catalogue.vectors.shape[1]
    base.execute('DROP TABLE IF EXISTS items')
    columns = 'id int primary key, vector vector({}), category int, brand int, price float8'
    base.execute(f'CREATE TABLE items ({columns.format(dim)})')
    with base.cursor().copy('COPY items FROM STDIN (FORMAT BINARY)') as copy:
        copy.set_types(['int4', 'vector', 'int4', 'int4', 'float8'])
        for i, row in enumerate(catalogue.vectors):
            own = (getattr(catalogue, n)[i].item() for n in ('category', 'brand', 'price'))
            copy.write_row([i, row, *own])
    base.execute("SET maintenance_work_mem = '1GB'")
    base.execute(
        'CREATE INDEX ON items USING hnsw (vector vector_ip_ops) '
        f'WITH (m = {M}, ef_construction = {EF_BUILD})'
    )
    for name in ('category', 'brand', 'price'):
        base.execute(f'CREATE INDEX ON items ({name})')
    base.execute('VACUUM ANALYZE items')
    base.execute(f'SET hnsw.ef_search = {EF}')
    base.execute('SET hnsw.iterative_scan = relaxed_order')

    def search(query, asked, i):
        where = catalogue.where(asked, i)
        where = f'WHERE {where}' if where else ''
        # the conditions are our own
        order = f'SELECT id FROM items {where} ORDER BY vector <#> %s LIMIT {K}'  # nosec B608
        return [row[0] for row in base.execute(order, (query,)).fetchall()]

    size = "SELECT pg_total_relation_size('items')"
    return search, lambda: base.execute(size).fetchone()[0]
