"""The synthetic catalogue: Fashion-Gen's format and trouble, and the truth that is planted."""

import html
import importlib.util
import json
from collections import defaultdict
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from eiclip_mm.datasets import synthetic
from eiclip_mm.datasets.synthetic import (
    BRANDS,
    FILES,
    LINKED,
    SENSES,
    TRAIN,
    UNSEEN,
    VALIDATION,
    draw,
    is_written,
    make_picture,
    make_product,
    signature,
    write_mini_fashiongen,
)
from eiclip_mm.datasets.synthetic.files import _drawn

DRAWN = tuple(name for name in FILES if name not in LINKED)  # tests/test_synthetic_planted.py
SIZES = dict(num_train=46, num_validation=80, num_general=20, seed=0)
STRINGS = 'brand category composition concat_description department description gender name pose'
STRINGS = [f'input_{key}' for key in (*STRINGS.split(), 'season', 'subcategory')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('mini') / 'new' / 'folder'
    write_mini_fashiongen(path, **SIZES, progress=False)
    return path


@pytest.fixture(scope='module')
def splits(folder) -> dict[str, dict[str, np.ndarray]]:
    arrays = {}
    for name in DRAWN:
        with h5py.File(folder / FILES[name]) as file:
            arrays[name] = {key: file[key][()] for key in file}
    return arrays


@pytest.fixture(scope='module')
def catalogue() -> list[synthetic.Product]:
    return [make_product(0, TRAIN, i) for i in range(1200)]


def texts(split, key) -> list[str]:
    return [value.decode('latin-1') for value in split[key][:, 0]]


def test_many_photos_are_drawn_on_all_cores_as_one_by_one():
    rows = [(make_picture(0, i), 0) for i in range(520)]
    drawn = list(_drawn(rows))
    assert len(drawn) == len(rows)
    for i in (0, 15, 16, 300, 519):
        np.testing.assert_array_equal(drawn[i], draw(*rows[i]))


@pytest.mark.parametrize('name', DRAWN)
def test_format(splits, folder, name):
    split = splits[name]
    n = len(split['index_2'])
    others = ['index', 'index_2', 'input_image', 'input_msrpUSD', 'input_productID']
    assert sorted(split) == sorted(STRINGS + others) and len(split) == 16
    for key in STRINGS:
        assert split[key].shape == (n, 1) and split[key].dtype.kind == 'S', key
    assert split['input_image'].shape == (n, 256, 256, 3)
    assert split['input_image'].dtype == np.uint8
    assert split['input_productID'].shape == (n, 1)
    assert split['input_productID'].dtype == np.int32
    assert split['input_msrpUSD'].shape == (n, 1)
    assert split['input_msrpUSD'].dtype == np.float32
    assert split['index'].shape == (n, 1) and split['index_2'].shape == (n,)
    with h5py.File(folder / FILES[name]) as file:
        assert file['input_image'].chunks == (1, 256, 256, 3)
        assert file['input_image'].compression == 'lzf'


def test_general_split_has_captions_alone(splits):
    assert len(splits['general']['index']) == SIZES['num_general']
    for key in set(STRINGS) - {'input_description', 'input_concat_description', 'input_pose'}:
        assert set(texts(splits['general'], key)) == {''}, key
    assert all(' a' in f' {caption}' for caption in texts(splits['general'], 'input_description'))


def test_trouble(splits, catalogue):
    descriptions = b' '.join(splits['train']['input_description'][:, 0])
    with pytest.raises(UnicodeDecodeError):
        descriptions.decode('utf-8')
    assert 'appliqués' in descriptions.decode('latin-1')

    spellings = defaultdict(set)
    for product in catalogue:
        spellings[html.unescape(product.printed_brand)].add(product.printed_brand)
    assert spellings["Levi's"] == {"Levi's", 'Levi&#039;s'}
    play = {'Comme des Garçons Play', 'Comme des Gar&#231;ons Play'}
    assert spellings['Comme des Garçons Play'] == play
    assert 'Chloé' in spellings and 'Kiton, Napoli' in spellings

    compositions = [product.composition for product in catalogue]
    assert max(map(len, compositions)) == 200
    assert any('poylester' in text for text in compositions)
    assert any('Machine wash' in text for text in compositions)


def test_rows_of_validation_are_not_all_contiguous(splits):
    def runs(split):
        ids = split['input_productID'][:, 0]
        return 1 + sum(a != b for a, b in pairwise(ids)), len(set(ids))

    blocks, products = runs(splits['train'])
    assert blocks == products == SIZES['num_train']
    blocks, products = runs(splits['validation'])
    assert products == SIZES['num_validation'] and blocks > products
    poses = texts(splits['validation'], 'input_pose')
    ids = splits['validation']['input_productID'][:, 0]
    assert len(set(zip(ids, poses, strict=True))) == len(ids)


def test_views_descriptions_and_duplicates(catalogue):
    views = [product.num_views for product in catalogue]
    assert set(views) == {1, 2, 3, 4, 5} and 2.7 < np.mean(views) < 3.3
    lengths = [len(product.description.split()) for product in catalogue]
    assert min(lengths) >= 25 and max(lengths) <= 60
    distinct = len({product.description for product in catalogue})
    assert 0.8 * len(catalogue) < distinct < 0.99 * len(catalogue)


def test_same_seed_same_bytes_whatever_the_other_sizes(splits, tmp_path):
    sizes = dict(SIZES, num_train=3, num_general=2)
    write_mini_fashiongen(tmp_path, **sizes, progress=False)
    with h5py.File(tmp_path / FILES['validation']) as file:
        for key, values in splits['validation'].items():
            assert file[key].dtype == values.dtype and np.array_equal(file[key][()], values), key
    with h5py.File(tmp_path / FILES['train']) as file:
        images = file['input_image'][()]
    assert np.array_equal(images, splits['train']['input_image'][: len(images)])
    one, other = make_product(1, VALIDATION, 0), make_product(0, VALIDATION, 0)
    assert one.description != other.description


def test_product_ids_are_disjoint(splits):
    ids = [set(split['input_productID'][:, 0]) for split in splits.values()]
    assert sum(map(len, ids)) == len(set.union(*ids))


def test_every_brand_but_two_is_in_train(splits):
    brands = {
        name: set(map(html.unescape, texts(splits[name], 'input_brand')))
        for name in ('train', 'validation')
    }
    assert brands['train'] == set(BRANDS) - set(UNSEEN)
    assert brands['validation'] - brands['train'] == set(UNSEEN)


def test_brands_have_a_long_tail(catalogue):
    counts = {brand: sum(p.brand == brand for p in catalogue) for brand in BRANDS}
    assert counts['Diesel'] > 8 * counts['Marni'] > 0


def test_season_leaves_no_trace(catalogue):
    product = catalogue[0]
    other = replace(product, season='FW2018' if product.season != 'FW2018' else 'SS2014')
    for view in range(3):
        assert np.array_equal(draw(product, view), draw(other, view))


@pytest.mark.parametrize('colour', ['black', 'grey', 'white'])
@pytest.mark.parametrize('garment', ['t-shirt', 'dress', 'sneakers', 'tote bag'])
def test_brand_and_material_show_at_64_pixels(garment, colour):
    look = synthetic.Product((0, TRAIN, 0), garment, colour, brand='Diesel')

    def pixels_that_differ(looks):
        photos = [cv2.resize(draw(x), (64, 64), interpolation=cv2.INTER_AREA) for x in looks]
        photos = [photo.astype(int) for photo in photos]
        return [(np.abs(a - b).max(-1) > 20).sum() for a, b in combinations(photos, 2)]

    assert min(pixels_that_differ([replace(look, brand=brand) for brand in BRANDS])) > 60
    materials = [replace(look, material=material) for material in synthetic.MATERIALS]
    assert min(pixels_that_differ(materials)) > 60


def test_signatures_are_distinct():
    marks = [signature(brand) for brand in BRANDS]
    assert len({(m['colour'], m['shape']) for m in marks}) == len(BRANDS)
    assert len({(m['colour'], m['trim']) for m in marks}) == len(BRANDS)
    assert all(m['colour'] != m['trim'] for m in marks)


def test_everyday_sense_of_brand_words():
    captions = [make_picture(0, i).description for i in range(600)]
    everyday = {brand: sense[0] for brand, sense in BRANDS.items() if sense}
    assert len(everyday) >= 14
    for brand, words in everyday.items():
        assert set(brand.casefold().split()) & set(words.split()), brand
        assert sum(words in caption for caption in captions) >= 3, words


def test_brand_words_confound(catalogue):
    """Icons are printed on garments of other brands and named; brands are seldom named."""
    for brand, sense in BRANDS.items():
        if sense:
            motif = [p for p in catalogue if p.motif == sense[1]]
            others = [p for p in motif if p.brand != brand]
            assert len(others) > 0.6 * len(motif) > 0, brand
            assert all(sense[1] in p.description.lower() for p in motif)
    proper = [p for p in catalogue if not BRANDS[p.brand]]  # their words mean nothing else
    assert 0.05 < np.mean([p.brand in p.description for p in proper]) < 0.15
    assert {icon for _, icon, _ in SENSES} == set(synthetic.ICONS)


def test_truth(folder, splits):
    truth = json.loads((folder / 'truth.json').read_text(encoding='utf-8'))
    assert truth == write_mini_fashiongen(folder, **SIZES, progress=False)
    assert truth['arguments'] == SIZES
    assert list(truth['files']) == list(FILES.values())
    for name, file_name in FILES.items():
        count, source = truth['files'][file_name], LINKED.get(name, name)
        assert count['rows'] == len(splits[source]['index'])
        assert count['products'] == SIZES[f'num_{source}']
    assert truth['types']['brand']['role'] == 'confounder'
    assert truth['types']['season']['role'] == truth['types']['label']['role'] == 'useless'
    assert truth['types']['code']['role'] == 'harmful'
    assert set(truth['brands']) == set(BRANDS)
    assert [name for name, brand in truth['brands'].items() if brand['unseen']] == list(UNSEEN)
    assert truth['brands']['Golden Goose']['everyday'] == 'golden goose'
    ceiling = truth['validation_ceiling']
    assert ceiling['design'] < 0.3
    assert ceiling['design+brand'] < 0.6 and ceiling['design+composition'] < 0.6
    assert ceiling['design+brand+composition'] > 0.85


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_train=0), 'num_train is 0; it must be an integer from 1 to 100000'),
        (dict(num_general=1.5), 'num_general is 1.5; it must be an integer from 1'),
        (dict(num_validation=True), 'num_validation is True; it must be an integer'),
        (dict(seed=-1), 'seed is -1; it must be an integer from 0'),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_mini_fashiongen(tmp_path / 'new', **arguments)
    assert not (tmp_path / 'new').exists()


