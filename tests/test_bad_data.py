"""Bad photos, catalogues, vocabularies and packs: a sentence that names the file, nothing else."""

import json
import os
import resource
from pathlib import Path

import bad_files
import h5py
import numpy as np
import pytest
from catalogues import write_coco, write_fashiongen
from PIL import Image

from eiclip_mm.datasets import CocoProducts, EntityTokenizer, FashionGen
from eiclip_mm.datasets.packed import PackedPhotos
from eiclip_mm.datasets.pixels import decoded
from eiclip_mm.structures import EntityVocab, clean_text, entity_key
from eiclip_mm.utils.untrusted import shown

NAN = float('nan')
DEEP = 100_000


def refused(load, path, *words: str, errors=('ValueError',), room: int = 2**30) -> str:
    """The sentence of the error with which a child ends that loads ``path``."""
    result = bad_files.contained(load, path, room=room)
    assert isinstance(result, tuple), result
    kind, message = result
    assert kind in errors, result
    assert Path(str(path)).name[:20].split('\0')[0] in message
    assert len(message) < 1500 and message.isprintable(), message
    assert all(word in message for word in words), message
    return message


# -------------------------------------------------------------------------------- photos


def size_of(path: str) -> tuple[int, ...]:
    return decoded(path, path).shape


@pytest.mark.parametrize('kind', bad_files.CONTENTS)
def test_photo_that_is_none(tmp_path, kind):
    path = tmp_path / 'photo.png'
    path.write_bytes(bad_files.CONTENTS[kind])
    refused(size_of, str(path), 'photo.png is not an image that can be decoded: ')


@pytest.mark.parametrize('kind', bad_files.SPECIAL)
def test_path_without_a_photo(tmp_path, kind):
    path = bad_files.write_special(kind, tmp_path)
    expected = 'FileNotFoundError' if kind in bad_files.MISSING else 'ValueError'
    result = bad_files.contained(size_of, path)
    assert result[0] == expected and shown(Path(path).name)[:20] in result[1]
    assert result[1].isprintable()


@pytest.mark.parametrize('kind', bad_files.SOUND)
def test_odd_photo_that_is_sound(tmp_path, kind):
    path = tmp_path / 'photo.png'
    path.write_bytes(bad_files.SOUND[kind])
    pixels = decoded(str(path), 'x')
    assert pixels.shape == (16, 24, 3) and pixels.dtype == np.uint8


def test_a_photo_between_the_limits_of_pil_warns_once(tmp_path):
    path = tmp_path / 'large.png'
    path.write_bytes(bad_files.png(12_000, 12_000))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match=r'12000 x 12000 pixels, more than .* make it smaller'),
    ):
        decoded(str(path), str(path))


# ------------------------------------------------------------------------------ catalogue

IMAGES = [dict(id=i, file_name=f'{i}.png', product_id=10 + i) for i in range(1, 4)]
TEXTS = [
    dict(id=i, image_id=i, caption=f'product {i}', entities={'brand': ['Gas']}) for i in range(1, 4)
]


def load_coco(path: str) -> int:
    return len(CocoProducts(path, views='first'))


def coco(tmp_path, images=None, annotations=None) -> str:
    content = dict(images=images or IMAGES, annotations=annotations or TEXTS)
    path = tmp_path / 'train.json'
    path.write_text(json.dumps(content), encoding='utf-8')
    return str(path)


