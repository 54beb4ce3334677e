"""Packed photos: the pixels of their sources; killed, grown, cut off, damaged, written by two."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from catalogues import TEXTS, write_coco
from PIL import Image
from torch.utils.data import DataLoader

from eiclip_mm.datasets import (
    CocoProducts,
    FashionGen,
    LoadProductImage,
    pack_writer,
    stack_products,
)
from eiclip_mm.datasets.pack_writer import PackWriter
from eiclip_mm.datasets.packed import Pack, PackedPhotos
from eiclip_mm.datasets.transforms import LoadImageFeature, open_photos
from eiclip_mm.registry import TRANSFORMS
from eiclip_mm.utils.whole_file import whole_file

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools/dataset_converters'))
import pack_images

RNG = np.random.default_rng(0)
SIZES = [(20, 30), (31, 17), (8, 8), (40, 40), (25, 25), (16, 50)]
CROP = [
    dict(type='RandomResizedCrop', scale=16, crop_ratio_range=(0.2, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackProduct'),
]
TOKENIZER = dict(
    type='EntityTokenizer',
    model=dict(text_cfg=dict(context_length=12)),
    vocab=None,
    fields=('description',),
)


@pytest.fixture
def shop(tmp_path) -> Path:
    """A folder with ``train.json`` and photos of several sizes, and a config that names it."""
    return write_shop(tmp_path / 'shop', SIZES)


def write_shop(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir(exist_ok=True)
    images = [dict(id=i, file_name=f'photos/{i}.png', product_id=i) for i in range(len(sizes))]
    (folder / 'photos').mkdir(exist_ok=True)
    for i, size in enumerate(sizes):
        if not (folder / f'photos/{i}.png').exists():
            noise = RNG.integers(256, size=(*size, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f'photos/{i}.png')
    write_coco(
        folder / 'train.json',
        images,
        [dict(id=i, image_id=i, caption=f'tee {i}') for i in range(len(sizes))],
        photos=False,
    )
    dataset = dict(type='CocoProducts', data_root=str(folder), ann_file='train.json')
    return write_config(folder, dataset)


def write_config(folder: Path, dataset: dict) -> Path:
    loader = dict(dataset=dict(dataset, tokenizer=TOKENIZER, pipeline=CROP, fold='fit'))
    (folder / 'config.py').write_text(f'train_dataloader = {loader}\nval_dataloader = {loader}\n')
    return folder


@pytest.fixture(scope='module')
def fashiongen(tmp_path_factory) -> Path:
    """A folder with ``train.h5`` and a config that names it."""
    folder = tmp_path_factory.mktemp('h5')
    write_h5(folder / 'train.h5')
    return write_config(folder, dict(type='FashionGen', data_root=str(folder), ann_file='train.h5'))


def write_h5(path: Path, rows: int = 11, **layout) -> None:
    with h5py.File(path, 'w') as file:
        for key in TEXTS:
            file[f'input_{key}'] = np.array([[f'{key} {row}'.encode()] for row in range(rows)])
        # the rows of a product lie apart
        file['input_productID'] = (np.arange(rows, dtype=np.int32) % 4)[:, None]
        file['input_msrpUSD'] = np.zeros((rows, 1), np.float32)
        file['index'], file['index_2'] = np.arange(rows)[:, None], np.arange(rows)
        photos = RNG.integers(256, size=(rows, 24, 24, 3), dtype=np.uint8)
        file.create_dataset('input_image', data=photos, **layout)


def pack(folder: Path, *more) -> None:
    pack_images.main([str(folder / 'config.py'), *map(str, more)])


def data_of(folder: Path, **changes):
    kind, file = (FashionGen, 'train.h5') if (folder / 'train.h5').exists() else (
        CocoProducts, 'train.json')  # fmt: skip
    return kind(ann_file=file, data_root=str(folder), tokenizer=TOKENIZER, **changes)


def sources(folder: Path) -> list[dict]:
    return list(data_of(folder).images().values())


def assert_same_pixels(folder: Path, out: Path | None = None) -> None:
    """Each photo of the pack is what its source gives."""
    photos, plain = PackedPhotos(out or folder / 'packed'), LoadProductImage()
    images = sources(folder)
    assert images
    for image in images:
        expected = plain(dict(image))['img']
        np.testing.assert_array_equal(photos.get(image), expected, strict=True)


# --------------------------------------------------------------------------------- equality


@pytest.mark.parametrize('kind', ['shop', 'fashiongen'])
def test_pixels_are_those_of_the_sources(kind, request, capsys):
    folder = request.getfixturevalue(kind)
    pack(folder)
    number = len(sources(folder))
    assert f'{number} photos, {number} of them new' in capsys.readouterr().out
    assert sorted(path.name for path in (folder / 'packed').iterdir()) == [
        'train.index',
        'train.photos',
    ]
    assert_same_pixels(folder)
    pack(folder, '--verify')
    assert f'{number} photos, all as they were packed' in capsys.readouterr().out
    pack(folder)
    assert f'{number} photos, 0 of them new' in capsys.readouterr().out
    assert_same_pixels(folder)


@pytest.mark.parametrize('kind', ['shop', 'fashiongen'])
@pytest.mark.parametrize('num_workers', [0, 1])
def test_batches_are_those_of_the_sources(kind, num_workers, request):
    folder = request.getfixturevalue(kind)
    pack(folder)

    def batches(load: dict, num_workers: int) -> list[dict]:
        dataset = data_of(folder, pipeline=[load, *CROP], batched=True)
        dataset.set_epoch(1)
        context = 'fork' if num_workers else None
        return list(
            DataLoader(
                dataset,
                batch_size=3,
                num_workers=num_workers,
                multiprocessing_context=context,
                collate_fn=stack_products,
            )
        )

    plain = batches(dict(type='LoadProductImage'), 0)
    from_pack = batches(dict(type='LoadProductImage', packed=str(folder / 'packed')), num_workers)
    assert len(plain) == len(from_pack) > 1
    for one, other in zip(from_pack, plain, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_shorter_edge(shop, tmp_path):
    pack(shop, '--size', 16, '--out', tmp_path / 'small')
    photos, plain = PackedPhotos(tmp_path / 'small'), LoadProductImage()
    resize = TRANSFORMS.build(
        dict(type='ResizeEdge', scale=16, edge='short', backend='pillow', interpolation='bicubic')
    )
    for image, size in zip(sources(shop), SIZES, strict=True):
        whole = plain(dict(image))
        expected = resize(dict(whole))['img'] if min(size) > 16 else whole['img']
        np.testing.assert_array_equal(photos.get(image), expected, strict=True)
        assert min(expected.shape[:2]) == min(16, *size)


def test_photos_may_be_gone_and_moved(shop, tmp_path):
    pack(shop)
    expected = [LoadProductImage()(dict(image))['img'] for image in sources(shop)]
    shutil.move(shop, tmp_path / 'elsewhere')
    shutil.rmtree(tmp_path / 'elsewhere/photos')
    load = LoadProductImage(packed=str(tmp_path / 'elsewhere/packed'))
    for image, pixels in zip(sources(tmp_path / 'elsewhere'), expected, strict=True):
        np.testing.assert_array_equal(load(dict(image))['img'], pixels)


def test_relative_and_absolute_paths_are_one_photo(shop, tmp_path, monkeypatch):
    pack(shop)
    monkeypatch.chdir(tmp_path)
    path = sources(shop)[0]['img_path']
    for folder in ('shop/packed', str(shop / 'packed'), './shop/../shop/packed'):
        photos = PackedPhotos(folder)
        for name in (path, os.path.relpath(path), f'./shop/../{os.path.relpath(path)}'):
            assert photos.get(dict(img_path=name)).shape == (20, 30, 3)


def test_views_are_read_only_and_processes_map_anew(fashiongen):
    pack(fashiongen)
    load = LoadProductImage(packed=str(fashiongen / 'packed'))
    image = sources(fashiongen)[3]
    pixels = load(dict(image))['img']
    with pytest.raises(ValueError, match='read-only'):
        pixels[0] = 0
    content = pickle.dumps(load)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content)(dict(image))['img'], pixels)


def test_nothing_packed(shop):
    load = LoadProductImage(packed=str(shop / 'packed'))
    assert load.packed is None
    assert load(sources(shop)[0])['img'].shape == (20, 30, 3)


# -------------------------------------------------------------------------- killed and grown


def in_a_process(task) -> int:
    """Exit code of a process that runs the task."""
    process = multiprocessing.get_context('fork').Process(target=task)
    process.start()
    process.join(60)
    return process.exitcode


def kill_at(call: int, owner, name: str):
    """Let the process be killed when it calls ``owner.name`` for the n-th time, before it acts."""
    original, calls = getattr(owner, name), iter(range(10_000))

    def killed(*args, **kwargs):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, killed)


@pytest.mark.parametrize(
    'call, owner, name, kept',
    [
        (0, PackWriter, 'add', 0),
        (3, PackWriter, 'add', 2),
        (5, PackWriter, 'add', 4),
        (0, pack_writer, 'write_lines', 0),  # pixels are there, nothing tells of them
        (2, pack_writer, 'write_lines', 4),
        (0, os, 'replace', 0),
        (1, os, 'replace', 6),  # all is there but the name
    ],
)
def test_killed(shop, monkeypatch, capsys, call, owner, name, kept):
    def task():
        pack_writer.FLUSH = 2
        kill_at(call, owner, name)
        pack(shop)

    assert in_a_process(task) == -signal.SIGKILL
    assert LoadProductImage(packed=str(shop / 'packed')).packed is None  # not before it is whole
    pack(shop)
    assert f'6 photos, {6 - kept} of them new' in capsys.readouterr().out
    assert_same_pixels(shop)
    pack(shop, '--verify')
    size = sum(3 * height * width for height, width in SIZES)
    assert (shop / 'packed/train.photos').stat().st_size == size


def test_torn_line_of_a_killed_run(shop, capsys):
    pack(shop)
    lines = (shop / 'packed/train.index').read_text().splitlines(keepends=True)
    (shop / 'packed/train.index').unlink()
    (shop / 'packed/train.index.part').write_text(''.join(lines[:4]) + lines[4][:9])
    pack(shop)
    assert '6 photos, 3 of them new' in capsys.readouterr().out
    assert_same_pixels(shop)


def test_photo_added_after_packing(shop, capsys):
    pack(shop)
    write_shop(shop, [*SIZES, (9, 12), (12, 9)])
    load = LoadProductImage(packed=str(shop / 'packed'))
    images = sources(shop)
    load(dict(images[5]))
    with pytest.warns(UserWarning, match=r'6\.png.*is in no pack.*pack_images\.py CONFIG adds'):
        assert load(dict(images[6]))['img'].shape == (9, 12, 3)
    assert load(dict(images[7]))['img'].shape == (12, 9, 3)  # said once
    before = load(dict(images[2]))['img'].copy()
    pack(shop)
    assert '8 photos, 2 of them new' in capsys.readouterr().out
    assert_same_pixels(shop)
    np.testing.assert_array_equal(load(dict(images[2]))['img'], before)  # whoever reads goes on


@pytest.mark.parametrize('call', [0, 1])
def test_growing_is_killed(shop, call):
    pack(shop)
    write_shop(shop, [*SIZES, (9, 12)])

    def task():
        kill_at(call, os, 'replace')
        pack(shop)

    assert in_a_process(task) == -signal.SIGKILL
    assert len(Pack(shop / 'packed/train.index')) == 6  # as it was
    pack(shop)
    assert_same_pixels(shop)


def test_growing_is_killed_while_it_copies_the_index(shop, capsys):
    pack(shop)
    write_shop(shop, [*SIZES, (9, 12)])

    def killed(path: Path, text: str):
        with whole_file(path) as file:
            file.write(text.encode()[:300])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def task():
        pack_writer.write_whole_text = killed
        pack(shop)

    assert in_a_process(task) == -signal.SIGKILL
    writer = PackWriter(shop / 'packed', 'train', sources(shop))  # what it does not know it cuts
    writer.close()
    assert len(Pack(shop / 'packed/train.index')) == 6
    capsys.readouterr()
    pack(shop)
    assert '7 photos, 1 of them new' in capsys.readouterr().out
    assert_same_pixels(shop)


def test_one_photo_of_two_names(shop, capsys):
    catalogue = json.loads((shop / 'train.json').read_text())
    catalogue['images'][1]['file_name'] = 'photos/../photos/0.png'
    (shop / 'train.json').write_text(json.dumps(catalogue))
    for new in (5, 0):
        pack(shop)
        assert f'5 photos, {new} of them new' in capsys.readouterr().out
    assert_same_pixels(shop)


def test_one_name_in_two_folders(shop, tmp_path):
    other = write_shop(tmp_path / 'other', SIZES[:3])
    train, _ = (shop / 'config.py').read_text().splitlines()
    _, val = (other / 'config.py').read_text().splitlines()
    (shop / 'config.py').write_text(f'{train}\n{val}\n')
    pack(shop)
    for folder in (shop, other):
        assert_same_pixels(folder)


# ------------------------------------------------------------------------- the state of photos


def test_another_pack_is_another_state(shop):
    data = data_of(shop)

    def state() -> list:
        return data.state_of_photos([LoadProductImage(packed=str(shop / 'packed'))])

    states = [state()]
    assert len(states[0]) == 6
    for size in (30, 16):
        shutil.rmtree(shop / 'packed', ignore_errors=True)
        pack(shop, '--size', size)
        states.append(state())
        assert states[-1] == state()
    assert states[0] != states[1] != states[2]
    assert all(s[:6] == states[0] for s in states)
    shutil.rmtree(shop / 'photos')
    assert state() == states[2][6:]


def test_other_features_are_another_state(shop):
    data, features, states = data_of(shop), LoadImageFeature(pipeline=[]), []
    for path in ('a.npy', 'b.npy'):
        features.use(path, {})
        states.append(data.state_of_photos([features]))
    assert [state[6:] for state in states] == [['a.npy'], ['b.npy']]


# ---------------------------------------------------------------------------------- bad input


def test_cut_off(shop):
    pack(shop)
    data, index = shop / 'packed/train.photos', shop / 'packed/train.index'
    whole, lines = data.read_bytes(), index.read_text()
    data.write_bytes(whole[:-1])
    for use in (LoadProductImage, PackedPhotos):
        with pytest.raises(ValueError, match=r'train\.photos has \d+ bytes.*cut off. Delete'):
            use(str(shop / 'packed'))
    with pytest.raises(SystemExit, match=r'photos beside .*train\.index are cut off'):
        pack(shop)
    data.unlink()
    with pytest.raises(ValueError, match=r'train\.photos has 0 bytes'):
        Pack(index)
    data.write_bytes(whole)
    for end in (-3, lines[:-1].rindex('\n') + 1, 30, 0):
        index.write_text(lines[:end])
        with pytest.raises(ValueError, match=r'train\.index is cut off: its end is missing'):
            Pack(index)


HEAD = '{"format": "eiclip_mm.packed_photos/1", "side": null, "sources": {}}\n'


@pytest.mark.parametrize(
    'content, message',
    [
        ('{"format": "eiclip_mm.packed_photos/9"}\n', "is of format 'eiclip_mm.packed_photos/9', "),
        ('[1, 2]\n', "is of format 'list', expected 'eiclip_mm.packed_photos/1'"),
        ('{"format"\n', r'train\.index is damaged'),
        ('\x00\x00\n', r'train\.index is damaged'),
        ('[' * 100_000 + '\n', r'train\.index is damaged'),
        (HEAD.replace('{}', '[]'), r'damaged: its head names no sources'),
        (
            HEAD + '["a.png", null, 0, 4, 7]\n',
            r'damaged: line 2 is no photo: \[\'a\.png\', None, 0',
        ),
        (HEAD + '["a.png", null, "9", 4, 7]\n', 'damaged: line 2 is no photo'),
        (HEAD + '["a.h5", -1, 4, 4, 7]\n', 'damaged: line 2 is no photo'),
        (HEAD + '7\n{"photos": 1}\n', 'damaged: line 2 is no photo: 7'),
    ],
)
def test_other_indexes(shop, content, message):
    pack(shop)
    (shop / 'packed/train.index').write_text(content)
    with pytest.raises(ValueError, match=message):
        PackedPhotos(shop / 'packed')
    with pytest.raises(SystemExit, match=message):
        pack(shop)


def test_damaged_pixels(shop):
    pack(shop)
    data = shop / 'packed/train.photos'
    content = bytearray(data.read_bytes())
    content[3 * 20 * 30 + 5] ^= 1
    data.write_bytes(content)
    with pytest.raises(SystemExit, match=r'1 of 6 photos are damaged, e\.g\. \.\./photos/1\.png'):
        pack(shop, '--verify')


def test_index_of_another_data_set(shop, fashiongen, tmp_path):
    other = write_shop(tmp_path / 'other', SIZES[:3])
    pack(other, '--out', tmp_path / 'packed')
    load = LoadProductImage(packed=str(tmp_path / 'packed'))
    for image in (sources(shop)[0], sources(fashiongen)[0]):
        load._warned = False
        with pytest.warns(UserWarning, match='is in no pack of'):
            np.testing.assert_array_equal(
                load(dict(image))['img'], LoadProductImage()(dict(image))['img']
            )


def test_other_hdf5_under_the_name(tmp_path):
    write_h5(tmp_path / 'train.h5')
    write_config(tmp_path, dict(type='FashionGen', data_root=str(tmp_path), ann_file='train.h5'))
    pack(tmp_path)
    write_h5(tmp_path / 'train.h5', rows=12)
    with pytest.raises(ValueError, match=r'train\.h5 has \d+ bytes, but had \d+ when'):
        PackedPhotos(tmp_path / 'packed')
    with pytest.raises(SystemExit, match='was packed with other sources'):
        pack(tmp_path)


def test_another_size(shop):
    pack(shop)
    with pytest.raises(SystemExit, match=r'with other side: \[None\], now \[16\]'):
        pack(shop, '--size', 16)
    assert_same_pixels(shop)
    with pytest.raises(SystemExit, match='--size must be at least 1 pixel, got 0'):
        pack(shop, '--size', 0)


def test_two_packers(shop):
    writer = PackWriter(shop / 'packed', 'train', sources(shop))
    writer.add(sources(shop)[0], LoadProductImage()(sources(shop)[0])['img'])
    with pytest.raises(SystemExit, match=r'another process is packing into .*train\.photos now'):
        pack(shop)
    writer.close()
    pack(shop)
    assert_same_pixels(shop)


@pytest.mark.parametrize('broken', [False, True])
def test_photo_that_cannot_be_read(shop, broken, capsys):
    photo = shop / 'photos/4.png'
    content = photo.read_bytes()
    photo.write_bytes(content[:50]) if broken else photo.unlink()
    with pytest.raises(SystemExit, match=r'4\.png(.|\n)*is not complete. What is there stays'):
        pack(shop)
    photo.write_bytes(content)
    pack(shop)
    assert '6 photos, 2 of them new' in capsys.readouterr().out
    assert_same_pixels(shop)


def test_disk_full(shop, tmp_path, capsys):
    said = tmp_path / 'said'

    def task():
        pack_writer.FLUSH = 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # three photos take 3,573
        try:
            pack(shop)
        except SystemExit as stop:
            said.write_text(str(stop))

    assert in_a_process(task) == 0
    assert 'File too large' in said.read_text() and 'or the disk has room' in said.read_text()
    pack(shop)
    assert '6 photos, 3 of them new' in capsys.readouterr().out
    assert_same_pixels(shop)


def test_folder_that_cannot_be_written(shop):
    (shop / 'file').write_text('')
    with pytest.raises(SystemExit, match=r'cannot write to .*file: .*Give another --out'):
        pack(shop, '--out', shop / 'file')


def test_nothing_to_verify_or_to_pack(shop):
    with pytest.raises(SystemExit, match=r'train\.index does not exist: nothing is packed'):
        pack(shop, '--verify')
    with pytest.raises(SystemExit, match='has no dataloader for test'):
        pack(shop, '--splits', 'test')
    (shop / 'train.json').write_text(json.dumps(dict(images=[], annotations=[])))
    with pytest.raises(SystemExit, match='"images" is missing or empty'):
        pack(shop)


def test_where_files_cannot_be_locked(shop):
    """As on Windows: only packing is missing, and the system does not say which cores are free."""
    pack(shop)
    without = """
