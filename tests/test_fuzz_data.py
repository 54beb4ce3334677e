"""Mutated photos, catalogues, vocabularies, packs, HDF5 files, tables, zips: read, or refused."""

import copy
import io
import json
import sys
import zipfile
from pathlib import Path

import bad_files
import h5py
import numpy as np
import pytest
import shop
from catalogues import TEXTS, write_fashiongen
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from eiclip_mm.apis.tables import cells
from eiclip_mm.datasets import CocoProducts, EntityTokenizer, FashionGen
from eiclip_mm.datasets.packed import PackedPhotos
from eiclip_mm.datasets.pixels import decoded
from eiclip_mm.structures import EntityVocab

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools/dataset_converters'))
import _photos
import catalogue

KINDS = ('JPEG', 'PNG', 'GIF', 'TIFF', 'WEBP', 'BMP', 'PPM', 'JPEG2000')
PHOTOS = [bad_files.encoded(kind) for kind in KINDS]
ODD = ['', 'a\0b', '\ud800', '\u202e', '../x', '/x', 'x' * 300, '9' * 5000, '1.png', 'brand']
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(ODD), inner),
    max_leaves=3,
)
PLACES = st.lists(st.integers(0, 10**6), max_size=6)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('fuzz')


@st.composite
def mutated(draw, content: bytes):
    """Bytes changed, put in, taken out or cut, at a few places."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(['change', 'put in', 'take out', 'cut', 'copy']))
        if how == 'change' and data:
            data[at] = draw(st.integers(0, 255))
        elif how == 'put in':
            data[at:at] = draw(st.binary(max_size=8))
        elif how == 'take out':
            del data[at : at + draw(st.integers(1, 40))]
        elif how == 'copy':
            data[at:at] = data[at : at + 60]
        elif draw(st.booleans()):
            del data[at:]
    return bytes(data)


@st.composite
def restructured(draw, content):
    """JSON of which a few nodes are other values, are gone, or stand twice."""
    data = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        nodes = list(_nodes(data))
        holder, key = nodes[draw(st.integers(0, len(nodes) - 1))]
        how = draw(st.sampled_from(['change', 'take out', 'twice']))
        if how == 'change':
            holder[key] = draw(VALUES)
        elif how == 'take out':
            del holder[key]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        if not any(_nodes(data)):
            break
    return data


def _nodes(data):
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in list(items):
        yield data, key
        if isinstance(value, dict | list):
            yield from _nodes(value)


def read_or_refused(read, name: str, errors=(ValueError,)):
    """What is read; or None, where an error says in a sentence what is wrong with ``name``."""
    try:
        return read()
    except errors as error:
        message = str(error)
        assert type(error) in (*errors, catalogue.InputError) and name in message, repr(error)
        assert message.replace('\n', ' ').isprintable() and len(message) < 3000
    return None


@given(st.sampled_from(PHOTOS).flatmap(mutated))
@fuzz
def test_photos(data):
    pixels = read_or_refused(lambda: decoded(io.BytesIO(data), 'this photo'), 'this photo')
    if pixels is not None:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


CATALOGUE = dict(
    info=dict(split='train'),
    images=[dict(id=i, file_name=f'{i}.png', product_id=i // 2) for i in range(4)],
    annotations=[
        dict(id=i, image_id=i, caption=f'tee {i}', entities=dict(brand=['Gas'])) for i in range(4)
    ],
)


def check_catalogue(path: Path) -> None:
    """Whether rows are errors or left out, all that remains can be used."""
    strict = read_or_refused(lambda: CocoProducts(str(path), views='all'), path.name)
    photos = path.with_name('packed')
    for i in range(4):
        (path.parent / f'{i}.png').write_bytes(bad_files.PNG)
    lenient = read_or_refused(
        lambda: CocoProducts(str(path), views='all', on_error='skip', max_bad=1), path.name
    )
    if strict is not None and lenient is not None:
        assert len(strict) >= len(lenient) and not photos.exists()
    for dataset in filter(None, (strict, lenient)):
        texts = dataset.metainfo['retrieval']['texts']
        assert len(texts['product_id']) and {'product_id', 'caption'} < set(texts)
        assert all(item['text_fields']['description'] is not None for item in dataset.records())
    if lenient is not None and lenient.skipped:
        assert json.dumps(lenient.skipped).isascii()


@given(mutated(json.dumps(CATALOGUE).encode()))
@fuzz
def test_bytes_of_a_catalogue(folder, monkeypatch_module, data):
    path = folder / 'bytes.json'
    path.write_bytes(data)
    check_catalogue(path)


@given(restructured(CATALOGUE))
@fuzz
def test_structure_of_a_catalogue(folder, monkeypatch_module, data):
    path = folder / 'structure.json'
    path.write_text(json.dumps(data), encoding='utf-8')
    check_catalogue(path)


@pytest.fixture(scope='module')
def monkeypatch_module(folder):
    """What is remembered of photos goes into the folder of the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


