"""What an entity does to retrieval: pure functions of embeddings. Source: ours."""

import torch
from torch import Tensor

from .checks import check_lengths
from .functional import ranks


def swap_effects(
    before: Tensor, after: Tensor, image: Tensor, own: Tensor, holds: Tensor, swapped: Tensor
) -> dict[str, Tensor]:
    """What exchanging an entity of each query does to the photos of a gallery.

    Args:
        before: (Q, D) unit queries with the entity that is theirs.
        after: (Q, D) the same with another one.
        image: (G, D) unit photos.
        own: (Q,) row of each query's own photo.
        holds: (G, N) whether the product of a photo has an entity.
        swapped: (Q, 2) the old entity and the new one, as columns of ``holds``; photos of both are
            in the gallery.

    Returns:
        (Q,) float64 each: ``rank_before``, ``rank_after``, ``rank`` of the own photo, from 1, and
        its change; ``own``, ``old``, ``new``, change of the cosine with the own photo, and of the
        mean cosine with photos of the old and the new entity; ``new - old``; ``top_before``,
        ``top_after``, whether the nearest photo has the new entity, and ``top``, its change.
    """
    check_lengths(before, after)
    ids = torch.arange(len(image), device=image.device)
    places = [ranks(queries, image, own, ids).double() for queries in (before, after)]
    columns = dict(rank_before=places[0], rank_after=places[1], rank=places[1] - places[0])
    # a mean of cosines is the cosine with the mean
    change = (after - before).double()
    columns['own'] = (change * image[own]).sum(1)
    sums = holds.T.to(image.dtype) @ image  # (N, D)
    means = sums / holds.sum(0)[:, None].clamp(min=1)
    for name, entity in zip(('old', 'new'), swapped.T, strict=True):
        columns[name] = (change * means[entity]).sum(1)
    columns['new - old'] = columns['new'] - columns['old']
    for name, queries in (('before', before), ('after', after)):
        best = torch.cat([(part @ image.T).argmax(1) for part in queries.split(1024)])
        columns[f'top_{name}'] = holds[best, swapped[:, 1]].double()
    return columns | dict(top=columns['top_after'] - columns['top_before'])


def auc(right: Tensor, wrong: Tensor) -> float:
    """Share of pairs in which the right one has the higher score; equal ones count half.

    Args:
        right: (n,) scores, n from 1 on.
        wrong: (m,) scores, m from 1 on.

    >>> auc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0]))
    0.625
    """
    if not len(right) or not len(wrong):
        raise ValueError(f'both sides need a score, got {len(right)} right and {len(wrong)} wrong.')
    wrong = wrong.sort().values
    below, upto = (torch.searchsorted(wrong, right, side=side) for side in ('left', 'right'))
    return float((below + upto).double().mean()) / (2 * len(wrong))
