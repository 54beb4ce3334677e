"""LoRA: train a low-rank addition to frozen weight matrices.

    W' = W + (alpha / rank) up down,   up (out, rank) of zeros, down (rank, in)

so at step 0 the model is the pretrained one to the bit. Source: Hu et al. 2021, "LoRA: low-rank
adaptation of large language models".

torch's own ``parametrize`` puts W' wherever a module reads W, so it also reaches what is no
``nn.Linear``, such as the stacked query, key and value of ``nn.MultiheadAttention`` (one ``down``
for the three). The package peft was considered: it requires transformers and accelerate, and
mmpretrain cannot be imported beside a new transformers. The price of ``parametrize``: the backward
pass forms the gradient of the whole W', and a step holds W' beside W; gradients kept, optimiser
state and what processes exchange shrink to the adapters.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# attention and MLP of open_clip, attention of timm and of Hugging Face's BERT family
TARGETS = (
    'in_proj_weight', 'out_proj.weight', 'c_fc.weight', 'c_proj.weight',
    'qkv.weight', 'query.weight', 'value.weight',
)  # fmt: skip


class LowRank(nn.Module):
    """The adapter of one matrix; see the formula at the top of this file.

    Args:
        weight: (out, in) the matrix, of which only shape, type and device are taken.
        rank: of the addition.
        alpha: its scale is alpha / rank.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        rows, columns = weight.shape
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) W -> (out, in) W'."""
        return weight + self.scale * (self.up @ self.down)


def add_lora(
    module: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] | None = None,
) -> list[str]:
    """Give matrices of a model adapters and freeze the matrices; the rest stays as it is.

    The names in state dicts change: ``attn.in_proj_weight`` becomes
    ``attn.parametrizations.in_proj_weight.original``, beside ``….0.up`` and ``….0.down``. So load
    pretrained weights first.

    Args:
        module: is changed.
        rank, alpha: of :class:`LowRank`.
        targets: last parts of the names of the matrices; those of :data:`TARGETS` that the
            model has by default.

    Returns:
        names of the adapted matrices.

    Raises:
        ValueError: a target fits no parameter, or one that is no matrix.
    """
    if type(rank) is not int or rank < 1 or not 0 < alpha < math.inf:
        raise ValueError(
            'rank must be an integer from 1 and alpha a number above 0, got '
            f'{rank!r} and {alpha!r}.'
        )
    wanted = TARGETS if targets is None else tuple(targets)
    fits = {
        target: [name for name, _ in module.named_parameters() if f'.{name}'.endswith(f'.{target}')]
        for target in wanted
    }
    idle = [target for target, names in fits.items() if not names]
    if len(idle) == len(fits) or (idle and targets is not None):
        some = [name for name, p in module.named_parameters() if p.ndim == 2][:5]
        raise ValueError(
            f'LoRA targets {idle} fit no parameter; matrices are {some}, …. '
            'Give targets=[...], last parts of such names.'
        )
    names = sorted({name for found in fits.values() for name in found})
    for name in names:
        weight = module.get_parameter(name)
        if weight.ndim != 2:
            raise ValueError(f'LoRA adapts matrices; {name} has the shape {tuple(weight.shape)}.')
        weight.requires_grad_(False)
        owner, _, last = name.rpartition('.')
        adapter = LowRank(weight, rank, alpha)
        parametrize.register_parametrization(module.get_submodule(owner), last, adapter)
    return names


@torch.no_grad()
def merge_lora(module: nn.Module) -> nn.Module:
    """The same model with plain weights W' and plain names; its outputs are equal."""
    for part in list(module.modules()):
        adapted = getattr(part, 'parametrizations', {})
        for name in list(adapted):
            if isinstance(adapted[name][0], LowRank):
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    return module