VOCAB = EntityVocab({'brand': ('Gas', 'Puma'), 'use': ('Sport',)}, {'brand': (2, 1), 'use': (3,)})


@given(st.one_of(
    mutated(json.dumps(VOCAB.to_dict()).encode()),
    restructured(VOCAB.to_dict()).map(json.dumps).map(str.encode),
))  # fmt: skip
@fuzz
def test_vocabularies(folder, data):
    path = folder / 'entities.json'
    path.write_bytes(data)
    vocab = read_or_refused(lambda: EntityVocab.load(path), path.name)
    if vocab is not None:
        vocab.save(folder / 'again.json')
        assert EntityVocab.load(folder / 'again.json') == vocab


INDEX = ''.join(
    json.dumps(line) + '\n'
    for line in [
        dict(format='eiclip_mm.packed_photos/1', side=None, sources={'../train.h5': 99}),
        ['../1.png', None, 2, 3, 7],
        ['../train.h5', 0, 2, 2, 7],
        dict(photos=2),
    ]
).encode()


@given(mutated(INDEX))
@fuzz
def test_packs(folder, data):
    packed = folder / 'packed'
    packed.mkdir(exist_ok=True)
    (packed / 'train.index').write_bytes(data)
    (packed / 'train.photos').write_bytes(bytes(30))
    packs = read_or_refused(lambda: PackedPhotos(packed).packs, 'train.')
    for pack in packs or ():
        assert all(pack[i].shape[2] == 3 for i in range(len(pack)))


@pytest.fixture(scope='module')
def h5_file(folder) -> Path:
    return Path(write_fashiongen(folder / 'whole.h5', bad_files.ROWS[:2]))


def load_h5(path: str) -> int:
    return len(FashionGen(path, entity_types=('brand', 'composition')))


@given(st.data())
@fuzz
def test_bytes_of_hdf5(folder, h5_file, data):
    path = folder / 'bytes.h5'
    path.write_bytes(data.draw(mutated(h5_file.read_bytes())))
    # in a child: HDF5 is C, and must neither crash nor hang
    result = bad_files.contained(load_h5, str(path))
    if isinstance(result, tuple):
        assert result[0] == 'ValueError' and path.name in result[1], result
        assert result[1].isprintable()


DTYPES = ('S5', 'i4', 'u8', 'f4', 'bool', h5py.string_dtype(), h5py.ref_dtype, 'S9')
SHAPES = ((2, 1), (2,), (1, 2), (), (0, 1), (3, 1), (2, 2), (2, 8, 8, 3), (2, 0, 8, 3))


@given(
    st.sampled_from(
        [f'input_{key}' for key in TEXTS] + ['input_productID', 'input_image', 'index']
    ),
    st.sampled_from(DTYPES),
    st.sampled_from(SHAPES),
    st.sampled_from([None, 'gzip', 'lzf']),
    st.binary(max_size=20),
)
@fuzz
def test_columns_of_hdf5(folder, h5_file, key, dtype, shape, compression, value):
    path = folder / 'columns.h5'
    path.write_bytes(h5_file.read_bytes())
    with h5py.File(path, 'a') as file:
        del file[key]
        options = dict(compression=compression, chunks=True) if shape and 0 not in shape else {}
        column = file.create_dataset(key, shape, dtype, **options)
        if shape and 0 not in shape and dtype in ('S5', 'S9'):
            column[...] = value
    read_or_refused(lambda: load_h5(str(path)), path.name)


