"""The data sets: grouping, entities, views, folds, repeatable randomness, broken files."""

import json
import os
import pickle
import random
import types
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from catalogues import SIDE, TEXTS, write_coco, write_fashiongen
from mmcv.transforms import BaseTransform
from mmengine.dataset import DefaultSampler
from mmengine.hooks import DistSamplerSeedHook
from references_data import grouped, items
from torch.utils.data import DataLoader, Dataset

from eiclip_mm.datasets import (
    CocoProducts,
    FashionGen,
    LoadProductImage,
    PackProduct,
    ProductSampler,
)
from eiclip_mm.datasets.fashiongen import KEYS, materials
from eiclip_mm.datasets.product_dataset import image_key, in_select_fold
from eiclip_mm.datasets.sampler import kept_generators, seed_generators
from eiclip_mm.datasets.synthetic import BRANDS, FILES, write_mini_fashiongen
from eiclip_mm.registry import DATASETS
from eiclip_mm.structures import EntityVocab

IDS = [7, 7, 3, 7, 9, 3, 11, 12, 12, 12]  # rows of a product are not side by side
ROWS = [
    dict(
        productID=id_,
        brand={3: 'Comme des Gar&#231;ons', 9: 'Comme des Garçons'}.get(id_, 'Kiton, Napoli'),
        composition='' if id_ == 11 else '98% cotton, 2% poylester.',
        description=f'Tee {id_}, appliqu\xe9s.',
        name=f'name {id_}',
        season='SS2014',
        subcategory='T-SHIRTS',
    )
    for id_ in IDS
]
VOCAB = EntityVocab({'brand': ('Kiton, Napoli', 'Diesel')}, {'brand': (3, 1)})
TOKENIZER = dict(
    type='EntityTokenizer',
    model=dict(text_cfg=dict(context_length=12)),
    vocab=VOCAB,
    fields=('description',),
)


@pytest.fixture(scope='module')
def h5(tmp_path_factory) -> str:
    return write_fashiongen(tmp_path_factory.mktemp('h5') / 'train.h5', ROWS)


