"""Weights of CLIP towers in the three formats users have: open_clip, Hugging Face, mm."""

import json
import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor

from eiclip_mm.utils.checkpoint_file import (
    check_content,
    check_records,
    check_whole,
    why_not_plain,
)

TOWERS_PREFIX = 'towers.clip.'

_HF_LAYER = re.compile(r'(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)')
HF_LAYER_NAMES = {
    'layer_norm1': 'ln_1',
    'layer_norm2': 'ln_2',
    'mlp.fc1': 'mlp.c_fc',
    'mlp.fc2': 'mlp.c_proj',
    'self_attn.out_proj': 'attn.out_proj',
}
HF_NAMES = {
    'logit_scale': 'logit_scale',
    'text_model.embeddings.token_embedding.weight': 'token_embedding.weight',
    'text_model.embeddings.position_embedding.weight': 'positional_embedding',
    'text_model.final_layer_norm.weight': 'ln_final.weight',
    'text_model.final_layer_norm.bias': 'ln_final.bias',
    'text_projection.weight': 'text_projection',
    'vision_model.embeddings.class_embedding': 'visual.class_embedding',
    'vision_model.embeddings.patch_embedding.weight': 'visual.conv1.weight',
    'vision_model.embeddings.position_embedding.weight': 'visual.positional_embedding',
    'vision_model.pre_layrnorm.weight': 'visual.ln_pre.weight',
    'vision_model.pre_layrnorm.bias': 'visual.ln_pre.bias',
    'vision_model.post_layernorm.weight': 'visual.ln_post.weight',
    'vision_model.post_layernorm.bias': 'visual.ln_post.bias',
    'visual_projection.weight': 'visual.proj',
}


def read_weights(path: Path) -> Any:
    """What a file of weights holds, with nothing of it run.

    Of ``.safetensors`` a dict of ``state_dict`` and ``meta``; any other file is a pickle of torch,
    read with ``weights_only=True``.

    Raises:
        ValueError: one that is damaged, needs more than data, or says that it holds more than it
            has bytes for.
    """
    try:
        size = path.stat().st_size
        if path.suffix == '.safetensors':
            with safe_open(path, 'pt') as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                meta = json.loads((file.metadata() or {}).get('meta', '{}'))
            loaded = dict(state_dict=state, meta=meta)
        else:
            if is_zipfile(path):
                with ZipFile(path) as archive:
                    check_records(archive, size)
            check_whole(path)
            loaded = torch.load(path, map_location='cpu', weights_only=True)
        check_content(loaded, size)
    except Exception as error:  # pickle's own errors have no common class
        what = why_not_plain(error)
        raise ValueError(f'{path} cannot be read safely as a checkpoint: {what}') from error
    return loaded


def state_of(loaded: Any) -> dict[str, Tensor]:
    """The weights by name, without what wrappers and other programs put around them.

    Raises:
        ValueError: there are none.
    """
    state = loaded.get('state_dict', loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f'it holds no weights by name but a {type(loaded).__name__}')
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError('it holds no tensor')
    return {name.removeprefix('module.'): value for name, value in state.items()}


def read_towers(path: str | Path) -> dict[str, Tensor]:
    """State dict of an open_clip model, from a file or a Hugging Face folder.

    Accepts open_clip's own files, a ``CLIPModel`` of transformers (file or folder) and checkpoints
    of this package. Pickles are read with ``weights_only=True``; safetensors are preferred.

    Raises:
        FileNotFoundError: no such file, or no weights in the folder.
        ValueError: not a checkpoint that can be read safely.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / n for n in ('model.safetensors', 'pytorch_model.bin')]
        files = [f for f in files if f.is_file()]
        if not files:
            raise FileNotFoundError(
                f'{path} holds neither model.safetensors nor pytorch_model.bin.'
            )
        path = files[0]
    if not path.is_file():
        raise FileNotFoundError(
            f'pretrained weights {path} do not exist. Give a file, a Hugging Face folder, or a '
            'tag of open_clip.list_pretrained() for this model; the mini configs start from '
            'python tools/train.py configs/clip_general_mini.py.'
        )
    loaded = read_weights(path)
    try:
        state = state_of(loaded)
    except ValueError as error:
        raise ValueError(f'{path} cannot be read safely as a checkpoint: {error}') from error
    if 'vision_model.embeddings.class_embedding' in state:
        return from_hugging_face(state)
    ours = {
        key.removeprefix(TOWERS_PREFIX): value
        for key, value in state.items()
        if key.startswith(TOWERS_PREFIX)
    }
    return ours or state


def from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a transformers ``CLIPModel`` state dict to open_clip's names and layouts."""
    converted: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.endswith('position_ids'):
            continue
        layer = _HF_LAYER.fullmatch(key)
        if layer is None:
            if key not in HF_NAMES:
                raise ValueError(f'{key!r} is not a weight of a Hugging Face CLIPModel.')
            transposed = key.endswith('projection.weight')
            converted[HF_NAMES[key]] = value.T if transposed else value
            continue
        side, number, name, kind = layer.groups()
        block = f'{"visual." if side == "vision" else ""}transformer.resblocks.{number}'
        if name in HF_LAYER_NAMES:
            converted[f'{block}.{HF_LAYER_NAMES[name]}.{kind}'] = value
        else:
            attention.setdefault(f'{block}.attn.in_proj_{kind}', {})[name] = value
    for key, parts in attention.items():
        converted[key] = torch.cat([parts[f'self_attn.{p}_proj'] for p in 'qkv'])
    return converted