PIECES = st.sampled_from(
    ['&', '&amp;', 'amp;', '&#', '&#x', '9', '38;', 'a', 'é', '\u0315', '\u0300', '\ud800',
     '\udc00', '\0', '\u202e', '衣', '\U0001f600', '-', "'s", ' ', '\n', '<', 'Gas', '\ufeff',
     '\u200b']
)  # fmt: skip
LONG_TEXTS = st.lists(
    st.tuples(st.lists(PIECES, max_size=4).map(''.join), st.sampled_from([1, 2, 40, 3000])),
    max_size=4,
).map(lambda parts: ''.join(piece * times for piece, times in parts))
TOKENIZER = EntityTokenizer(dict(text_cfg=dict(context_length=12)), VOCAB, ('description',))


@given(LONG_TEXTS)
@fuzz
def test_texts(text):
    one = TOKENIZER(dict(description=text))
    many = TOKENIZER.encode_all([(dict(description=text), None)])
    assert one.text.tolist() == many.text[0].tolist() and one.text[0] == TOKENIZER.subwords.start
    one.composed.encode()  # no half of a surrogate pair


LETTERS = st.text(st.sampled_from('abehilnorstuv-!é衣'), min_size=2, max_size=40)


@given(st.lists(LETTERS, min_size=1, max_size=4), st.integers(1, 12))
@fuzz
def test_long_words_are_those_of_open_clip(parts, times):
    subwords = TOKENIZER.subwords
    word = ''.join(parts) * times
    assert subwords.encode(word) == subwords.open_clip.encode(word)


@pytest.fixture(scope='module')
def table(folder) -> Path:
    shop.write_photos(folder / 'photos', 6)
    return shop.write_csv(folder / 'whole.csv', shop.rows(6))


@given(st.data())
@fuzz
def test_bytes_of_a_table(folder, table, data):
    path = folder / 'shop.csv'
    path.write_bytes(data.draw(mutated(table.read_bytes())))
    report = read_or_refused(
        lambda: catalogue.convert(
            path, folder / 'out', ['brand'], folder / 'photos', 'skip', 1, 0.5, 1, 0
        ),
        path.name,
    )
    if report is not None:
        counts = [
            len(CocoProducts(f'{s}.json', data_root=str(folder / 'out'))) for s in ('train', 'val')
        ]
        assert counts == list(report['products'].values())


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f'images/{i}.jpg', bad_files.JPEG[:2000])
    return file.getvalue()


@given(mutated(zipped()))
@fuzz
def test_bytes_of_a_zip(folder, data):
    path = folder / 'images.zip'
    path.write_bytes(data)
    if not zipfile.is_zipfile(path):  # which the converter refuses
        return
    notes: list[str] = []
    out = folder / 'extracted'
    found = read_or_refused(
        lambda: _photos.extract_images(path, range(3), out, notes.append), path.name
    )
    for id_, photo in (found or {}).items():
        assert photo == out / f'{id_}.jpg' and photo.is_file()
        photo.unlink()


@pytest.fixture(scope='module')
def parquet_table(folder) -> Path:
    arrow = pytest.importorskip('pyarrow', reason="needs pip install 'eiclip_mm[search]'")
    from pyarrow import parquet

    path = folder / 'whole.parquet'
    parquet.write_table(arrow.Table.from_pylist(shop.rows(6)), path)
    return path


@given(st.data())
@fuzz
def test_bytes_of_a_parquet_table(folder, parquet_table, data):
    path = folder / 'shop.parquet'
    path.write_bytes(data.draw(mutated(parquet_table.read_bytes())))
    read_or_refused(lambda: list(cells(path)), path.name)
