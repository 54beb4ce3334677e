"""Photos and their features, read for an item; entities left out at random."""

import math
import os
import warnings

import h5py
import numpy as np
from mmcv.transforms import BaseTransform
from torch.utils.data import get_worker_info

from eiclip_mm.registry import TRANSFORMS
from eiclip_mm.structures import UNKNOWN

from .packed import PackedPhotos
from .pixels import decoded, rgb_pixels
from .product_dataset import image_key

__all__ = [
    'EntityDropout',
    'LoadImageFeature',
    'LoadProductImage',
    'decoded',
    'open_photos',
    'rgb_pixels',
]

PACK = 'tools/dataset_converters/pack_images.py CONFIG'


@TRANSFORMS.register_module()
class LoadProductImage(BaseTransform):
    """Read the item's photo, from a pack, its HDF5 row or its file, as RGB.

    Adds ``img``, (height, width, 3) uint8, which may be read-only. HDF5 handles are opened on first
    use in each worker process, so the transform works with forked and with spawned workers.

    Args:
        packed: folder of packs that ``tools/dataset_converters/pack_images.py`` wrote. Photos that
            no pack holds are read from their sources, all of them where there is no such folder.
        in_order: whether rows will be asked for in order. Then HDF5 chunks of many photos are kept
            in memory, two rows of them, and each is decoded once.
    """

    def __init__(self, packed: str | None = None, in_order: bool = False):
        packs = PackedPhotos(packed) if packed is not None else None
        self.packed = packs if packs is not None and packs.packs else None
        self._in_order, self._warned = in_order, False
        self._handles: dict[tuple[int, str], h5py.Dataset] = {}

    def __getstate__(self) -> dict:
        return dict(self.__dict__, _handles={})  # open files cannot be pickled

    @property
    def state(self) -> list | None:
        """See :attr:`PackedPhotos.state`; None where nothing is packed."""
        return self.packed.state if self.packed is not None else None

    def transform(self, results: dict) -> dict:
        """See the class.

        Raises:
            ValueError: the pixels cannot be read; names file and row.
        """
        image = self._read_packed(results)
        if image is None and 'h5_path' in results:
            image = self._read_row(results['h5_path'], results['row'])
        elif image is None:
            image = decoded(results['img_path'], results['img_path'])
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def _read_packed(self, results: dict) -> np.ndarray | None:
        if self.packed is None:
            return None
        image = self.packed.get(results)
        if image is None and not self._warned:
            self._warned = True
            _warn(
                f'photo {image_key(results)} is in no pack of {self.packed.folder} and is read '
                f'from its source, others may be too; {PACK} adds what is missing.'
            )
        return image

    def _read_row(self, path: str, row: int) -> np.ndarray:
        key = (os.getpid(), path)
        if key not in self._handles:
            self._handles[key] = open_photos(path, self._in_order)
        try:
            return self._handles[key][row]
        except (OSError, ValueError, IndexError) as error:
            raise ValueError(
                f"{path}: row {row} of key 'input_image' cannot be read: {error}"
            ) from error


def open_photos(path: str, in_order: bool = False) -> h5py.Dataset:
    """The photos of a Fashion-Gen file, whose chunks may hold many photos each.

    Whoever reads rows in order gets a cache with room for two rows of chunks, whoever does not, a
    warning: the cache, of gigabytes for h5py's automatic chunks, would seldom hold the next photo.
    """
    file = h5py.File(path, 'r')
    photos = file['input_image']
    together = photos.chunks[0] if photos.chunks else 1
    if together == 1:
        return photos
    if not in_order:
        _warn(
            f'{path}: photos lie in chunks of {together}, so that reading one decodes {together}; '
            f'{PACK} writes them one by one.'
        )
        return photos
    room = together * math.prod(photos.shape[1:]) * 2
    del photos  # HDF5 does not change the cache of what is open
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(100_003, room, 0.75)
    return h5py.Dataset(h5py.h5d.open(file.id, b'input_image', access))


def _warn(message: str) -> None:
    """In one of the workers, not in all."""
    worker = get_worker_info()
    if worker is None or worker.id == 0:
        warnings.warn(message, stacklevel=2)


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
        # built here: the scope in which a data set is built ends with its constructor
        self.transforms = [TRANSFORMS.build(step) for step in pipeline]
        self._path: str | None = None
        self._rows: dict[tuple, int] = {}
        self._features: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return dict(self.__dict__, _features=None)  # map the file anew in each process

    def use(self, path: str, rows: dict[tuple, int]) -> None:
        """Take features from the ``.npy`` file at ``path``; ``rows`` maps photo to row."""
        self._path, self._rows, self._features = path, rows, None

    @property
    def state(self) -> str | None:
        """Path of the features, whose name tells of the photos."""
        return self._path

    @property
    def ready(self) -> bool:
        """Whether :meth:`use` has been called."""
        return self._path is not None

    def transform(self, results: dict) -> dict:
        """See the class."""
        if self._path is None:
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
