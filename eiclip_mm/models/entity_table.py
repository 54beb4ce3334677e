"""Which row of a table is whose, where one table holds the entities of all types."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eiclip_mm.structures import UNKNOWN, EntityVocab


class EntityTable(nn.Module):
    """Numbers the entities of all types in one row; row 0 is "unknown" for every type.

    Attributes:
        num_rows: N + 1.
        of_type: for each type, its rows.
        first: (K,) the row before them; with an entity's id, its row.
        type_of_row: (N + 1,) the type of each row; 0 for "unknown", which has none.

    Args:
        vocab: the entities; N in all.
    """

    first: Tensor
    type_of_row: Tensor

    def __init__(self, vocab: EntityVocab):
        super().__init__()
        self.of_type = [vocab.rows(type_) for type_ in vocab.types]
        type_of_row = [0] + [k for k, rows in enumerate(self.of_type) for _ in rows]
        self.num_rows = len(type_of_row)
        first = torch.tensor([rows.start - 1 for rows in self.of_type])
        self.register_buffer('first', first, persistent=False)
        self.register_buffer('type_of_row', torch.tensor(type_of_row), persistent=False)

    def rows(self, entity_ids: Tensor) -> Tensor:
        """(B, K, M) entity ids -> (B, K, M) rows of the common table."""
        return torch.where(entity_ids == UNKNOWN, 0, entity_ids + self.first[:, None])

    def share(self, entity_ids: Tensor) -> Tensor:
        """(B, K, M) share of each known value in its type: a sum of 1, or of 0 if none is known."""
        known = entity_ids != UNKNOWN  # (B, K, M)
        return known / known.sum(-1, keepdim=True).clamp(min=1)

    def mean(self, values: Tensor, entity_ids: Tensor, weights: Tensor | float = 1.0) -> Tensor:
        """Mean of a table's rows over the known values of each type, 0 where none is known.

        Args:
            values: (N + 1, E) one row an entity.
            entity_ids: (B, K, M).
            weights: (B, K, M) factor of each value's row.

        Returns:
            (B, K, E)
        """
        share = self.share(entity_ids) * weights  # (B, K, M)
        # a bag sums M rows as it reads them; the (B, K, M, E) rows themselves are never held
        means = F.embedding_bag(
            self.rows(entity_ids).flatten(0, 1),
            values,
            per_sample_weights=share.flatten(0, 1).to(values.dtype),
            mode='sum',
        )
        return means.unflatten(0, entity_ids.shape[:2])
