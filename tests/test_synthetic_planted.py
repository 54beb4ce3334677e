"""What is planted beside the splits: captions without brand words, a useless and a harmful type."""

import doctest
import importlib.util
import os
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import small

from eiclip_mm.datasets import FashionGen, LoadProductImage
from eiclip_mm.datasets.product_dataset import in_select_fold
from eiclip_mm.datasets.synthetic import (
    BRANDS,
    FILES,
    LINKED,
    NEUTRAL,
    TRAIN,
    VALIDATION,
    codes,
    is_written,
    labels,
    make_picture,
    make_product,
    neutral,
    planted,
    write_mini_fashiongen,
)

SIZES = dict(num_train=46, num_validation=30, num_general=12, seed=0)
OWN = dict(
    general_neutral={'input_description', 'input_concat_description'},
    planted_train={'input_label', 'input_code'},
    planted_validation={'input_label', 'input_code'},
)
TYPES = ('brand', 'label', 'code')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Written, then moved: links must not depend on where the files lie."""
    written = tmp_path_factory.mktemp('written') / 'mini'
    write_mini_fashiongen(written, **SIZES, progress=False)
    return Path(shutil.move(written, tmp_path_factory.mktemp('moved') / 'mini'))


@pytest.fixture(scope='module')
def captions() -> list[str]:
    return [make_picture(0, i).description for i in range(2000)]


class TestFiles:
    @pytest.mark.parametrize('name', LINKED)
    def test_all_but_its_own_columns_are_those_of_the_split(self, folder, name):
        with (
            h5py.File(folder / FILES[name]) as file,
            h5py.File(folder / FILES[LINKED[name]]) as source,
        ):
            assert set(file) == set(source) | OWN[name]
            for key in set(source) - OWN[name]:
                assert np.array_equal(file[key][()], source[key][()]), key
            for key in OWN[name]:
                assert file[key].shape == (len(source['index']), 1)
                assert file[key].dtype.kind == 'S'

    @pytest.mark.parametrize('name', LINKED)
    def test_photos_take_no_room(self, folder, name):
        assert (folder / FILES[name]).stat().st_size < 50_000

    def test_only_what_is_missing_is_written(self, tmp_path):
        sizes = dict(SIZES, num_train=2, num_validation=2, num_general=2)
        truth = write_mini_fashiongen(tmp_path, **sizes, progress=False)
        (tmp_path / 'entities.json').write_text('kept')
        for name in LINKED:
            (tmp_path / FILES[name]).unlink()
        (tmp_path / 'truth.json').write_text('{}')
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob('*.h5')}
        assert len(before) == 3 and not is_written(tmp_path, **sizes)

        assert write_mini_fashiongen(tmp_path, **sizes, progress=False) == truth
        assert is_written(tmp_path, **sizes)
        assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
        assert (tmp_path / 'entities.json').read_text() == 'kept'
        assert len(list(tmp_path.iterdir())) == len(FILES) + 2

        os.remove(tmp_path / FILES['general'])
        with pytest.raises(FileExistsError, match='pass force to replace it'):
            write_mini_fashiongen(tmp_path, **dict(sizes, seed=1), progress=False)

    def test_pipeline_and_packs_read_the_photos(self, folder, tmp_path):
        data = FashionGen(FILES['planted_train'], TYPES, data_root=str(folder), views='all')
        plain = FashionGen(FILES['train'], data_root=str(folder), views='all')
        load = LoadProductImage()
        pairs = [(load(data[i])['img'], load(plain[i])['img']) for i in (0, 5, 20)]
        assert all(np.array_equal(*pair) for pair in pairs)

        split = dict(type='FashionGen', ann_file=FILES['general_neutral'], data_root=str(folder))
        config = tmp_path / 'config.py'
        config.write_text(f'train_dataloader = dict(dataset={split})')
        _pack(str(config), '--splits', 'train', '--out', str(tmp_path))
        general = FashionGen(FILES['general_neutral'], data_root=str(folder), views='all')
        packed = LoadProductImage(packed=str(tmp_path))
        for i in range(SIZES['num_general']):
            assert np.array_equal(packed(general[i])['img'], load(general[i])['img'])


def _pack(*arguments: str) -> None:
    path = Path(small.TOOLS) / 'dataset_converters/pack_images.py'
    spec = importlib.util.spec_from_file_location('pack_images', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main(list(arguments))


class TestNeutral:
    def test_no_word_of_a_brand_is_left(self, captions):
        brands = {word for brand in BRANDS for word in brand.casefold().split()}
        said = {word for caption in captions for word in caption.split()}
        assert brands & said == set(NEUTRAL)  # none is replaced in vain
        assert not brands & {word for caption in captions for word in neutral(caption).split()}

    def test_all_else_is_said_as_before(self, captions):
        back = {made_up: word for word, made_up in NEUTRAL.items()}
        assert len(back) == len(NEUTRAL)
        for caption in captions:
            words = neutral(caption).split()
            assert ' '.join(back.get(word, word) for word in words) == caption
            for article, word in pairwise(words):
                if article in ('a', 'an'):
                    assert (article == 'an') == (word[0] in 'aeiou'), caption

    def test_made_up_words_mean_nothing(self, captions):
        texts = [*captions, *(make_product(0, TRAIN, i).description for i in range(200)), *BRANDS]
        known = {word.strip('.,') for text in texts for word in text.casefold().split()}
        for made_up in NEUTRAL.values():
            for word in known:
                assert made_up not in word and (len(word) < 4 or word not in made_up)

    def test_file(self, folder):
        with (
            h5py.File(folder / FILES['general_neutral']) as file,
            h5py.File(folder / FILES['general']) as source,
        ):
            for key in OWN['general_neutral']:
                expected = [neutral(text.decode()) for text in source[key][:, 0]]
                assert [text.decode() for text in file[key][:, 0]] == expected

    def test_examples(self):
        assert doctest.testmod(planted).attempted == 1
        assert doctest.testmod(planted).failed == 0


class TestTypes:
    def test_products_of_train_share_a_code_by_threes(self):
        counts = Counter(codes(0, 1200, 300)[TRAIN])
        assert len(counts) == 400 and set(counts.values()) == {3}
        assert Counter(Counter(codes(0, 46, 1)[TRAIN]).values()) == {3: 14, 4: 1}
        assert codes(0, 2, 1) == {TRAIN: ['code 1'] * 2, VALIDATION: ['code 1']}

    def test_what_is_held_out_has_codes_of_what_is_trained_on(self):
        found = codes(0, 1200, 300)
        folds = {False: set(), True: set()}
        for number, code in enumerate(found[TRAIN]):
            folds[in_select_fold(make_product(0, TRAIN, number).id, 0.1)].add(code)
        assert len(folds[True]) > 80 and folds[True] <= folds[False]
        assert set(found[VALIDATION]) <= folds[False]

    def test_a_code_says_nothing_of_design_or_brand(self):
        looks = [make_product(0, TRAIN, i) for i in range(1200)]
        by_code = {}
        for look, code in zip(looks, codes(0, 1200, 1)[TRAIN], strict=True):
            by_code.setdefault(code, []).append(look)
        for field in ('garment', 'brand', 'material'):
            same = [getattr(a, field) == getattr(b, field) for a, b, _ in by_code.values()]
            counts = Counter(getattr(look, field) for look in looks)
            by_chance = sum((count / len(looks)) ** 2 for count in counts.values())
            assert abs(np.mean(same) - by_chance) < 0.05, field  # three standard errors

    def test_labels_are_few_and_even(self):
        counts = Counter(labels(0, TRAIN, 1200))
        assert len(counts) == 8 and max(counts.values()) < 1.4 * min(counts.values())
        assert labels(0, TRAIN, 1200) != labels(1, TRAIN, 1200)

    def test_data_set_takes_them(self, folder):
        for name, split in (('planted_train', TRAIN), ('planted_validation', VALIDATION)):
            data = FashionGen(FILES[name], TYPES, data_root=str(folder))
            tags = {r['product_id']: r['entities'] for r in data.records()}
            n = len(tags)
            ids = [make_product(0, split, i).id for i in range(n)]
            expected = codes(0, 46, 30)[split], labels(0, split, n)
            assert [tags[i]['code'] for i in ids] == [[code] for code in expected[0]]
            assert [tags[i]['label'] for i in ids] == [[label] for label in expected[1]]
            assert all(tags[i]['brand'] for i in ids)

    def test_a_file_without_them_is_refused(self, folder):
        message = r"train\.h5 has no entity types \['label', 'code'\].*planted_train\.h5"
        with pytest.raises(ValueError, match=message):
            FashionGen(FILES['train'], TYPES, data_root=str(folder))