import os
import sys

sys.modules['fcntl'] = None
del os.sched_getaffinity
import eiclip_mm
from eiclip_mm.datasets.packed import PackedPhotos
from eiclip_mm.datasets.pack_writer import PackWriter
from eiclip_mm.utils import register_all_modules
from eiclip_mm.utils.cores import usable_cores

register_all_modules()
assert usable_cores() == os.cpu_count()
print(len(PackedPhotos('packed').packs[0]))
PackWriter('packed', 'train', [dict(img_path='photos/0.png')])
"""
    run = subprocess.run(
        [sys.executable, '-c', without], cwd=shop, capture_output=True, text=True,
        env=os.environ | dict(PYTHONPATH=str(Path(__file__).resolve().parents[1])),
    )  # fmt: skip
    assert run.stdout == '6\n'
    assert 'import of fcntl halted' in run.stderr.splitlines()[-1]


# ------------------------------------------------------------------------------ layout of HDF5


def test_chunks_of_many_photos(tmp_path):
    write_h5(tmp_path / 'train.h5', chunks=(4, 12, 24, 1), compression='gzip')
    load, image = LoadProductImage(), dict(h5_path=str(tmp_path / 'train.h5'))
    with pytest.warns(UserWarning, match=r'chunks of 4, so that .* decodes 4; .*pack_images\.py'):
        first = load(dict(image, row=9))['img']
    with h5py.File(tmp_path / 'train.h5') as file:
        np.testing.assert_array_equal(first, file['input_image'][9])
        for row in range(11):  # said once
            np.testing.assert_array_equal(
                load(dict(image, row=row))['img'], file['input_image'][row]
            )


def test_only_who_reads_in_order_keeps_chunks_of_many_photos(tmp_path):
    write_h5(tmp_path / 'train.h5', chunks=(4, 24, 24, 3), compression='gzip')
    with h5py.File(tmp_path / 'train.h5') as file:
        usual = file['input_image'].id.get_access_plist().get_chunk_cache()
    with pytest.warns(UserWarning, match='chunks of 4'):
        photos = open_photos(str(tmp_path / 'train.h5'))
    assert photos.id.get_access_plist().get_chunk_cache() == usual
    photos.file.close()
    photos = open_photos(str(tmp_path / 'train.h5'), in_order=True)
    assert photos.id.get_access_plist().get_chunk_cache()[1] == 2 * 4 * 24 * 24 * 3
    photos.file.close()
    write_config(tmp_path, dict(type='FashionGen', data_root=str(tmp_path), ann_file='train.h5'))
    pack(tmp_path)  # without a warning
    assert len(Pack(tmp_path / 'packed/train.index')) == 11


@pytest.mark.parametrize('layout', [{}, dict(chunks=(1, 24, 24, 3), compression='gzip')])
def test_good_layouts(tmp_path, layout):
    write_h5(tmp_path / 'train.h5', **layout)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        LoadProductImage()(dict(h5_path=str(tmp_path / 'train.h5'), row=2))
