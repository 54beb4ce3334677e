"""What wrong first results have in common with the right ones, counted over all failures."""

import numpy as np
import torch
import torch.nn.functional as F
from _catalogue import SplitProducts
from _ranked import Ranked
from torch import Tensor

from eiclip_mm.structures import entity_key
from eiclip_mm.visualization import Agreement, Group

# Cosine from which two photos count as one. Of the first results of EI-CLIP on 4,471 real products
# 7 lie above 0.99999 of the right photo, the next below 0.99.
SAME_PHOTO = 0.999
NONE = '(none)'
CHUNK = 1024  # queries compared at a time


class Failures:
    """The wrong first results of a model, and the entities of all products.

    Args:
        answers: of the model, in one direction.
        products: their texts and metadata.
        direction: ``'t2i'`` or ``'i2t'``.

    Attributes:
        first: (P,) row of the best wrong item of each query.
        lead: (P,) score of the right item less that of the best wrong one; failures have none.
    """

    def __init__(self, answers: Ranked, products: SplitProducts, direction: str):
        ids = answers.product_id.tolist()
        self.failed = np.flatnonzero(answers.rank > 1)
        self.first, self.lead = best_wrong(answers.queries, answers.gallery)
        self._photos = F.normalize(
            answers.gallery if direction == 't2i' else answers.queries, dim=1
        )
        self._texts = [entity_key(products.text(i)) for i in ids]
        self._names = [products.records[i]['entities'] for i in ids]
        self.types = list(dict.fromkeys(t for names in self._names for t, own in names.items()))
        self._keys = {
            type_: [frozenset(map(entity_key, own.get(type_, ()))) for own in self._names]
            for type_ in self.types
        }

    def shared(self, row: int, other: int) -> dict[str, bool]:
        """For each type that both products have values of, whether they share one."""
        pairs = {t: (keys[row], keys[other]) for t, keys in self._keys.items()}
        return {t: bool(a & b) for t, (a, b) in pairs.items() if a and b}

    def near_duplicate(self, row: int, other: int) -> list[str]:
        """By what two products cannot be told apart: ``'text'``, ``'photo'``."""
        cosine = float(self._photos[row] @ self._photos[other])
        found = dict(text=self._texts[row] == self._texts[other], photo=cosine >= SAME_PHOTO)
        return [name for name, same in found.items() if same]

    def alike(self) -> dict[str, int]:
        """How many failures find a near-duplicate first, by what."""
        found = [self.near_duplicate(row, self.first[row]) for row in self.failed]
        return dict(
            text=sum('text' in own for own in found),
            photo=sum('photo' in own for own in found),
            any=sum(bool(own) for own in found),
        )

    def agreements(self) -> list[Agreement]:
        """For each type, how often a failure's first result shares it, and by chance."""
        found = []
        for type_, keys in self._keys.items():
            rows = [row for row in self.failed if keys[row]]
            if not rows:
                continue
            same = np.mean([bool(keys[row] & keys[self.first[row]]) for row in rows])
            sharing = products_sharing(keys)
            chance = np.mean([sharing[keys[row]] - 1 for row in rows]) / (len(keys) - 1)
            found.append(Agreement(type_, len(rows), float(same), float(chance)))
        return found

    def values_of(self, type_: str) -> list[str]:
        """For each product its value of a type, several joined by "; ".

        Raises:
            ValueError: no product has the type.
        """
        if type_ not in self.types:
            raise ValueError(
                f'--group-by {type_}: no product has this entity type; they have {self.types}'
            )
        return ['; '.join(own.get(type_, ())) or NONE for own in self._names]


def best_wrong(queries: Tensor, gallery: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(P,) row of the best wrong item of each query, (P,) by how much the right one is better.

    Args:
        queries, gallery: (P, D); the right item of a query stands in its own row.
    """
    rows, leads = [], []
    for start in range(0, len(queries), CHUNK):
        scores = queries[start : start + CHUNK] @ gallery.T
        own = torch.arange(len(scores))
        right = scores[own, start + own]
        scores[own, start + own] = -torch.inf
        best = scores.max(1)
        rows.append(best.indices)
        leads.append(right - best.values)
    return torch.cat(rows).numpy(), torch.cat(leads).numpy()


def products_sharing(keys: list[frozenset[str]]) -> dict[frozenset[str], int]:
    """For each set of values, how many products have at least one of them."""
    rows: dict[str, set[int]] = {}
    for row, own in enumerate(keys):
        for key in own:
            rows.setdefault(key, set()).add(row)
    return {own: len(set().union(*(rows[key] for key in own))) for own in set(keys)}


def groups(values: list[str], rank: np.ndarray) -> list[Group]:
    """One group for each value, those with most failures first."""
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    found = [
        Group(name, len(own), float((rank[own] == 1).mean()), float(np.median(rank[own])))
        for name, own in rows.items()
    ]
    return sorted(found, key=lambda group: (-round(group.queries * (1 - group.right)), group.name))
