"""A checkpoint as it is handed over: weights, and the config and vocabulary inside it.

Opening one runs nothing that stands in it: weights are read with ``weights_only=True``, the config
as literals, its types are registered names, and nothing is fetched from a hub.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from eiclip_mm.models.ei_clip import vocab_of_state
from eiclip_mm.registry import (
    DATA_SAMPLERS,
    DATASETS,
    FUNCTIONS,
    MODELS,
    TOKENIZER,
    TRANSFORMS,
    Registry,
)
from eiclip_mm.structures import EntityVocab, resolve_path
from eiclip_mm.utils import load_config
from eiclip_mm.utils.digest import file_sha256

# what parsing a text that is no config may end in
UNREADABLE = (SyntaxError, AttributeError, ValueError, TypeError, RecursionError, MemoryError)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: the file.
        config: of the training run.
        state: weights by name.
        meta: epoch, seed, what it was chosen on.
    """

    path: Path
    config: Config
    state: dict[str, Tensor]
    meta: dict

    @property
    def vocab(self) -> EntityVocab:
        """What its entity ids mean."""
        return vocab_of_state(self.state['_extra_state'])

    @property
    def model(self) -> dict:
        """Config of the model to load the weights into: its own vocabulary, nothing pretrained."""
        model = self.config.model.to_dict()
        towers = dict(model['towers'], pretrained=None, image_weights=None)
        if isinstance(towers['model'], dict):
            text, vision = (towers['model'].get(side, {}) for side in ('text_cfg', 'vision_cfg'))
            if 'hf_model_name' in text:
                text['hf_model_pretrained'] = False
            if 'timm_model_name' in vision:
                vision['timm_model_pretrained'] = False
        for only_in_training in ('micro_batch', 'grad_checkpointing', 'compile'):
            towers.pop(only_in_training, None)
        tokenizer = dict(model['tokenizer'], vocab=self.vocab)
        return dict(model, towers=towers, tokenizer=tokenizer, _scope_='eiclip_mm')

    @property
    def sha256(self) -> str:
        """Of the file."""
        return file_sha256(self.path)


def open_checkpoint(path: str | Path, config: Config | str | Path | None = None) -> Checkpoint:
    """Read a checkpoint of ``tools/train.py``.

    Args:
        path: the file.
        config: instead of the one inside: for checkpoints of a model that is not ours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this package, or one that needs more than data to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'checkpoint {path} does not exist; tools/train.py writes one to '
            'work_dirs/CONFIG/best_*.pth.'
        )
    try:
        loaded = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # pickle's own errors have no common class
        raise ValueError(f'{path} cannot be read safely as a checkpoint: {error!s:.300}') from error
    state: Any = loaded.get('state_dict') if isinstance(loaded, dict) else None
    try:
        vocab_of_state(state['_extra_state'])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{path} is no checkpoint of eiclip_mm: it holds no vocabulary that can be read '
            f'({error!s:.100}). Give a file that tools/train.py wrote.'
        ) from error
    meta = loaded.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    if config is None:
        config = _config(meta.get('cfg', ''), path)
    elif not isinstance(config, Config):
        config = load_config(config)
    return Checkpoint(path, config, state, meta)


def _config(text: str, path: Path) -> Config:
    """The config that mmengine wrote into a checkpoint, without running it."""
    try:
        statements: list[Any] = ast.parse(text).body
        config = {s.targets[0].id: _literal(s.value) for s in statements}
    except UNREADABLE as error:
        raise ValueError(
            f'the config inside {path} is not plain data ({error}); give the config it was '
            'trained with: config=..., or --config.'
        ) from error
    try:
        model, loader = config['model'], config['test_dataloader']
        towers, tokenizer = model['towers'], model['tokenizer']
        pipeline = loader['dataset']['pipeline']
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{path} holds no config with model and test_dataloader ({error}); give the config it '
            'was trained with: config=..., or --config.'
        ) from error
    try:
        check_types(model, MODELS, TOKENIZER)
        check_types(pipeline, TRANSFORMS)
        loaders = [value for key, value in config.items() if key.endswith('_dataloader')]
        check_types(loaders, DATASETS, TRANSFORMS, TOKENIZER, DATA_SAMPLERS, FUNCTIONS)
        check_local(towers['model'])
        check_local(tokenizer['model'])
    except (KeyError, TypeError) as error:
        raise ValueError(f'the config inside {path} lacks {error}.') from error
    except ValueError as error:
        raise ValueError(
            f'the config inside {path} {error}. If you trust it, give the config it was trained '
            'with: config=..., or --config.'
        ) from error
    return Config(config)


def _literal(node: Any) -> Any:
    """The value of an expression of literals and ``dict(...)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError('dict() takes keywords alone')
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_literal(key): _literal(value) for key, value in pairs}
    return ast.literal_eval(node)


def check_types(value: Any, *registries: Registry) -> None:
    """Refuse ``type`` values that are not in a registry: mmengine would import what they name.

    Args:
        value: a config.
        registries: its types must be in one of them, or in their ancestors.

    Raises:
        ValueError: names the first.
    """
    known = {name for registry in registries for name in _names(registry)}

    def check(value: Any) -> None:
        if isinstance(value, dict):
            if 'type' in value and value['type'] not in known:
                raise ValueError(f'names type {value["type"]!r}, which is not registered')
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for inner in value:
                check(inner)

    check(value)


def _names(registry: Registry) -> Iterator[str]:
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
        node = node.parent


def check_local(model: str | Mapping) -> None:
    """Refuse an architecture whose parts would be fetched from a hub.

    Raises:
        ValueError: names the part.
    """
    if isinstance(model, str):
        if ':' in model:
            raise ValueError(f'names the model {model!r}, which would be fetched from a hub')
        return
    for key in ('hf_model_name', 'hf_tokenizer_name'):
        name = model.get('text_cfg', {}).get(key)
        if name is not None and not Path(resolve_path(name)).is_dir():
            raise ValueError(f'names {key} {name!r}, which is no folder here')