@pytest.fixture(scope='module')
def mini(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('mini')
    write_mini_fashiongen(folder, 12, 30, 4, progress=False)
    return folder


class Draws(BaseTransform):
    """Note what Python's, numpy's and torch's generators give."""

    def transform(self, results: dict) -> dict:
        results['drawn'] = torch.tensor(
            [random.random(), np.random.random(), torch.rand(()).item()], dtype=torch.float64
        )
        return results


class Keep(BaseTransform):
    """What of an item the tests compare, as tensors."""

    def transform(self, results: dict) -> dict:
        names = ('product_id', 'view', 'caption', 'sample_idx')
        pixels = results['img'].astype(np.int64).sum()
        return dict(drawn=results['drawn'], pixels=pixels, **{n: results[n] for n in names})


REPEATABLE = [
    dict(type='LoadProductImage'),
    dict(type='RandomResizedCrop', scale=SIDE, crop_ratio_range=(0.2, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    Draws(),
    Keep(),
]


def drawn(loader_or_dataset, epoch) -> dict[int, tuple]:
    """All that was drawn for each index in an epoch."""
    if isinstance(loader_or_dataset, DataLoader):
        loader_or_dataset.dataset.set_epoch(epoch)
        batches = list(loader_or_dataset)
        whole = {k: torch.cat([b[k] for b in batches]).tolist() for k in batches[0]}
        rows = [
            dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)
        ]
    else:
        loader_or_dataset.set_epoch(epoch)
        rows = [loader_or_dataset[i] for i in range(len(loader_or_dataset))]
        rows = [{k: v.tolist() if hasattr(v, 'tolist') else v for k, v in r.items()} for r in rows]
    return {row.pop('sample_idx'): tuple(map(str, row.values())) for row in rows}


# --------------------------------------------------------------------------- Fashion-Gen


def test_rows_are_grouped_by_id(h5):
    records = list(FashionGen(h5).records())
    assert [(r['product_id'], [i['row'] for i in r['images']]) for r in records] == grouped(IDS)
    for record in records:
        assert {i['h5_path'] for i in record['images']} == {h5}
        assert record['texts'] == [{'description': f'Tee {record["product_id"]}, appliqués.'}]


def test_entities_of_fashiongen(h5):
    records = {r['product_id']: r['entities'] for r in FashionGen(h5).records()}
    assert records[3]['brand'] == records[9]['brand'] == ['Comme des Garçons']
    assert records[7] == dict(
        composition=['cotton', 'poylester'],
        subcategory=['T-SHIRTS'],
        brand=['Kiton, Napoli'],
        season=['SS2014'],
    )
    assert 'composition' not in records[11]  # a type without a value is left out
    chosen = FashionGen(h5, entity_types=('brand',), text_fields=('name', 'description'))
    first = chosen.get_data_info(0)
    assert first['entities'] == {'brand': ['Kiton, Napoli']}
    assert first['texts'] == [{'name': 'name 7', 'description': 'Tee 7, appliqués.'}]


@pytest.mark.parametrize('file_name', list(FILES.values())[:2])
def test_synthetic_file_as_it_is(mini, file_name):
    records = list(FashionGen(file_name, data_root=str(mini)).records())
    with h5py.File(mini / file_name) as file:
        ids = file['input_productID'][:, 0].tolist()
        descriptions = [value.decode('latin-1') for value in file['input_description'][:, 0]]
    assert [(r['product_id'], [i['row'] for i in r['images']]) for r in records] == grouped(ids)
    for record in records:
        row = record['images'][0]['row']
        assert record['texts'][0]['description'] == descriptions[row]
        assert record['entities']['brand'][0] in BRANDS  # one spelling each
    if 'validation' in file_name:
        rows = [[i['row'] for i in r['images']] for r in records]
        assert any(r != list(range(r[0], r[0] + len(r))) for r in rows)  # trouble was planted


@pytest.mark.parametrize(
    'composition, expected',
    [
        ('Body: 80% cotton, 20% silk. Lining: 100% cotton.', ['cotton', 'silk']),
        ('98% Cotton, 2% elastaine', ['cotton', 'elastaine']),  # typos stay: they are names too
        ('70% virgin wool (RWS), 30% poylester', ['virgin wool', 'poylester']),
        ('47.5% silk, 52,5% wool', ['silk', 'wool']),
        ('80% cotton 20% silk', ['cotton', 'silk']),  # a line break became a space
        ('100% cotton Lining: 100% silk', ['cotton', 'silk']),
        ('Shell: 80% wool - 20% cashmere', ['wool', 'cashmere']),
        ('100% recycled-nylon; trim: 100% faux fur', ['recycled-nylon', 'faux fur']),
        ('100% algodón', ['algodón']),
        ('Leather', ['leather']),
        ('Upper: leather. Sole: rubber.', ['leather']),
        ('Calfskin, lambskin.', ['calfskin', 'lambskin']),
        ('80% wool, 20% cashmere. Machine wash cold, do not', ['wool', 'cashmere']),
        ('98% cotton, 2%', ['cotton']),
        ('98% cotton, 2% elas', ['cotton', 'elas']),
        ('.', []),
        ('', []),
    ],
)
def test_materials(composition, expected):
    assert materials(composition) == expected


def test_composition_cut_at_200_characters(tmp_path):
    care = ' Machine wash cold, 30 degrees; do not bleach.' * 9
    row = dict(productID=1, composition=('60% linen, 40% viscose.' + care)[:200])
    dataset = FashionGen(write_fashiongen(tmp_path / 'a.h5', [row]))
    assert dataset.get_data_info(0)['entities'] == {'composition': ['linen', 'viscose']}


def test_strings_of_variable_length(tmp_path):
    path = write_fashiongen(tmp_path / 'a.h5', ROWS[:1])
    with h5py.File(path, 'a') as file:
        for key, value, dtype in (
            ('input_brand', 'Chloé', h5py.string_dtype()),
            ('input_description', 'appliqués'.encode('latin-1'), h5py.string_dtype('ascii')),
        ):
            del file[key]
            file.create_dataset(key, data=[[value]], dtype=dtype)
    record = FashionGen(path).get_data_info(0)
    assert record['entities']['brand'] == ['Chloé']
    assert record['texts'] == [{'description': 'appliqués'}]


def broken(change):
    """A case that changes an open file of 10 rows."""

    def write(path: Path) -> None:
        write_fashiongen(path, ROWS)
        with h5py.File(path, 'a') as file:
            change(file)

    return write


def replace(key, value):
    def change(file):
        del file[key]
        if value is not None:
            file[key] = value

    return change


BROKEN = {
    'not HDF5': (lambda p: p.write_bytes(b'PK\x03\x04' * 99), 'is not a readable HDF5 file'),
    'empty file': (lambda p: p.write_bytes(b''), 'is not a readable HDF5 file'),
    'half a file': (
        lambda p: p.write_bytes(Path(write_fashiongen(p, ROWS)).read_bytes()[:3000]),
        'is not a readable HDF5 file',
    ),
    'key missing': (
        broken(replace('input_season', None)),
        r"key 'input_season' is missing; expected \['index'.*found \['index'",
    ),
    'key a group': (
        broken(lambda f: (f.pop('index'), f.create_group('index'))), "key 'index' is missing",
    ),
    'text too short': (
        broken(replace('input_brand', np.array([[b'x']] * 9))),
        r"key 'input_brand' has shape \(9, 1\), but input_image has 10 rows",
    ),
    'text too wide': (
        broken(replace('input_brand', np.array([[b'x', b'y']] * 10))),
        r"key 'input_brand' has shape \(10, 2\), expected \(10, 1\)",
    ),
    'scalar': (broken(replace('index', 3)), r"key 'index' has shape \(\)"),
    'text not text': (
        broken(replace('input_brand', np.zeros((10, 1)))),
        "key 'input_brand' must hold byte strings, found float64",
    ),
    'photos not uint8': (
        broken(replace('input_image', np.zeros((10, 8, 8, 3), np.float32))),
        r"'input_image' must be \(N, height, width, 3\) uint8, found \(10, 8, 8, 3\) float32",
    ),
    'photos gray': (
        broken(replace('input_image', np.zeros((10, 8, 8), np.uint8))), r'found \(10, 8, 8\) uint8',
    ),
    'ids not integer': (
        broken(replace('input_productID', np.zeros((10, 1)))),
        "'input_productID' must be integer, found float64",
    ),
    'no rows': (lambda p: write_fashiongen(p, []), 'the split is empty: every key has 0 rows'),
}  # fmt: skip


@pytest.mark.parametrize('case', BROKEN)
def test_broken_fashiongen_file(tmp_path, case):
    write, message = BROKEN[case]
    path = tmp_path / 'some.h5'
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        FashionGen(str(path))
    assert str(path) in str(error.value)


def test_missing_fashiongen_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.h5 does not exist.*make_mini_fashiongen'):
        FashionGen('none.h5', data_root=str(tmp_path))


def test_all_keys_are_needed():
    assert len(KEYS) == 16 and {f'input_{key}' for key in TEXTS} < set(KEYS)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(entity_types=('brand', 'colour')), r"entity_types \['colour'\] are not in the files"),
        (dict(text_fields=('title',)), r"text_fields \['title'\].*choose from \('description'"),
        (
            dict(views='last'),
            r"views='last' is not known; choose one of \('random', 'first', 'all'",
        ),
        (dict(fold='val'), r"fold='val' is not known; choose one of \('all', 'fit', 'select'\)"),
        (dict(select_share=0), 'select_share must lie between 0 and 1, got 0'),
        (dict(select_share=1.0), 'select_share must lie between 0 and 1, got 1.0'),
        (dict(seed=-1), 'seed must be at least 0, got -1'),
    ],
)
def test_bad_arguments(h5, arguments, message):
    with pytest.raises(ValueError, match=message):
        FashionGen(h5, **arguments)


