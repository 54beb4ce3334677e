"""The two CLIP towers, from open_clip: its models and weights, with our freezing and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import open_clip
import torch
from mmengine.model import BaseModule
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from eiclip_mm.registry import MODELS

from .architecture import create_clip, load_image_trunk, text_length
from .grad_cache import check_micro_batch, in_micro_batches
from .lora import add_lora
from .text_tower import (
    add_tokens,
    hugging_face,
    lock_text,
    pool_at,
    trunk_features,
    trunk_module,
)


@MODELS.register_module()
class OpenCLIPTowers(BaseModule):
    """Image tower and text tower of one open_clip model.

    A tower is a trunk, which can be frozen, and a head: of a timm or Hugging Face model the head is
    the projection onto D; of any other tower the trunk is all of it.

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
        lora: settings of :func:`~eiclip_mm.models.lora.add_lora`, e.g. ``dict(rank=8, alpha=16)``:
            adapters train on towers that are frozen, unless ``..._unlocked`` says otherwise. The
            temperature trains beside them. Added tokens stay the mean of their sub-words.
        micro_batch: while training, each tower runs over so many rows at a time, and once more for
            the gradient: the memory of a micro-batch, the loss and gradients of the whole batch.
            A tower of which any part trains runs wholly twice; a frozen one once.
        grad_checkpointing: less memory for more time, in both towers; goes with micro_batch.
        compile: compile the towers with torch.compile; a name is its backend. They are compiled in
            place: names in checkpoints stay.
        mean, std: of the pixels, in [0, 1]; the weights' own by default.
    """

    def __init__(
        self,
        model: str | Mapping,
        pretrained: str | None = None,
        image_weights: str | None = None,
        image_unlocked: int | None = None,
        text_unlocked: int | None = None,
        lora: Mapping | None = None,
        micro_batch: int | None = None,
        grad_checkpointing: bool = False,
        compile: bool | str = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__()
        self.clip = create_clip(model, pretrained)
        self.length, self.pad = text_length(model), 0
        if image_weights is not None:
            load_image_trunk(self.clip.visual, image_weights)
        self._choose_what_trains(image_unlocked, text_unlocked, lora)
        if micro_batch is not None:
            check_micro_batch(micro_batch, self.clip)
        self.micro_batch = micro_batch
        if grad_checkpointing:
            self.clip.set_grad_checkpointing()
            if (bert := hugging_face(self.clip)) is not None:
                # its default gives no gradient above frozen layers
                bert.gradient_checkpointing_enable(dict(use_reentrant=False))
        if compile:
            self._compile('inductor' if compile is True else compile)
        preprocess = asdict(PreprocessCfg()) | open_clip.get_model_preprocess_cfg(self.clip)
        for name, given in (('mean', mean), ('std', std)):
            value = torch.tensor(given or preprocess[name]).float()
            low = 0 if name == 'mean' else 1e-6
            if value.shape != (3,) or not low <= value.min() <= value.max() <= 1:
                raise ValueError(
                    f'{name} must be three numbers in [0, 1], std above 0, got {given}: pixels are '
                    'divided by 255 first.'
                )
            self.register_buffer(name, value.view(3, 1, 1))  # in checkpoints: tags differ in them

    def _choose_what_trains(
        self, image_unlocked: int | None, text_unlocked: int | None, lora: Mapping | None
    ) -> None:
        if lora is not None:
            image_unlocked, text_unlocked = image_unlocked or 0, text_unlocked or 0
        for name, value in (('image_unlocked', image_unlocked), ('text_unlocked', text_unlocked)):
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(
                    f'{name} must be a number from 0 on, or None to train all, got {value!r}.'
                )
        if image_unlocked is not None:
            self.clip.lock_image_tower(image_unlocked)
        if text_unlocked is not None:
            lock_text(self.clip, text_unlocked)
        if lora is not None:
            add_lora(self.clip, **lora)

    def _compile(self, backend: str) -> None:
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f'compile={backend!r} is no backend of torch.compile; it has {known}.')
        # mmengine's own compile=True takes the optimiser in, and fails there.
        text = getattr(self.clip, 'text', self.clip)
        for part in (self.image_trunk_module(), text.transformer):
            part.compile(backend=backend)

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
        return in_micro_batches(
            self._image_features, image, self.micro_batch, self.image_trunk_module()
        )

    def image_trunk_module(self) -> nn.Module:
        """The weights behind :meth:`image_trunk`."""
        return getattr(self.clip.visual, 'trunk', self.clip.visual)

    def _image_features(self, image: Tensor) -> Tensor:
        pixels = (image.float() / 255 - self.mean) / self.std
        return self.image_trunk_module()(pixels)

    def _image_head(self, features: Tensor) -> Tensor:
        visual = self.clip.visual
        return visual.head(features) if hasattr(visual, 'trunk') else features

    def encode_text(self, text: Tensor) -> Tensor:
        """(B, L') token ids, L' <= L, or (B, F) trunk features -> (B, D), before normalisation."""
        if not text.is_floating_point():
            text = self.text_trunk(text)
        return self._text_head(text)

    def text_trunk(self, text: Tensor) -> Tensor:
        """(B, L') token ids -> (B, F), all of the tower that can be frozen.

        L' may be less than L where all that is missing is padding; the result is the same.
        """
        return in_micro_batches(
            self._text_features, text, self.micro_batch, self.text_trunk_module()
        )

    def text_trunk_module(self) -> nn.Module:
        """The weights behind :meth:`text_trunk`."""
        return trunk_module(self.clip)

    def _text_features(self, text: Tensor) -> Tensor:
        return trunk_features(self.clip, text, self.length, self.pad)

    def _text_head(self, features: Tensor) -> Tensor:
        return features if hugging_face(self.clip) is None else self.clip.text.proj(features)

    def prepare_tokens(
        self, end: int, first: int, extra_tokens: Sequence[Sequence[int]], pad: int = 0
    ) -> None:
        """Pool at the end token by its id, and add tokens beyond the model's own.

        CLIP pools at the largest id of a text, a place that any added token would take.

        Args:
            end: id of the end token.
            first: id of the first added token, the number of the tokenizer's own.
            extra_tokens: for each added token, the sub-words whose mean it starts from.
            pad: id of the padding.
        """
        self.pad = pad
        pool_at(self.clip, end)
        if extra_tokens:
            add_tokens(self.clip, first, extra_tokens)

    def train(self, mode: bool = True) -> 'OpenCLIPTowers':
        """As in torch, but parts that are frozen run as in evaluation (batch norm, dropout)."""
        super().train(mode)
        for module in self.clip.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        return self