FIELDS = {
    'images.id': (None, True, 1.5, NAN, [], {}, 10**30, -(2**70)),
    'images.file_name': (None, 5, [], {}, '', 'a\0b.png', '\ud800.png', '/etc/passwd'),
    'images.product_id': ('x', True, 1.5, NAN, [], {}, 10**30),
    'annotations.id': (None, True, 1.5, {}),
    'annotations.image_id': (None, False, [], 77, '1', 10**30),
    'annotations.caption': (None, 5, NAN, [], {}),
    'annotations.entities': (
        None, [], 'x', {'brand': None}, {'brand': 'Gas'}, {'brand': [5]}, {'brand': [None]},
        {'': ['x']}, {'a\0b': ['x']}, {'\ud800': ['x']}, {'a\u202eb': ['x']}, {'x' * 101: ['x']},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ('field', 'value'), [(field, value) for field, values in FIELDS.items() for value in values]
)
def test_field_of_a_wrong_kind(tmp_path, field, value):
    key, name = field.split('.')
    rows = dict(images=[dict(r) for r in IMAGES], annotations=[dict(r) for r in TEXTS])
    rows[key][1][name] = value
    path = coco(tmp_path, **rows)
    with pytest.raises(ValueError, match='Mend it, or leave such rows out') as error:
        CocoProducts(path)
    assert path in str(error.value) and str(error.value).isprintable()
    assert f'{key}[' in str(error.value) or value == '/etc/passwd'
    dataset = CocoProducts(
        write_coco(tmp_path / 'train.json', rows['images'], rows['annotations'], photos=False),
        on_error='skip', max_bad=1, pipeline=[],
    ) if _photos(tmp_path, rows['images']) else None  # fmt: skip
    assert [r['product_id'] for r in dataset.records()] == [11, 13]
    assert dataset.skipped and {row['file'] for row in dataset.skipped} == {path}


def _photos(folder: Path, images: list[dict]) -> bool:
    for i in range(1, 4):
        Image.new('RGB', (8, 8)).save(folder / f'{i}.png')
    return True


def deep(opening: str, closing: str) -> str:
    return opening * DEEP + closing * DEEP


DOCUMENTS = {
    'empty': b'',
    'blank': b'  \n',
    'zeros': bytes(99),
    'number': b'7',
    'text': b'"x"',
    'null': b'null',
    'NaN': b'NaN',
    'list': b'[]',
    'cut': b'{"images": [{"id": 1',
    'two': b'{"images": []}{"images": []}',
    'JSON lines': b'{"id": 1}\n{"id": 2}\n',
    'comma': b'{"images": [],}',
    'single quotes': b"{'images': []}",
    'huge integer': b'{"images": [' + b'9' * 5000 + b']}',
    'deep lists': deep('[', ']').encode(),
    'deep objects': deep('{"a":', '}').encode(),
    'deep inside': f'{{"images": {deep("[", "]")}}}'.encode(),
    'key twice': b'{"images": [{"id": 1}], "images": [], "annotations": []}',
    'key twice, inside': b'{"images": [{"id": 1, "id": 2}], "annotations": []}',
    'utf-16': '{"images": []}'.encode('utf-16'),
    'utf-32': '{"images": []}'.encode('utf-32'),
    'latin-1': '{"images": "\xe9"}'.encode('latin-1'),
    'surrogates in utf-8': b'{"images": "\xed\xa0\x80"}',
    'gzip': b'\x1f\x8b\x08\x00' + bytes(20),
    'CSV': b'id,image\n1,a.jpg\n',
    'images null': b'{"images": null, "annotations": null}',
    'rows null': b'{"images": [null], "annotations": [null]}',
    'rows of lists': b'{"images": [[]], "annotations": [[]]}',
    'no such image': b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 1, '
    b'"image_id": 2, "caption": ""}]}',
}


@pytest.mark.parametrize('kind', DOCUMENTS)
def test_document_that_is_no_catalogue(tmp_path, kind):
    path = tmp_path / 'train.json'
    path.write_bytes(DOCUMENTS[kind])
    refused(load_coco, str(path))


@pytest.mark.parametrize('kind', [k for k in DOCUMENTS if k not in ('JSON lines', 'images null')])
def test_document_that_is_no_vocabulary(tmp_path, kind):
    path = tmp_path / 'entities.json'
    path.write_bytes(DOCUMENTS[kind])
    refused(EntityVocab.load, str(path))


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'device', 'NUL', 'surrogate', 'long name'])
@pytest.mark.parametrize('load', [load_coco, EntityVocab.load, FashionGen])
def test_path_that_is_no_file(tmp_path, kind, load):
    path = bad_files.write_special(kind, tmp_path)
    kind, message = bad_files.contained(load, path)
    assert kind == 'FileNotFoundError' and shown(Path(path).name)[:20] in message
    assert 'is no file' in message or 'does not exist' in message
    assert message.isprintable()


