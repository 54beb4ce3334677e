"""A photo from wherever it comes, sized as the model was tested on it."""

import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmcv.transforms import Compose
from PIL import Image
from torch import Tensor

from eiclip_mm.datasets.transforms import decoded, rgb_pixels
from eiclip_mm.registry import TRANSFORMS

MAX_ASPECT = 50  # of a photo's sides: the short one may be scaled up to what the model takes
Photo = str | os.PathLike | bytes | Image.Image | np.ndarray


def read_photo(photo: Photo) -> np.ndarray:
    """(height, width, 3) uint8 RGB of a photo, as data sets read theirs.

    Args:
        photo: path, bytes of a file, PIL image, or array (height, width, 3) or (height, width) of
            uint8, in RGB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image that can be decoded.
        TypeError: none of these.
    """
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim not in (2, 3) or 0 in photo.shape:
            raise ValueError(
                'an array must be (height, width, 3) or (height, width) of uint8, got '
                f'{photo.shape} of {photo.dtype}.'
            )
        if photo.ndim == 3 and photo.shape[2] not in (3, 4):
            raise ValueError(f'an array must have 3 channels, RGB, got {photo.shape}.')
        photo = Image.fromarray(photo)
    if isinstance(photo, Image.Image):
        return rgb_pixels(photo)
    if not isinstance(photo, (str, os.PathLike, bytes)):
        raise TypeError(
            f'a photo must be a path, bytes, PIL image or array, got {type(photo).__name__}.'
        )
    if isinstance(photo, bytes):
        return decoded(io.BytesIO(photo), f'a file of {len(photo)} bytes')
    return decoded(photo, str(photo))


class PhotoSizing:
    """The transforms of a test pipeline between loading a photo and packing it.

    Args:
        pipeline: of ``test_dataloader.dataset``.
    """

    def __init__(self, pipeline: Sequence[Mapping]):
        inner = [dict(step) for step in pipeline]
        for step in inner:
            if step['type'].rpartition('.')[2] == 'LoadImageFeature':
                inner = [dict(step) for step in step['pipeline']]
                break
        self.steps = [step for step in inner if not _loads_or_packs(step['type'])]
        self._transform = Compose(
            [TRANSFORMS.build(dict(step, _scope_='eiclip_mm')) for step in self.steps]
        )

    def __call__(self, photo: Photo) -> Tensor:
        """(3, height, width) uint8."""
        pixels = read_photo(photo)
        short, long = sorted(pixels.shape[:2])
        if long > MAX_ASPECT * short:
            raise ValueError(f'a photo of {short} x {long} pixels: sides may be {MAX_ASPECT}:1.')
        img = self._transform(dict(img=pixels, img_shape=pixels.shape[:2]))['img']
        return torch.from_numpy(np.array(img.transpose(2, 0, 1), order='C'))


def _loads_or_packs(type_: str) -> bool:
    return type_.rpartition('.')[2].startswith(('Load', 'Pack'))
