"""Contrastive loss over product ids, and what it needs across processes.

For a query x_i with positives P(i) among the keys, and the senses z of the entities in x_i::

    L_i = -log sum_z P(z) sum_{j in P(i)} softmax_j( exp(s) <x_i(z), y_j> )

With one z and one positive this is CLIP's loss. The expectation over z is the intervention
P(Y|do(X)) of method "exact"; method "nwgm" moves it inside, which leaves one z (C = 1).

Source: the loss over matching pairs is the paper's (CLIP's); several positives, and the mixture
over senses written out, are ours.
"""

import math

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from torch import Tensor, nn

from eiclip_mm.registry import MODELS

MAX_LOG_SCALE = math.log(100)


class _Gather(torch.autograd.Function):
    """All processes' rows; the gradient of every process's loss flows back to the owner.

    mmengine's and open_clip's default gathers cut this gradient, which leaves about 0.6 of its
    norm and turns it (cosine 0.9 with two processes).
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        # a copy: autograd may hand the same tensor to other nodes
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """(B, ...) rows of this process -> (world * B, ...) rows of all, in order of rank.

    With gradient. Every process must hold as many rows, as mmengine's samplers see to.
    """
    return _Gather.apply(x) if get_world_size() > 1 else x


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


@MODELS.register_module()
class InfoNCE(nn.Module):
    """Symmetric multi-positive InfoNCE; see the formula at the top of this file.

    Args:
        same_text: products with the same text count as positives of each other too: products
            that share their title are no honest negatives of each other.
    """

    def __init__(self, same_text: bool = False):
        super().__init__()
        self.same_text = same_text

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
            log_scale: () log of the inverse temperature; kept at most ln 100, as CLIP does.
            product_id: (B,) equal ids are positives.
            text_id: (B,) equal texts, used with ``same_text``.

        Returns:
            () value: mean over all processes' rows and both directions.
        """
        with torch.no_grad():
            log_scale.clamp_(max=MAX_LOG_SCALE)
        # bf16 scores would tie the best candidates: the loss is computed in float32.
        with torch.autocast(image.device.type, enabled=False):
            image, product, log_prior = image.float(), product.float(), log_prior.float()
            images = gather(image)  # (N, D)
            products = gather(product.transpose(0, 1)).transpose(0, 1)  # (C, N, D)
            log_priors = gather(log_prior.T).T  # (C, N)
            positives = product_id[:, None] == gather(product_id)  # (B, N)
            if self.same_text:
                positives |= text_id[:, None] == gather(text_id)
            scale = log_scale.exp()
            t2i = log_prob_of_positives(scale * product @ images.T, positives)  # (C, B)
            i2t = log_prob_of_positives(scale * image @ products.mT, positives)  # (C, B)
            t2i = (log_prior + t2i).logsumexp(0)  # (B,)
            # An image's candidates are all texts, so it takes the mean P(z) over them.
            mean_prior = log_priors.logsumexp(1, keepdim=True) - math.log(len(images))  # (C, 1)
            i2t = (mean_prior + i2t).logsumexp(0)  # (B,)
            return mean_over_processes(-(t2i.mean() + i2t.mean()) / 2)
