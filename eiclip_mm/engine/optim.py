"""Which parameters learn at which rate and decay; mixed precision on any device.

Gradient accumulation is mmengine's ``accumulative_counts`` of every optimiser wrapper: one step on
the mean gradient of several batches. It makes no larger contrastive batch, for no pair meets the
pairs of another batch; ``micro_batch`` of ``OpenCLIPTowers`` does, on as little memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner.amp import autocast
from torch import nn

from eiclip_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS

from .layer_decay import layers_below_head


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Autocast without loss scaling, on any device; what bfloat16 needs and no more.

    mmengine's ``AmpOptimWrapper`` asks for an accelerator even with bfloat16.

    Args:
        dtype: ``'bfloat16'``, or any dtype that needs no scaling.
        **kwargs: of ``mmengine.optim.OptimWrapper``.
    """

    def __init__(self, dtype: str = 'bfloat16', **kwargs: Any):
        super().__init__(**kwargs)
        self.cast_dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Gradient accumulation's context, with autocast."""
        with super().optim_context(model), autocast(dtype=self.cast_dtype):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TowerLrConstructor(DefaultOptimWrapperConstructor):
    """Learning rates by prefix of the parameter's name; weight decay for weight matrices alone.

    Nothing decays that is a norm, a bias, the temperature or an embedding (of tokens, places,
    classes, entities). mmengine's constructor decays what a ``custom_keys`` entry matches, norms
    included.

    Args (``paramwise_cfg``):
        lr_mult: factors of the learning rate, by prefix; the longest that fits holds, e.g.
            ``{'towers': 0.1, 'towers.clip.logit_scale': 1.0}``.
        layer_decay: for towers, the factor from each layer to the one below it, by the module's
            name; the longest that fits holds, e.g. ``{'towers.clip.visual': 0.8, 'towers.clip':
            0.9}``. It multiplies with ``lr_mult``; see :func:`layers_below_head`.
    """

    EMBEDDINGS = ('embedding', 'pos_embed', 'cls_token', 'learner.learned', 'learner.unknown')

    def add_params(self, params: list, module: nn.Module, **kwargs: Any) -> None:
        """Fill ``params`` with one group for each rate and decay."""
        lr_mult = self.paramwise_cfg.get('lr_mult', {})
        names = [name for name, _ in module.named_parameters()]
        idle = [prefix for prefix in lr_mult if not any(n.startswith(prefix) for n in names)]
        if idle:
            raise ValueError(f'lr_mult {idle} fits no parameter; they begin with {names[:3]}, ….')
        by_layer = layer_factors(module, self.paramwise_cfg.get('layer_decay', {}))
        tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            prefix = max((p for p in lr_mult if name.startswith(p)), key=len, default=None)
            factor = lr_mult.get(prefix, 1.0) * by_layer.get(name, 1.0)
            # under FSDP a parameter is a flat piece of itself
            ndim = getattr(parameter, 'full_ndim', parameter.ndim)
            decays = ndim >= 2 and id(parameter) not in tables
            decays = decays and not name.endswith(self.EMBEDDINGS)
            groups.setdefault((factor, decays), []).append(parameter)
        for (factor, decays), members in groups.items():
            params.append(
                dict(
                    params=members,
                    lr=self.base_lr * factor,
                    weight_decay=(self.base_wd or 0) * decays,
                )
            )


def layer_factors(module: nn.Module, layer_decay: Mapping[str, float]) -> dict[str, float]:
    """Factors of the learning rate by parameter, of :class:`TowerLrConstructor`'s layer_decay."""
    if not isinstance(layer_decay, Mapping):
        raise ValueError(
            f"layer_decay must be a dict such as {{'towers.clip': 0.9}}, got {layer_decay!r}; "
            'write it into a config file.'
        )
    factors = {}
    for prefix in sorted(layer_decay, key=len):  # the longest is written last
        if not 0 < (decay := layer_decay[prefix]) <= 1:
            raise ValueError(f'layer_decay of {prefix!r} must lie above 0, at most 1, got {decay}.')
        try:
            tower = module.get_submodule(prefix)
        except AttributeError as error:
            raise ValueError(f'layer_decay {prefix!r} is no module of the model: {error}') from None
        for name, distance in layers_below_head(tower).items():
            factors[f'{prefix}.{name}'] = decay**distance
    return factors
