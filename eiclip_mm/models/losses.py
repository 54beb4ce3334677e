"""Contrastive loss over product ids, and what it needs across processes.

From :data:`TILED_FROM` rows on it is computed in tiles, see ``tiled.py``: the same value and
gradients, in memory that grows with the batch and not with its square.

For a query x_i with positives P(i) among the keys, and the senses z of the entities in x_i::

    L_i = -log sum_z P(z) sum_{j in P(i)} softmax_j( exp(s) <x_i(z), y_j> )

With one z and one positive this is CLIP's loss. The expectation over z is the intervention
P(Y|do(X)) of method "exact"; method "nwgm" moves it inside, which leaves one z (C = 1).

Source: the loss over matching pairs is the paper's (CLIP's); several positives, and the mixture
over senses written out, are ours.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size
from torch import Tensor, nn

from eiclip_mm.registry import MODELS

from .tiled import log_probs_in_tiles

MAX_LOG_SCALE = math.log(100)
# Rows of all processes. On a CPU tiles win from here on (tools/analysis_tools/benchmark_loss.py);
# on CUDA, not measured, they wait for the device, so that memory must be worth it: 0.5 GB here.
TILED_FROM, TILED_FROM_ON_CUDA = 512, 4096


class _Gather(torch.autograd.Function):
    """All processes' rows; the gradient of every process's loss flows back to the owner.

    mmengine's and open_clip's default gathers cut this gradient, which leaves about 0.6 of its
    norm and turns it (cosine 0.9 with two processes).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        # collectives exchange equal shapes: shorter parts are filled up, and cut again
        room = x.new_zeros(max(sizes), *x.shape[1:])
        room[: len(x)] = x
        parts = [torch.empty_like(room) for _ in sizes]
        dist.all_gather(parts, room)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # a copy: autograd may hand the same tensor to other nodes
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.split(ctx.sizes)[dist.get_rank()], None


def gather(x: Tensor, sizes: list[int] | None = None) -> Tensor:
    """(B, ...) rows of this process -> rows of all processes, in order of rank.

    With gradient. Every process must hold as many rows, as mmengine's samplers see to, or
    ``sizes`` says how many each has.
    """
    if get_world_size() == 1:
        return x
    return _Gather.apply(x, sizes or [len(x)] * get_world_size())


def rows_of_processes(size: int, device: torch.device) -> list[int]:
    """How many rows each process holds.

    On accelerators, for which the host would have to wait, it is taken that all hold as many.
    """
    if device.type != 'cpu' or get_world_size() == 1:
        return [size] * get_world_size()
    sizes = torch.zeros(get_world_size(), dtype=torch.int64, device=device)
    sizes[dist.get_rank()] = size
    dist.all_reduce(sizes)
    return sizes.tolist()


def sum_over_processes(count: Tensor) -> Tensor:
    """Sum of a number over all processes, without gradient."""
    total = count.detach().clone()
    if get_world_size() > 1:
        dist.all_reduce(total)
    return total


def mean_over_processes(loss: Tensor) -> Tensor:
    """This process's loss with the value of the mean over all, so that logs are of the batch.

    The gradient stays this process's own: DistributedDataParallel averages gradients itself.
    """
    if get_world_size() == 1:
        return loss
    return loss + (sum_over_processes(loss) / get_world_size() - loss.detach())


def log_prob_of_positives(logits: Tensor, positives: Tensor) -> Tensor:
    """log of the softmax mass on the positives of each row.

    Args:
        logits: (..., Q, G).
        positives: (Q, G) bool, at least one in each row.

    Returns:
        (..., Q)
    """
    mass = logits.masked_fill(~positives, -torch.inf).logsumexp(-1)
    return mass - logits.logsumexp(-1)