# ---------------------------------------------------------------------------------- COCO

IMAGES = [
    dict(id=1, file_name='a.png', product_id=10),
    dict(id=2, file_name='b.png', product_id=11),
    dict(id=3, file_name='c.png', product_id=10),
    dict(id=4, file_name='d.png', product_id=10),
]
ANNOTATIONS = [
    dict(id=1, image_id=1, caption='Levi&#039;s  jeans', entities={'brand': ['Levi&#039;s']}),
    dict(id=2, image_id=3, caption='Blue pair', entities={'brand': ["Levi's"], 'colour': ['Blue']}),
    dict(id=3, image_id=2, caption='שלום \ud83d\ude42', entities={'colour': ['Red', 'Blue']}),
    dict(id=4, image_id=2, caption='Red tee'),
]  # fmt: skip


def test_coco(tmp_path):
    dataset = CocoProducts(write_coco(tmp_path / 'train.json', IMAGES, ANNOTATIONS))
    ten, eleven = dataset.records()
    assert [image['img_path'] for image in ten['images']] == [
        str(tmp_path / f'{c}.png') for c in 'acd'
    ]
    assert ten['texts'] == [{'description': "Levi's jeans"}, {'description': 'Blue pair'}]
    assert ten['entities'] == {'brand': ["Levi's"], 'colour': ['Blue']}
    assert eleven['product_id'] == 11
    assert eleven['texts'] == [{'description': 'שלום 🙂'}, {'description': 'Red tee'}]
    assert eleven['entities'] == {'colour': ['Red', 'Blue']}