def test_a_file_larger_than_memory(tmp_path):
    path = tmp_path / 'train.json'
    with open(path, 'wb') as file:
        file.truncate(2**36)  # sparse: it takes no room on the disk
    for load in (load_coco, EntityVocab.load):
        refused(load, str(path), 'does not fit into memory')


def test_sound_oddities_of_a_catalogue(tmp_path):
    images = [dict(row, width=NAN, height=None, more=[{}]) for row in IMAGES]
    texts = [dict(row, caption='\ufeffa\0\ud83d\ude00\u202e\ud800  b') for row in TEXTS]
    path = Path(coco(tmp_path, images, texts))
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    text = CocoProducts(str(path)).get_data_info(0)['texts'][0]['description']
    assert text == 'a\U0001f600\u202e\ufffd b'


@pytest.mark.parametrize('name', ['../x.png', 'a/../../x.png', '/x.png', '..'])
def test_names_that_climb_out_of_image_root(tmp_path, name):
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'x.png')  # it could be read
    path = coco(tmp_path, [dict(IMAGES[0], file_name=name), *IMAGES[1:]])
    with pytest.raises(ValueError, match=r'must be relative to .*photos.*Mend it') as error:
        CocoProducts(path, image_root=str(tmp_path / 'photos'))
    assert path in str(error.value)
    inside = coco(tmp_path, [dict(IMAGES[0], file_name='a/../x.png'), *IMAGES[1:]])
    assert len(CocoProducts(inside, image_root=str(tmp_path / 'photos'))) == 3


# ------------------------------------------------------------------------------ vocabulary

VOCAB = dict(format='eiclip_mm.entity_vocab/1', names={'brand': ['Gas']}, counts={'brand': [1]})
VOCABULARIES = {
    'names a text': dict(names={'brand': 'Gas'}),
    'names null': dict(names=None),
    'name null': dict(names={'brand': [None]}),
    'name a number': dict(names={'brand': [5]}),
    'name empty': dict(names={'brand': [' ']}),
    'name of half a pair': dict(names={'brand': ['\ud800']}),
    'type empty': dict(names={'': ['Gas']}, counts={'': [1]}),
    'type with NUL': dict(names={'a\0': ['Gas']}, counts={'a\0': [1]}),
    'type reversed': dict(names={'\u202e': ['Gas']}, counts={'\u202e': [1]}),
    'type long': dict(names={'x' * 101: ['Gas']}, counts={'x' * 101: [1]}),
    'count text': dict(counts={'brand': ['1']}),
    'count true': dict(counts={'brand': [True]}),
    'count half': dict(counts={'brand': [0.5]}),
    'count NaN': dict(counts={'brand': [NAN]}),
    'count infinite': dict(counts={'brand': [float('inf')]}),
    'count negative': dict(counts={'brand': [-1]}),
    'count huge': dict(counts={'brand': [10**30]}),
    'counts a dict': dict(counts={'brand': {'Gas': 1}}),
    'format a list': dict(format=[]),
}


@pytest.mark.parametrize('kind', VOCABULARIES)
def test_vocabulary_with_a_field_of_a_wrong_kind(tmp_path, kind):
    path = tmp_path / 'entities.json'
    path.write_text(json.dumps(VOCAB | VOCABULARIES[kind]), encoding='utf-8')
    refused(EntityVocab.load, str(path), 'build_entities.py')


def test_vocabulary_with_a_byte_order_mark(tmp_path):
    path = tmp_path / 'entities.json'
    path.write_bytes(b'\xef\xbb\xbf' + json.dumps(VOCAB).encode())
    assert EntityVocab.load(path).names == {'brand': ('Gas',)}


# ----------------------------------------------------------------------------------- HDF5


def load_h5(path: str) -> int:
    return len(FashionGen(path, entity_types=('brand',)))


def replaced(key: str, make):
    """A change of a file: ``key`` is made anew."""

    def change(file: h5py.File) -> None:
        del file[key]
        make(file, key)

    return change


def _column(shape, dtype, **options):
    return lambda file, key: file.create_dataset(key, shape, dtype, **options)


def _other_file(file: h5py.File, key: str) -> None:
    other = Path(file.filename).parent / 'elsewhere/other.h5'
    other.parent.mkdir(exist_ok=True)
    write_fashiongen(other, bad_files.ROWS)
    file[key] = h5py.ExternalLink(str(other), key)