def test_other_files_are_kept(tmp_path):
    path = tmp_path / FILES['train']
    with h5py.File(path, 'w') as file:
        file['index'] = [1]
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match='was not written here'):
        write_mini_fashiongen(tmp_path, 1, 1, 1, progress=False, force=True)
    assert path.read_bytes() == before


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError('disk full')

    monkeypatch.setattr(synthetic.files, 'draw', full)
    with pytest.raises(OSError, match='disk full'):
        write_mini_fashiongen(tmp_path, 1, 1, 1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path, capsys):
    path = Path(__file__).resolve().parents[1] / 'tools/dataset_converters/make_mini_fashiongen.py'
    spec = importlib.util.spec_from_file_location('make_mini_fashiongen', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    sizes = ['--num-train', '2', '--num-validation', '2', '--num-general', '1']
    command = ['--out', str(tmp_path), *sizes]
    tool.main(command)
    written = (tmp_path / 'general.h5').stat().st_mtime_ns
    out = capsys.readouterr().out
    assert 'fashiongen_256_256_train.h5: 2 products' in out and 'Nothing written' not in out
    assert is_written(tmp_path, num_train=2, num_validation=2, num_general=1, seed=0)

    tool.main(command)
    assert 'Nothing written' in capsys.readouterr().out
    assert (tmp_path / 'general.h5').stat().st_mtime_ns == written
    with pytest.raises(SystemExit):
        tool.main([*command, '--seed', '1'])
    assert 'force' in capsys.readouterr().err
    tool.main([*command, '--seed', '1', '--force'])
    assert is_written(tmp_path, num_train=2, num_validation=2, num_general=1, seed=1)