def test_coco_example_of_the_docs(tmp_path):
    docs = Path(__file__).parents[1] / 'docs/data_format.md'
    blocks = docs.read_text(encoding='utf-8').split('```json\n')[1:]
    catalogue, entities = (block.split('```')[0] for block in blocks)
    (tmp_path / 'train.json').write_text(catalogue, encoding='utf-8')
    dataset = CocoProducts('train.json', data_root=str(tmp_path))
    built = EntityVocab.build([r['entities'] for r in dataset.records()], ['brand', 'colour'])
    assert built == EntityVocab.from_dict(json.loads(entities))


def test_image_root_and_byte_order_mark(tmp_path):
    path = Path(write_coco(tmp_path / 'train.json', IMAGES, ANNOTATIONS, photos=False))
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    dataset = CocoProducts(str(path), image_root='/photos')
    assert dataset.get_data_info(0)['images'][0] == dict(img_path='/photos/a.png')


def test_plain_coco_captions(tmp_path):
    images = [dict(id=i, file_name=f'{i}.jpg', height=8, width=8) for i in (5, 6)]
    annotations = [dict(id=n, image_id=5 + n % 2, caption=f'caption {n}') for n in range(10)]
    path = Path(write_coco(tmp_path / 'captions.json', images, annotations))
    data = json.loads(path.read_text(encoding='utf-8'))
    path.write_text(json.dumps(data | dict(categories=[dict(id=1, name='x')])), encoding='utf-8')
    dataset = CocoProducts(str(path), views='all', tokenizer=TOKENIZER)
    got = [dataset._item(i) for i in range(len(dataset))]
    assert [(i['product_id'], i['view'], i['caption']) for i in got] == [
        (id_, 0, caption) for id_ in (5, 6) for caption in range(5)
    ]
    assert {i['text_fields']['description'] for i in got} == {f'caption {n}' for n in range(10)}
    assert all(i['entities'] == {} and not i['entity_ids'].any() for i in got)


def coco_with(**changes):
    base = dict(images=IMAGES, annotations=ANNOTATIONS)
    return json.dumps({k: v for k, v in (base | changes).items() if v is not None})


def changed(rows, number, **changes):
    return [row | changes if i == number else row for i, row in enumerate(rows)]


