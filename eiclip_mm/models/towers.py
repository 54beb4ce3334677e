"""The two CLIP towers, from open_clip: its models and weights, with our pooling and freezing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import open_clip
import torch
from mmengine.model import BaseModule
from open_clip.factory import resize_pos_embed, resize_text_pos_embed
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from eiclip_mm.registry import MODELS
from eiclip_mm.structures import resolve_path

from .checkpoints import read_towers


@MODELS.register_module()
class OpenCLIPTowers(BaseModule):
    """Image tower and text tower of one open_clip model.

    Args:
        model: name of an open_clip model (``open_clip.list_models()``), or an architecture:
            ``dict(embed_dim=..., vision_cfg=..., text_cfg=...)`` in open_clip's terms. A
            ``hf_model_name`` in it is a local folder of a Hugging Face text model, a
            ``timm_model_name`` an image model of timm. ``package:name/path`` is a path inside an
            installed package.
        pretrained: a tag of open_clip for this model, or weights that :func:`read_towers` reads.
        image_weights: weights of the timm image trunk alone, in timm's order of tensors.
        image_unlocked: groups at the end of the image tower that train; ``None`` trains all,
            0 freezes the tower (of a timm model: the trunk; its projection trains).
        text_unlocked: likewise, layers of the text tower.
        grad_checkpointing: less memory for more time, in both towers.
        mean, std: of the pixels, in [0, 1]; the weights' own by default.
    """

    def __init__(
        self,
        model: str | Mapping,
        pretrained: str | None = None,
        image_weights: str | None = None,
        image_unlocked: int | None = None,
        text_unlocked: int | None = None,
        grad_checkpointing: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__()
        self.clip = _create(model, pretrained)
        if image_weights is not None:
            _load_trunk(self.clip.visual, resolve_path(image_weights))
        if image_unlocked is not None:
            self.clip.lock_image_tower(image_unlocked)
        if text_unlocked is not None:
            self._lock_text(text_unlocked)
        if grad_checkpointing:
            self.clip.set_grad_checkpointing()
            if self._hugging_face is not None:  # its default gives no gradient above frozen layers
                self._hugging_face.gradient_checkpointing_enable(dict(use_reentrant=False))
        preprocess = asdict(PreprocessCfg()) | open_clip.get_model_preprocess_cfg(self.clip)
        for name, given in (('mean', mean), ('std', std)):
            value = torch.tensor(given or preprocess[name]).view(3, 1, 1)
            self.register_buffer(name, value)  # in checkpoints: tags differ in them

    @property
    def dim(self) -> int:
        """Embedding width D."""
        projection = getattr(self.clip, 'text_projection', None)
        if projection is None:
            return self.clip.text.output_dim
        return projection.shape[-1] if isinstance(projection, Tensor) else projection.out_features

    @property
    def log_scale(self) -> nn.Parameter:
        """() s, the log of the inverse temperature."""
        return self.clip.logit_scale

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, height, width) uint8 pixels, or (B, F) trunk features -> (B, D)."""
        if image.ndim == 4:
            image = self.image_trunk(image)
        return self._image_head(image)

    def image_trunk(self, image: Tensor) -> Tensor:
        """(B, 3, height, width) uint8 pixels -> (B, F), all of the tower that can be frozen."""
        pixels = (image.float() / 255 - self.mean) / self.std
        visual = self.clip.visual
        return visual.trunk(pixels) if hasattr(visual, 'trunk') else visual(pixels)

    def image_trunk_module(self) -> nn.Module:
        """The weights behind :meth:`image_trunk`."""
        return getattr(self.clip.visual, 'trunk', self.clip.visual)

    def _image_head(self, features: Tensor) -> Tensor:
        visual = self.clip.visual
        return visual.head(features) if hasattr(visual, 'trunk') else features

    def encode_text(self, text: Tensor) -> Tensor:
        """(B, L) token ids -> (B, D), before normalisation."""
        if self._hugging_face is not None:  # attends to no padding: leave out what all rows pad
            pad = self._hugging_face.config.pad_token_id
            text = text[:, : int((text != pad).sum(1).max())]
        return self.clip.encode_text(text)

    @property
    def _hugging_face(self) -> nn.Module | None:
        """The Hugging Face text model, if the text tower is one."""
        transformer = getattr(getattr(self.clip, 'text', None), 'transformer', None)
        return transformer if hasattr(transformer, 'get_input_embeddings') else None

    def _lock_text(self, unlocked: int) -> None:
        if self._hugging_face is None:
            self.clip.lock_text_tower(unlocked)
            return
        # open_clip's own lock knows the layers of few Hugging Face models, BERT's not among them.
        layers = getattr(getattr(self._hugging_face, 'encoder', None), 'layer', None)
        if layers is None:
            raise ValueError(
                f'text_unlocked is not supported for {type(self._hugging_face).__name__}: it has '
                'no encoder.layer. Leave text_unlocked at None.'
            )
        self._hugging_face.requires_grad_(False)
        for layer in list(layers)[max(len(layers) - unlocked, 0) :]:
            layer.requires_grad_(True)

    def prepare_tokens(self, end: int, first: int, extra_tokens: Sequence[Sequence[int]]) -> None:
        """Pool at the end token by its id, and add tokens beyond the model's own.

        CLIP pools at the largest id of a text, a place that any added token would take.

        Args:
            end: id of the end token.
            first: id of the first added token, the number of the tokenizer's own.
            extra_tokens: for each added token, the sub-words whose mean it starts from.
        """
        text = getattr(self.clip, 'text', self.clip)
        if hasattr(text, 'text_pool_type'):  # open_clip.CLIP holds its text tower flat
            if text.text_pool_type == 'argmax':
                text.text_pool_type, text.text_eos_id = 'eos', end
        elif getattr(text, 'pool_type', None) == 'argmax':
            text.pool_type, text.eos_id = 'eos', end
        if not extra_tokens:
            return
        if self._hugging_face is not None:
            old = self._hugging_face.get_input_embeddings()
            self._hugging_face.set_input_embeddings(_extended(old, first, extra_tokens))
        else:
            text.token_embedding = _extended(text.token_embedding, first, extra_tokens)

    def train(self, mode: bool = True) -> 'OpenCLIPTowers':
        """As in torch, but parts that are frozen run as in evaluation (batch norm, dropout)."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        return self


def _create(model: str | Mapping, pretrained: str | None) -> nn.Module:
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
    return clip


def _needs_quick_gelu(model: str, tag: str) -> bool:
    wanted = open_clip.get_pretrained_cfg(model, tag).get('quick_gelu', False)
    return wanted and not open_clip.get_model_config(model).get('quick_gelu', False)


def _from_architecture(architecture: dict) -> nn.Module:
    text_cfg = architecture.get('text_cfg', {})
    if 'hf_model_name' not in text_cfg:
        return open_clip.model.CLIP(**architecture)
    for key in ('hf_model_name', 'hf_tokenizer_name'):
        if key in text_cfg:
            text_cfg[key] = resolve_path(text_cfg[key])
    return open_clip.model.CustomTextCLIP(**architecture)


def _load_towers(clip: nn.Module, path: str) -> None:
    path = resolve_path(path)
    state = read_towers(path)
    try:
        resize_pos_embed(state, clip)
        resize_text_pos_embed(state, clip)
        clip.load_state_dict(state)
    except (RuntimeError, AssertionError, AttributeError) as error:
        # torch names every tensor; the first few tell what is wrong
        raise ValueError(f'{path} does not fit the model: {str(error)[:500]}') from error


def _load_trunk(visual: nn.Module, path: str) -> None:
    if not hasattr(visual, 'trunk'):
        raise ValueError('image_weights needs a timm image tower; use pretrained for others.')
    given = list(torch.load(path, map_location='cpu', weights_only=True).items())
    own = visual.trunk.state_dict()
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
    visual.trunk.load_state_dict(dict(zip(own, (v for _, v in given), strict=False)))


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
