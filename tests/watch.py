"""Watching what a computation holds."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Sees every tensor that is made: the number of elements of the largest, and of products."""

    def __init__(self):
        super().__init__()
        self.size = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.layout == torch.strided:
            self.size = max(self.size, out.numel())
            self.products += func is torch.ops.aten.mm.out
        return out
