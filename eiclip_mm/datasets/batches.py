"""From samples to batches: one by one, or each written at once where its batch will lie."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import default_collate
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from torch import Tensor
from torch.utils.data import get_worker_info

from eiclip_mm.registry import FUNCTIONS, TRANSFORMS

IDS = ('product_id', 'text_id', 'entities_id', 'view', 'caption', 'sample_idx')
STEP = 8  # text lengths of a batch are its multiples: few shapes for a compiled model


@TRANSFORMS.register_module()
class PackProduct(BaseTransform):
    """The last transform: keep what a batch holds, as tensors.

    Pixels become (3, height, width) uint8; normalising is the towers' business, on the device. A
    data set with ``batched=True`` puts :func:`write_batch` in its place.
    """

    def transform(self, results: dict) -> dict:
        """See the class."""
        image = results['img']
        if image.ndim == 3:
            image = image.transpose(2, 0, 1)
        return dict(
            image=torch.from_numpy(np.array(image, order='C')),
            text=torch.from_numpy(results['text']),
            entity_ids=torch.from_numpy(results['entity_ids']),
            **{name: int(results[name]) for name in IDS},
        )


class ProductBatch(dict):
    """A batch as a dict of tensors; collating it once more is an error that says what to do."""

    def __missing__(self, key: object) -> NoReturn:
        if isinstance(key, int):
            raise KeyError(
                'this is a whole batch, not a list of samples: give the DataLoader '
                "collate_fn=dict(type='stack_products'), or the data set batched=False."
            )
        raise KeyError(key)


@ROOT_FUNCTIONS.register_module()  # the Runner asks there for a short name, whatever the scope
@FUNCTIONS.register_module()
def stack_products(batch: Mapping | Sequence) -> dict:
    """A collate function: passes whole batches on, stacks samples as mmengine does."""
    return dict(batch) if isinstance(batch, Mapping) else default_collate(batch)


def write_batch(samples: Iterable[Mapping], size: int) -> ProductBatch:
    """The batch of ``size`` samples, taken one by one, so that only one is held.

    Args:
        samples: what the transforms before ``PackProduct`` give: ``img``, (height, width, 3)
            uint8 or (F,) float32; ``text``, (L,) tokens with their ``text_length``, or (F,)
            features; ``entity_ids``, (K, M); the ids.
        size: how many samples there are.

    Returns:
        ``image``, (B, 3, height, width) uint8, channels last in memory, or (B, F) float32;
        ``text``, (B, L') int64, cut to the longest text, rounded up to a multiple of 8, at most L,
        or (B, F) float32; ``entity_ids``, (B, K, M) int64; the ids, (B,) int64. In a worker of a
        loader the images lie in shared memory.

    Raises:
        ValueError: photos of one batch differ in size.
    """
    ids = {name: np.empty(size, np.int64) for name in IDS}
    longest = 1
    for i, sample in enumerate(samples):
        if sample is None:
            raise ValueError('a transform left a sample out; set batched=False to draw another.')
        if i == 0:
            image, text, entity_ids = (
                _empty(size, sample[key], shared=key == 'img')
                for key in ('img', 'text', 'entity_ids')
            )
            images, texts, entities = image.numpy(), text.numpy(), entity_ids.numpy()
        if sample['img'].shape != images.shape[1:]:
            raise ValueError(
                f'the photo of product {sample["product_id"]} has shape {sample["img"].shape}, '
                f'others of its batch {images.shape[1:]}: let the pipeline crop or resize all to '
                'one size.'
            )
        _put(sample['img'], images[i])
        texts[i], entities[i] = sample['text'], sample['entity_ids']
        longest = max(longest, sample.get('text_length', texts.shape[1]))
        for name, column in ids.items():
            column[i] = sample[name]
    return ProductBatch(
        image=image.permute(0, 3, 1, 2) if image.ndim == 4 else image,
        text=text[:, : -(-longest // STEP) * STEP].contiguous(),
        entity_ids=entity_ids,
        **{name: torch.from_numpy(column) for name, column in ids.items()},
    )


def _put(image: np.ndarray, place: np.ndarray) -> None:
    if image.ndim == 3 and image.strides[1] < 0:  # flipped: numpy copies that ten times slower
        cv2.flip(image[:, ::-1], 1, dst=place)
    else:
        place[...] = image


def _empty(size: int, first: np.ndarray, shared: bool) -> Tensor:
    """Room for ``size`` arrays like the first, with its dtype."""
    shape, dtype = (size, *first.shape), torch.from_numpy(first[:0].copy()).dtype
    if not shared or get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, first.dtype))  # in larger pages than torch's
    # As torch's own collate does. Moving a tensor there afterwards would copy it.
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
