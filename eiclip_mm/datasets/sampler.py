"""Repeatable epochs: a sampler that tells the data set which it is, generators seeded by it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dataset import DefaultSampler

from eiclip_mm.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ProductSampler(DefaultSampler):
    """mmengine's sampler, which also sets the epoch of a :class:`ProductDataset`.

    Random views and crops then depend on (seed, epoch, index) alone, so one process, several
    processes and a resumed run see the same batches. A product is one index: it occurs twice
    in a batch only where several processes pad the end of an epoch.
    """

    def set_epoch(self, epoch: int) -> None:
        """Called by mmengine's ``DistSamplerSeedHook`` before each training epoch."""
        super().set_epoch(epoch)
        if not hasattr(self.dataset, 'set_epoch'):
            raise ValueError(
                f'ProductSampler needs a ProductDataset, got {type(self.dataset).__name__}: give '
                'the data set as it is, or use DefaultSampler.'
            )
        self.dataset.set_epoch(epoch)


@contextmanager
def kept_generators(keep: bool = True) -> Iterator[None]:
    """Run a block, then give Python's, numpy's and torch's generators their states back."""
    if not keep:
        yield
        return
    python, array, tensor = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(tensor)


def seed_generators(*seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, from which upstream transforms draw.

    Seeded for each sample, a sample depends on (seed, epoch, index) alone: not on the worker, the
    rank or a resume.
    """
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    # not torch.manual_seed, which would seed the accelerators as well
    torch.default_generator.manual_seed(number)
