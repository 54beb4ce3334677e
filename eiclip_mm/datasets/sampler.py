"""A sampler that tells the data set which epoch it is."""

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
        self.dataset.set_epoch(epoch)
