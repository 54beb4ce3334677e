"""A package of another author: a selector by frequency."""

import torch
from torch import Tensor

from eiclip_mm.models import CESelector
from eiclip_mm.registry import MODELS
from eiclip_mm.structures import EntityVocab


@MODELS.register_module()
class KeepFrequent(CESelector):
    """Keeps the entities that enough training products have.

    Args:
        vocab: the entities; ``EICLIP`` gives it.
        at_least: how many products.
    """

    def __init__(self, vocab: EntityVocab, at_least: int):
        super().__init__(vocab)
        counts = torch.tensor([0, *(n for own in vocab.counts.values() for n in own)])  # (N + 1,)
        self.register_buffer('keep', (counts >= at_least).float(), persistent=False)

    def forward(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """(B, D) text features and (B, K, M) entity ids -> (B, K, M) weights in [0, 1]."""
        return self.keep[self.table.rows(entity_ids)]
