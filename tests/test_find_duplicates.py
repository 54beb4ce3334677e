"""The tool that finds test photos in train: planted copies are found, others are not."""

import importlib.util
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from catalogues import write_coco, write_fashiongen
from PIL import Image, ImageEnhance

from eiclip_mm.datasets.synthetic import write_mini_fashiongen

pytest.importorskip('imagehash')
_spec = importlib.util.spec_from_file_location(
    'find_duplicates',
    Path(__file__).resolve().parents[1] / 'tools/analysis_tools/find_duplicates.py',
)
tool = importlib.util.module_from_spec(_spec)
sys.modules['find_duplicates'] = tool  # where dataclasses, and a loader's workers, look it up
_spec.loader.exec_module(tool)

CONFIG = """
train_dataloader = dict(dataset=dict(
    type='FashionGen', data_root={root!r}, ann_file='train.h5', views='random',
    pipeline=[dict(type='LoadProductImage')]))
test_dataloader = dict(dataset=dict(
    type='CocoProducts', data_root={root!r}, ann_file='test.json', views='first'))
"""
WHITE = Image.new('RGB', (64, 64), 'white')


def photo(seed: int) -> Image.Image:
    """A smooth picture of its own, on white, as shops take them."""
    cells = np.random.default_rng(seed).integers(90, 200, (6, 6, 3), dtype=np.uint8)
    shop = Image.new('RGB', (64, 64), 'white')
    shop.paste(Image.fromarray(cells).resize((48, 56), Image.Resampling.BICUBIC), (8, 4))
    return shop


def recoloured(image: Image.Image) -> Image.Image:
    """The same brightness everywhere, another colour: what a hash of grey levels cannot see."""
    y, blue, red = image.convert('YCbCr').split()
    return Image.merge('YCbCr', (y, blue.point(lambda v: v - 30), red)).convert('RGB')


@pytest.fixture
def case(tmp_path, capsys):
    """A folder with two splits, and a function (arguments) -> (result, what is printed)."""
    train = [*map(photo, range(8)), WHITE]
    write_fashiongen(tmp_path / 'train.h5', [dict(productID=i) for i in range(len(train))])
    with h5py.File(tmp_path / 'train.h5', 'a') as file:
        del file['input_image']
        file['input_image'] = np.stack([np.asarray(image) for image in train])
    test = dict(
        reencoded=photo(0),
        resized=photo(1).resize((150, 130), Image.Resampling.BICUBIC),
        brighter=ImageEnhance.Brightness(photo(2)).enhance(1.04),
        recoloured=recoloured(photo(3)),
        other=photo(99),
        blank=WHITE,
        second=photo(98),
    )
    # products 500, 501, …; the last photo is a second view of product 504
    images = [
        dict(id=i, file_name=f'{name}.jpg', product_id=504 if name == 'second' else 500 + i)
        for i, name in enumerate(test)
    ]
    notes = [dict(id=i, image_id=i, caption='x') for i in range(len(test))]
    write_coco(tmp_path / 'test.json', images, notes, photos=False)
    for name, image in test.items():
        image.save(tmp_path / f'{name}.jpg', quality=85)
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(root=str(tmp_path)))

    def run(*arguments):
        out = tmp_path / 'new' / 'found.json'
        tool.main([str(config), '--out', str(out), *arguments])
        return json.loads(out.read_text()), capsys.readouterr().out

    return tmp_path, run


def test_planted_copies_are_found(case):
    folder, run = case
    result, printed = run()
    assert result == dict(
        distance=4,
        train_file='train.h5',
        test_file='test.json',
        images=3,
        products=3,
        of_images=7,
        of_products=6,
        product_ids=[500, 501, 502],
    )
    assert '3 of 7 test photos, 3 of 6 test products, have a near-duplicate in train' in printed
    assert 'train.h5, 9 photos, 1 blank' in printed and 'test.json, 7 photos, 1 blank' in printed
    for row, name in enumerate(('reencoded', 'resized', 'brighter')):
        assert f'{folder / name}.jpg = {folder / "train.h5"}:{row}\n' in printed


def test_workers_find_the_same(case):
    assert case[1]('--workers', '2')[0] == case[1]()[0]


