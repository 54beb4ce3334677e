"""Large contrastive batches on small memory: one micro-batch of activations at a time.

A contrastive loss needs the embeddings of all pairs at once, but not their activations: each
micro-batch is embedded keeping none, and again when its gradient is due. Loss and gradients are
those of the whole batch. Source: Gao et al. 2021, "Scaling deep contrastive learning batch size
under memory limited setup" (gradient cache); torch's checkpoint does the book-keeping, random
numbers, autocast and DistributedDataParallel's hooks included.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def in_micro_batches(
    encode: Callable[[Tensor], Tensor], rows: Tensor, size: int | None, trunk: nn.Module
) -> Tensor:
    """``encode(rows)``, in parts of ``size`` rows while gradients are recorded.

    Args:
        encode: (b, ...) -> (b, F), each row by itself.
        rows: (B, ...).
        size: rows of a micro-batch; ``None`` for all.
        trunk: the weights of ``encode``; where all are frozen nothing is computed twice.

    Returns:
        (B, F)
    """
    if size is None or len(rows) <= size or not torch.is_grad_enabled():
        return encode(rows)
    if any(parameter.requires_grad for parameter in trunk.parameters()):
        encode = partial(checkpoint, encode, use_reentrant=False)
    return torch.cat([encode(part) for part in rows.split(size)])


def check_micro_batch(size: int, towers: nn.Module) -> None:
    """Refuse sizes that are none, and batch norm that trains.

    Raises:
        ValueError: says which module takes statistics over the batch.
    """
    if type(size) is not int or size < 1:
        raise ValueError(f'micro_batch must be an integer from 1, got {size!r}.')
    for name, module in towers.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parameters = list(module.parameters())
            if not parameters or any(p.requires_grad for p in parameters):
                raise ValueError(
                    f'micro_batch={size} does not go with batch norm that trains ({name}): its '
                    'statistics would be of a micro-batch, and counted twice. Freeze the tower '
                    '(image_unlocked=0), take one without batch norm, or leave micro_batch out.'
                )
