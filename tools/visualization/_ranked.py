"""A model's answers under full/first-image, product by product."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.evaluation import Embeddings, retrieve
from eiclip_mm.evaluation.measures import first_ranks
from eiclip_mm.evaluation.rows import config_and_seed

PROTOCOL = 'full/first-image'
TOP = 5


@dataclass(frozen=True, eq=False)
class Ranked:
    """A model's answers to one direction; rows are products, in the order of their ids.

    Attributes:
        product_id: (P,) integers.
        queries, gallery: (P, D) embeddings; the right item of a query stands in its own row.
        rank: (P,) rank of the right item, from 1.
    """

    product_id: np.ndarray
    queries: Tensor
    gallery: Tensor
    rank: np.ndarray

    def top(self, row: int) -> list[tuple[int, float]]:
        """The first items of a query: gallery row and score."""
        scores = self.gallery @ self.queries[row]
        best = scores.topk(min(TOP + 1, len(scores))).indices.tolist()
        best = [other for other in best if other != row][:TOP]
        best.insert(int(self.rank[row]) - 1, row)  # where evaluation puts it: ties count against it
        return [(found, float(scores[found])) for found in best[:TOP]]


def add_direction(parser: argparse.ArgumentParser) -> None:
    """The option for what asks and what answers."""
    parser.add_argument(
        '--direction', choices=['t2i', 'i2t'], default='t2i', help='default t2i: texts ask'
    )


def ranked(dump: Embeddings, direction: str) -> Ranked:
    """The answers of a model, of the first image and the first text of each product."""
    ranking = getattr(retrieve(dump, PROTOCOL), direction)
    images = first(dump.image, dump.image_product_id, dump.image_view)
    texts = first(dump.product, dump.product_id, dump.product_caption)
    order = ranking.product_id.argsort()
    return Ranked(
        ranking.product_id[order].numpy(),
        *((texts, images) if direction == 't2i' else (images, texts)),
        first_ranks(ranking.ahead)[order].numpy(),
    )


def first(vectors: Tensor, ids: Tensor, numbers: Tensor) -> Tensor:
    """(P, D) the vectors of number 0, in the order of their ids."""
    rows = (numbers == 0).nonzero().flatten()
    return vectors[rows[ids[rows].argsort()]].float()


def named(path: str, dump: Embeddings) -> str:
    """A model by its config and seed, as far as the card says, and its file."""
    config, seed = config_and_seed(dump.card)
    parts = [config, None if seed is None else f'seed {seed}', Path(path).name]
    return ', '.join(part for part in parts if part)
