"""Look at products as the model gets them, on one HTML page.

python tools/visualization/browse_dataset.py CONFIG [--split train|val|test] --out page.html

Photos as they are stored and as the pipeline sizes them, texts with the names that were found in
them, the tokens they become, which of them are lost, and the entities that reach the model; counts
over the whole split above. What the pipeline draws at random (crops, flips) is drawn once, from a
fixed seed; EntityDropout is left out, so that the page shows what there is to drop.
"""

import argparse
from pathlib import Path

import numpy as np
from _catalogue import add_page_options, loader_of, split_config, write_page
from _reading import Reader

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.apis.photos import PhotoSizing
from eiclip_mm.datasets import ProductDataset
from eiclip_mm.datasets.labels import text_table
from eiclip_mm.datasets.photo_check import records_alone
from eiclip_mm.datasets.sampler import kept_generators, seed_generators
from eiclip_mm.evaluation.report import check_writable
from eiclip_mm.registry import DATASETS
from eiclip_mm.visualization import Browse, Browsed, TypeCount, browse_page, thumbnail

PICKS = {
    'random': '{} of all {:,} products, drawn at random',
    'first': 'the first {} of {:,} products',
    'rare': 'the {} of {:,} products with an entity that fewest training products have',
    'no-entity': '{} of the {:,} products of which no entity reaches the model',
    'truncated': '{} of the {:,} products whose text loses tokens, most first',
    'ids': '{} of all {:,} products, asked for by id',
}
VIEWS = 6  # photos of a product that are shown


def main(argv: list[str] | None = None) -> None:
    """Read, count, pick, write."""
    args = parse_args(argv)
    try:
        check_writable(args.out)
        split = Split(args.config, args.split)
        rows, count = [split.row(i) for i in args.ids], len(split.records)
        if not args.ids:
            rows, count = split.picked(args.pick, args.number)
        browse = split.page(rows, PICKS['ids' if args.ids else args.pick].format(len(rows), count))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    write_page(args.out, browse_page(browse), f'{len(rows)} of {browse.products} products')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', metavar='CONFIG')
    add_page_options(parser, 'products', 60)
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    parser.add_argument(
        '--pick', choices=[p for p in PICKS if p != 'ids'], default='random', help='which products'
    )
    parser.add_argument('--ids', type=int, nargs='+', default=[], help='these products instead')
    return parser.parse_args(argv)