def at_once(
    product: Tensor, image: Tensor, images: Tensor, scale: Tensor, ids: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """The plain way to :func:`in_tiles`: score matrices of both directions.

    Args:
        product: (C, B, D) of this process.
        image: (B, D) of this process.
        images: (N, D) of all processes.
        scale: () inverse temperature.
        ids: (I, B) of this process; equal ids of any kind are positives.
        sizes: rows of each process.

    Returns:
        (C, B) text to image and (C, B) image to text, log of the softmax mass on the positives.
    """
    products = gather(product.transpose(0, 1), sizes).transpose(0, 1)  # (C, N, D)
    all_ids = gather(ids.T, sizes).T  # (I, N)
    positives = (ids[:, :, None] == all_ids[:, None]).any(0)  # (B, N)
    t2i = log_prob_of_positives(scale * product @ images.T, positives)
    i2t = log_prob_of_positives(scale * image @ products.mT, positives)
    return t2i, i2t


def in_tiles(
    product: Tensor, image: Tensor, images: Tensor, scale: Tensor, ids: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """What :func:`at_once` gives, both directions from one pass over products and all images."""
    all_ids = gather(ids.T, sizes).T  # (I, N)
    shared = get_world_size() > 1
    ways = [log_probs_in_tiles(p, images, scale, ids, all_ids, shared=shared) for p in product]
    t2i, i2t = (torch.stack(way) for way in zip(*ways, strict=True))  # (C, B), (C, N)
    return t2i, i2t.split(sizes, dim=1)[get_rank()]


@MODELS.register_module()
class InfoNCE(nn.Module):
    """Symmetric multi-positive InfoNCE; see the formula at the top of this file.

    Args:
        same_text: products with the same text count as positives of each other too: products
            that share their title are no honest negatives of each other.
        tiled: compute in tiles; by default where the rows of all processes are many, from
            :data:`TILED_FROM` on.

    On a CPU processes may hold different numbers of rows. On accelerators all must hold as many, as
    mmengine's samplers see to, or they wait for each other for ever.

    Four photos at right angles, each equal to its text and none of the others, at temperature 1:

    >>> image, ids = torch.eye(4), torch.arange(4)
    >>> loss = InfoNCE()(image, image[None], torch.zeros(1, 4), torch.tensor(0.0), ids, ids)
    >>> round(loss.item(), 4), round(math.log(1 + 3 / math.e), 4)
    (0.7437, 0.7437)
    """

    def __init__(self, same_text: bool = False, tiled: bool | None = None):
        super().__init__()
        self.same_text, self.tiled = same_text, tiled

    def forward(
        self,
        image: Tensor,
        product: Tensor,
        log_prior: Tensor,
        log_scale: Tensor,
        product_id: Tensor,
        text_id: Tensor,
    ) -> Tensor:
        """Loss of this process's rows against all processes' rows.

        Args:
            image: (B, D) unit length.
            product: (C, B, D) unit length, one for each combination of senses.
            log_prior: (C, B) log P(z) of the combinations; sums to one over C.
            log_scale: () log of the inverse temperature; put back into [0, ln 100] in place. CLIP
                caps it; below 0 a large step could end where its own gradient is zero.
            product_id: (B,) equal ids are positives.
            text_id: (B,) equal texts, used with ``same_text``.

        Returns:
            () value: mean over all processes' rows and both directions. The gradient, averaged
            over processes, is that of the value.
        """
        with torch.no_grad():
            log_scale.clamp_(0, MAX_LOG_SCALE)
        ids = torch.stack([product_id, text_id] if self.same_text else [product_id])  # (I, B)
        # bf16 scores would tie the best candidates: the loss is computed in float32.
        with torch.autocast(image.device.type, enabled=False):
            image, product, log_prior = image.float(), product.float(), log_prior.float()
            own, world = len(image), get_world_size()
            sizes = rows_of_processes(own, image.device)
            total = sum(sizes)  # N, the same on all processes, so that they go one way
            images = gather(image, sizes)  # (N, D)
            log_priors = gather(log_prior.T, sizes).T  # (C, N)
            many = total >= (TILED_FROM_ON_CUDA if image.is_cuda else TILED_FROM)
            tiled = many if self.tiled is None else self.tiled
            way = in_tiles if tiled else at_once
            t2i, i2t = way(product, image, images, log_scale.exp(), ids, sizes)  # (C, B)
            t2i = (log_prior + t2i).logsumexp(0)  # (B,)
            # An image's candidates are all texts, so it takes the mean P(z) over them.
            mean_prior = log_priors.logsumexp(1, keepdim=True) - math.log(total)  # (C, 1)
            i2t = (mean_prior + i2t).logsumexp(0)  # (B,)
            share = own * world / total  # 1 where processes hold as many rows
            return mean_over_processes(-(t2i.mean() + i2t.mean()) / 2 * share)
