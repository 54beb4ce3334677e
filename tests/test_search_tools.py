"""tools/search: build, bring up to date, ask, add a brand; killed, with bad photos, by others."""

import colorsys
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shop
import tiny
import torch
from PIL import Image

pytest.importorskip('qdrant_edge', reason="needs pip install 'eiclip_mm[search]'")

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.apis.index import CatalogueIndex
from eiclip_mm.apis.search import CatalogueSearch
from eiclip_mm.models.new_entities import extended
from eiclip_mm.structures import EntityVocab

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools/search'))
import add_entities
import build_index
import query

ROOT = Path(__file__).resolve().parents[1]
MARK = 'photos cannot be read; of these products the text alone is searched (--side product)'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    return shop.write_checkpoint(tmp_path_factory.mktemp('model') / 'a.pth')


@pytest.fixture
def store(tmp_path, checkpoint):
    """A shop in a folder, and its index."""

    class Store:
        path, photos, where = tmp_path / 'shop.csv', tmp_path / 'photos', tmp_path / 'index'
        rows = shop.rows(12)

        def build(self, *options, rows=None) -> None:
            shop.write_csv(self.path, self.rows if rows is None else rows)
            given = (checkpoint, self.path, '--index', self.where, '--images', self.photos)
            build_index.main([*map(str, given), *map(str, options)])

        def content(self) -> dict[str, tuple]:
            """Of the index: payload and vectors by id."""
            with CatalogueIndex.open(self.where) as index:
                return {
                    id_: (payload, {side: rows[i] for side, rows in vectors.items()})
                    for ids, vectors, payloads in index.scan(with_vectors=True)
                    for i, (id_, payload) in enumerate(zip(ids, payloads, strict=True))
                }

    shop.write_photos(tmp_path / 'photos', 12)
    return Store()


def test_the_index_holds_what_the_encoder_gives(store, checkpoint, capsys):
    store.build('--batch-size', 5)
    said = capsys.readouterr().out
    assert '12 products in the index: 12 new' in said
    assert re.search(r'\d+\.\d s, \d+\.\d embedded rows/s', said)
    assert '1.0000 among all' in said
    assert re.search(r'1\.0000 where brand=.+, 4 products', said)
    encoder, content = EICLIPInferencer(checkpoint), store.content()
    assert len(content) == 12
    for row in store.rows:
        entities = dict(brand=[row['brand']])
        if row['composition']:
            entities['composition'] = ['cotton', 'silk']
        payload, vectors = content[row['id']]
        assert payload['entities'] == entities
        assert payload['attributes'] == dict(price=float(row['price']), sku=row['sku'])
        product = dict(description=row['description'], entities=entities)
        image = encoder.encode_images(store.photos / row['image'], output='numpy')[0]
        np.testing.assert_allclose(vectors['image'], image, atol=1e-5)
        text = encoder.encode_products(product, output='numpy')[0]
        np.testing.assert_allclose(vectors['product'], text, atol=1e-5)
    with CatalogueIndex.open(store.where) as index:
        assert index.about['checkpoint'] == str(checkpoint)


def test_a_second_build_embeds_what_changed(store, capsys, monkeypatch):
    store.build()
    before = store.content()
    embedded = []
    real = build_index.photo_vectors

    def counted(encoder, photos, pool):
        embedded.extend(photos)
        return real(encoder, photos, pool)

    monkeypatch.setattr(build_index, 'photo_vectors', counted)
    store.build()
    assert '12 products in the index: 12 as they were' in capsys.readouterr().out
    assert embedded == []
    rows = [dict(row) for row in store.rows]
    rows[0]['description'] = 'another text'
    rows[1]['brand'] = 'Diesel|Nobody'
    rows[2]['price'] = 99
    os.utime(store.photos / '3.png', ns=(0, 0))
    rows[4]['image'] = ''
    new = dict(rows.pop(), id='new')
    store.build(rows=[*rows, new])
    said = capsys.readouterr().out
    assert '13 products in the index: 1 new, 4 changed, 1 new attributes, 6 as they were' in said
    assert [Path(p).name if p else None for p in embedded] == [
        '0.png', '1.png', '3.png', None, '11.png',
    ]  # fmt: skip
    after = store.content()
    assert set(after) == set(before) | {'new'}
    assert after['p2'][0]['attributes']['price'] == 99
    for side in ('image', 'product'):
        np.testing.assert_array_equal(after['p2'][1][side], before['p2'][1][side])
    assert np.isnan(after['p4'][1]['image']).all()
    assert not np.allclose(after['p0'][1]['product'], before['p0'][1]['product'])
    np.testing.assert_array_equal(after['p0'][1]['image'], before['p0'][1]['image'])
    store.build('--prune', rows=rows[:5])
    assert '5 products in the index: 5 as they were, 8 deleted' in capsys.readouterr().out
    assert set(store.content()) == {row['id'] for row in rows[:5]}


