"""Image files decoded: whatever a file holds, pixels come out or a sentence that names it."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from eiclip_mm.utils.untrusted import shown

MAX_PIXELS = 2**28 // 3  # what PIL warns of: RGB of a quarter of a GiB
MAX_ASPECT = 50  # of the sides: pipelines scale the short one up to what a model takes
# Not all that PIL opens: EPS starts Ghostscript, others are no photos.
FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'MPO', 'PNG', 'PPM', 'TIFF', 'WEBP')

Image.init()
_FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def opened(file: str | os.PathLike | BinaryIO, name: str) -> Iterator[Image.Image]:
    """An image file whose header was read and whose size was checked; errors call it ``name``.

    What goes wrong with the image inside the block is an error of the file, too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file but a folder or a device, or not an image that can be decoded.
    """
    name = shown(name, 1000)
    try:
        if isinstance(file, (str, os.PathLike)) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError('it is no regular file')  # a pipe would be waited for
        with Image.open(file, formats=_FORMATS) as image:
            short, long = sorted(image.size)
            if short * long > MAX_PIXELS:
                raise ValueError(
                    f'it has {short} x {long} pixels, more than {MAX_PIXELS:,}; make it smaller'
                )
            if long > MAX_ASPECT * short:
                raise ValueError(f'a photo of {short} x {long} pixels: sides may be {MAX_ASPECT}:1')
            yield image
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f'{name} is not an image that can be decoded: {error} Make it smaller.'
        ) from error
    except Exception as error:  # decoders of damaged files raise of all kinds
        what = f'{type(error).__name__}: {error}' if _says_little(error) else error
        raise ValueError(f'{name} is not an image that can be decoded: {shown(what)}') from error


def _says_little(error: Exception) -> bool:
    return not isinstance(error, (OSError, ValueError)) or not str(error)


def decoded(file: str | os.PathLike | BinaryIO, name: str) -> np.ndarray:
    """(height, width, 3) uint8 RGB of an image file, which errors call ``name``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image that can be decoded, see :func:`opened`.
    """
    with opened(file, name) as image:
        return rgb_pixels(image)


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """(height, width, 3) uint8 of an image: upright as its EXIF says, clear parts white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):  # 16 bits a pixel, which PIL would clip to 8
        return np.repeat((np.asarray(image) // 257).clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    if image.has_transparency_data:  # shops cut products out: their ground is white
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return np.asarray(image.convert('RGB'))
