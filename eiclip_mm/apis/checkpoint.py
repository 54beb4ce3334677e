"""A checkpoint as it is handed over: weights, and the config and vocabulary inside it.

Opening one runs nothing that stands in it: weights are read with ``weights_only=True`` or as
safetensors, the config as literals, its types are registered names, and nothing is fetched from a
hub.
"""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import inf
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from safetensors.torch import save
from torch import Tensor

from eiclip_mm.models.checkpoints import read_weights
from eiclip_mm.models.ei_clip import vocab_of_state
from eiclip_mm.registry import (
    DATA_SAMPLERS,
    DATASETS,
    FUNCTIONS,
    MODELS,
    TOKENIZER,
    TRANSFORMS,
)
from eiclip_mm.structures import EntityVocab
from eiclip_mm.utils import load_config
from eiclip_mm.utils.checkpoint_file import write_checkpoint
from eiclip_mm.utils.digest import file_sha256

from .foreign import Budget, check_local, check_sizes, check_types

# what parsing a text that is no config may end in
UNREADABLE = (SyntaxError, AttributeError, ValueError, TypeError, RecursionError, MemoryError)
# what else a config ends in whose values have the wrong type, or do not fit each other
MISFIT = (*UNREADABLE, KeyError, IndexError, RuntimeError, AssertionError, ArithmeticError)
LONGEST = 2**20  # characters of a config; mmengine writes some 20,000


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
    loaded = read_weights(path)
    state: Any = loaded.get('state_dict') if isinstance(loaded, dict) else None
    try:
        vocab_of_state(state['_extra_state'])
    except UNREADABLE + (KeyError,) as error:
        raise ValueError(
            f'{path} is no checkpoint of eiclip_mm: it holds no vocabulary that can be read '
            f'({error!s:.100}). Give a file that tools/train.py wrote.'
        ) from error
    _check_weights(state, path)
    meta = loaded.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    if config is None:
        config = _config(meta.get('cfg', ''), path)
    elif not isinstance(config, Config):
        config = load_config(config)
    return Checkpoint(path, config, state, meta)


def save_checkpoint(path: str | Path, state: Mapping[str, Tensor], meta: Mapping) -> None:
    """Write what :func:`open_checkpoint` reads, whole or not at all.

    Args:
        path: ``NAME.safetensors``, in which no program can be hidden, or ``NAME.pth``.
        state: weights by name.
        meta: plain data: config, epoch, seed.

    Raises:
        OSError: the disk does not take it.
    """
    if Path(path).suffix == '.safetensors':
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        write_checkpoint(path, save(own, dict(format='pt', meta=json.dumps(meta, default=str))))
        return
    content = BytesIO()  # torch hides from us what a full disk says
    torch.save(dict(meta=dict(meta), state_dict=dict(state)), content)
    write_checkpoint(path, content.getvalue())


def _check_weights(state: Mapping, path: Path) -> None:
    for name, tensor in state.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor) and _is_plain(tensor)):
            raise ValueError(f'{path}: {name!r:.100} is no dense tensor of real numbers.')
        # -inf is what masks are made of
        if tensor.is_floating_point() and tensor.numel() and not tensor.float().max() < inf:
            raise ValueError(
                f'{path}: {name} holds NaN or infinite numbers, so that nothing can be embedded; '
                'take an earlier checkpoint of the run.'
            )


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout is torch.strided and tensor.device.type == 'cpu'
    return dense and not tensor.is_quantized and not tensor.is_complex()


def _config(text: str, path: Path) -> Config:
    """The config that mmengine wrote into a checkpoint, without running it."""
    try:
        if len(text) > LONGEST:
            raise ValueError(f'it has {len(text)} characters, at most {LONGEST} are read')
        statements: list[Any] = ast.parse(text).body
        config = {s.targets[0].id: _literal(s.value) for s in statements}
    except UNREADABLE as error:
        raise ValueError(
            f'the config inside {path} is not plain data ({error!s:.200}); give the config it was '
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
        check_types(model, MODELS, TOKENIZER, inherited=False)
        check_types(pipeline, TRANSFORMS)
        loaders = [value for key, value in config.items() if key.endswith('_dataloader')]
        check_types(loaders, DATASETS, TRANSFORMS, TOKENIZER, DATA_SAMPLERS, FUNCTIONS)
        check_local(towers['model'])
        check_local(tokenizer['model'])
        texts = [part['model'] for part in (towers, tokenizer) if isinstance(part['model'], dict)]
        check_sizes(pipeline, tokenizer, *(text.get('text_cfg', {}) for text in texts))
        return Config(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'the config inside {path} is damaged or lacks {error}.') from error
    except ValueError as error:
        raise ValueError(
            f'the config inside {path} {error}. If you trust it, give the config it was trained '
            'with: config=..., or --config.'
        ) from error


def build_model(checkpoint: Checkpoint) -> Any:
    """The model with its weights, in memory that these account for.

    Raises:
        ValueError: weights and config do not fit.
    """
    try:
        with Budget(checkpoint.state):
            model = MODELS.build(checkpoint.model)
    except MISFIT as error:
        raise ValueError(
            f'{checkpoint.path}: no model can be built of its config ({type(error).__name__}: '
            f'{error!s:.300}); give the config it was trained with: config=..., or --config.'
        ) from error
    try:
        model.load_state_dict(checkpoint.state)
    except RuntimeError as error:
        why = ' '.join(str(error).split())
        raise ValueError(
            f'{checkpoint.path}: the weights do not fit the config: {why:.500}'
        ) from error
    return model


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
