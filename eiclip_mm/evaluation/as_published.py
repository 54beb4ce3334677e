"""Defects of released evaluators that change numbers, to repeat what was published."""

import numpy as np
import torch
from torch import Tensor

from .functional import tie


def split_keys(listed: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Lists as FashionBERT's evaluator tells them apart, and of which a part has nothing right.

    It reads shuffled pairs in batches of 64 and mistakes the first pair of each for one of another
    query, so a list falls into two that are scored by themselves.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    pairs = (listed >= 0).cpu().numpy()
    first = np.zeros(pairs.shape, dtype=bool)
    first[pairs] = rng.permutation(int(pairs.sum())) % 64 == 0
    with_right = first == first[:, :1]
    missed = torch.from_numpy((pairs & ~with_right).any(1).nonzero()[0]).to(listed.device)
    return listed.masked_fill(torch.from_numpy(~with_right).to(listed.device), -1), missed


def add_masked(
    ahead: Tensor,
    asked: Tensor,
    ids: Tensor,
    gallery: Tensor,
    gallery_ids: Tensor,
    listed: Tensor,
    masked: float,
) -> None:
    """Let all the gallery compete, where what is off the list has one fixed cosine.

    So it is in FAME-ViL: off the list the score is -1, on the list it is the cosine times a scale
    that starts at 16. Only a right item below that cosine suffers.
    """
    best = torch.cosine_similarity(asked, gallery[listed[:, 0]])
    for row in (best <= masked).nonzero().flatten().tolist():
        own = listed[row][listed[row] >= 0]
        wrong = own[gallery_ids[own] != ids[row]]
        hidden = gallery_ids == ids[row]
        hidden[own] = False
        floor = masked if hidden.any() else best[row]
        score = torch.cosine_similarity(asked[row : row + 1], gallery[wrong])
        near = score >= floor - tie(asked.shape[1])
        ahead[row] = -1
        ahead[row, 0] = near.sum() + len(gallery) - len(own) - hidden.sum()