def test_a_column_that_goes_leaves_no_names(store, capsys):
    store.build()
    rows = [{name: v for name, v in row.items() if name != 'brand'} for row in store.rows]
    store.build(rows=rows)
    store.build(rows=rows)
    said = capsys.readouterr().out
    assert said.count('where brand=') == 1  # before
    with CatalogueIndex.open(store.where) as index:
        assert index.facets('brand') == {}


def test_a_price_with_a_word_is_said(store, capsys):
    rows = [dict(row) for row in store.rows]
    rows[4]['price'] = '5.5 EUR'
    store.build(rows=rows)
    said = capsys.readouterr().out
    assert "attribute 'price' is text" in said and "but line 6 has '5.5 EUR'" in said


def test_items_are_deleted_without_a_catalogue(store, capsys):
    store.build()
    build_index.main(['--index', str(store.where), '--delete', 'p1', 'p2', 'none'])
    assert '2 deleted, 10 left\nnot in the index: none\n' in capsys.readouterr().out
    assert not {'p1', 'p2'} & set(store.content())
    with pytest.raises(SystemExit, match='does not exist'):
        build_index.main(['--index', str(store.where / 'none'), '--delete', 'p1'])


def test_broken_photos_are_named_and_tried_again(store, capsys):
    (store.photos / '1.png').write_bytes(b'no photo')
    (store.photos / '2.png').unlink()
    rows = store.rows[:3] + [dict(store.rows[3], description='', brand='', composition='')]
    (store.photos / '3.png').write_bytes(b'')
    store.build(rows=rows)
    said = capsys.readouterr().out
    assert f'3 {MARK}:\n  p1: {store.photos}/1.png is not an image' in said
    assert re.search(r'  p2: .*2\.png', said)
    assert "1 have neither text nor photo and are left out: ['p3']" in said
    content = store.content()
    assert set(content) == {'p0', 'p1', 'p2'}
    assert content['p1'][0]['photo'] is None
    assert np.isnan(content['p1'][1]['image']).all()
    assert np.isfinite(content['p1'][1]['product']).all()
    with pytest.raises(SystemExit, match=r'product p1: .*leave --strict out'):
        store.build('--strict', rows=rows)
    (store.photos / '1.png').write_bytes((store.photos / '5.png').read_bytes())
    store.build(rows=rows)
    said = capsys.readouterr().out
    assert '3 products in the index: 1 changed, 2 as they were' in said
    assert f'2 {MARK}' in said
    assert np.isfinite(store.content()['p1'][1]['image']).all()
    store.build(rows=[dict(rows[0], description='', brand='', image=''), *rows[1:3]])
    assert set(store.content()) == {'p1', 'p2'}  # an item that has become empty goes


def test_a_photo_alone_is_found_by_photos_alone(store):
    bare = dict(id='bare', description='', image='5.png', brand='', composition='')
    store.build(rows=[bare])
    vectors = store.content()['bare'][1]
    assert np.isnan(vectors['product']).all() and np.isfinite(vectors['image']).all()


