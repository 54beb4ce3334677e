"""A trained model, from its checkpoint alone."""

from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from eiclip_mm.models import EICLIP, OpenCLIP
from eiclip_mm.registry import INFERENCERS
from eiclip_mm.utils.digest import file_sha256

from .checkpoint import MISFIT, build_model, open_checkpoint
from .encoder import Encoder
from .photos import PhotoSizing


@INFERENCERS.register_module()
class EICLIPInferencer(Encoder):
    """Embeds photos, products and queries with a checkpoint of ``tools/train.py``.

    Config and vocabulary come out of the checkpoint; no other file of the training run is needed.

    Args:
        checkpoint: the file.
        device: ``'cuda'`` where there is one, by default.
        config: instead of the one in the checkpoint: of a model whose classes are not ours.
        batch_size: rows at a time.

    Raises:
        FileNotFoundError, ValueError: see :func:`~eiclip_mm.apis.open_checkpoint`.
        ValueError: the device is not there, or takes no model.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | torch.device | None = None,
        config: Config | str | Path | None = None,
        batch_size: int = 64,
    ):
        opened = open_checkpoint(checkpoint, config)
        model: OpenCLIP = build_model(opened)
        try:
            self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
            self.model = model.to(self.device).eval().requires_grad_(False)
        except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
            reason = str(error).partition('\n')[0]
            raise ValueError(
                f'device {device!s} takes no model here ({reason}); try cpu.'
            ) from error
        self.checkpoint, self.config = opened.path, opened.config
        self.name, self.dim = opened.path.name, model.towers.dim
        try:
            sizing = PhotoSizing(opened.config.test_dataloader.dataset.pipeline)
        except MISFIT as error:
            raise ValueError(
                f'{opened.path}: photos cannot be sized as its config says '
                f'({type(error).__name__}: {error!s:.300}).'
            ) from error
        super().__init__(model.tokenizer, sizing, batch_size)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """See :class:`Encoder`."""
        return self.model.encode_image(pixels.to(self.device))

    def embed_tokens(self, text: Tensor, entity_ids: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Encoder`."""
        text, ids = text.to(self.device), entity_ids.to(self.device)
        if isinstance(self.model, EICLIP):
            return self.model.product_and_weights(text, ids)
        return self.model.encode_product(text, ids), torch.zeros(ids.shape)

    @property
    def sha256(self) -> str:  # type: ignore[override]  # of a file that may change
        """See :class:`Encoder`."""
        return file_sha256(self.checkpoint)  # of the file as it is now: tools may name another
