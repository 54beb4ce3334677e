"""What the pages share: options, and the products of a config's split by id."""

import argparse
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mmengine.registry import init_default_scope

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.datasets import EntityTokenizer, LoadProductImage, ProductDataset
from eiclip_mm.datasets.photo_check import records_alone
from eiclip_mm.evaluation import Embeddings
from eiclip_mm.registry import DATASETS, TOKENIZER
from eiclip_mm.structures import clean_text
from eiclip_mm.utils import load_config
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.whole_file import write_whole_text
from eiclip_mm.visualization import Product, thumbnail


def add_page_options(parser: argparse.ArgumentParser, shown: str, number: int) -> None:
    """Where the page goes and how many ``shown`` it holds, ``number`` by default."""
    parser.add_argument('--out', metavar='FILE.html', type=Path, required=True, help='the page')
    parser.add_argument(
        '--number', type=_count, default=number, help=f'{shown} to show, default {number}'
    )


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {text}')
    return int(text)


def write_page(path: Path, page: str, holds: str) -> None:
    """Write it and say what it holds."""
    with told(path):
        write_whole_text(path, page)
    print(f'{holds} are in {path}, {path.stat().st_size / 1e6:.1f} MB')


def split_config(path: str, split: str) -> dict:
    """Config of the data set of a split's loader; short names mean ours from now on.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: it has no such loader.
    """
    cfg = load_config(path)
    if not cfg.get(f'{split}_dataloader'):
        raise ValueError(f'{path} has no {split}_dataloader; name a config with one')
    init_default_scope('eiclip_mm')
    return cfg[f'{split}_dataloader'].dataset.to_dict()


def loader_of(config: Mapping) -> LoadProductImage:
    """What reads the photos of a data set's config, from its packs where there are some."""
    first = (config.get('pipeline') or [{}])[0]
    first = first.get('pipeline', [first])[0]  # of photos whose features are loaded
    return LoadProductImage(packed=first.get('packed'))


def mentions(tokenizer: EntityTokenizer | None, text: str) -> list[tuple[int, int, list[str]]]:
    """The names in a clean text, as pages mark them: start, end, entity types."""
    if tokenizer is None:
        return []
    types = tokenizer.vocab.types
    return [
        (mention.start, mention.end, [types[k] for k, _ in mention.entities])
        for mention in tokenizer.matcher.find(text)
    ]


class SplitProducts:
    """Texts, metadata and photos of a config's test split, by product id.

    Args:
        path: the config.
    """

    def __init__(self, path: str):
        config = split_config(path, 'test')
        self.path = path
        self.dataset: ProductDataset = DATASETS.build(records_alone(config, views='first'))
        self.records = {record['product_id']: record for record in self.dataset.records()}
        tokenizer = config.get('tokenizer')
        self.tokenizer = None if tokenizer is None else TOKENIZER.build(tokenizer)
        self.load = loader_of(config)
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

    def text(self, product_id: int) -> str:
        """The first description of a product, clean."""
        return clean_text(' '.join(self.records[product_id]['text_fields'].values()))

    def _product(self, product_id: int) -> Product:
        record, text = self.records[product_id], self.text(product_id)
        photo = thumbnail(self.load(dict(record))['img'])
        found = mentions(self.tokenizer, text)
        return Product(product_id, text, record['entities'], photo, found)
