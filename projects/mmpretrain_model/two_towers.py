"""A model that is not ours: a backbone of mmpretrain for photos, a bag of sub-words for texts."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmpretrain.registry import MODELS
from torch import nn


@MODELS.register_module()
class TwoTowers(BaseModel):
    """Photos and texts in one space of ``dim`` numbers, trained with InfoNCE."""

    def __init__(self, backbone: dict, neck: dict, width: int, dim: int, **kwargs):
        super().__init__(**kwargs)
        self.backbone, self.neck = MODELS.build(backbone), MODELS.build(neck)
        self.image = nn.Linear(width, dim)
        self.text = nn.EmbeddingBag(49_408, dim, padding_idx=0)  # open_clip's sub-words

    def forward(self, images, data_samples, mode='tensor'):
        texts = torch.stack([torch.as_tensor(sample.text) for sample in data_samples])
        image = F.normalize(self.image(self.neck(self.backbone(images))[-1]), dim=-1)
        product = F.normalize(self.text(texts.to(images.device)), dim=-1)
        if mode == 'loss':
            scores = 20 * image @ product.T
            own = torch.arange(len(scores), device=scores.device)
            return dict(loss=F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own))
        for sample, v, t in zip(data_samples, image, product, strict=True):
            sample.set_field(v, 'image')  # the two fields that RetrievalMetric asks for
            sample.set_field(t, 'product')
        return data_samples
