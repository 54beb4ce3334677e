"""The text tower of any open_clip model: texts of any length, freezing, added tokens."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import CLIP, CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

FLAT_PARTS = (
    'token_embedding', 'positional_embedding', 'transformer', 'ln_final', 'text_projection'
)  # fmt: skip


def hugging_face(clip: CLIP | CustomTextCLIP) -> Any | None:
    """The Hugging Face text model, if the text tower is one."""
    transformer = getattr(getattr(clip, 'text', None), 'transformer', None)
    return transformer if hasattr(transformer, 'get_input_embeddings') else None


def trunk_module(clip: CLIP | CustomTextCLIP) -> nn.Module:
    """The weights behind :func:`trunk_features`."""
    if (model := hugging_face(clip)) is not None:
        return nn.ModuleList([model, clip.text.pooler])
    if hasattr(clip, 'text'):
        return clip.text
    trunk = nn.Module()  # open_clip.CLIP holds its text tower flat
    for name in (*FLAT_PARTS, 'text_pool_type'):
        setattr(trunk, name, getattr(clip, name))
    trunk.register_buffer('attn_mask', clip.attn_mask)  # None where it is not causal
    return trunk


def trunk_features(clip: CLIP | CustomTextCLIP, text: Tensor, length: int, pad: int = 0) -> Tensor:
    """All of the text tower that can be frozen, on texts that may be cut shorter than L.

    Args:
        text: (B, L') token ids; what is missing up to L is padding.
        length: L.
        pad: token id of the padding; Hugging Face models know theirs.

    Returns:
        (B, F) of a Hugging Face model before its projection, else the tower's output, F = D.
    """
    if hugging_face(clip) is not None:
        return _hugging_face_features(clip.text, text, length)
    tower = getattr(clip, 'text', clip)
    missing = clip.context_length - text.shape[1]
    if missing <= 0:  # longer ones open_clip refuses
        return clip.encode_text(text)
    if _ends_at_the_end_token(tower):
        return _causal_features(tower, text)
    return clip.encode_text(F.pad(text, (0, missing), value=pad))


def _hugging_face_features(tower: HFTextEncoder, text: Tensor, length: int) -> Tensor:
    pad = tower.config.pad_token_id
    # Nothing attends to padding, so what all rows pad is left out; on an accelerator int() would
    # wait for the device, and texts narrower than L have been cut already.
    if text.device.type == 'cpu' or text.shape[1] == length:
        text = text[:, : int((text != pad).sum(1).max())]
    mask = (text != pad).long()
    return tower.pooler(tower.transformer(input_ids=text, attention_mask=mask), mask)


def _ends_at_the_end_token(tower: CLIP | TextTransformer) -> bool:
    """Whether nothing after the end token can reach the output."""
    pool = getattr(tower, 'text_pool_type', None) or tower.pool_type
    causal = tower.attn_mask is not None and getattr(tower, 'cls_emb', None) is None
    return causal and pool in ('argmax', 'eos')


def _causal_features(tower: CLIP | TextTransformer, text: Tensor) -> Tensor:
    """open_clip's ``encode_text``, which takes the full L only, with position and mask cut."""
    flat = hasattr(tower, 'text_pool_type')
    pool, end = (
        (tower.text_pool_type, tower.text_eos_id) if flat else (tower.pool_type, tower.eos_id)
    )
    length, dtype = text.shape[1], tower.transformer.get_cast_dtype()
    x = tower.token_embedding(text).to(dtype)  # (B, L', width)
    x = x + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = text_global_pool(tower.ln_final(x), text, pool, eos_token_id=end)  # (B, width)
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


def lock_text(clip: CLIP | CustomTextCLIP, unlocked: int) -> None:
    """Freeze the text tower but for its last ``unlocked`` layers."""
    model = hugging_face(clip)
    if model is None:
        clip.lock_text_tower(unlocked)
        return
    # open_clip's own lock knows the layers of few Hugging Face models, BERT's not among them.
    layers = getattr(getattr(model, 'encoder', None), 'layer', None)
    if layers is None and unlocked:
        raise ValueError(
            f'text_unlocked is not supported for {type(model).__name__}: it has no encoder.layer. '
            'Leave text_unlocked at None, or freeze all of it with 0.'
        )
    model.requires_grad_(False)
    for layer in list(layers or ())[-unlocked:] if unlocked else ():
        layer.requires_grad_(True)


def pool_at(clip: CLIP | CustomTextCLIP, end: int) -> None:
    """Let a tower that pools at the largest id of a text pool at the end token's."""
    text = getattr(clip, 'text', clip)
    if hasattr(text, 'text_pool_type'):
        if text.text_pool_type == 'argmax':
            text.text_pool_type, text.text_eos_id = 'eos', end
    elif getattr(text, 'pool_type', None) == 'argmax':
        text.pool_type, text.eos_id = 'eos', end


def add_tokens(
    clip: CLIP | CustomTextCLIP, first: int, extra_tokens: Sequence[Sequence[int]]
) -> None:
    """Rows of the token table beyond ``first``, each the mean of its sub-words' rows."""
    model, text = hugging_face(clip), getattr(clip, 'text', clip)
    if model is not None:
        model.set_input_embeddings(_extended(model.get_input_embeddings(), first, extra_tokens))
    else:
        text.token_embedding = _extended(text.token_embedding, first, extra_tokens)


def _extended(old: nn.Embedding, first: int, extra_tokens: Sequence[Sequence[int]]) -> nn.Embedding:
    if len(old.weight) < first:
        raise ValueError(
            f'the text tower has {len(old.weight)} token embeddings, but its tokenizer has '
            f"{first} tokens. Give the architecture's text_cfg vocab_size={first}."
        )
    weight = old.weight.detach()[:first]  # models may hold rows that no token has
    rows = torch.stack([weight[torch.tensor(ids)].mean(0) for ids in extra_tokens])
    new = nn.Embedding(len(weight) + len(rows), weight.shape[1], padding_idx=old.padding_idx)
    new.weight.data = torch.cat([weight, rows])
    new.weight.requires_grad = old.weight.requires_grad
    return new