BROKEN_COCO = {
    'not JSON': ('{', 'is not JSON'),
    'list': ('[]', 'expected an object, got a list'),
    'no images': (coco_with(images=None), '"images" is missing or empty'),
    'no annotations': (coco_with(annotations=[]), '"annotations" is missing or empty'),
    'images no list': (coco_with(images={'a': 1}), '"images" is missing or empty; expected a list'),
    'image no dict': (coco_with(images=['a']), r"images\[0\] must have an integer 'id', got 'a'"),
    'image without id': (
        coco_with(images=[*IMAGES, dict(file_name='x')]),
        r"images\[4\] must have an integer 'id', got \"\{'file_name': 'x'\}",
    ),
    'annotation without image': (
        coco_with(annotations=[*ANNOTATIONS, dict(id=9, caption='x')]),
        r"annotations\[4\] must have an integer 'image_id'",
    ),
    'annotation without id': (
        coco_with(annotations=[dict(image_id=1, caption='x')]), r"annotations\[0\].*integer 'id'",
    ),
    'image twice': (coco_with(images=changed(IMAGES, 3, id=2)), 'image id 2 occurs twice'),
    'stray': (
        coco_with(annotations=changed(ANNOTATIONS, 1, image_id=77)),
        r'annotations\[1\] names an image that is not in "images": image_id 77',
    ),
    'file name': (
        coco_with(images=changed(IMAGES, 1, file_name=None)),
        r"images\[1\].file_name must be str that can name a file, got 'None'",
    ),
    'product id': (
        coco_with(images=changed(IMAGES, 1, product_id='11')),
        r"images\[1\].product_id must be an integer of 64 bits, got '11'",
    ),
    'product id true': (coco_with(images=changed(IMAGES, 1, product_id=True)), "got 'True'"),
    'caption': (
        coco_with(annotations=changed(ANNOTATIONS, 2, caption=5)),
        r"annotations\[2\].caption must be str, got '5'",
    ),
    'entities': (
        coco_with(annotations=changed(ANNOTATIONS, 2, entities={'brand': 'Gas'})),
        r"annotations\[2\].entities must be like .* got \{'brand': 'Gas'\}",
    ),
    'no caption': (
        coco_with(annotations=ANNOTATIONS[:2]),
        'product 11 has no caption; every product needs at least one',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', BROKEN_COCO)
def test_broken_coco(tmp_path, case, capsys):
    content, message = BROKEN_COCO[case]
    path = tmp_path / 'train.json'
    path.write_text(content, encoding='utf-8')
    with pytest.raises(ValueError, match=message) as error:
        CocoProducts(str(path))
    assert str(path) in str(error.value)
    assert capsys.readouterr().out == ''


def test_coco_not_utf8(tmp_path):
    (tmp_path / 'a.json').write_bytes(b'{"images": "\xe9"}')
    with pytest.raises(ValueError, match=r'a\.json is not JSON'):
        CocoProducts('a.json', data_root=str(tmp_path))


def test_missing_coco_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.json does not exist; docs/data_format'):
        CocoProducts('none.json', data_root=str(tmp_path))


# --------------------------------------------------------------------------------- views


@pytest.mark.parametrize('views', ['first', 'all'])
def test_items(tmp_path, views):
    images = [dict(id=i, file_name=f'{i}.png', product_id=i % 3) for i in range(9)]
    images.append(dict(id=9, file_name='9.png', product_id=0))  # 4, 3, 3 views
    annotations = [
        dict(id=n, image_id=image, caption=f'{image}-{n}')
        for n, image in enumerate([0, 0, 3, 1, 4, 7, 7, 7, 2])  # 3, 5, 1 captions
    ]
    dataset = CocoProducts(write_coco(tmp_path / 'a.json', images, annotations), views=views)
    assert dataset.metainfo['views'] == views
    got = [dataset._item(i) for i in range(len(dataset))]
    assert [(i['product_id'], i['view'], i['caption']) for i in got] == [
        (product, *pair)
        for product, (num_images, num_texts) in enumerate([(4, 3), (3, 5), (3, 1)])
        for pair in items(num_images, num_texts, views)
    ]
    assert [i['sample_idx'] for i in got] == list(range(len(got)))
    path, caption = Path(got[-1]['img_path']).stem, got[-1]['text_fields']['description']
    assert (path, caption) == ('2' if views == 'first' else '8', '2-8')


@pytest.mark.parametrize('views, number', [('random', 5), ('first', 5), ('all', 10)])
def test_number_of_items(h5, views, number):
    dataset = DATASETS.build(dict(type='FashionGen', ann_file=h5, views=views))
    assert len(dataset) == number
    assert dataset.test_mode is (views != 'random')
    rows = [10 if views != 'first' else 5]
    assert [len(dataset.images())] == rows
    assert all(key == image_key(image) for key, image in dataset.images().items())


def test_items_hold_what_the_tokenizer_makes(h5):
    dataset = FashionGen(
        h5, views='first', tokenizer=TOKENIZER, pipeline=[LoadProductImage(), PackProduct()]
    )
    first = dataset[0]
    assert first['text'].shape == (12,) and first['text'].dtype == torch.int64
    assert first['entity_ids'].tolist() == [[1, 0, 0, 0]]  # (K, M)
    assert first['image'].shape == (3, SIDE, SIDE) and first['image'].dtype == torch.uint8
    assert [dataset[i]['image'][0, 0, 0].item() for i in range(5)] == [0, 2, 4, 6, 7]  # first rows
    assert [dataset[i]['product_id'] for i in range(5)] == [7, 3, 9, 11, 12]
    assert len({dataset[i]['text_id'] for i in range(5)}) == 5
    assert 'text' not in FashionGen(h5, views='first')[0]


def test_random_views_reach_every_view_and_caption(tmp_path):
    annotations = [*ANNOTATIONS, dict(id=5, image_id=4, caption='third')]
    path = write_coco(tmp_path / 'a.json', IMAGES, annotations)
    dataset = CocoProducts(path, views='random')
    seen = set()
    for epoch in range(150):
        dataset.set_epoch(epoch)
        seen.add((dataset[0]['view'], dataset[0]['caption']))
    assert seen == {(view, caption) for view in range(3) for caption in range(3)}


# ---------------------------------------------------------------------------- randomness


def states() -> tuple:
    numpy_state = np.random.get_state()
    return (
        random.getstate(),
        (numpy_state[1].tobytes(), *numpy_state[2:]),
        torch.get_rng_state().numpy().tobytes(),
    )


def test_kept_generators_are_restored():
    def draw():
        return random.random(), np.random.random(), torch.rand(()).item()

    def seeded(*seed):
        seed_generators(*seed)
        return draw()

    before = states()
    with kept_generators():
        one = seeded(1, 2, 3)
        assert seeded(1, 2, 4) != one == seeded(1, 2, 3)
        assert states() != before
    assert states() == before
    with pytest.raises(ZeroDivisionError), kept_generators():
        draw()
        raise ZeroDivisionError
    assert states() == before
    with kept_generators(False):
        draw()
    assert states() != before


def test_what_a_sample_draws_is_as_ever():
    # Recorded runs rest on it: all three generators seeded by one number of numpy's SeedSequence.
    number = int(np.random.SeedSequence((3, 1, 4)).generate_state(1)[0])
    assert number == 3304465307
    with kept_generators():
        seed_generators(3, 1, 4)
        drawn = random.random(), np.random.random(), torch.rand(()).item()
    generator = torch.Generator().manual_seed(number)
    assert drawn == (
        random.Random(number).random(),
        np.random.RandomState(number).random_sample(),
        torch.rand((), generator=generator).item(),
    )


def test_items_leave_the_generators_alone(h5):
    dataset = FashionGen(h5, pipeline=REPEATABLE)
    before = states()
    drawn(dataset, 0)
    assert states() == before


def test_draws_depend_on_seed_epoch_and_index_alone(h5):
    dataset = FashionGen(h5, pipeline=REPEATABLE, seed=3)
    zero, one = drawn(dataset, 0), drawn(dataset, 1)
    assert all(zero[i] != one[i] for i in zero)
    assert len({draws for draws, *_ in zero.values()}) == len(zero)
    assert drawn(dataset, 0) == zero  # after another epoch, as after a resume
    assert drawn(FashionGen(h5, pipeline=REPEATABLE, seed=3), 0) == zero
    assert drawn(FashionGen(h5, pipeline=REPEATABLE, seed=4), 0) != zero
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    dataset.set_epoch(1)
    backwards = {i: dataset[i] for i in reversed(range(len(dataset)))}
    assert all(str(backwards[i]['drawn'].tolist()) == one[i][0] for i in one)
    assert dataset[-1]['drawn'].equal(dataset[len(dataset) - 1]['drawn'])


def test_views_all_in_training_is_repeatable_too(h5):
    one, other = (FashionGen(h5, pipeline=REPEATABLE, views='all') for _ in range(2))
    assert drawn(one, 2) == drawn(other, 2) != drawn(one, 3)


def test_without_an_epoch_the_process_decides(h5):
    dataset = FashionGen(h5, pipeline=REPEATABLE)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        draws.append(dataset[0]['drawn'].tolist())
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize('num_workers, shuffle', [(0, True), (1, False), (2, True)])
def test_draws_do_not_depend_on_workers_or_order(h5, num_workers, shuffle):
    expected = FashionGen(h5, pipeline=REPEATABLE)
    dataset = FashionGen(h5, pipeline=REPEATABLE)
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=num_workers,
        sampler=DefaultSampler(dataset, shuffle=shuffle, seed=7),
        multiprocessing_context='fork' if num_workers else None,
        persistent_workers=num_workers > 0,
    )
    for epoch in (0, 1, 0):  # the new epoch reaches workers that live on
        assert drawn(loader, epoch) == drawn(expected, epoch)


def test_spawned_workers(h5):
    expected = FashionGen(h5, pipeline=REPEATABLE)
    dataset = FashionGen(h5, pipeline=REPEATABLE, tokenizer=TOKENIZER)
    dataset[0]  # opens the file here first
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=1,
        multiprocessing_context='spawn',
        persistent_workers=True,
    )
    for epoch in (0, 1):
        assert drawn(loader, epoch) == drawn(expected, epoch)


