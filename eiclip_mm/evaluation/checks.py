"""What ranking refuses, in sentences that say which side is wrong and where."""

import torch
from torch import Tensor

TIES = ('against', 'for', 'order')


def checked(
    a: Tensor, b: Tensor, a_ids: Tensor, b_ids: Tensor, sides: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """Both sides in float32, or an error that says which side is wrong and where."""
    a, b = a.detach().float(), b.detach().float()
    for side, vectors, ids in zip(sides, (a, b), (a_ids, b_ids), strict=True):
        if vectors.ndim != 2 or not vectors.numel():
            shape = tuple(vectors.shape)
            raise ValueError(f'{side} must be (rows, D) with at least one row, got {shape}')
        if ids.shape != vectors.shape[:1] or ids.is_floating_point():
            raise ValueError(
                f'{side} have {len(vectors)} rows; their ids must be as many integers, got '
                f'{tuple(ids.shape)} of {ids.dtype}'
            )
        # A sum is finite where all terms are, but for overflow, which is looked at again.
        bad = (~vectors.sum(1).isfinite()).nonzero().flatten()
        bad = bad[~vectors[bad].isfinite().all(1)]
        if len(bad):
            raise ValueError(
                f'{side} hold NaN or infinity in {len(bad)} of {len(vectors)} rows, first in row '
                f'{int(bad[0])} (id {int(ids[bad[0]])}). Such scores have no rank. If training '
                'diverged, go back to an earlier checkpoint, or start anew with a lower rate.'
            )
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f'{sides[0]} have {a.shape[1]} dimensions but {sides[1]} have {b.shape[1]}; both '
            'must come from one model'
        )
    return a, b


def check_relevant(ids: Tensor, other_ids: Tensor, sides: tuple[str, str]) -> None:
    """Every id stands on the other side too."""
    lost = ids[~torch.isin(ids, other_ids)]
    if len(lost):
        raise ValueError(
            f'{len(lost)} of {len(ids)} {sides[0]} have no relevant item among the {sides[1]}, '
            f'e.g. those of id {lost.unique()[:5].tolist()}'
        )


def check_candidates(candidates: Tensor, right: Tensor, queries: int, gallery: int) -> Tensor:
    """Each query has candidates in the gallery, a right one among them.

    Returns:
        (Q, C) bool: ``right`` without what only fills a list.
    """
    fits = candidates.ndim == 2 and candidates.shape == right.shape and candidates.numel()
    if not fits or len(candidates) != queries:
        raise ValueError(
            f'{queries} queries need candidates and right of shape ({queries}, C), C of '
            f'1 or more, got {tuple(candidates.shape)} and {tuple(right.shape)}'
        )
    if candidates.min() < -1 or candidates.max() >= gallery:
        raise ValueError(
            f'candidates must be rows of a gallery of {gallery}, or -1; got '
            f'{int(candidates.min())} to {int(candidates.max())}'
        )
    right = right & (candidates >= 0)
    if not right.any(1).all():
        lost = (~right.any(1)).nonzero().flatten()
        raise ValueError(
            f'{len(lost)} of {queries} queries have no right item among their candidates, '
            f'first query {int(lost[0])}'
        )
    return right


def check_ties(ties: str) -> None:
    """The rule is one of :data:`TIES`."""
    if ties not in TIES:
        raise ValueError(f'ties must be one of {TIES}, got {ties!r}')


def check_chunk(chunk: int) -> None:
    """A tile has a side."""
    if chunk < 1:
        raise ValueError(f'chunk must be 1 or more, got {chunk}')


def check_order(ties: str, most: int) -> None:
    """Ties by order need one right item a query."""
    if ties == 'order' and most > 1:
        raise ValueError(
            f"ties='order' is defined for one right item a query, here are up to {most}; take "
            "'against' or 'for'"
        )


def check_lengths(a: Tensor, b: Tensor) -> None:
    """No product of two vectors overflows, nor do all of them vanish."""
    longest = a.max() * b.max()
    if not longest.isfinite():
        raise ValueError(
            f'vectors as long as {float(a.max()):.3g} and {float(b.max()):.3g} '
            'overflow float32 when multiplied; normalise them first'
        )
    if a.max() > 0 and b.max() > 0 and longest < 1e-30:
        raise ValueError(
            f'vectors no longer than {float(a.max()):.3g} and {float(b.max()):.3g} vanish in '
            'float32 when multiplied; normalise them first'
        )