def _raw_bytes(file: h5py.File, key: str) -> None:
    other = Path(file.filename).with_name('secret')
    other.write_bytes(b'secret' * 100)
    file.create_dataset(key, (8, 1), 'S6', external=[(str(other), 0, 48)])


def _virtual(file: h5py.File, key: str) -> None:
    other = write_fashiongen(Path(file.filename).with_name('other.h5'), bad_files.ROWS)
    layout = h5py.VirtualLayout((8, 1), 'S200')
    layout[:] = h5py.VirtualSource(other, key, (8, 1))
    file.create_virtual_dataset(key, layout)


def _grown(file: h5py.File) -> None:
    """8 photos, and metadata of cells that a few bytes grow to."""
    del file['input_brand']
    file.create_dataset(
        'input_brand', (8, 1), f'S{2**20 - 1}', chunks=(1, 1), compression='gzip', fillvalue=b'x'
    )


def _many(file: h5py.File) -> None:
    """2 billion rows of which none was written."""
    for key in list(file):
        old = file[key]
        shape, dtype, chunks = (2**31, *old.shape[1:]), old.dtype, (1, *old.shape[1:])
        del file[key]
        file.create_dataset(key, shape, dtype, chunks=chunks, compression='gzip')


H5_CHANGES = {
    'link to another file': (replaced('input_brand', _other_file), 'lies in another file'),
    'bytes of another file': (replaced('input_brand', _raw_bytes), 'lies in another file'),
    'virtual': (replaced('input_brand', _virtual), 'lies in another file'),
    'link to nothing': (
        replaced('input_brand', lambda f, k: f.__setitem__(k, h5py.SoftLink('/x'))), 'is missing',
    ),
    'link to itself': (
        replaced('input_brand', lambda f, k: f.__setitem__(k, h5py.SoftLink('/' + k))), 'damaged',
    ),
    'photos not written': (
        replaced('input_image', _column((8, 8, 8, 3), 'u1', chunks=(1, 8, 8, 3))), 'not written',
    ),
    'photos of 60000': (
        replaced('input_image', _column((8, 60_000, 60_000, 3), 'u1', chunks=(1, 64, 64, 3))),
        'make them smaller',
    ),
    'photos of no pixels': (replaced('input_image', _column((8, 0, 8, 3), 'u1')), 'pixels'),
    'photos without a shape': (
        replaced('input_image', lambda f, k: f.__setitem__(k, h5py.Empty('u1'))), 'damaged',
    ),
    'cells of 2 MiB': (
        replaced('input_brand', _column((8, 1), f'S{2**21}', chunks=(1, 1), compression='gzip')),
        'at most',
    ),
    'two billion rows': (_many, 'grows from 0 to'),
    'ids beyond 64 bits': (
        replaced('input_productID', lambda f, k: f.__setitem__(
            k, np.full((8, 1), 2**64 - 1, np.uint64))), 'below 2**63',
    ),
    'ids are texts': (
        replaced('input_productID', _column((8, 1), 'S9')), 'must be integer',
    ),
    'brands are pairs': (
        replaced('input_brand', _column((8, 1), np.dtype([('a', 'S3'), ('b', 'i4')]))),
        'must hold byte strings',
    ),
    'brands are references': (
        replaced('input_brand', _column((8, 1), h5py.ref_dtype)), 'must hold byte strings',
    ),
    'brands are lists': (
        replaced('input_brand', _column((8, 1), h5py.vlen_dtype(np.int32))),
        'must hold byte strings',
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', H5_CHANGES)
def test_fashiongen_file_that_is_odd(tmp_path, kind):
    change, word = H5_CHANGES[kind]
    path = write_fashiongen(tmp_path / 'train.h5', bad_files.ROWS)
    with h5py.File(path, 'a') as file:
        change(file)
    refused(load_h5, path, word)


def test_cells_that_grow_are_read_in_blocks(tmp_path):
    path = write_fashiongen(tmp_path / 'train.h5', bad_files.ROWS * 40)  # 320 MiB of brands
    with h5py.File(path, 'a') as file:
        del file['input_brand']
        brands = file.create_dataset(
            'input_brand', (320, 1), f'S{2**20}', chunks=(1, 1), compression='gzip'
        )
        brands[0] = b'Gas'
    assert bad_files.contained(load_h5, path, room=2**28) == 8


def test_cell_of_hdf5_that_cannot_be_read(tmp_path):
    path = bad_files.damaged_h5(tmp_path, 'input_brand', 3)
    refused(load_h5, path, "row 3 of key 'input_brand' cannot be read", 'Mend it')
    dataset = FashionGen(path, ('brand',), on_error='skip', max_bad=0.2)
    assert [r['product_id'] for r in dataset.records()] == [1, 2, 3, 5, 6, 7, 8]
    assert [row['row'] for row in dataset.skipped] == ['row 3']
    refused(
        load_h5,
        bad_files.damaged_h5(tmp_path, 'input_productID', 3),
        "'input_productID' cannot be read",
    )


# ---------------------------------------------------------------------------------- packs


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'link to a device', 'link to itself'])
def test_index_of_a_pack_that_is_no_file(tmp_path, kind):
    path = Path(bad_files.write_special(kind, tmp_path))
    path.rename(tmp_path / 'train.index')
    message = refused(PackedPhotos, tmp_path, 'Delete the pack')
    assert 'train.index' in message