def test_sampler_sets_the_epoch(h5):
    dataset = FashionGen(h5, pipeline=REPEATABLE)
    loader = DataLoader(dataset, sampler=ProductSampler(dataset, shuffle=True, seed=0))
    expected = FashionGen(h5, pipeline=REPEATABLE)
    orders = []
    for epoch in (4, 5):
        train_loop = types.SimpleNamespace(dataloader=loader)
        runner = types.SimpleNamespace(train_loop=train_loop, epoch=epoch)
        DistSamplerSeedHook().before_train_epoch(runner)
        batches = list(loader)
        orders.append([batch['sample_idx'].item() for batch in batches])
        wanted = drawn(expected, epoch)
        for batch in batches:
            assert str(batch['drawn'][0].tolist()) == wanted[batch['sample_idx'].item()][0]
    assert orders[0] != orders[1] and sorted(orders[0]) == list(range(5))


class _Handles(Dataset):
    """Read rows in a worker and say which process opened the file."""

    def __init__(self, path: str):
        self.load, self.path = LoadProductImage(), path

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int):
        image = self.load(dict(h5_path=self.path, row=i))['img']
        pids = [pid for pid, _ in self.load._handles]
        return int(image.max()), os.getpid(), pids[-1], len(pids)


def test_each_process_opens_the_file_itself(h5):
    dataset = _Handles(h5)
    assert dataset[3] == (3, os.getpid(), os.getpid(), 1)
    loader = DataLoader(dataset, 2, num_workers=2, multiprocessing_context='fork', collate_fn=list)
    rows = [row for batch in loader for row in batch]
    assert [value for value, *_ in rows] == list(range(8))
    assert all(pid == opened_by != os.getpid() for _, pid, opened_by, _ in rows)
    assert {count for *_, count in rows} == {2}  # the parent's, unused, and its own
    assert pickle.loads(pickle.dumps(dataset.load))._handles == {}
    assert pickle.loads(pickle.dumps(dataset))[5][0] == 5


