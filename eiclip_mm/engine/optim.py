"""Mixed precision where mmengine's own wrapper refuses to run."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast

from eiclip_mm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Autocast without loss scaling, on any device; what bfloat16 needs and no more.

    mmengine's ``AmpOptimWrapper`` asks for an accelerator even with bfloat16.

    Args:
        dtype: ``'bfloat16'``, or any dtype that needs no scaling.
        **kwargs: of ``mmengine.optim.OptimWrapper``.
    """

    def __init__(self, dtype: str = 'bfloat16', **kwargs):
        super().__init__(**kwargs)
        self.cast_dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model):
        """Gradient accumulation's context, with autocast."""
        with super().optim_context(model), autocast(dtype=self.cast_dtype):
            yield
