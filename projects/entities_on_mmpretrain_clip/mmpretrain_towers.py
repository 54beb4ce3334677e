"""mmpretrain's CLIP as the two towers of EI-CLIP."""

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from eiclip_mm.registry import MODELS


@MODELS.register_module()
class MMPretrainTowers(BaseModule):
    """What ``EICLIP`` asks of its towers.

    Args:
        clip: config of a CLIP model of mmpretrain.
    """

    def __init__(self, clip: dict):
        super().__init__()
        self.clip = MODELS.build(clip)
        self.dim = self.clip.text_projection.shape[1]

    @property
    def log_scale(self) -> Tensor:
        return self.clip.logit_scale

    def encode_image(self, image: Tensor) -> Tensor:
        image = self.clip.data_preprocessor(dict(inputs=image))['images']
        return self.clip.extract_image_feat(image)

    def encode_text(self, text: Tensor) -> Tensor:
        missing = self.clip.context_length - text.shape[1]  # a batch is cut to its longest text
        return self.clip.extract_text_feat(F.pad(text, (0, missing)))

    def prepare_tokens(self, end: int, first: int, extra_tokens: list, pad: int = 0) -> None:
        if extra_tokens:  # it pools at the largest id, which would be theirs
            raise ValueError(f"{len(extra_tokens)} added tokens; use mention='keep'.")
