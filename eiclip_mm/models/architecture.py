"""An open_clip model from its name or architecture, with its weights."""

import json
from collections.abc import Mapping
from pathlib import Path

import open_clip
from open_clip import CLIP, CustomTextCLIP
from open_clip.factory import resize_pos_embed, resize_text_pos_embed
from torch import nn

from eiclip_mm.structures import resolve_path

from .checkpoints import read_towers, read_weights, state_of


def create_clip(model: str | Mapping, pretrained: str | None = None) -> CLIP | CustomTextCLIP:
    """The open_clip model; arguments as of ``OpenCLIPTowers``."""
    tags = open_clip.list_pretrained_tags_by_model(model) if isinstance(model, str) else []
    tag = pretrained if pretrained in tags else None
    if isinstance(model, str):
        known = open_clip.list_models()
        if model not in known and ':' not in model:
            raise ValueError(f'{model!r} is not an open_clip model; it has {known}.')
        if tag and _needs_quick_gelu(model, tag):
            # open_clip would switch by itself, but a checkpoint opened without the tag would not.
            raise ValueError(
                f"the weights {tag!r} were trained with QuickGELU: use model='{model}-quickgelu'."
            )
        clip = open_clip.create_model(model, pretrained=tag)
    else:
        clip = _from_architecture(json.loads(json.dumps(model)))
    if pretrained is not None and tag is None:
        _load_towers(clip, pretrained)
    if getattr(clip, 'logit_bias', None) is not None:  # of SigLIP's loss; in ours it cancels out
        clip.logit_bias.requires_grad_(False)
    return clip


def text_length(model: str | Mapping) -> int:
    """L, the tokens that texts of the model are padded to."""
    config = open_clip.get_model_config(model) if isinstance(model, str) else model
    return ((config or {}).get('text_cfg') or {}).get('context_length', 77)


def load_image_trunk(visual: nn.Module, path: str) -> None:
    """Weights of a timm image trunk, in timm's order of tensors."""
    path = resolve_path(path)
    trunk = getattr(visual, 'trunk', None)
    if trunk is None:
        raise ValueError('image_weights needs a timm image tower; use pretrained for others.')
    try:
        given = list(state_of(read_weights(Path(path))).items())
    except OSError as error:
        raise FileNotFoundError(f'image_weights {path} cannot be read: {error.strerror}') from error
    own = trunk.state_dict()
    # A classifier's layers may follow the trunk's; names may differ, order and shapes may not.
    wrong = [
        f'{theirs} {tuple(value.shape)} for {ours} {tuple(own[ours].shape)}'
        for ours, (theirs, value) in zip(own, given, strict=False)
        if value.shape != own[ours].shape
    ]
    if len(given) < len(own) or wrong:
        raise ValueError(
            f'{path} does not fit the image trunk: it has {len(given)} tensors, the trunk '
            f'{len(own)}; first misfit: {wrong[:1]}.'
        )
    trunk.load_state_dict(dict(zip(own, (v for _, v in given), strict=False)))


def _needs_quick_gelu(model: str, tag: str) -> bool:
    wanted = open_clip.get_pretrained_cfg(model, tag).get('quick_gelu', False)
    return wanted and not open_clip.get_model_config(model).get('quick_gelu', False)


def _from_architecture(architecture: dict) -> CLIP | CustomTextCLIP:
    text_cfg = architecture.get('text_cfg', {})
    custom_text = architecture.pop('custom_text', False)
    if 'hf_model_name' not in text_cfg:
        return (CustomTextCLIP if custom_text else CLIP)(**architecture)
    for key in ('hf_model_name', 'hf_tokenizer_name'):
        if key in text_cfg:
            text_cfg[key] = resolve_path(text_cfg[key])
    return CustomTextCLIP(**architecture)


def _load_towers(clip: CLIP | CustomTextCLIP, path: str) -> None:
    path = resolve_path(path)
    state = read_towers(path)
    try:
        resize_pos_embed(state, clip)
        resize_text_pos_embed(state, clip)
        clip.load_state_dict(state)
    except (RuntimeError, AssertionError, AttributeError) as error:
        # torch names every tensor; the first few tell what is wrong
        raise ValueError(f'{path} does not fit the model: {str(error)[:500]}') from error
