"""Towers that one device cannot hold: their weights split over all processes (FSDP).

Two parts of mmengine (0.10.7), mended by classes of ours for torch 2.6 and later and for CLIP; no
release of mmengine does it yet. Source: ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine._strategy import FSDPStrategy
from mmengine.model import MMFullyShardedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from eiclip_mm.registry import MODEL_WRAPPERS, STRATEGIES


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """``FSDPStrategy`` whose checkpoints are one plain file, from which it can go on.

    mmengine passes the arguments of ``optim_state_dict_to_load`` in the order of torch 2.0
    ("unhashable type: 'dict'"), moves weights to the CPU for a checkpoint, which crashes torch if
    they are there already, and counts an epoch too many where the best checkpoint is looked for.

    Args:
        blocks: of :class:`FullySharded`.
        model_wrapper: further arguments of it.
        **kwargs: of ``mmengine._strategy.FSDPStrategy``.
    """

    def __init__(
        self,
        blocks: Sequence[str] = ('ResidualAttentionBlock',),
        model_wrapper: dict | None = None,
        **kwargs: Any,
    ):
        whole = dict(rank0_only=True, offload_to_cpu=torch.cuda.is_available())
        super().__init__(
            model_wrapper=dict(model_wrapper or {}, type=FullySharded, blocks=blocks),
            state_dict_cfg=dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', **whole),
                optim_state_dict_config=dict(type='FullOptimStateDictConfig', **whole),
            ),
            **kwargs,
        )

    def save_checkpoint(self, filename: str, *, extra_ckpt: dict, **kwargs: Any) -> None:
        """See the class."""
        meta = extra_ckpt['meta']
        meta['epoch'] = meta['iter'] // self.dispatch_kwargs['epoch_length']
        super().save_checkpoint(filename, extra_ckpt=extra_ckpt, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """See the class."""
        optimizer = self.optim_wrapper.optimizer
        own = FullySharded.optim_state_dict_to_load(self.model, optimizer, state_dict)
        self.optim_wrapper.load_state_dict(own)


@MODEL_WRAPPERS.register_module()
class FullySharded(MMFullyShardedDataParallel):
    """mmengine's wrapper, for models with scalars and on any device.

    mmengine's own refuses the temperature ("FSDP doesn't support scalar parameters"), passes
    ``ignored_parameters`` to a torch that has no such argument, clips each process's gradient by
    the norm of its own shard, and needs an accelerator.

    Args:
        module: the model.
        blocks: names of the classes whose instances are gathered one at a time.
        device_id: number of the process's accelerator; the CPU is taken where there is none.
        **kwargs: of ``mmengine.model.MMFullyShardedDataParallel``.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[str], device_id: int = 0, **kwargs: Any):
        kinds = {type(m) for m in module.modules() if type(m).__name__ in blocks}
        if not kinds:
            have = sorted({type(m).__name__ for m in module.modules()})
            raise ValueError(f'the model has no module of the classes {blocks}; it has {have}')
        for parameter in module.parameters():
            # for TowerLrConstructor: matrices decay
            parameter.full_ndim = parameter.ndim  # type: ignore[attr-defined]  # a note of ours
        scalars = [p for p in module.parameters() if p.ndim == 0]
        cuda = torch.cuda.is_available()
        device = torch.device('cuda', device_id) if cuda else torch.device('cpu')
        for scalar in scalars:  # torch moves what it shards alone
            scalar.data = scalar.data.to(device)
        super().__init__(
            module,
            auto_wrap_policy=ModuleWrapPolicy(kinds),
            ignored_states=scalars,
            device_id=device,
            **kwargs,
        )
        for scalar in scalars:  # whole on every process, so nobody else averages their gradients
            if scalar.requires_grad:
                scalar.register_post_accumulate_grad_hook(_average_gradient)

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """mmengine's step, clipping by the norm over all shards."""
        optim_wrapper.clip_func = self._clip
        return super().train_step(data, optim_wrapper)

    def _clip(self, _: object, max_norm: float, norm_type: float = 2.0) -> Tensor:
        return self.clip_grad_norm_(max_norm, norm_type)


def _average_gradient(parameter: nn.Parameter) -> None:
    assert parameter.grad is not None  # the hook runs when there is one
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()
