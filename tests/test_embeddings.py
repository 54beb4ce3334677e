"""Embeddings: what they accept, the three file formats, damaged files."""

import json
import pickle
import zipfile
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest
import references_protocols as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from eiclip_mm.evaluation import Embeddings, evaluate

VECTORS = ('image', 'product')


@pytest.fixture
def model():
    card = dict(model='EI-CLIP', épochs=10, config=dict(lr=1e-5))
    return Embeddings(**slow.arrays(*slow.random_split(2, most=14)), card=card)


def arrays_of(model):
    arrays = {f.name: getattr(model, f.name) for f in fields(model)}
    labels = {f'label.{name}': values for name, values in arrays.pop('labels').items()}
    card = np.array(json.dumps(arrays.pop('card')))
    return {name: array.numpy() for name, array in arrays.items()} | labels | dict(card=card)


def assert_same(found, expected):
    for field in fields(Embeddings):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name == 'labels':
            assert {n: v.tolist() for n, v in one.items()} == {
                n: v.tolist() for n, v in other.items()
            }
        elif field.name == 'card':
            assert one == other
        else:
            assert one.equal(other.to(one.dtype)), field.name
            assert one.is_floating_point() == (field.name in VECTORS)
    assert evaluate(found, '101/eiclip', (1,)) == evaluate(expected, '101/eiclip', (1,))


def write_parquet(folder, model, **image_columns):
    """The columns of each side, vectors as lists, as a data frame would write them."""
    arrays = arrays_of(model)
    del arrays['card']
    sides = dict(image={}, product={})
    for name, array in arrays.items():
        side = 'image' if name.startswith('image') else 'product'
        sides[side][name] = list(array) if array.ndim == 2 else array
    sides['image'] |= image_columns
    for side, columns in sides.items():
        parquet.write_table(pa.table(columns), folder / f'{side}.parquet')


class TestFiles:
    def test_npz(self, tmp_path, model):
        path = tmp_path / 'new' / 'dump.npz'
        model.save(path)
        assert_same(Embeddings.load(path), model)
        assert Embeddings.load(path).image.dtype == torch.float32
        replace(model, image=model.image.bfloat16() / 3).save(path)
        assert Embeddings.load(path).image.equal((model.image.bfloat16() / 3).float())

    @given(seed=st.integers(0, 10**6), words=st.text(st.characters(exclude_categories=['Cs'])))
    @settings(deadline=None, max_examples=20)
    def test_npz_of_any_split(self, tmp_path_factory, seed, words):
        words = words.rstrip('\0')  # numpy strings end there
        given = slow.arrays(*slow.random_split(seed))
        labels = given.pop('labels') | dict(brand=np.array([words] * len(given['product'])))
        expected = Embeddings(**given, labels=labels, card=dict(note=words))
        path = tmp_path_factory.getbasetemp() / 'any.npz'
        expected.save(path)
        assert_same(Embeddings.load(path), expected)

    def test_folder_of_npy(self, tmp_path, model):
        for name, array in arrays_of(model).items():
            np.save(tmp_path / f'{name}.npy', array)
        found = Embeddings.load(tmp_path)
        assert_same(found, model)
        found.image[:] = 7  # of this process alone: files are as they were
        assert_same(Embeddings.load(tmp_path), model)

    def test_parquet(self, tmp_path, model):
        write_parquet(tmp_path, model)
        assert_same(Embeddings.load(tmp_path), replace(model, card={}))
        flat = pa.array(model.image.numpy().ravel())
        write_parquet(tmp_path, model, image=pa.FixedSizeListArray.from_arrays(flat, 3))
        assert_same(Embeddings.load(tmp_path), replace(model, card={}))

    def test_missing_labels_of_a_data_frame_are_no_value(self, tmp_path, model):
        write_parquet(tmp_path, model)
        table = parquet.read_table(tmp_path / 'product.parquet')
        brands = ['Chloé', None] * table.num_rows
        numbers = list(range(table.num_rows))
        table = table.append_column('label.brand', [brands[: table.num_rows]])
        parquet.write_table(
            table.append_column('label.code', [numbers]), tmp_path / 'product.parquet'
        )
        found = Embeddings.load(tmp_path)
        assert found.label('brand')[:3].tolist() == ['Chloé', '', 'Chloé']
        assert found.label('code').tolist() == list(map(str, numbers))

    @pytest.mark.parametrize('kind', ['>i8', '<u2', '<u4', '>u8', 'i1'])
    def test_integers_of_any_kind(self, tmp_path, model, kind):
        ids = ('image_product_id', 'product_id')
        model = replace(model, **{name: getattr(model, name) + 60 for name in ids})
        arrays = arrays_of(model)
        for name, array in arrays.items():
            if array.dtype == np.int64:
                arrays[name] = array.astype(kind)
        arrays |= {name: arrays[name].astype('>f4') for name in VECTORS}
        np.savez(tmp_path / 'dump.npz', **arrays)
        assert_same(Embeddings.load(tmp_path / 'dump.npz'), model)
        for name, array in arrays.items():
            np.save(tmp_path / f'{name}.npy', array)
        assert_same(Embeddings.load(tmp_path), model)

    def test_a_card_of_any_characters(self, tmp_path, model):
        model = replace(model, card={'half \ud800': 'two \ud83d\ude00 of 😀, \0'})
        model.save(tmp_path / 'dump.npz')
        assert_same(Embeddings.load(tmp_path / 'dump.npz'), model)

    def test_what_may_be_left_out(self, tmp_path, model):
        arrays = arrays_of(model)
        kept = ('image', 'image_product_id', 'product', 'product_id')
        np.savez(tmp_path / 'dump.npz', **{name: arrays[name] for name in kept})
        found = Embeddings.load(tmp_path / 'dump.npz')
        assert found.product_text is None and found.labels == found.card == {}
        for ids, numbers in (('image_product_id', 'image_view'), ('product_id', 'product_caption')):
            seen = []
            for id_, number in zip(arrays[ids], getattr(found, numbers).tolist(), strict=True):
                assert number == seen.count(id_)
                seen.append(id_)


