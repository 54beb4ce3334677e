"""See what changes from model A to model B, query by query, on one HTML page.

python tools/visualization/compare_retrievals.py CONFIG A.npz B.npz --out page.html

A and B are embeddings of one split, from tools/test.py --out; CONFIG, that of either, says where
its texts and photos are, in its test_dataloader. Ranks are those of full/first-image.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.datasets import LoadProductImage, ProductDataset
from eiclip_mm.evaluation import Embeddings, retrieve
from eiclip_mm.evaluation.measures import first_ranks
from eiclip_mm.evaluation.report import check_writable
from eiclip_mm.evaluation.rows import config_and_seed, different
from eiclip_mm.registry import DATASETS, TOKENIZER
from eiclip_mm.structures import clean_text
from eiclip_mm.visualization import Asked, Found, Page, Product, retrieval_page, thumbnail

PROTOCOL = 'full/first-image'
TOP = 5
PICKS = dict(
    both='the largest gains and the largest losses, {} of {} queries whose rank changes',
    gains='the largest gains, {} of {} queries whose rank gets better',
    losses='the largest losses, {} of {} queries whose rank gets worse',
    random='{} of all {} queries, drawn at random',
)


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


def main(argv: list[str] | None = None) -> None:
    """Rank, pick, write."""
    args = parse_args(argv)
    try:
        check_writable(args.out)
        dumps = {path: Embeddings.load(path) for path in (args.a, args.b)}
        for doubt in different(dumps):
            raise ValueError(doubt)
        catalogue = Catalogue(args.config)
        catalogue.check(dumps)
        sides = [ranked(dump, args.direction) for dump in dumps.values()]
        rows, count = picked(*(side.rank for side in sides), args.pick, args.number)
        page = Page(
            names=tuple(named(path, dump) for path, dump in dumps.items()),
            direction=args.direction,
            ranks=np.stack([side.rank for side in sides]),
            gallery=len(sides[0].gallery),
            shown=[asked(row, sides, catalogue) for row in rows],
            picked=PICKS[args.pick].format(len(rows), f'{count:,}'),
            protocol=PROTOCOL,
        )
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    args.out.write_text(retrieval_page(page), encoding='utf-8')
    size = args.out.stat().st_size / 1e6
    print(f'{len(rows)} of {len(page.gain)} queries are in {args.out}, {size:.1f} MB')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', metavar='CONFIG', help='config file of either model')
    parser.add_argument('a', metavar='A', help='embeddings of the model before')
    parser.add_argument('b', metavar='B', help='embeddings of the model after')
    parser.add_argument('--out', metavar='FILE.html', type=Path, required=True, help='the page')
    parser.add_argument(
        '--direction', choices=['t2i', 'i2t'], default='t2i', help='default t2i: texts ask'
    )
    parser.add_argument('--number', type=int, default=40, help='queries to show, default 40')
    parser.add_argument(
        '--pick',
        choices=list(PICKS),
        default='both',
        help='which queries; default both, half gains and half losses; random: the same every time',
    )
    args = parser.parse_args(argv)
    if args.number < 1:
        parser.error(f'--number must be at least 1, got {args.number}')
    if not Path(args.config).is_file():
        parser.error(f'config {args.config} does not exist; name a file of configs/ or your own')
    if Path(args.a).resolve() == Path(args.b).resolve():
        parser.error(f'A and B are the same embeddings, {args.a}; give those of two models')
    return args


class Catalogue:
    """Texts, metadata and photos of a config's test split, by product id.

    Args:
        path: the config.
    """

    def __init__(self, path: str):
        cfg = Config.fromfile(path)
        if not cfg.get('test_dataloader'):
            raise ValueError(f'{path} has no test_dataloader; name a config with one')
        init_default_scope('eiclip_mm')
        config = cfg.test_dataloader.dataset
        self.path = path
        # No tokenizer: it would encode every text.
        changes = dict(tokenizer=None, pipeline=[], batched=False, views='first')
        self.dataset: ProductDataset = DATASETS.build(dict(config, **changes))
        self.records = {record['product_id']: record for record in self.dataset.records()}
        tokenizer = config.get('tokenizer')
        self.tokenizer = None if tokenizer is None else TOKENIZER.build(tokenizer)
        first = (config.get('pipeline') or [{}])[0]
        first = first.get('pipeline', [first])[0]  # of photos whose features are loaded
        self.load = LoadProductImage(packed=first.get('packed'))
        self.product = cache(self._product)

    def check(self, dumps: dict[str, Embeddings]) -> None:
        """Refuse embeddings of other products, and of products of the same ids and other texts."""
        where = f'the test split of {self.path} ({Path(self.dataset.ann_file).name})'
        texts = self.dataset.metainfo['retrieval']['texts']
        pairs = zip(texts['product_id'].tolist(), texts['caption'].tolist(), strict=True)
        known = dict(zip(pairs, texts['text'].tolist(), strict=True))
        agree = []
        for path, dump in dumps.items():
            lost = [i for i in dump.product_id.unique().tolist() if i not in self.records]
            if lost:
                raise ValueError(
                    f'{len(lost)} products of {path} are not in {where}, e.g. {lost[:5]}; give '
                    'the config that the embeddings were made with'
                )
            if dump.product_text is not None:
                own = zip(dump.product_id.tolist(), dump.product_caption.tolist(), strict=True)
                read = zip(own, dump.product_text.tolist(), strict=True)
                agree.append(all(known.get(pair) == text for pair, text in read))
        if agree and not any(agree):  # one may read other fields of the text
            raise ValueError(
                f'{" and ".join(dumps)} hold products of {where}, but of other texts: the data '
                'are not those that were embedded. Give the config and data of the embeddings'
            )

    def _product(self, product_id: int) -> Product:
        record = self.records[product_id]
        text = clean_text(' '.join(record['text_fields'].values()))
        mentions = []
        if self.tokenizer is not None:
            types = self.tokenizer.vocab.types
            for mention in self.tokenizer.matcher.find(text):
                own = [types[k] for k, _ in mention.entities]
                mentions.append((mention.start, mention.end, own))
        photo = thumbnail(self.load(dict(record))['img'])
        return Product(product_id, text, record['entities'], photo, mentions)


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


def picked(before: np.ndarray, after: np.ndarray, pick: str, number: int) -> tuple[list[int], int]:
    """The queries to show, the largest gain first, and of how many they are a choice.

    A change counts by its factor: from rank 20 to 1 is more than from 2,000 to 1,000. A choice of
    both is half gains and half losses, or fewer where there are not as many.
    """
    gain = np.log(before / after)
    if pick == 'random':
        rows = np.random.default_rng(0).permutation(len(gain))[:number]
        return rows[np.argsort(-gain[rows], kind='stable')].tolist(), len(gain)
    order = np.argsort(-gain, kind='stable')
    gains, losses = order[gain[order] > 0], order[gain[order] < 0]
    lose = dict(gains=0, losses=number, both=number // 2)[pick]
    win = 0 if pick == 'losses' else number - lose
    chosen = [*gains[:win].tolist(), *losses[max(0, len(losses) - lose) :].tolist()]
    return chosen, dict(gains=len(gains), losses=len(losses)).get(pick, len(gains) + len(losses))


def asked(row: int, sides: list[Ranked], catalogue: Catalogue) -> Asked:
    """A query with what both models find."""
    ids = sides[0].product_id.tolist()
    found = tuple(
        [Found(catalogue.product(ids[at]), score, at == row) for at, score in side.top(row)]
        for side in sides
    )
    ranks = tuple(int(side.rank[row]) for side in sides)
    return Asked(catalogue.product(ids[row]), ranks, found)


def named(path: str, dump: Embeddings) -> str:
    """A model by its config and seed, as far as the card says, and its file."""
    config, seed = config_and_seed(dump.card)
    parts = [config, None if seed is None else f'seed {seed}', Path(path).name]
    return ', '.join(part for part in parts if part)


if __name__ == '__main__':
    main()
