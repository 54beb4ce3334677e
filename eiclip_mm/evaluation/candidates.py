"""Drawing candidates for protocols that rank the right item among about a hundred.

They are drawn by a seeded generator from the split alone, so they are the same for every model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .embeddings import Embeddings
from .manifest import Lists

TOP_UP = ('none', 'others', 'mixture')
LEVELS = ('product', 'image')


@dataclass(frozen=True)
class Candidates:
    """How wrong candidates are drawn.

    Attributes:
        number: wrong candidates of a query.
        group: the label whose value they share with the query, see :attr:`Embeddings.labels`.
        top_up: what happens where a group has too few: ``'none'``, the list is shorter;
            ``'others'``, the rest comes from other groups; ``'mixture'``, whole random groups are
            added until there are enough, and the list is drawn from the mixture.
        level: of t2i, ``'product'``: a random view of each of ``number`` products; ``'image'``:
            ``number`` images, of which several may show one product.
        own_again: of t2i, the mixture may take up the query's own group a second time, the right
            product with it: a defect, here to repeat published numbers.
    """

    number: int = 100
    group: str = 'subcategory'
    top_up: str = 'none'
    level: str = 'product'
    own_again: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ('top_up', self.top_up, TOP_UP),
            ('level', self.level, LEVELS),
        ):
            if value not in allowed:
                raise ValueError(f'{name} of candidates is one of {allowed}, got {value!r}')
        if self.number < 1:
            raise ValueError(f'a query needs 1 candidate or more beside the right one, '
                             f'got {self.number}')  # fmt: skip


def draw(
    embeddings: Embeddings,
    candidates: Candidates,
    queries: int | None,
    unit: str,
    repeats: int,
    seed: int,
) -> Lists:
    """Draw queries and their candidates.

    Args:
        embeddings: of which the ids, numbers and the label ``candidates.group`` are read.
        candidates: how wrong candidates are drawn.
        queries: how many; all if ``None`` or more than there are.
        unit: i2t queries are random products with a random view each (``'product'``) or random
            images (``'image'``); t2i queries are random products in both cases.
        repeats: how often this is done, anew each time.
        seed: of the generator.
    """
    split = _Split(embeddings, candidates)
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = [(*split.i2t(rng, queries, unit), *split.t2i(rng, queries)) for _ in range(repeats)]
    i2t_query, i2t, t2i_query, t2i = map(np.concatenate, zip(*drawn, strict=True))
    return Lists(i2t_query, _trimmed(i2t), t2i_query, _trimmed(t2i))


class _Split:
    """Products and images of a split, in the order of group, then product id, then view.

    Queries come out in this order too: those that share candidates stand together.
    """

    def __init__(self, embeddings: Embeddings, candidates: Candidates):
        self.candidates = candidates
        ids, views = (x.cpu().numpy() for x in (embeddings.image_product_id, embeddings.image_view))
        first = (embeddings.product_caption == 0).nonzero().flatten().cpu().numpy()
        product_ids = embeddings.product_id.cpu().numpy()[first]
        _, group = np.unique(embeddings.label(candidates.group)[first], return_inverse=True)
        order = np.lexsort((product_ids, group))
        self.text_row, self.group = first[order], group[order]  # (P,)
        product_ids = product_ids[order]
        lost = np.setxor1d(ids, product_ids)
        if len(lost):
            raise ValueError(
                f'{len(lost)} products have an image but no caption 0, or the reverse, e.g. '
                f'{lost[:5].tolist()}'
            )
        by_id = product_ids.argsort()
        product = by_id[np.searchsorted(product_ids[by_id], ids)]  # (N,)
        self.image_row = np.lexsort((views, product))
        self.product = product[self.image_row]  # (N,) ascending, so groups are contiguous
        bounds = np.arange(len(product_ids) + 1)
        self.first_image = np.searchsorted(self.product, bounds)
        self.first_member = np.searchsorted(self.group, np.arange(self.group[-1] + 2))
        pool = np.diff(self.first_member) if candidates.top_up == 'none' else len(product_ids)
        if np.max(pool) < 2:
            raise ValueError(
                f'the candidate pool is empty: none of {len(product_ids)} products has a wrong '
                f'candidate with group={candidates.group!r} and top_up={candidates.top_up!r}; '
                'take another label (report.py --group LABEL), leave this protocol out or, in '
                "Python, take Candidates(top_up='others')"
            )

    def i2t(
        self, rng: np.random.Generator, queries: int | None, unit: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the query images (Q,) and of their candidate texts (Q, 1 + number)."""
        if unit == 'image':
            image = _some(rng, len(self.image_row), queries)
        else:
            image = self.view_of(rng, _some(rng, len(self.text_row), queries))
        product = self.product[image]
        wrong = self.wrong_products(rng, product, own_again=False)
        texts = np.where(wrong < 0, -1, self.text_row[wrong])
        return self.image_row[image], np.column_stack([self.text_row[product], texts])

    def t2i(self, rng: np.random.Generator, queries: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the query texts (Q,) and of their candidate images (Q, 1 + number)."""
        product = _some(rng, len(self.text_row), queries)
        right = self.view_of(rng, product)
        if self.candidates.level == 'image':
            wrong = self.from_group_or_others(rng, product, self.first_image)
        else:
            wrong = self.wrong_products(rng, product, self.candidates.own_again)
            wrong = np.where(wrong < 0, -1, self.view_of(rng, wrong))
        images = np.where(wrong < 0, -1, self.image_row[wrong])
        return self.text_row[product], np.column_stack([self.image_row[right], images])

    def view_of(self, rng: np.random.Generator, product: np.ndarray) -> np.ndarray:
        """A random image of each product."""
        first, end = self.first_image[product], self.first_image[product + 1]
        return first + (rng.random(product.shape) * (end - first)).astype(np.int64)

    def wrong_products(
        self, rng: np.random.Generator, product: np.ndarray, own_again: bool
    ) -> np.ndarray:
        """(Q, number) other products, -1 where there are too few."""
        themselves = np.arange(len(self.text_row) + 1)
        if self.candidates.top_up != 'mixture':
            return self.from_group_or_others(rng, product, themselves)
        group = self.group[product]
        size = self.first_member[group + 1] - self.first_member[group]
        few = size <= self.candidates.number
        found = np.full((len(product), self.candidates.number), -1)
        if not few.all():
            found[~few] = self.from_group_or_others(rng, product[~few], themselves)
        for row in few.nonzero()[0]:
            drawn = self.from_mixture(rng, int(product[row]), own_again)
            found[row, : len(drawn)] = drawn
        return found

    def from_mixture(self, rng: np.random.Generator, product: int, own_again: bool) -> np.ndarray:
        """Up to ``number`` products of the own group and of random whole groups, as it takes."""
        own = self.group[product]
        members = self.members(own)
        pools = [members[members != product]]
        for group in rng.permutation(len(self.first_member) - 1):
            if sum(map(len, pools)) >= self.candidates.number:
                break
            if group != own or own_again:
                pools.append(self.members(group))
        pool = np.concatenate(pools)
        return pool[rng.permutation(len(pool))[: self.candidates.number]]

    def members(self, group: int) -> np.ndarray:
        """The products of a group."""
        return np.arange(self.first_member[group], self.first_member[group + 1])

    def from_group_or_others(
        self, rng: np.random.Generator, product: np.ndarray, first: np.ndarray
    ) -> np.ndarray:
        """(Q, number) things of other products: of the own group, then, by config, of others.

        Product p has the things ``first[p]`` to ``first[p + 1]``: itself, or its images.
        """
        number, found = self.candidates.number, []
        start, end = (first[self.first_member[self.group[product] + i]] for i in (0, 1))
        own, own_end = first[product], first[product + 1]
        for rows in _runs(start):
            begin, stop = start[rows][0], end[rows][0]
            count = (own_end - own)[rows]
            picked = _distinct(rng, stop - begin - count, number)
            picked += np.where(picked >= (own[rows] - begin)[:, None], count[:, None], 0)
            listed = np.where(picked < 0, -1, picked + begin)
            missing = (picked < 0).sum(1)
            if self.candidates.top_up != 'none' and missing.any():
                # All lists of a group lack about the same number; a list takes what it lacks.
                others = _distinct(
                    rng, np.full(len(count), first[-1] - (stop - begin)), int(missing.max())
                )
                others += np.where(others >= begin, stop - begin, 0)
                gaps = listed < 0
                take = np.arange(others.shape[1]) < missing[:, None]
                listed[gaps] = others[take]
            found.append(listed)
        return np.concatenate(found)


def _some(rng: np.random.Generator, size: int, number: int | None) -> np.ndarray:
    """``number`` of ``size`` in order, or all."""
    if number is None or number >= size:
        return np.arange(size)
    return np.sort(rng.choice(size, number, replace=False))


def _runs(values: np.ndarray) -> Iterator[slice]:
    """Slices of equal neighbours."""
    cuts = np.flatnonzero(np.diff(values)) + 1
    for begin, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
        yield slice(begin, end)


def _distinct(rng: np.random.Generator, size: np.ndarray, number: int) -> np.ndarray:
    """(rows, number) different numbers below ``size`` (rows,) in random order; then -1.

    The first of a row are as random as all, so that a caller may take fewer.
    """
    if not len(size):
        return np.zeros((0, number), dtype=np.int64)
    most = int(size.max())
    if most < 4 * number or (size < 2 * number).any():
        # The places of the smallest of random keys. A partition would do for the set, but orders
        # it by place on one processor and at random on another.
        keys = rng.random((len(size), max(most, number)), dtype=np.float32)
        keys[np.arange(keys.shape[1]) >= size[:, None]] = 2
        picked = keys.argsort(axis=1, kind='stable')[:, :number]
        return np.where(picked < size[:, None], picked, -1)
    picked = (rng.random((len(size), number)) * size[:, None]).astype(np.int64)
    rows = np.arange(len(size))
    while len(rows):  # draw again whatever occurs a second time in its row
        order = picked[rows].argsort(axis=1, kind='stable')
        ordered = np.take_along_axis(picked[rows], order, 1)
        again, column = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
        place = rows[again], order[again, column + 1]
        picked[place] = (rng.random(len(again)) * size[place[0]]).astype(np.int64)
        rows = np.unique(rows[again])
    return picked


def _trimmed(listed: np.ndarray) -> np.ndarray:
    """Lists, filled at their ends, no wider than the longest of them."""
    return listed[:, : (listed >= 0).sum(1).max()]