def test_two_views_are_one_product(case):
    folder, run = case
    photo(4).save(folder / 'other.jpg', quality=85)
    photo(5).save(folder / 'second.jpg', quality=85)
    result, _ = run()
    assert (result['images'], result['products']) == (5, 4)
    assert result['product_ids'] == [500, 501, 502, 504]


def test_the_hash_alone_does_not_tell_colours_apart():
    """Why colours are compared: the hashes are the same, the photos are not."""
    hashes, small = zip(*(tool.describe(p) for p in (photo(3), recoloured(photo(3)))), strict=True)
    assert (hashes[0] ^ hashes[1]).bit_count() <= 4
    assert np.abs(small[0].astype(int) - small[1]).max() > tool.TOLERANCE


def test_the_hash_is_that_of_imagehash():
    import imagehash

    for seed in range(20):
        assert int(tool.describe(photo(seed))[0]) == int(str(imagehash.phash(photo(seed))), 16)


@pytest.mark.parametrize('distance', [0, 1, 4, 9, 64])
def test_hamming_search(distance):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for query in hashes[:10]:
        flips = np.array([int(query) ^ sum(1 << b for b in range(n)) for n in range(12)], np.uint64)
        among = rng.permutation(np.concatenate([hashes, flips]))
        wanted = [i for i, h in enumerate(among) if bin(int(h) ^ int(query)).count('1') <= distance]
        assert tool.within(query, among, distance).tolist() == wanted
        assert len(wanted) >= min(distance, 11) + 1


def photos(hashes: list[int], levels: list[int]) -> tool.Photos:
    """Photos of one grey level each."""
    small = np.array(levels, np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    number, ids = len(hashes), np.arange(len(hashes))
    return tool.Photos(ids.astype(str), ids, np.array(hashes, np.uint64), small, number, number)


def test_the_most_alike_within_both_limits():
    train = photos([0b0, 0b1111, 0b11111], [100, 80, 70])
    test = photos([0, 0, 0, 0, (2**64 - 1) - 0b1111], [82, 71, 108, 109, 80])
    # 70 is nearest to 71, but its hash is five bits away; 109 is nine levels from 100
    assert tool.near_duplicates(test, train, 4).tolist() == [1, -1, 0, -1, -1]
    assert tool.near_duplicates(test, train, 5).tolist() == [1, 2, 0, -1, -1]


def test_synthetic_train_against_itself(tmp_path, capsys):
    write_mini_fashiongen(tmp_path, 12, 8, 4, seed=0, progress=False)
    file = 'fashiongen_256_256_train.h5'
    split = f"dict(dataset=dict(type='FashionGen', data_root={str(tmp_path)!r}, ann_file={file!r}))"
    config = tmp_path / 'config.py'
    config.write_text(f'train_dataloader = {split}\ntest_dataloader = {split}\n')
    tool.main([str(config), '--distance', '0', '--out', str(tmp_path / 'found.json')])
    result = json.loads((tmp_path / 'found.json').read_text())
    blank = int(capsys.readouterr().out.splitlines()[1].split(' photos, ')[1].split()[0])
    assert result['images'] == result['of_images'] - blank > 0
    assert result['products'] == result['of_products'] == 12


def test_unreadable_photo(case):
    folder, run = case
    (folder / 'other.jpg').write_bytes(b'no photo')
    with pytest.raises(SystemExit, match=r'other\.jpg is not an image that can be decoded'):
        run()


def test_what_is_refused(case, capsys):
    folder, run = case
    with pytest.raises(SystemExit):
        run('--distance', '65')
    assert '--distance is a number of bits from 0 to 64, got 65' in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r'^config no\.py does not exist; name a file of configs/'):
        tool.main(['no.py'])
    (folder / 'config.py').write_text('test_dataloader = None')
    with pytest.raises(SystemExit, match=r'has no train_dataloader; name a config with both'):
        run()


def test_without_imagehash(monkeypatch):
    monkeypatch.setitem(sys.modules, 'imagehash', None)
    with pytest.raises(ImportError, match=r"pip install 'eiclip_mm\[report\]'"):
        tool.describe(WHITE)
