"""The index of a catalogue: one suite over a folder, qdrant-client's local mode, and a server."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest

pytest.importorskip('qdrant_edge', reason="needs pip install 'eiclip_mm[search]'")
pytest.importorskip('qdrant_client', reason="needs pip install 'eiclip_mm[search]'")

from qdrant_client import QdrantClient

from eiclip_mm.apis import qdrant
from eiclip_mm.apis.index import CatalogueIndex, Condition, parse_filters, recall_at_k
from eiclip_mm.apis.qdrant import Server, store_at

URL = os.environ.get('EICLIP_QDRANT_URL', '')
D = 8
pytestmark = [
    pytest.mark.filterwarnings('ignore:Payload indexes have no effect in the local Qdrant'),
    pytest.mark.filterwarnings('ignore:Local mode performs exact'),
]


@pytest.fixture(params=['folder', 'local', 'server'])
def where(request, tmp_path):
    """Makes what ``create`` and ``open`` take; a second call names the same index."""
    if request.param == 'folder':
        yield lambda: tmp_path / 'shop'
    elif request.param == 'local':
        yield lambda: Server(QdrantClient(path=str(tmp_path / 'shop')), 'shop')
    elif not URL:
        pytest.skip('needs a Qdrant server: EICLIP_QDRANT_URL=http://HOST:PORT')
    else:
        address = f'{URL}/eiclip-test-{uuid.uuid4().hex}'
        yield lambda: address
        store = store_at(address)
        store.client.delete_collection(store.collection)
        store.close()


def unit(n: int, dim: int = D, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


BRANDS = (['Levi&#039;s'], ["LEVI'S", 'Puma'], ['Golden Goose'], [])


def payload(i: int) -> dict:
    """Item i: 4 ways to have brands, prices 0 to 59, every fifth new, a size of either kind."""
    return dict(
        text_fields=dict(description=f'item {i}'),
        entities={'brand': BRANDS[i % 4], 'base colour': ['Red', 'Blue'][i % 2 :][:1]},
        attributes=dict(price=i, new=i % 5 == 0, size=[42, 'M'][i % 2], note=None),
        photo=None,
        digest=f'{i:x}',
    )


N = 60
IDS = [f'sku-{i}' for i in range(N)]
IMAGE, PRODUCT = unit(N), unit(N, seed=1)
WITH_PHOTO = [i for i in range(N) if i % 3]


def filled(where) -> CatalogueIndex:
    image = IMAGE.copy()
    image[::3] = np.nan
    index = CatalogueIndex.create(where, D, dict(model='m'))
    index.upsert(IDS, dict(image=image, product=PRODUCT), [payload(i) for i in range(N)])
    return index


CONDITIONS = [
    ([], lambda i: True),
    (["brand=levi's"], lambda i: i % 4 in (0, 1)),
    (['brand=PUMA,golden  goose'], lambda i: i % 4 in (1, 2)),
    (['brand!=Puma'], lambda i: i % 4 != 1),
    (['base colour=red', 'price<31'], lambda i: i % 2 == 0 and i < 31),
    (['price>=10', 'price<=20'], lambda i: 10 <= i <= 20),
    (['price>10', 'price<20'], lambda i: 10 < i < 20),
    (['price=7,9,11.5'], lambda i: i in (7, 9)),
    (['price!=7'], lambda i: i != 7),
    (['new=true'], lambda i: i % 5 == 0),
    (['size=m'], lambda i: i % 2 == 1),
    (['size=42.0'], lambda i: i % 2 == 0),
    (['size=m,42'], lambda i: True),
    (['price>1000'], lambda i: False),
]


def test_search_finds_what_a_loop_finds(where):
    query = unit(1, seed=2)[0]
    with filled(where()) as index:
        for texts, passes in CONDITIONS:
            for side, rows, there in (
                ('image', IMAGE, WITH_PHOTO),
                ('product', PRODUCT, range(N)),
            ):
                scores = {IDS[i]: float(rows[i] @ query) for i in there if passes(i)}
                right = sorted(scores, key=scores.get, reverse=True)[:7]
                for exact in (False, True):
                    hits = index.search(query, side, 7, parse_filters(texts), exact)
                    assert [hit.id for hit in hits] == right, (texts, side)
                    for hit in hits:
                        assert hit.score == pytest.approx(scores[hit.id], abs=1e-5)
                        assert hit.payload == payload(IDS.index(hit.id))


def test_facets_count_names_in_any_spelling(where):
    with filled(where()) as index:
        found = index.facets('brand')
        assert list(found.values()) == [30, 15, 15]  # Levi's in two spellings
        assert {name.upper().replace('&#039;', "'") for name in found} == {
            "LEVI'S",
            'PUMA',
            'GOLDEN GOOSE',
        }
        assert index.facets('brand', limit=1) == dict([next(iter(found.items()))])
        few = parse_filters(['price<10', 'brand!=golden goose'])
        counts = Counter(
            name for i in range(10) if i % 4 != 2 for name in payload(i)['entities']['base colour']
        )
        assert index.facets('base colour', few) == dict(counts)
        assert index.facets('new') == {'False': 48, 'True': 12}
        assert index.facets('brand', parse_filters(['price>1000'])) == {}
        with pytest.raises(ValueError, match="'price' is a number"):
            index.facets('price')
        with pytest.raises(ValueError, match='limit must be at least 1, got 0'):
            index.facets('brand', limit=0)


def test_facets_forget_what_was_deleted(where):
    with filled(where()) as index:
        index.delete([id_ for i, id_ in enumerate(IDS) if i % 4 == 2])
        assert list(index.facets('brand').values()) == [30, 15]  # no Golden Goose
        index.delete(IDS)
        assert index.facets('brand') == {}


def test_two_threads_write(tmp_path):
    """Each adds a field a call: what the index notes of them is read, changed and written."""
    failed = []

    def write(who: int) -> None:
        try:
            for i in range(15):
                known = dict(attributes={f'field {who} {i}': 'x'})
                index.upsert([f'{who}-{i}'], dict(image=IMAGE[:1]), [known])
        except BaseException as error:
            failed.append(error)

    with CatalogueIndex.create(tmp_path / 'shop', D, {}) as index:
        threads = [threading.Thread(target=write, args=(who,)) for who in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    with CatalogueIndex.open(tmp_path / 'shop') as index:
        assert len(index) == 30
        assert all(index.facets(f'field {w} {i}') == {'x': 1} for w in range(2) for i in range(15))


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    filled(tmp_path / 'shop').close()
    monkeypatch.setattr(qdrant, 'FREE', 2**60)  # more than any disk has
    with pytest.raises(OSError, match=r'the disk of index .*shop has \d+ MiB free.*make room'):
        CatalogueIndex.open(tmp_path / 'shop')
    with pytest.raises(OSError, match='make room'):
        CatalogueIndex.create(tmp_path / 'a/new', D, {})
    assert not (tmp_path / 'a').exists()


def test_update_and_delete(where):
    with filled(where()) as index:
        new = payload(3) | dict(entities=dict(brand=['Diesel'], material=['wool']))
        index.upsert(['sku-3', 'sku-60'], dict(product=unit(2, seed=3)), [new, payload(60)])
        assert len(index) == 61
        assert index.get(['sku-60', 'nowhere', 'sku-3', 'sku-3']) == {
            'sku-60': payload(60),
            'sku-3': new,
        }
        assert [hit.id for hit in index.search(IMAGE[0], k=61)].count('sku-3') == 0  # photo is gone
        wool = parse_filters(['material=Wool'])
        assert [hit.id for hit in index.search(IMAGE[0], 'product', 9, wool)] == ['sku-3']
        assert index.delete(['sku-3', 'sku-5', 'sku-5', 'nowhere']) == 2
        assert len(index) == 59 and index.get(['sku-3', 'sku-5']) == {}
        assert index.search(IMAGE[0], 'product', 9, wool) == []
        assert index.delete([]) == 0 and index.get([]) == {}
        index.upsert([], {}, [])
        assert len(index) == 59


def test_a_reopened_index_is_the_same(where):
    query, condition = unit(1, seed=2)[0], parse_filters(['brand=puma'])
    with filled(where()) as index:
        index.about = dict(model='n', more=[1, None])
        index.optimize()
        before = index.search(query, 'product', 9, condition)
    assert len(before) == 9
    with CatalogueIndex.open(where()) as index:
        assert index.about == dict(model='n', more=[1, None]) and index.dim == D
        assert index.search(query, 'product', 9, condition) == before and len(index) == N
        index.upsert(['new'], dict(image=query[None]), [dict(attributes=dict(shade='pale'))])
        assert [h.id for h in index.search(query, where=parse_filters(['shade=Pale']))] == ['new']
    with pytest.raises(FileExistsError, match='is there'):
        CatalogueIndex.create(where(), D, {})


def test_scan_gives_what_upsert_took(where, tmp_path):
    with filled(where()) as index, CatalogueIndex.create(tmp_path / 'copy', D, {}) as copy:
        sizes = []
        for batch in index.scan(with_vectors=True, batch_size=25):
            copy.upsert(*batch)
            sizes.append(len(batch[0]))
        assert sizes == [25, 25, 10]
        found = {
            id_: (vectors['image'][i], vectors['product'][i], known)
            for ids, vectors, payloads in copy.scan(with_vectors=True)
            for i, (id_, known) in enumerate(zip(ids, payloads, strict=True))
        }
        assert set(found) == set(IDS)
        for i, id_ in enumerate(IDS):
            image, product, known = found[id_]
            assert known == payload(i)
            np.testing.assert_allclose(product, PRODUCT[i], atol=1e-6)
            np.testing.assert_allclose(image, IMAGE[i] if i % 3 else np.nan, atol=1e-6)
        assert [vectors for _, vectors, _ in index.scan()] == [{}]


def test_an_empty_index(where):
    with CatalogueIndex.create(where(), D, {}) as index:
        assert len(index) == 0 and index.search(IMAGE[0]) == []
        assert [batch for batch in index.scan() if batch[0]] == []
        assert recall_at_k(index, IMAGE[:2]) == 1.0
        with pytest.raises(ValueError, match='nothing yet, the index is empty'):
            index.search(IMAGE[0], where=parse_filters(['brand=Puma']))


def bad_calls():
    one = [payload(0)]
    nan, half = IMAGE[:1].copy(), IMAGE[:1] / 2
    nan[0, 1:] = np.nan
    price = dict(attributes=dict(price=float('nan')))
    return {
        r'\(1, 8\), got \(1, 4\)': lambda ix: ix.upsert(['a'], dict(image=IMAGE[:1, :4]), one),
        r'\(2, 8\), got \(1, 8\)': lambda ix: ix.upsert(['a', 'b'], dict(image=IMAGE[:1]), one),
        'row 0 is of length 0.5': lambda ix: ix.upsert(['a'], dict(image=half), one),
        'row 0 is of length nan': lambda ix: ix.upsert(['a'], dict(image=nan), one),
        'row 0 is of length inf': lambda ix: ix.upsert(['a'], dict(image=half * np.inf), one),
        "side 'text'": lambda ix: ix.upsert(['a'], dict(text=IMAGE[:1]), one),
        "'a' is given twice": lambda ix: ix.upsert(['a', 'a'], {}, one * 2),
        'ids must be texts, got 3': lambda ix: ix.upsert([3], {}, one),
        '1 ids but 2 payloads': lambda ix: ix.upsert(['a'], {}, one * 2),
        "payload of 'a' must be plain JSON": lambda ix: ix.upsert(['a'], {}, [price]),
        "attribute 'x' must be a text": lambda ix: ix.upsert(
            ['a'], {}, [dict(attributes=dict(x=dict(y=1)))]
        ),
        'k must be at least 1, got 0': lambda ix: ix.search(IMAGE[0], k=0),
        r'vector \(8,\), got \(1, 8\)': lambda ix: ix.search(IMAGE[:1]),
        'got NaN': lambda ix: ix.search(IMAGE[0] * np.nan),
        'of length 0.5': lambda ix: ix.search(half[0]),
        "'side'|side 'both'": lambda ix: ix.search(IMAGE[0], side='both'),
        r"no item has 'brnd'; .*'brand', 'new', 'price', 'size'": lambda ix: ix.search(
            IMAGE[0], where=parse_filters(['brnd=Puma'])
        ),
        "no item has 'brnd'": lambda ix: ix.facets('brnd'),
        "'brand' is text, < needs": lambda ix: ix.search(
            IMAGE[0], where=parse_filters(['brand<3'])
        ),
        "'price' is a number, got": lambda ix: ix.search(
            IMAGE[0], where=parse_filters(['price=cheap'])
        ),
        'about must be plain JSON': lambda ix: setattr(ix, 'about', dict(a={1})),
    }


def test_what_cannot_be_is_refused_and_nothing_is_written(where):
    with filled(where()) as index:
        for message, call in bad_calls().items():
            with pytest.raises(ValueError, match=message):
                call(index)
        assert len(index) == N and index.about == dict(model='m')


def test_nothing_there(where):
    with pytest.raises(FileNotFoundError, match=r'tools/search/build_index\.py'):
        CatalogueIndex.open(where())


def test_parse_filters():
    assert parse_filters(['brand=Puma, "Dolce, Gabbana"', ' price <= 1e2 ', 'a b!=5"']) == [
        Condition('brand', '=', ('Puma', 'Dolce, Gabbana')),
        Condition('price', '<=', ('1e2',)),
        Condition('a b', '!=', ('5"',)),
    ]
    assert parse_filters('brand=Puma') == parse_filters(['brand=Puma'])
    for text in ('brand', '=Puma', 'brand=', 'brand==Puma', 'price=>3', 'a<b<c', 'a=1,,2', ''):
        with pytest.raises(ValueError, match="'brand=Puma,Nike'"):
            parse_filters([text])
    for text in ('price<cheap', 'price<1,2', 'price>nan'):
        with pytest.raises(ValueError, match='needs one number'):
            parse_filters([text])
    with pytest.raises(ValueError, match="op='~'"):
        Condition('brand', '~', ('Puma',))
    with pytest.raises(ValueError, match='needs values'):
        Condition('brand', '=', ())


def test_odd_names_of_fields(tmp_path):
    fields = ['größe', 'a.b', 'a[0]', 'a b', "it's", '名']
    with CatalogueIndex.create(tmp_path / 'shop', D, {}) as index:
        for i, field in enumerate(fields):
            index.upsert([field], dict(image=IMAGE[i : i + 1]), [dict(attributes={field: 'x'})])
        for field in fields:
            hits = index.search(IMAGE[0], where=[Condition(field, '=', ('X',))])
            assert [hit.id for hit in hits] == [field]
            assert index.facets(field) == {'x': 1}
        with pytest.raises(ValueError, match='the name of a field'):
            index.upsert(['q'], {}, [dict(attributes={'a"b': 'x'})])


def test_graphs_find_what_a_scan_finds(tmp_path):
    """Long vectors, so that few of them fill what the engine scans without a graph."""
    dim, n = 4096, 1400
    of = np.random.default_rng(0).integers(0, 100, n)
    rows = unit(100, dim)[of] + 0.7 * unit(n, dim, seed=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[:20] + 0.3 * unit(20, dim, seed=2)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    with CatalogueIndex.create(tmp_path / 'shop', dim, {}) as index:
        known = [dict(attributes=dict(rare='yes' if i % 100 == 7 else 'no')) for i in range(n)]
        index.upsert([str(i) for i in range(n)], dict(product=rows), known)
        index.optimize()
        assert index._store._shard.info().indexed_vectors_count == n
        rare = [Condition('rare', '=', ('yes',))]
        for where, there in (([], range(n)), (rare, range(7, n, 100))):
            there = np.array(there)
            for query in queries[:5]:
                right = there[np.argsort(-(rows[there] @ query))[:10]]
                hits = index.search(query, 'product', 10, where, exact=True)
                assert [int(hit.id) for hit in hits] == right.tolist()
            assert recall_at_k(index, queries, where, 10, 'product') >= 0.95


class Forgetful(CatalogueIndex):
    """A graph that misses the best item."""

    def search(self, vector, side='image', k=10, where=(), exact=False):
        hits = super().search(vector, side, k + 1, where, exact)
        return hits[:k] if exact else hits[1:]


def test_recall_counts_what_is_missed(tmp_path):
    filled(tmp_path / 'shop').close()
    with Forgetful.open(tmp_path / 'shop') as index:
        assert recall_at_k(index, unit(4, seed=5), k=10) == pytest.approx(0.9)
        assert recall_at_k(index, unit(4, seed=5), parse_filters(['price=4,5']), k=10) == 0.5


WRITER = """
import sys
import numpy as np
from eiclip_mm.apis.index import CatalogueIndex
index = CatalogueIndex.open(sys.argv[1])
rows = np.eye(8, dtype=np.float32)
for start in range(0, 10**9, 8):
    ids = [str(i) for i in range(start, start + 8)]
    known = [dict(attributes=dict(n=int(i), text='t' * 500)) for i in ids]
    index.upsert(ids, dict(image=rows, product=rows), known)
    print(start + 8, flush=True)