def test_a_killed_build_goes_on(store, checkpoint, capsys):
    store.rows = [dict(row, image=f'{i % 12}.png') for i, row in enumerate(shop.rows(264))]
    shop.write_csv(store.path, store.rows)
    command = (
        'import os, signal, build_index\n'
        'real, parts = build_index.update, []\n'
        'def update(*args):\n'
        '    parts.append(real(*args))\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'  # after the first part
        'build_index.update = update\n'
        'build_index.main()'
    )
    given = (checkpoint, store.path, '--index', store.where, '--images', store.photos)
    env = dict(os.environ, PYTHONPATH=f'{ROOT}:{ROOT}/tools/search')
    killed = subprocess.run(
        [sys.executable, '-c', command, *map(str, given)], env=env, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(store.content()) == build_index.CHUNK
    store.build()
    said = capsys.readouterr().out
    assert f'264 products in the index: 8 new, {build_index.CHUNK} as they were' in said
    assert len(store.content()) == 264


def test_an_index_of_another_checkpoint_is_refused(store, tmp_path):
    store.build()
    other = shop.write_checkpoint(tmp_path / 'b.pth', seed=1)
    with pytest.raises(SystemExit, match=r'built with a\.pth .* not with b\.pth'):
        build_index.main([str(other), str(store.path), '--index', str(store.where)])
    with pytest.raises(SystemExit, match=r'built with a\.pth .* not with b\.pth'):
        query.main(['red', '--index', str(store.where), '--checkpoint', str(other)])


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ([], 'give CHECKPOINT and CATALOGUE, or --delete'),
        (['a.pth'], 'CHECKPOINT is a.pth, CATALOGUE is missing'),
    ],
)
def test_build_index_says_what_is_missing(given, said, capsys, tmp_path):
    with pytest.raises(SystemExit, match='2'):
        build_index.main([*given, '--index', str(tmp_path)])
    assert said in capsys.readouterr().err


def ask(store, capsys, *given) -> str:
    query.main([*map(str, given), '--index', str(store.where)])
    return capsys.readouterr().out


def test_queries_print_what_was_read_and_found(store, checkpoint, capsys, tmp_path):
    store.build()
    capsys.readouterr()
    with CatalogueIndex.open(store.where) as index:
        search = CatalogueSearch(EICLIPInferencer(checkpoint), index)
        best = [hit.id for hit in search.text('a red Diesel tee', 3).hits]
    said = ask(store, capsys, 'a red Diesel tee', '-k', 3)
    assert 'brand: Diesel, weight 1.00, 30 products of train' in said
    table = [line.split() for line in said.splitlines() if line[:1].isdigit()]
    assert [line[2] for line in table] == best
    only = ask(store, capsys, 'tee', '--filter', 'brand=diesel', 'price<=7', '-k', 99)
    assert re.findall(r'\bp\d+\b', only) and set(re.findall(r'\bp\d+\b', only)) == {'p0', 'p1'}
    assert ' price\n' in only
    store.build(rows=[dict(row, price=2012) for row in store.rows])
    capsys.readouterr()
    years = ask(store, capsys, 'tee', '--filter', 'price=2012')
    assert years.count(' 2012\n') == 10 and '2012.0' not in years
    assert 'nothing passes' in ask(store, capsys, 'tee', '--filter', 'price>3000')
    file = tmp_path / 'queries.txt'
    file.write_text('red tee\n\nLevi\N{RIGHT SINGLE QUOTATION MARK}s\n', encoding='utf-8')
    lines = ask(store, capsys, '--queries', file, '--json', '-k', 2).splitlines()
    first, second = map(json.loads, lines)
    assert [first['query'], len(first['hits'])] == ['red tee', 2]
    assert second['reading']['entities'][0]['name'] == "Levi's"
    assert first['encode_ms'] > 0 and first['search_ms'] > 0
    plain = json.loads(ask(store, capsys, 'Diesel', '--no-entities', '--json'))
    assert plain['reading']['entities'] == []


def test_a_photo_asks(store, checkpoint, capsys):
    store.build()
    capsys.readouterr()
    found = json.loads(ask(store, capsys, '--image', store.photos / '4.png', '--json'))
    assert found['reading'] is None and found['hits'][0]['id'] == 'p4'
    texts = ask(store, capsys, '--image', store.photos / '4.png', '--side', 'product', '--json')
    encoder, content = EICLIPInferencer(checkpoint), store.content()
    photo = encoder.encode_images(store.photos / '4.png', output='numpy')[0]
    best = max(content, key=lambda id_: content[id_][1]['product'] @ photo)
    assert json.loads(texts)['hits'][0]['id'] == best


def test_queries_that_cannot_be(store, capsys, tmp_path):
    store.build()
    (tmp_path / 'empty.txt').write_text('\n \n')
    (tmp_path / 'photo.png').write_bytes(b'\x89PNG')
    for given, said in (
        (['red', '--filter', 'colour=red'], "no item has 'colour'.*brand"),
        (['red', '--filter', 'price'], 'filter .price. is not understood'),
        (['red', '--filter', 'price<=cheap'], 'needs one number'),
        (['red', '-k', 0], 'k must be at least 1'),
        (['  '], 'the query is empty'),
        (['--image', tmp_path / 'none.png'], 'No such file'),
        (['--queries', tmp_path / 'empty.txt'], 'has no query'),
        (['--queries', tmp_path / 'photo.png'], 'photo.png is not UTF-8 .*byte 0'),
        (['--queries', tmp_path / 'none.txt'], 'none.txt is not there, or no file'),
        (['--queries', os.devnull], '/dev/null is not there, or no file'),  # as a pipe
        (['red', '--checkpoint', tmp_path / 'none.pth'], 'not there; give it'),
    ):
        with pytest.raises(SystemExit, match=said):
            ask(store, capsys, *given)
    with pytest.raises(SystemExit, match='2'):
        ask(store, capsys, 'red', '--image', 'x.png')
    assert 'give one of' in capsys.readouterr().err