@pytest.mark.parametrize('name', ['x' * 5000, 'a\0b', '\ud800', '../' * 2000])
def test_sources_of_a_pack_with_odd_names(tmp_path, name):
    head = dict(format='eiclip_mm.packed_photos/1', side=None, sources={name: 7})
    lines = [head, ['a.png', None, 1, 1, 7], dict(photos=1)]
    (tmp_path / 'train.index').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (tmp_path / 'train.photos').write_bytes(bytes(3))
    (pack,) = PackedPhotos(tmp_path).packs  # a source that is not there is no error
    assert len(pack) == 1


# ---------------------------------------------------------------------------------- texts

TEXTS_OF_A_MEGABYTE = {
    'one word': 'ab' * 2**19,
    'letters': ''.join(map(chr, np.random.default_rng(0).integers(97, 123, 2**18))),
    'signs': '-' * 2**18,
    'marks': 'a' + '\u0315\u0300' * 2**19,
    'marks in HTML': '&#x315;&#x300;' * 2**16,
    'number in HTML': '&#' + '9' * 2**20 + ';',
    'number in HTML, escaped': '&amp;amp;amp;#' + '9' * 5000 + ';',
    'ampersands': '&' * 2**18,
    'escapes of escapes': '&' + 'amp;' * 2**18,
    'numbers of numbers': '&' + '#38;' * 2**18,
    'no spaces': '衣' * 2**17,
    'smileys': '\U0001f600' * 2**16,
    'reversed': '\u202e\u200f' * 2**16,
    'surrogates': '\ud800' * 2**18,
    'NUL': 'a\0' * 2**18,
    'brackets': '<' * 2**18,
}


def seconds_of(text: str) -> float:
    """Of this process for cleaning and encoding a text; the names of entities are long, too."""
    vocab = EntityVocab({'brand': ('Gas', 'a - b')}, {'brand': (2, 1)})
    tokenizer = EntityTokenizer(dict(text_cfg=dict(context_length=16)), vocab, ('description',))
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert tokenizer(dict(description=text)).text.shape == (16,)
    assert len(tokenizer.encode_all([(dict(description=text), None)]).text) == 1
    clean_text(entity_key(text)).encode()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime


@pytest.mark.parametrize('kind', TEXTS_OF_A_MEGABYTE)
def test_long_texts_end(kind):
    # The limit is that of a child that hangs: what grows with the square takes many minutes.
    assert isinstance(bad_files.contained(seconds_of, TEXTS_OF_A_MEGABYTE[kind]), float)


def test_messages_show_what_cannot_be_seen():
    assert shown('a\nb\0\u202e\ud800é') == 'a\\nb\\x00\\u202e\\ud800é'
    assert shown('x' * 500) == 'x' * 200 + '…'
    assert os.fsdecode(b'\xff') == '\udcff' and shown('\udcff') == '\\udcff'
