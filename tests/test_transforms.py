"""From an item to a batch: photos in every form, broken photos, features, dropout, packing."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from catalogues import SIDE, write_fashiongen
from mmengine.dataset import Compose
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.utils.data import default_collate

from eiclip_mm.datasets import EntityDropout, LoadImageFeature, LoadProductImage, PackProduct
from eiclip_mm.registry import TRANSFORMS

RNG = np.random.default_rng(0)


def noise(height, width) -> np.ndarray:
    return RNG.integers(256, size=(height, width, 3), dtype=np.uint8)


def load(path) -> np.ndarray:
    return LoadProductImage()(dict(img_path=str(path)))['img']


# --------------------------------------------------------------------------------- photos


def test_row_of_a_file(tmp_path):
    path = write_fashiongen(tmp_path / 'a.h5', [dict(productID=i) for i in range(4)])
    transform = TRANSFORMS.build(dict(type='LoadProductImage'))
    for row in (2, 0, 3, 3):
        results = transform(dict(h5_path=path, row=row, other='stays'))
        assert (results['img'] == row).all() and results['img'].shape == (SIDE, SIDE, 3)
        assert results['img'].dtype == np.uint8 and results['other'] == 'stays'
        assert results['img_shape'] == results['ori_shape'] == (SIDE, SIDE)
    assert len(transform._handles) == 1
    assert pickle.loads(pickle.dumps(transform))(dict(h5_path=path, row=1))['img'].max() == 1


@pytest.mark.parametrize('mode', ['RGB', 'L', '1', 'P', 'RGBA', 'LA', 'CMYK', 'YCbCr'])
def test_modes(tmp_path, mode):
    photo = Image.fromarray(noise(6, 9)).convert(mode)
    suffix = 'tiff' if mode in ('CMYK', 'YCbCr') else 'png'
    photo.save(tmp_path / f'photo.{suffix}')
    image = load(tmp_path / f'photo.{suffix}')
    assert image.shape == (6, 9, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.asarray(photo.convert('RGB')))


def test_jpeg_is_rgb(tmp_path):
    Image.new('RGB', (16, 8), (250, 10, 20)).save(tmp_path / 'a.jpg', quality=95)
    image = load(tmp_path / 'a.jpg')
    assert image.shape == (8, 16, 3)
    assert np.abs(image.astype(int) - (250, 10, 20)).max() < 6  # red first


def encoded(photo: np.ndarray, kind: str, tmp_path: Path) -> bytes:
    Image.fromarray(photo).save(tmp_path / f'whole.{kind}')
    return (tmp_path / f'whole.{kind}').read_bytes()


@pytest.mark.parametrize(
    'name, content',
    [
        ('empty.jpg', lambda whole: b''),
        ('text.jpg', lambda whole: b'<html>404 Not Found</html>'),
        ('half.jpg', lambda whole: whole[: len(whole) // 2]),
        ('half.png', lambda whole: whole[: len(whole) // 2]),
        ('damaged.png', lambda whole: whole[:60] + bytes(40) + whole[100:]),
    ],
)
def test_broken_photos(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content(encoded(noise(40, 40), name[-3:], tmp_path)))
    with pytest.raises(ValueError, match='is not an image that can be decoded') as error:
        load(path)
    assert str(path) in str(error.value)


def test_missing_photos(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.jpg'):
        load(tmp_path / 'none.jpg')
    with pytest.raises(ValueError, match='is not an image that can be decoded'):
        load(tmp_path)  # a folder
    with pytest.raises(FileNotFoundError, match=r'none\.h5'):
        LoadProductImage()(dict(h5_path=str(tmp_path / 'none.h5'), row=0))


def test_broken_rows(tmp_path):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        photos = file.create_dataset(
            'input_image', data=RNG.integers(256, size=(3, 64, 64, 3), dtype=np.uint8),
            chunks=(1, 64, 64, 3), compression='gzip',
        )  # fmt: skip
        chunk = photos.id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 500] = bytes(500)
    path.write_bytes(content)
    transform = LoadProductImage()
    assert transform(dict(h5_path=str(path), row=0))['img'].any()
    for row in (1, 7):  # damaged; there is none
        with pytest.raises(ValueError, match=rf"a\.h5: row {row} of key 'input_image' cannot be"):
            transform(dict(h5_path=str(path), row=row))


@pytest.mark.parametrize(
    'height, width', [(64, 64), (256, 256), (80, 60), (61, 200), (333, 97), (30, 40), (100, 101)]
)
def test_resizing_is_open_clips_to_the_bit(tmp_path, height, width):
    Image.fromarray(noise(height, width)).save(tmp_path / 'a.png')
    ours = Compose(
        [
            LoadProductImage(),
            TRANSFORMS.build(
                dict(
                    type='ResizeEdge',
                    scale=64,
                    edge='short',
                    backend='pillow',
                    interpolation='bicubic',
                )
            ),
            TRANSFORMS.build(dict(type='CenterCrop', crop_size=64)),
        ]
    )(dict(img_path=str(tmp_path / 'a.png')))['img']
    theirs = image_transform_v2(
        PreprocessCfg(size=64, mean=(0, 0, 0), std=(1, 1, 1)), is_train=False
    )(Image.open(tmp_path / 'a.png'))
    np.testing.assert_array_equal(ours, (theirs * 255).round().byte().permute(1, 2, 0).numpy())


# ------------------------------------------------------------------------------- features


def test_features(tmp_path):
    np.save(tmp_path / 'f.npy', np.arange(12, dtype=np.float64).reshape(3, 4))
    transform = LoadImageFeature(pipeline=[])
    assert not transform.ready
    with pytest.raises(RuntimeError, match='ImageFeatureCache'):
        transform(dict(img_path='x'))
    transform.use(str(tmp_path / 'f.npy'), {('x',): 2, ('a.h5', 5): 0})
    for copy in (transform, pickle.loads(pickle.dumps(transform))):
        assert copy.ready
        feature = copy(dict(img_path='x'))['img']
        assert feature.tolist() == [8, 9, 10, 11] and feature.dtype == np.float32
        assert copy(dict(h5_path='a.h5', row=5))['img'].tolist() == [0, 1, 2, 3]


# -------------------------------------------------------------------------------- dropout


def test_entity_dropout():
    ids = np.arange(1, 13).reshape(4, 3)  # (K, M)
    dropout = EntityDropout(prob=0.3)
    np.random.seed(0)
    gone = np.zeros(4)
    for _ in range(2000):
        results = dropout(dict(entity_ids=ids))
        new = results['entity_ids']
        rows = (new == 0).all(1)
        assert (new[~rows] == ids[~rows]).all()  # a type goes as a whole, or stays
        gone += rows
    assert new.dtype == ids.dtype and ids.all()  # the input is as it was
    assert np.abs(gone / 2000 - 0.3).max() < 0.04  # each type alike
    assert (EntityDropout(0)(dict(entity_ids=ids))['entity_ids'] == ids).all()
    assert not EntityDropout(1)(dict(entity_ids=ids))['entity_ids'].any()
    assert EntityDropout(0.5)(dict(entity_ids=ids[:0]))['entity_ids'].shape == (0, 3)


@pytest.mark.parametrize('prob', [-0.1, 1.1, float('nan')])
def test_entity_dropout_refuses(prob):
    with pytest.raises(ValueError, match=r'prob must lie in \[0, 1\], got'):
        EntityDropout(prob)


# -------------------------------------------------------------------------------- packing


def item(image) -> dict:
    return dict(
        img=image,
        text=np.arange(5),
        entity_ids=np.array([[1, 0], [2, 3]]),
        product_id=7,
        text_id=2**63 - 1,
        entities_id=5,
        view=1,
        caption=0,
        sample_idx=np.int64(4),
        description='is left out',
    )


def test_pack():
    photo = noise(4, 6)
    packed = PackProduct()(item(photo[:, ::-1]))  # a flipped view of memory
    assert sorted(packed) == [
        'caption', 'entities_id', 'entity_ids', 'image', 'product_id', 'sample_idx', 'text',
        'text_id', 'view',
    ]  # fmt: skip
    assert packed['image'].shape == (3, 4, 6) and packed['image'].dtype == torch.uint8
    assert packed['image'].is_contiguous()
    np.testing.assert_array_equal(packed['image'].permute(1, 2, 0).numpy(), photo[:, ::-1])
    assert packed['text'].dtype == packed['entity_ids'].dtype == torch.int64
    batch = default_collate([packed, packed])
    assert batch['image'].shape == (2, 3, 4, 6) and batch['entity_ids'].shape == (2, 2, 2)
    assert batch['text_id'].tolist() == [2**63 - 1] * 2 and batch['sample_idx'].tolist() == [4, 4]


def test_pack_features():
    packed = PackProduct()(item(np.ones(10, np.float32)))
    assert packed['image'].shape == (10,) and packed['image'].dtype == torch.float32
