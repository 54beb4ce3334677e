"""Searching a catalogue beside its definition: cosines of what the encoder gives, sorted."""

import json

import numpy as np
import pytest
import shop

pytest.importorskip('qdrant_edge', reason="needs pip install 'eiclip_mm[search]'")

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.apis.index import CatalogueIndex, parse_filters
from eiclip_mm.apis.search import CatalogueSearch, about


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    return EICLIPInferencer(shop.write_checkpoint(tmp_path_factory.mktemp('model') / 'a.pth'))


@pytest.fixture(scope='module')
def vectors(encoder, tmp_path_factory):
    """What the encoder makes of the shop, by side."""
    photos = shop.write_photos(tmp_path_factory.mktemp('photos'))
    products = [
        dict(description=r['description'], entities=dict(brand=[r['brand']])) for r in shop.rows()
    ]
    return dict(
        image=encoder.encode_images([photos / r['image'] for r in shop.rows()], output='numpy'),
        product=encoder.encode_products(products, output='numpy'),
    )


@pytest.fixture(scope='module')
def search(encoder, vectors, tmp_path_factory):
    where = tmp_path_factory.mktemp('index') / 'shop'
    payloads = [
        dict(
            text_fields=dict(description=r['description']),
            entities=dict(brand=[r['brand']]),
            attributes=dict(price=float(r['price'])),
            photo=None,
            digest='',
        )
        for r in shop.rows()
    ]
    with CatalogueIndex.create(where, encoder.dim, about(encoder)) as index:
        index.upsert([r['id'] for r in shop.rows()], vectors, payloads)
        yield CatalogueSearch(encoder, index)


def expected(query: np.ndarray, rows: np.ndarray, k: int, passes=lambda row: True):
    """Ids and scores of the k nearest products that pass."""
    scores = rows @ query
    best = [i for i in np.argsort(-scores) if passes(shop.rows()[i])][:k]
    return [f'p{i}' for i in best], [float(scores[i]) for i in best]


def assert_found(answer, wanted):
    assert [hit.id for hit in answer.hits] == wanted[0]
    np.testing.assert_allclose([hit.score for hit in answer.hits], wanted[1], atol=1e-5)


@pytest.mark.parametrize('side', ['image', 'product'])
@pytest.mark.parametrize('entities', [True, False])
def test_words_find_the_nearest(search, encoder, vectors, side, entities):
    query = 'a blue Golden Goose tee of silk'
    answer = search.text(query, 5, entities=entities, side=side)
    own = encoder.encode_queries(query, output='numpy', entities=entities)[0]
    assert_found(answer, expected(own, vectors[side], 5))
    names = {(e.type, e.name) for e in answer.reading.entities}
    assert answer.reading.text == query
    assert names == ({('brand', 'Golden Goose'), ('composition', 'silk')} if entities else set())


def test_entities_move_what_is_found(search):
    query = 'a blue Golden Goose tee of silk'
    with_, without = (search.text(query, 24, entities=e, side='product') for e in (True, False))
    assert [hit.score for hit in with_.hits] != [hit.score for hit in without.hits]


def test_photos_find_photos_and_texts(search, vectors, tmp_path):
    photos = shop.write_photos(tmp_path, 7)
    like_it = search.photo(photos / '6.png', 3)
    assert (like_it.reading, like_it.hits[0].id) == (None, 'p6')
    assert like_it.hits[0].score == pytest.approx(1, abs=1e-5)
    assert_found(like_it, expected(vectors['image'][6], vectors['image'], 3))
    texts = search.photo((photos / '6.png').read_bytes(), 3, side='product')
    assert_found(texts, expected(vectors['image'][6], vectors['product'], 3))


def test_filters_are_read_or_refused():
    for text in ('brand=a\rb', 'brand=a\nb', ' brand = a b '):
        (read,) = parse_filters(text)
        assert (read.field, read.op, read.values) == ('brand', '=', ('a b',))
    assert parse_filters('price >= 1e2')[0].values == ('1e2',)
    for text in ('', ' = a', 'brand', 'brand=', 'brand= ', 'brand=a,,b', 'x' * 200_000):
        with pytest.raises(ValueError, match='write FIELD=VALUE'):
            parse_filters(text)
    with pytest.raises(ValueError, match=r'cannot be read: .* write FIELD=VALUE'):
        parse_filters('brand=' + 'x' * 200_000)  # more than csv holds
    with pytest.raises(ValueError, match='is not understood'):
        parse_filters(' ' * 5000)  # a pattern may take hours for it


def test_filters_hold(search, encoder, vectors):
    where = parse_filters(['brand=DIESEL,Nobody', 'price<=20'])
    query = encoder.encode_queries('red tee', output='numpy')[0]

    def passes(row):
        return row['brand'] in ('Diesel', 'Nobody') and float(row['price']) <= 20

    assert 0 < sum(map(passes, shop.rows())) < 10
    assert_found(search.text('red tee', 10, where), expected(query, vectors['image'], 10, passes))


def test_an_answer_is_plain_json(search):
    found = json.loads(json.dumps(search.text('a Diesel tee', 2).to_dict()))
    assert set(found) == {'reading', 'hits'}
    assert [set(hit) for hit in found['hits']] == 2 * [{'id', 'score', 'payload'}]
    (entity,) = found['reading']['entities']
    assert (entity['name'], entity['start'], entity['end']) == ('Diesel', 2, 8)
    assert search.photo(np.zeros((9, 9, 3), np.uint8), 1).to_dict()['reading'] is None


def test_a_query_that_cannot_be(search, tmp_path):
    for query in ('', ' \n'):
        with pytest.raises(ValueError, match='the query is empty'):
            search.text(query)
    for query, kind in ((b'red', 'bytes'), (['red'], 'list'), (None, 'NoneType')):
        with pytest.raises(TypeError, match=f'must be a str, got {kind}'):
            search.text(query)
    with pytest.raises(ValueError, match='k must be at least 1, got 0'):
        search.text('red', 0)
    assert len(search.text('red', 10**12).hits) == 24
    with pytest.raises(ValueError, match="no item has 'colour'"):
        search.text('red', where=parse_filters(['colour=red']))
    (tmp_path / 'no.png').write_text('no photo')
    with pytest.raises(ValueError, match='not an image'):
        search.photo(tmp_path / 'no.png')
    with pytest.raises(FileNotFoundError):
        search.photo(tmp_path / 'none.png')


def test_an_empty_index_finds_nothing(encoder, tmp_path):
    with CatalogueIndex.create(tmp_path / 'index', encoder.dim, about(encoder)) as index:
        assert CatalogueSearch(encoder, index).text('red').hits == []


def test_another_checkpoint_is_refused(search, tmp_path):
    other = EICLIPInferencer(shop.write_checkpoint(tmp_path / 'b.pth', seed=1))
    with pytest.raises(ValueError, match=r'built with a\.pth .* not with b\.pth'):
        CatalogueSearch(other, search.index)
    bare = CatalogueIndex.create(tmp_path / 'index', other.dim, {})
    with bare, pytest.raises(ValueError, match='built with None'):
        CatalogueSearch(other, bare)