class Split:
    """The products of a config's split, with all texts read.

    Args:
        path: the config.
        split: ``'train'``, ``'val'`` or ``'test'``; the fold is that of its loader.
    """

    def __init__(self, path: str, split: str):
        config = split_config(path, split)
        if config.get('tokenizer') is None:
            raise ValueError(f'{path}: the {split} data set has no tokenizer, so no text is read')
        pipeline = config.get('pipeline') or []
        self.title = f'{Path(path).stem}, {split}'
        self.steps = [_said(step) for step in pipeline]
        self.load = loader_of(config)
        self.sized = PhotoSizing([s for s in pipeline if not s['type'].endswith('EntityDropout')])
        # Of random views the items are the records themselves.
        self.dataset: ProductDataset = DATASETS.build(
            records_alone(config, tokenizer=config['tokenizer'], views='random')
        )
        self.records = list(self.dataset.records())
        self.reader = Reader(config['tokenizer'], self.dataset.tokenizer)
        self.encoded, self.tokenizer = self.dataset.encoded, self.dataset.tokenizer
        texts = [len(record['texts']) for record in self.records]
        self.record_of_text = np.repeat(np.arange(len(texts)), texts)
        self.dropped = self._dropped()

    def _dropped(self) -> np.ndarray:
        """(T,) tokens that each text loses."""
        dropped = np.zeros(len(self.encoded.length), dtype=int)
        full = self.encoded.length == self.tokenizer.subwords.context_length
        first = np.searchsorted(self.record_of_text, self.record_of_text)  # text of each record
        for text in np.flatnonzero(full):
            record = self.records[self.record_of_text[text]]
            fields = record['texts'][text - first[text]]
            dropped[text] = self.tokenizer(fields, record['entities']).dropped
        return dropped

    def row(self, product_id: int) -> int:
        """Row of a product.

        Raises:
            ValueError: the split does not have it.
        """
        for row, record in enumerate(self.records):
            if record['product_id'] == product_id:
                return row
        some = [record['product_id'] for record in self.records[:5]]
        raise ValueError(f'product {product_id} is not in {self.title}, which has e.g. {some}')

    def picked(self, pick: str, number: int) -> tuple[list[int], int]:
        """The products to show, see :data:`PICKS`, and of how many they are a choice."""
        count = len(self.records)
        if pick == 'random':
            return np.random.default_rng(0).permutation(count)[:number].tolist(), count
        if pick == 'first':
            return list(range(min(number, count))), count
        if pick == 'rare':
            return np.argsort(self._rarest(), kind='stable')[:number].tolist(), count
        amount = self.dropped if pick == 'truncated' else (
            ~self.encoded.entity_ids.any((1, 2))
        ).astype(int)  # fmt: skip
        most = np.zeros(count, dtype=int)
        np.maximum.at(most, self.record_of_text, amount)
        rows = np.argsort(-most, kind='stable')[: (most > 0).sum()]
        return rows[:number].tolist(), len(rows)

    def _rarest(self) -> list[float]:
        """For each product, training products that have the rarest entity of its metadata."""
        vocab = self.tokenizer.vocab
        counts = {type_: (0, *own) for type_, own in vocab.counts.items()}
        return [
            min(
                (
                    counts[type_][vocab.id(type_, name)]
                    for type_, names in record['entities'].items()
                    if type_ in counts
                    for name in names
                ),
                default=np.inf,
            )
            for record in self.records
        ]

    def page(self, rows: list[int], picked: str) -> Browse:
        """All that the page shows."""
        reading = ', '.join(f'{name}={value!r}' for name, value in self.tokenizer.reading.items())
        return Browse(
            title=self.title,
            steps=[*self.steps, ('text', f'{reading}, tags={self.tokenizer.tags!r}')],
            products=len(self.records),
            photos=len(self.dataset.images()),
            texts=len(self.dropped),
            limit=self.tokenizer.subwords.context_length,
            truncated=int((self.dropped > 0).sum()),
            types=self._types(),
            shown=[self._browsed(row) for row in rows],
            picked=picked,
        )

    def _types(self) -> list[TypeCount]:
        labels = text_table(self.records, self.tokenizer)['labels']
        reaches = self.encoded.entity_ids.any(2).mean(0)  # (K,)
        found = []
        for type_, share in zip(self.tokenizer.vocab.types, reaches, strict=True):
            seen, mention = labels[f'{type_}.seen'], labels[f'{type_}.mention']
            given = max(int((seen != '').sum()), 1)
            found.append(
                TypeCount(
                    type=type_,
                    names=self.tokenizer.vocab.size(type_) - 1,
                    given=float((seen != '').mean()),
                    unknown=float((seen == 'unseen').sum() / given),
                    mentioned=float((mention == 'mentioned').sum() / given),
                    reaches=float(share),
                )
            )
        return found

    def _browsed(self, row: int) -> Browsed:
        record = self.records[row]
        photos = []
        with kept_generators():
            for view, image in enumerate(record['images'][:VIEWS]):
                stored = self.load(dict(record, **image))['img']
                seed_generators(self.dataset.seed, row, view)
                sized = self.sized(stored).permute(1, 2, 0).numpy()
                photos.append((thumbnail(stored), thumbnail(sized)))
        texts = [self.reader(fields, record['entities']) for fields in record['texts']]
        return Browsed(record['product_id'], photos, len(record['images']), texts)


def _said(step: dict) -> tuple[str, str]:
    """A step of a pipeline by its name and settings."""
    settings = {name: value for name, value in step.items() if name not in ('type', 'pipeline')}
    inner = [' '.join(_said(one)).strip() for one in step.get('pipeline', ())]
    says = [f'{name}={value!r}' for name, value in settings.items()]
    return step['type'], ', '.join(says + inner)


if __name__ == '__main__':
    main()