# --------------------------------------------------------------------------------- folds


@pytest.mark.parametrize('share', [0.03, 0.1, 0.5])
def test_folds_are_disjoint_and_complete(tmp_path, share):
    rows = [dict(productID=id_) for id_ in range(100, 300)]
    path = write_fashiongen(tmp_path / 'a.h5', rows)

    def ids(fold):
        dataset = FashionGen(path, fold=fold, select_share=share)
        return [record['product_id'] for record in dataset.records()]

    fit, select = ids('fit'), ids('select')
    assert sorted(fit + select) == ids('all') == list(range(100, 300))
    assert abs(len(select) - 200 * share) <= 3 * (200 * share * (1 - share)) ** 0.5 + 1
    assert select == [id_ for id_ in range(100, 300) if in_select_fold(id_, share)]


def test_larger_share_holds_the_smaller():
    chosen = {share: {i for i in range(2000) if in_select_fold(i, share)} for share in (0.1, 0.3)}
    assert chosen[0.1] < chosen[0.3]
    # the same on every machine
    assert [i for i in range(100) if in_select_fold(i, 0.1)] == [18, 29, 47, 55, 66, 71, 72, 90, 99]


@pytest.mark.parametrize('encode', [lambda i: str(i).encode(), lambda i: i.to_bytes(4, 'little')])
def test_folds_do_not_meet_a_split_by_crc32(encode):
    n, share, parts = 40_000, 0.1, 8
    counts = np.zeros((parts, 2))
    for i in range(n):
        counts[zlib.crc32(encode(i)) % parts, int(in_select_fold(i, share))] += 1
    expected = counts.sum(1, keepdims=True) * [1 - share, share]
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 26.1  # of 8 degrees of freedom, the 99.9 % point


def test_no_product_left(tmp_path):
    path = write_fashiongen(tmp_path / 'a.h5', [dict(productID=1)])
    assert not in_select_fold(1, 0.1)
    with pytest.raises(ValueError, match=r"no product is left of 1 in .*a\.h5 for fold='select'"):
        FashionGen(path, fold='select')