@pytest.fixture
def branded(store, checkpoint):
    """Sixteen brands of a colour each, two products of each; the model knows all but 'Nobody'.

    Its products lie where their brand's photos do, for t' = t + 5 E_brand and E_brand is the mean
    of its photos: what a photo says of a sense can be learned from the fifteen.
    """
    brands = [*(f'Shop {i}' for i in range(15)), 'Nobody']
    for i, row in enumerate(rows := shop.rows(32)):
        row |= dict(brand=brands[i % 16], description='a tee', composition='')
        colour = [255 * x for x in colorsys.hsv_to_rgb(7 * i % 16 / 16, 1, 1 - i // 16 / 4)]
        noise = np.random.default_rng(i).integers(-20, 20, (40, 40, 3))
        pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(store.photos / row['image'])
    store.rows = rows
    vocab = EntityVocab(dict(brand=tuple(brands[:15])), dict(brand=(2,) * 15))
    changes = dict(
        learner=dict(type='EALearner', general=False),
        tokenizer=tiny.tokenizer(vocab=vocab),
    )
    model = tiny.model(seed=7, **changes).eval()
    store.checkpoint = shop.write_checkpoint(checkpoint.parent / 'branded.pth', model, **changes)
    photos = EICLIPInferencer(store.checkpoint).encode_images(
        [store.photos / row['image'] for row in rows]
    )
    with torch.no_grad():
        model.learner.skip.weight[:] = 5 * torch.eye(32)
        model.learner.learned[0, 1:] = (photos[:15] + photos[16:31]) / 2
    store.checkpoint = shop.write_checkpoint(store.checkpoint, model, **changes)
    shop.write_csv(store.path, store.rows)
    given = (store.checkpoint, store.path, '--index', store.where, '--images', store.photos)
    build_index.main(list(map(str, given)))
    return store


def add(store, *options, name='Nobody') -> Path:
    out = store.path.parent / 'new.pth'
    given = [store.checkpoint, '--type', 'brand', '--names', name, '--out', out, *options]
    add_entities.main(list(map(str, given)))
    return out


def test_a_new_brand_is_found_at_once(branded, capsys):
    before = branded.content()
    out = add(branded, '--index', branded.where, '--from-index')
    said = capsys.readouterr().out
    theirs = {row['id'] for row in branded.rows if row['brand'] == 'Nobody'}
    assert len(theirs) == 2 and '2 of 32 products are read otherwise' in said
    ranks = re.findall(r'Nobody +2 +(photos|texts) +(\d+) -> (\d+) +(\d+) -> (\d+)', said)
    assert [side for side, *_ in ranks] == ['photos', 'texts']
    (_, *photos), (_, *texts) = ([side, *map(int, numbers)] for side, *numbers in ranks)
    assert photos[1] == 1 and photos[3] <= 2  # of 32; best and median rank
    assert photos[0] > 1 and photos[2] > 2  # before
    assert texts[1] == 1
    model, after = EICLIPInferencer(out), branded.content()
    assert model.tokenizer.vocab == extended(
        EICLIPInferencer(branded.checkpoint).tokenizer.vocab, dict(brand=['Nobody'])
    )
    with CatalogueIndex.open(branded.where) as index:
        hits = CatalogueSearch(model, index).text('nobody', 4).hits  # of the new checkpoint now
        assert index.about['checkpoint'] == str(out)
    assert hits[0].id in theirs and theirs <= {hit.id for hit in hits}
    for row in branded.rows:
        (payload, old), (same, new) = before[row['id']], after[row['id']]
        assert payload == same
        np.testing.assert_array_equal(old['image'], new['image'])
        assert (row['id'] in theirs) != np.array_equal(old['product'], new['product'])
        product = payload['text_fields'] | dict(entities=payload['entities'])
        fresh = model.encode_products(product, output='numpy')[0]
        np.testing.assert_allclose(new['product'], fresh, atol=1e-5)
    capsys.readouterr()
    add(branded, '--index', branded.where)
    assert 'the index is of it already' in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r'built with new\.pth'):
        add(branded, '--index', branded.where, name='Somebody')


def test_products_without_photos_have_no_rank_among_photos(branded, capsys):
    rows = branded.rows[:]
    theirs = [i for i, row in enumerate(rows) if row['brand'] == 'Nobody']
    rows[theirs[0]] = dict(rows[theirs[0]], image='')
    shop.write_csv(branded.path, rows)
    given = (branded.checkpoint, branded.path, '--index', branded.where, '--images', branded.photos)
    build_index.main(list(map(str, given)))
    capsys.readouterr()
    add(branded, '--index', branded.where, '--from-index')
    said = capsys.readouterr().out
    assert re.search(r'Nobody +1 +photos ', said) and re.search(r'Nobody +2 +texts ', said)


def test_senses_come_from_names_or_photos(branded, capsys):
    def sense(*options) -> np.ndarray:
        out = add(branded, *options)
        return EICLIPInferencer(out).encode_queries('Nobody', output='numpy')[0]

    def from_folder() -> np.ndarray:
        """The index is the new checkpoint's afterwards: a copy of it."""
        copy = branded.where.with_name('copy')
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(branded.where, copy)
        return sense('--photos', folder, '--index', copy)

    name = sense()
    folder = branded.photos.parent / 'new'
    folder.mkdir()
    with pytest.raises(SystemExit, match="has no photo of 'Nobody'"):
        from_folder()
    for i, row in enumerate(branded.rows):
        if row['brand'] == 'Nobody':
            (folder / f'{i}.png').write_bytes((branded.photos / row['image']).read_bytes())
    photos = from_folder()
    (folder / 'bad.png').write_bytes(b'')
    with pytest.raises(SystemExit, match="a photo of 'Nobody' cannot be read"):
        from_folder()
    np.testing.assert_allclose(photos, sense('--from-index', '--index', branded.where), atol=1e-5)
    assert not np.allclose(name, photos, atol=1e-3)


def test_it_says_where_a_new_name_changes_nothing(branded, tmp_path, capsys):
    out = ('--names', 'Nobody', 'Stranger', '--out', tmp_path / 'new.pth', '--index', branded.where)
    given = (branded.checkpoint, '--type', 'brand', *out)
    add_entities.main(list(map(str, given)))
    said = capsys.readouterr().out
    assert 'drops' not in said and "no product of the index has 'Stranger'" in said
    changes = dict(selector=dict(type='EffectCESelector'))
    model = tiny.model(**changes)
    model.selector.weight[:4] = 0  # brands
    dropping = shop.write_checkpoint(tmp_path / 'dropping.pth', model, **changes)
    given = (dropping, '--type', 'brand', '--names', 'Nobody', '--out', tmp_path / 'newer.pth')
    add_entities.main(list(map(str, given)))
    assert 'CE-Selector of this model drops brand Nobody: nothing' in capsys.readouterr().out
    changes = dict(tokenizer=tiny.tokenizer(text_types=('brand',)))  # as keywords are read
    reading = shop.write_checkpoint(tmp_path / 'reading.pth', **changes)
    add_entities.main([str(reading), *map(str, given[1:])])
    assert 'drops' not in capsys.readouterr().out


def test_entities_that_cannot_be_added(store, checkpoint, tmp_path, capsys):
    def given(*options, type_='brand', model=checkpoint):
        add_entities.main([str(model), '--type', type_, *map(str, options)])

    out = ('--out', tmp_path / 'new.pth')
    with pytest.raises(SystemExit, match=r"'season'.* are not in the vocabulary"):
        given('--names', 'SS', *out, type_='season')
    with pytest.raises(SystemExit, match=r"occur twice .*\['diesel'\]"):
        given('--names', 'DIESEL', *out)
    with pytest.raises(SystemExit, match='does not exist'):
        given('--names', 'New', *out, model=tmp_path / 'none.pth')
    assert not (tmp_path / 'new.pth').exists()
    for options, said in (
        (('--names', 'New', '--out', checkpoint), '--out is CHECKPOINT itself'),
        (('--names', 'New', *out, '--from-index'), 'photos need --index'),
    ):
        with pytest.raises(SystemExit, match='2'):
            given(*options)
        assert said in capsys.readouterr().err