class TestDamage:
    def test_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r'none.npz do not exist. Write them with tool'):
            Embeddings.load(tmp_path / 'none.npz')
        with pytest.raises(ValueError, match=r'hold embeddings: a folder without arrays; expected'):
            Embeddings.load(tmp_path)

    def test_part_of_a_folder(self, tmp_path, model):
        model.save(tmp_path / 'dump.npz')
        with pytest.raises(
            ValueError, match=r"a folder that holds \['dump.npz'\]; give the file, not its folder"
        ):
            Embeddings.load(tmp_path)
        write_parquet(tmp_path, model)
        (tmp_path / 'product.parquet').rename(tmp_path / 'other')
        with pytest.raises(ValueError, match=r'product.parquet is missing beside the other .parq'):
            Embeddings.load(tmp_path)

    def test_arrays(self, tmp_path):
        path = tmp_path / 'dump.npz'
        np.savez(path, image=np.ones((2, 3)), product=np.ones((2, 3)), pose=np.ones(2))
        with pytest.raises(
            ValueError,
            match=r"lacks \['image_product_id', 'product_id'\] and has unknown \['pose'\]; "
            r"expected \['image', ",
        ):
            Embeddings.load(path)
        for value in (np.array([{}]), np.array(['text'])):
            np.savez(path, image=value, **{n: np.arange(1) for n in ('image_product_id',)},
                     product=np.ones((1, 3)), product_id=np.arange(1))  # fmt: skip
            with pytest.raises(ValueError, match=r'dump.npz does not hold embeddings: '):
                Embeddings.load(path)
        with path.open('wb') as file:
            np.save(file, np.ones(3))
        with pytest.raises(
            ValueError, match=r'does not hold embeddings: one array alone, a .npy; exp'
        ):
            Embeddings.load(path)

    @pytest.mark.parametrize(
        'content', [b'0.1 0.2 0.3', pickle.dumps([1.0]), b'', b'PAR1', b'\x80\x04K\x01.']
    )
    def test_no_advice_to_unpickle(self, tmp_path, content):
        path = tmp_path / 'dump.npz'
        path.write_bytes(content)
        (tmp_path / 'image.npy').write_bytes(content)
        for file, message in ((path, 'so it is no .npz'), (tmp_path, 'not hold embeddings: ')):
            with pytest.raises(ValueError, match=message) as error:
                Embeddings.load(file)
            assert 'load it unsafely' not in str(error.value)

    def test_unknown_arrays_are_not_read(self, tmp_path, model):
        """A small file may hold arrays that no memory does; at most five are named."""
        path = tmp_path / 'dump.npz'
        np.savez(path, **arrays_of(model), **{f'x{i}': np.zeros(1) for i in range(7)})
        with pytest.raises(
            ValueError,
            match=r"lacks \[\] and has unknown \['x0', 'x1', 'x2', 'x3', 'x4'\] and 2 more;",
        ):
            Embeddings.load(path)
        with zipfile.ZipFile(path, 'a') as archive, archive.open('a.npy', 'w') as member:
            np.lib.format.write_array_header_1_0(
                member, dict(descr='<f8', fortran_order=False, shape=(20 * 2**40,))
            )
        with pytest.raises(ValueError, match=r"'a.npy' says it has 175,921,860,444,160 bytes"):
            Embeddings.load(path)

    @pytest.mark.parametrize('length', [20 * 2**40, 10**19, 10**30])
    def test_header_of_an_array_that_no_memory_holds(self, tmp_path, model, length):
        path = tmp_path / 'dump.npz'
        arrays = arrays_of(model)
        del arrays['image']
        np.savez(path, **arrays)
        with zipfile.ZipFile(path, 'a') as archive, archive.open('image.npy', 'w') as member:
            np.lib.format.write_array_header_1_0(
                member, dict(descr='<f8', fortran_order=False, shape=(length,))
            )
        with pytest.raises(ValueError, match=r'dump.npz does not hold embeddings: '):
            Embeddings.load(path)

    @pytest.mark.parametrize(
        ('card', 'message'),
        [
            ('[1, 2]', r"card must be a JSON object, \{...\}, got '\[1, 2\]'"),
            ('null', "card must be a JSON object.*got 'null'"),
            ('[' * 10**5, 'maximum recursion depth'),
            ('{', 'does not hold embeddings: card is not JSON: Expecting property name'),
        ],
    )
    def test_card(self, tmp_path, model, card, message):
        np.savez(tmp_path / 'dump.npz', **arrays_of(model) | dict(card=np.array(card)))
        with pytest.raises(ValueError, match=message):
            Embeddings.load(tmp_path / 'dump.npz')

    @pytest.mark.parametrize('compressed', [False, True])
    def test_bytes(self, tmp_path, model, compressed):
        path = tmp_path / 'dump.npz'
        (np.savez_compressed if compressed else np.savez)(path, **arrays_of(model))
        whole = path.read_bytes()
        for content in (b'', b'PK\x03\x04 cut', b'not an archive', whole[: len(whole) // 2]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r'dump.npz does not hold embeddings: '):
                Embeddings.load(path)
        refused, places = 0, range(0, len(whole), 31)
        for place in places:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            try:
                assert Embeddings.load(path).image.equal(model.image)  # a date or the like
            except ValueError as error:
                assert 'does not hold embeddings' in str(error)
                refused += 1
        assert refused > len(places) / 2

    @pytest.mark.parametrize('place', [0, -1])
    def test_vectors_of_different_length_in_parquet(self, tmp_path, model, place):
        """Not even where their lengths add up to a multiple of the rows."""
        vectors = [list(vector) for vector in model.image.numpy()]
        vectors[place] += [1.0] * len(vectors)
        write_parquet(tmp_path, model, image=vectors)
        with pytest.raises(ValueError, match=r"image.parquet: vectors of column 'image' differ in"):
            Embeddings.load(tmp_path)
        vectors[place] = None
        write_parquet(tmp_path, model, image=vectors)
        with pytest.raises(ValueError, match=r"vectors of column 'image' differ in length"):
            Embeddings.load(tmp_path)

    def test_other_parquet(self, tmp_path, model):
        write_parquet(tmp_path, model, image=np.ones(len(model.image)))
        with pytest.raises(ValueError, match='does not hold embeddings'):
            Embeddings.load(tmp_path)
        (tmp_path / 'image.parquet').write_bytes(b'PAR1 cut')
        with pytest.raises(ValueError, match=r'does not hold embeddings: image.parquet: '):
            Embeddings.load(tmp_path)
        empty = parquet.read_table(tmp_path / 'product.parquet').slice(0, 0)
        parquet.write_table(empty, tmp_path / 'image.parquet')
        with pytest.raises(ValueError, match=r'image.parquet has no rows'):
            Embeddings.load(tmp_path)

    def test_bytes_of_parquet(self, tmp_path, model):
        write_parquet(tmp_path, model)
        path = tmp_path / 'image.parquet'
        whole, refused = path.read_bytes(), 0
        for place in range(0, len(whole), 31):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            try:
                Embeddings.load(tmp_path)  # parquet has no checksum of its values
            except ValueError as error:
                assert 'does not hold embeddings' in str(error)
                refused += 1
        assert refused > len(whole) / 31 / 4

    def test_written_as_npz_alone(self, model):
        with pytest.raises(ValueError, match=r"written as .npz, got the path 'dump.pkl'"):
            model.save('dump.pkl')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(image_view=torch.zeros(4).long()),
         r'2 pairs of \(image_product_id, image_view\).*\[\[0, 0\], \[1, 0\]\]; number the views'),
        (dict(product_id=torch.zeros(2).long(), product_caption=torch.zeros(2).long()),
         r'1 pairs of \(product_id, product_caption'),
        (dict(image_view=torch.zeros(3).long()), r'image_view as many .* \(4, 2\) and \(3,\)'),
        (dict(image_view=torch.tensor([0, -1, 0, 1])), 'image_view counts from 0, got -1'),
        (dict(product_id=torch.zeros(2)), 'product_id as many integers, .*torch.float32'),
        (dict(product_id=torch.tensor([True, False])), 'as many integers, .* of torch.bool'),
        (dict(product_text=torch.zeros(2, 1).long()), r'product_text as many .* and \(2, 1\)'),
        (dict(product=torch.ones(2)), r'product must be \(rows, D\).*got \(2,\)'),
        (dict(labels=dict(brand=np.array(['a']))), r"label 'brand' must be 2 strings.*got \(1,\)"),
        (dict(labels=dict(brand=np.arange(2))), r"'brand' must be 2 strings.* \(2,\) of int64"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(change, message):
    given = dict(
        image=torch.ones(4, 2),
        image_product_id=torch.tensor([0, 0, 1, 1]),
        product=torch.ones(2, 2),
        product_id=torch.arange(2),
    )
    with pytest.raises(ValueError, match=message):
        Embeddings(**(given | change))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(product_id=np.ones(2, bool)), 'product_id must be integers, got bool'),
        (dict(image_product_id=np.ones(4)), 'image_product_id must be integers, got float64'),
        (dict(product_id=np.array([1, 2**63], np.uint64)),
         'product_id has numbers beyond int64, e.g. 9223372036854775808'),
        (dict(image=np.ones((4, 2), np.complex64)), 'image must be floating.*torch.complex64'),
        (dict(product=np.ones((2, 2), np.int8)), 'product must be floating, .* got torch.int8'),
        (dict(image=np.array([[1, 0], [0, -1e300], [np.inf, 0], [np.nan, 1e39]])),
         r'image has float64 numbers .* in 2 of 4 rows, first in row 1: up to 1e\+300, at'),
    ],
)  # fmt: skip
def test_files_of_other_types(tmp_path, change, message):
    given = dict(
        image=np.ones((4, 2)),
        image_product_id=np.array([1, 1, 2, 2]),
        product=np.ones((2, 2)),
        product_id=np.array([1, 2]),
    )
    np.savez(tmp_path / 'dump.npz', **(given | change))
    with pytest.raises(ValueError, match=message):
        Embeddings.load(tmp_path / 'dump.npz')


def test_labels(model):
    assert model.label('subcategory').tolist() == model.labels['subcategory'].tolist()
    with pytest.raises(
        ValueError, match=r"no label 'brand'; they have \['subcategory'\].*'label.b"
    ):
        model.label('brand')


def test_described(model):
    """Labels and equal texts by product and caption, in any order; others have none."""
    ids, captions = model.product_id.flip(0)[1:], model.product_caption.flip(0)[1:]
    texts = dict(
        product_id=ids.numpy(),
        caption=captions.numpy(),
        text=(ids * 10).numpy(),
        labels=dict(brand=np.array([f'brand {i} {c}' for i, c in zip(ids, captions, strict=True)])),
    )
    found = model.described(texts, card=dict(a=1))
    expected = [
        f'brand {i} {c}' for i, c in zip(model.product_id, model.product_caption, strict=True)
    ]
    assert found.label('brand').tolist() == [*expected[:-1], '']
    assert found.product_text[:-1].equal(model.product_id[:-1] * 10)
    assert found.product_text[-1] not in model.product_id * 10
    assert found.card == dict(a=1)
    assert model.described(None, card={}).label('subcategory') is model.label('subcategory')


def test_other_device(model):
    assert_same(model.to('cpu'), model)
