"""What a config from a stranger may say: registered names, nothing fetched, sizes that fit."""

import sys
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eiclip_mm.registry import Registry
from eiclip_mm.structures import resolve_path

SCOPES = ('eiclip_mm', 'mmpretrain', 'mmengine')
MOST_PIXELS = 10_000  # of an edge; a step of a pipeline that says more would fill the memory
MOST_TOKENS = 10_000  # of a text, and values of one entity type


def check_types(value: Any, *registries: Registry, inherited: bool = True) -> None:
    """Refuse ``type`` values that are not in a registry: mmengine would import what they name.

    Args:
        value: a config.
        registries: its types must be in one of them, or in their ancestors.
        inherited: ``False``: in one of them itself. Some models of mmpretrain read files, or fetch
            weights, while they are built.

    Raises:
        ValueError: names the first; or a ``_scope_``, whose package mmengine would import as well.
    """
    known = {name for registry in registries for name in _names(registry, inherited)}

    def check(value: Any) -> None:
        if isinstance(value, dict):
            if 'type' in value and value['type'] not in known:
                raise ValueError(f'names type {value["type"]!r}, which is not registered')
            if value.get('_scope_', SCOPES[0]) not in SCOPES:
                raise ValueError(f'names scope {value["_scope_"]!r}; known are {SCOPES}')
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for inner in value:
                check(inner)

    check(value)


def _names(registry: Registry, inherited: bool) -> Iterator[str]:
    registry.import_from_location()
    node = registry
    while node is not None:
        for name, part in node.module_dict.items():
            yield from (name, f'{node.scope}.{name}')
            # and what it is imported by, for that is what pure-Python configs leave in a checkpoint
            module, given = part.__module__, getattr(part, '__name__', name)
            while module:
                if getattr(sys.modules.get(module), given, None) is part:
                    yield f'{module}.{given}'
                module = module.rpartition('.')[0]
        node = node.parent if inherited else None


def check_local(model: str | Mapping) -> None:
    """Refuse an architecture whose parts would be fetched from a hub, or imported.

    Raises:
        ValueError: names the part.
    """
    if isinstance(model, str):
        if ':' in model:
            raise ValueError(f'names the model {model!r}, which would be fetched from a hub')
        return
    sides = [model.get(f'{side}_cfg', {}) for side in ('text', 'vision')]
    if not all(isinstance(side, Mapping) for side in sides):
        raise TypeError('text_cfg or vision_cfg as dict()')
    text, vision = sides
    for key in ('hf_model_name', 'hf_tokenizer_name'):
        name = text.get(key)
        if name is not None and not _is_folder(name):
            raise ValueError(f'names {key} {name!r}, which is no folder here')
    name = vision.get('timm_model_name')
    if name is not None and (not isinstance(name, str) or ':' in name):
        raise ValueError(f'names timm_model_name {name!r}, which is no name of a timm model')


def _is_folder(name: Any) -> bool:
    if not isinstance(name, str):
        return False
    package, _, inner = name.removeprefix('package:').partition('/')
    if name.startswith('package:') and not (package.isidentifier() and '..' not in inner):
        return False  # to find a package inside another one, Python runs the other
    return Path(resolve_path(name)).is_dir()


def check_sizes(pipeline: Any, *texts: Mapping) -> None:
    """Refuse photos and texts that would fill the memory once there are any.

    Args:
        pipeline: steps of a data set.
        texts: settings of a tokenizer, and of a text tower.

    Raises:
        ValueError: names the first.
    """

    def check(value: Any) -> None:
        if isinstance(value, (int, float)) and not abs(value) <= MOST_PIXELS:
            raise ValueError(
                f'has {value!r:.30} in its pipeline, which is beyond {MOST_PIXELS} pixels'
            )
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for inner in value:
                check(inner)

    check(pipeline)
    for text in texts:
        for key in ('context_length', 'max_values'):
            number = text.get(key)
            if number is not None and (type(number) is not int or not 0 < number <= MOST_TOKENS):
                raise ValueError(f'has {key}={number!r:.30}; 1 to {MOST_TOKENS} can be')


class Budget(TorchDispatchMode):
    """In a ``with`` block, tensors are made in no other number and size than weights may fill.

    An architecture is a few numbers, which may ask for any memory. A model takes as much as its
    weights, and some for masks and adapters.

    Args:
        state: the weights by name.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        self.numbers = 4 * sum(tensor.numel() for tensor in state.values()) + 2**26
        self.tensors = 50 * len(state) + 10_000

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Every operation of torch."""
        makes = not args or not isinstance(args[0], Tensor)
        if makes or func.overloadpacket.__name__.startswith('new_'):
            for shape in filter(_is_shape, args):
                self.numbers -= prod(shape)
                self.tensors -= 1
        if self.numbers < 0 or self.tensors < 0:
            raise ValueError('its sizes are far beyond those of the weights')
        return func(*args, **(kwargs or {}))


def _is_shape(arg: Any) -> bool:
    return isinstance(arg, (list, tuple)) and all(type(size) is int for size in arg)
