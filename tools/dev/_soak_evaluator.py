"""The evaluator on very many vectors whose ranks are known, because they were planted."""

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from _usage import peak_mib, reset_peak
from mmengine.logging import MMLogger
from torch import Tensor

from eiclip_mm.evaluation import Candidates, Embeddings, RetrievalMetric, coarse, ranks, retrieve
from eiclip_mm.evaluation.measures import first_ranks

GROUP = 10  # products that lie near each other, far from all others
WIDTH = 0.2  # radians to each side of the middle of a group
GAP = 1e-4  # by which cosines of a group differ at least: a hundred times what counts as a tie
ASKED = 200  # queries that are ranked by brute force as well
BATCH = 1024  # samples that a model would return at a time
LABEL = 'group'


@dataclass(frozen=True)
class Planted:
    """Images and texts of as many products, in an order of their own, and their ranks.

    Attributes:
        image, text: (P, D) unit vectors.
        image_id, text_id: (P,) products.
        image_rank, text_rank: (P,) rank of each image among the texts, and the other way.
        group: (P,) group of each product, by id.
    """

    image: Tensor
    text: Tensor
    image_id: Tensor
    text_id: Tensor
    image_rank: Tensor
    text_rank: Tensor
    group: Tensor


def plant(products: int, dim: int, seed: int = 0) -> Planted:
    """Groups on random great circles: within a group angles alone decide, between groups nothing.

    Cosines within a group are above cos(2 WIDTH) = 0.92. Those of two groups are those of random
    directions: of 10^12 pairs in 64 dimensions the nearest are at some 0.8.

    Raises:
        ValueError: ``products`` is no multiple of GROUP, or there are too few dimensions.
    """
    if products % GROUP or dim < 64:
        raise ValueError(f'give a multiple of {GROUP} products, 64 dimensions or more')
    draw = torch.Generator().manual_seed(seed)
    image_angle, text_angle, image_rank, text_rank = _angles(draw)
    axes = torch.randn(products // GROUP, dim, 2, generator=draw)
    axes = torch.linalg.qr(axes).Q  # two orthogonal unit vectors a group
    ids = torch.randperm(products, generator=draw)  # neighbours lie far apart in tiles

    def side(angle: Tensor, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        circle = torch.stack([angle.cos(), angle.sin()]).float()
        vectors = (axes @ circle).transpose(1, 2).reshape(products, dim)
        order = torch.randperm(products, generator=draw)
        return vectors[order], ids[order], rank.repeat(products // GROUP)[order]

    image, image_id, image_rank = side(image_angle, image_rank)
    text, text_id, text_rank = side(text_angle, text_rank)
    group = torch.empty_like(ids)
    group[ids] = torch.arange(products) // GROUP
    return Planted(image, text, image_id, text_id, image_rank, text_rank, group)


def _angles(draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(GROUP,) angles of images and texts without near ties, and ranks in both directions."""
    while True:
        text = WIDTH * (2 * torch.rand(GROUP, generator=draw, dtype=torch.float64) - 1)
        noise = torch.randn(GROUP, generator=draw, dtype=torch.float64)
        image = (text + WIDTH / 4 * noise).clamp(-WIDTH, WIDTH)
        cosine = (image[:, None] - text).cos()
        gap = cosine - cosine.diagonal()[:, None], cosine.T - cosine.diagonal()[:, None]
        wrong = ~torch.eye(GROUP, dtype=torch.bool)
        if all(g[wrong].abs().min() > GAP for g in gap):
            return image, text, *(1 + (g > 0).sum(1) for g in gap)


def run(args: argparse.Namespace) -> list[str]:
    """Each way in turn; what went wrong."""
    MMLogger.get_instance('soak', log_level='WARNING')  # the metric's own table is not for here
    planted, rows = plant(args.rows, args.dim), []
    queries = planted.image[: args.queries], planted.image_id[: args.queries]
    print(f'{args.rows:,} products, D = {args.dim}, {torch.get_num_threads()} thread(s)\n')
    print('| way | queries x candidates | s | CPU-s | peak MiB beyond the vectors | wrong |')
    print('|---|--:|--:|--:|--:|--:|')

    def ask() -> int:
        found = ranks(queries[0], planted.text, queries[1], planted.text_id)
        return int((found != planted.image_rank[: args.queries]).sum())

    size = f'{args.queries:,} x {args.rows:,}'
    if coarse.fast_bfloat16():
        rows.append(measured('ranks, counted in bfloat16', size, ask))
    with mock.patch.object(coarse, 'fast_bfloat16', lambda: False):
        rows.append(measured('ranks, in float32', size, ask))
    rows.append(measured('brute force, float64', f'{ASKED:,} x {args.rows:,}', brute, planted))
    rows.append(measured('RetrievalMetric, per batch', f'{args.rows:,} lists', metric, planted))
    part = plant(args.square, args.dim)
    size = f'{args.square:,} x {args.square:,}'
    rows.append(measured('full/product, both directions', size, full, part))
    cpu = rows[-1][1] * (args.rows / args.square) ** 2 / 60
    print(f'\n{args.rows:,} x {args.rows:,}, calculated from the last row: {cpu:.0f} CPU-minutes')
    return [f'{name}: {wrong} wrong ranks' for name, _, wrong in rows if wrong]


def measured(
    name: str, size: str, way: Callable[..., int], *given: object
) -> tuple[str, float, int]:
    """Run a way and print its row; name, CPU-seconds and how much was wrong."""
    with meter() as used:
        wrong = way(*given)
    seconds, cpu, mib = used
    print(f'| {name} | {size} | {seconds:.1f} | {cpu:.1f} | {mib:,.0f} | {wrong} |', flush=True)
    return name, cpu, wrong


@contextmanager
def meter() -> Iterator[list[float]]:
    """Seconds, CPU-seconds and peak MiB of a block beyond what was there, filled at its end."""
    used: list[float] = []
    before, began, cpu = reset_peak(), time.perf_counter(), _cpu_seconds()
    yield used
    used += [time.perf_counter() - began, _cpu_seconds() - cpu, peak_mib() - before]


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def brute(planted: Planted) -> int:
    """Random queries, all cosines in float64, compared one by one: how many ranks differ."""
    asked = torch.randperm(len(planted.image), generator=torch.Generator().manual_seed(1))[:ASKED]
    queries, ids = planted.image[asked].double(), planted.image_id[asked]
    right = planted.text[planted.text_id.argsort()[ids]].double()
    floor = (queries * right).sum(1, keepdim=True)
    found = torch.ones_like(ids)
    for start in range(0, len(planted.text), 2**16):
        part = slice(start, start + 2**16)
        nearer = queries @ planted.text[part].double().T > floor
        found += (nearer & (planted.text_id[part] != ids[:, None])).sum(1)
    return int((found != planted.image_rank[asked]).sum())


def full(planted: Planted) -> int:
    """The protocol on all: how many ranks of both directions are not those planted."""
    found = retrieve(_embeddings(planted), 'full/product')
    sides = (found.i2t, planted.image_rank), (found.t2i, planted.text_rank)
    return sum(int((first_ranks(ranking.ahead) != rank).sum()) for ranking, rank in sides)


def _embeddings(planted: Planted) -> Embeddings:
    return Embeddings(
        image=planted.image,
        image_product_id=planted.image_id,
        product=planted.text,
        product_id=planted.text_id,
    )


def metric(planted: Planted) -> int:
    """Batches as a model returns them, some samples twice; candidates are those of the group.

    So the ranks are those planted. How many of R@1, R@5, R@10 and the mean ranks differ.
    """
    number = len(planted.image)
    image, text = planted.image_id.argsort(), planted.text_id.argsort()  # row i: product i
    near = Candidates(number=GROUP - 1, group=LABEL)
    metric = RetrievalMetric([dict(name='101/eiclip', candidates=near)])
    ids = np.arange(number)
    labels = {LABEL: planted.group.numpy().astype(str)}
    texts = dict(product_id=ids, caption=np.zeros_like(ids), text=ids, labels=labels)
    metric.dataset_meta = dict(retrieval=dict(texts=texts))
    order = np.random.default_rng(0).permutation(number)
    order = np.concatenate([order, order[: number // 100]])  # as samplers fill their last batch
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH].tolist()
        images, products = planted.image[image[rows]], planted.text[text[rows]]
        samples = [
            dict(image=images[i], product=products[i], product_id=row, sample_idx=row)
            for i, row in enumerate(rows)
        ]
        metric.process(None, samples)
    found = metric.evaluate(number)
    wrong = 0
    for direction, rank in (('i2t', planted.image_rank), ('t2i', planted.text_rank)):
        expected = {f'R@{k}': 100 * float((rank <= k).double().mean()) for k in (1, 5, 10)}
        expected['mean_rank'] = float(rank.double().mean())
        for name, value in expected.items():
            [own] = [v for key, v in found.items() if key.endswith(f'{direction}/{name}')]
            wrong += abs(own - value) > 1e-9
    return wrong