"""


def test_a_killed_writer_leaves_whole_items(tmp_path):
    place = tmp_path / 'shop'
    CatalogueIndex.create(place, 8, dict(model='m')).close()
    with subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', WRITER, str(place)],
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        for _ in range(100):
            line = writer.stdout.readline()
        assert line, 'the writer failed'
        with pytest.raises(ValueError, match='is open elsewhere'):
            CatalogueIndex.open(place)
        writer.send_signal(signal.SIGKILL)
        written = int(([line] + writer.stdout.read().splitlines())[-1])
    with CatalogueIndex.open(place) as index:
        seen = 0
        for ids, vectors, payloads in index.scan(with_vectors=True):
            for i, id_ in enumerate(ids):
                for side in ('image', 'product'):
                    assert vectors[side][i].argmax() == int(id_) % 8
                assert payloads[i]['attributes'] == dict(n=int(id_), text='t' * 500)
                seen += 1
        assert written <= seen <= written + 8 and seen == len(index) and seen % 8 == 0
        last = parse_filters([f'n={written - 1}'])
        assert [hit.id for hit in index.search(np.eye(8)[7], where=last)] == [str(written - 1)]


def test_a_folder_that_is_damaged_or_something_else(tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/a.jpg').write_bytes(b'x')
    with pytest.raises(ValueError, match=r'is no index: it holds no index\.json'):
        CatalogueIndex.open(tmp_path / 'photos')
    for taken in ('photos', 'photos/a.jpg'):
        with pytest.raises(FileExistsError, match='is there and not empty'):
            CatalogueIndex.create(tmp_path / taken, D, {})
    filled(tmp_path / 'shop').close()

    def broken(break_it) -> str:
        copy = tmp_path / 'copy'
        with suppress(FileNotFoundError):
            shutil.rmtree(copy)
        shutil.copytree(tmp_path / 'shop', copy)
        break_it(copy)
        with pytest.raises(ValueError, match=r'is damaged|is no index|no index of') as error:
            CatalogueIndex.open(copy)
        return str(error.value)

    def segment(copy):
        return next((copy / 'points/segments').iterdir())

    assert 'build it anew' in broken(lambda c: (c / 'index.json').write_text('{"for'))
    assert 'build it anew' in broken(lambda c: (c / 'index.json').write_text('[1, 2]'))
    assert "format is 'x'" in broken(lambda c: (c / 'index.json').write_text('{"format": "x"}'))

    known = json.loads((tmp_path / 'shop/index.json').read_text())
    for dim in (None, 'x', '8', 0, True, 8.0, [8]):
        bad = json.dumps(known | dict(dim=dim))
        assert repr(dim) in broken(lambda c, bad=bad: (c / 'index.json').write_text(bad))
    bare = json.dumps({name: value for name, value in known.items() if name != 'dim'})
    assert 'build it anew' in broken(lambda c: (c / 'index.json').write_text(bare))

    def lose(copy):
        (segment(copy) / 'version.info').unlink()  # the engine passes over such a segment
        shutil.rmtree(copy / 'points/wal')

    assert 'it has 0 of 60 items' in broken(lose)
    assert 'build it anew' in broken(lambda c: (segment(c) / 'segment.json').write_text('{'))
    assert 'build it anew' in broken(lambda c: shutil.rmtree(c / 'points'))


def test_a_server_that_is_not_there():
    with pytest.raises(ConnectionError, match='cannot be reached'):
        CatalogueIndex.open('http://127.0.0.1:9/shop')
    with pytest.raises(ValueError, match='must name a collection'):
        CatalogueIndex.open('http://127.0.0.1:9')


def test_a_server_that_refuses_the_key(monkeypatch):
    keys = []

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            keys.append(self.headers['api-key'])
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setenv('QDRANT_API_KEY', 'wrong')
    # the client warns that plain http shows the key to the network
    with http.server.HTTPServer(('127.0.0.1', 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/shop'
        with (
            pytest.warns(UserWarning, match='insecure'),
            pytest.raises(PermissionError, match='QDRANT_API_KEY'),
        ):
            CatalogueIndex.open(address)
        server.shutdown()
    assert set(keys) == {'wrong'}
