"""From an item of a data set to the arrays of a batch."""

import os

import h5py
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from PIL import Image

from eiclip_mm.registry import TRANSFORMS
from eiclip_mm.structures import UNKNOWN

from .product_dataset import image_key


@TRANSFORMS.register_module()
class LoadProductImage(BaseTransform):
    """Read the item's photo, from its HDF5 row or its file, as RGB.

    Adds ``img``, (height, width, 3) uint8. HDF5 handles are opened on first use in each worker
    process, so the transform works with forked and with spawned workers.
    """

    def __init__(self):
        self._handles: dict[tuple[int, str], h5py.Dataset] = {}

    def __getstate__(self):
        return dict(_handles={})  # open files cannot be pickled

    def transform(self, results: dict) -> dict:
        """See the class.

        Raises:
            ValueError: the pixels cannot be read; names file and row.
        """
        if 'h5_path' in results:
            image = self._read_row(results['h5_path'], results['row'])
        else:
            image = self._read_file(results['img_path'])
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def _read_row(self, path: str, row: int) -> np.ndarray:
        key = (os.getpid(), path)
        if key not in self._handles:
            self._handles[key] = h5py.File(path, 'r')['input_image']
        try:
            return self._handles[key][row]
        except (OSError, ValueError, IndexError) as error:
            raise ValueError(
                f"{path}: row {row} of key 'input_image' cannot be read: {error}"
            ) from error

    def _read_file(self, path: str) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert('RGB'))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f'{path} is not an image that can be decoded: {error}') from error


@TRANSFORMS.register_module()
class LoadImageFeature(BaseTransform):
    """Instead of a photo, the feature a frozen image trunk gave for it.

    The features are computed once by the hook ``ImageFeatureCache``, which also calls
    :meth:`use` with their place. Adds ``img``, (F,) float32.

    Args:
        pipeline: how a photo is loaded and sized for the trunk.
    """

    def __init__(self, pipeline: list):
        self.pipeline = pipeline
        self._path: str | None = None
        self._rows: dict[tuple, int] = {}
        self._features: np.ndarray | None = None

    def __getstate__(self):
        return dict(self.__dict__, _features=None)  # map the file anew in each process

    def use(self, path: str, rows: dict[tuple, int]) -> None:
        """Take features from the ``.npy`` file at ``path``; ``rows`` maps photo to row."""
        self._path, self._rows, self._features = path, rows, None

    @property
    def ready(self) -> bool:
        """Whether :meth:`use` has been called."""
        return self._path is not None

    def transform(self, results: dict) -> dict:
        """See the class."""
        if not self.ready:
            raise RuntimeError(
                'LoadImageFeature has no features yet: add dict(type="ImageFeatureCache") to '
                'custom_hooks, or load pixels with LoadProductImage.'
            )
        if self._features is None:
            self._features = np.load(self._path, mmap_mode='r')
        row = self._rows[image_key(results)]
        results['img'] = np.array(self._features[row], dtype=np.float32)  # the map is read-only
        return results


@TRANSFORMS.register_module()
class EntityDropout(BaseTransform):
    """Make an entity type unknown at random, so that the model can do without it.

    It trains the unknown row of each type, and it is what lets CE-Selector ask "all but k"
    of a model that has seen such products. Source: ours.

    Args:
        prob: for each type and product, the chance to become unknown.
    """

    def __init__(self, prob: float):
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must lie in [0, 1], got {prob}.')
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """See the class."""
        ids = results['entity_ids']
        gone = np.random.random(len(ids)) < self.prob
        results['entity_ids'] = np.where(gone[:, None], UNKNOWN, ids)
        return results


@TRANSFORMS.register_module()
class PackProduct(BaseTransform):
    """The last transform: keep what a batch holds, as tensors.

    Pixels become (3, height, width) uint8; normalising is the towers' business, on the device.
    """

    IDS = ('product_id', 'text_id', 'view', 'caption', 'sample_idx')

    def transform(self, results: dict) -> dict:
        """See the class."""
        image = results['img']
        if image.ndim == 3:
            image = image.transpose(2, 0, 1)
        return dict(
            image=torch.from_numpy(np.ascontiguousarray(image)),
            text=torch.from_numpy(results['text']),
            entity_ids=torch.from_numpy(results['entity_ids']),
            **{name: int(results[name]) for name in self.IDS},
        )
