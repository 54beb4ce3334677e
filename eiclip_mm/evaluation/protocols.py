"""Retrieval protocols as data, the embeddings they score and the table of their results.

Protocols differ by several points of R@1 on one set of embeddings, so a number is nothing without
the name of its protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from .functional import SUM_KS, both_ranks, median_rank, recall_at, sum_recall


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a model makes of one split: embedded once, scored by every protocol.

    Attributes:
        image: (N, D) image embeddings, one for each view of each product.
        image_product_id: (N,) integers, the product an image shows.
        image_view: (N,) integers, number of the view within its product, from 0.
        product: (P, D) text embeddings, one for each caption of each product.
        product_id: (P,) integers, the product a text describes.
        product_caption: (P,) integers, number of the caption within its product; all 0 if left out.
    """

    image: Tensor
    image_product_id: Tensor
    image_view: Tensor
    product: Tensor
    product_id: Tensor
    product_caption: Tensor | None = None

    def __post_init__(self):
        if self.product_caption is None:
            object.__setattr__(self, 'product_caption', torch.zeros_like(self.product_id))
        for side, numbers in (
            ('image', ('image_product_id', 'image_view')),
            ('product', ('product_id', 'product_caption')),
        ):
            vectors, keys = getattr(self, side), [getattr(self, name) for name in numbers]
            for name, key in zip(numbers, keys, strict=True):
                if vectors.ndim != 2 or key.shape != vectors.shape[:1] or key.is_floating_point():
                    raise ValueError(
                        f'{side} must be (rows, D) and {name} as many integers, got '
                        f'{tuple(vectors.shape)} and {tuple(key.shape)} of {key.dtype}'
                    )
            distinct, count = torch.stack(keys, 1).unique(dim=0, return_counts=True)
            if (count > 1).any():
                raise ValueError(
                    f'{int((count > 1).sum())} pairs of ({", ".join(numbers)}) occur more than '
                    f'once, e.g. {distinct[count > 1][:5].tolist()}; number the views and captions '
                    'of each product from 0'
                )

    def save(self, path: str | Path) -> None:
        """Write the arrays of the class, vectors as float32 and numbers as int64, to an .npz."""
        path = npz_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{f.name: _to_numpy(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> 'Embeddings':
        """Read what :meth:`save` wrote; only ``product_caption`` may be missing."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'embeddings {path} do not exist. Write them with RetrievalMetric(out=...) or '
                'Embeddings.save.'
            )
        try:
            with open(path, 'rb') as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
        except (ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
            raise ValueError(f'{path} is not an .npz of number arrays: {error}') from error
        names = {f.name for f in fields(cls)}
        missing = sorted(names - arrays.keys() - {'product_caption'})
        unknown = sorted(arrays.keys() - names)
        if missing or unknown:
            raise ValueError(
                f'{path} does not hold embeddings: it lacks {missing} and has unknown {unknown}; '
                f'expected {sorted(names)}'
            )
        return cls(**arrays)


def npz_path(path: str | Path) -> Path:
    """The path, which must end in .npz: numpy would append it in silence."""
    if Path(path).suffix != '.npz':
        raise ValueError(f'embeddings are written as .npz, got the path {str(path)!r}')
    return Path(path)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    dtype = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor.detach().cpu().to(dtype).numpy()


@dataclass(frozen=True)
class Protocol:
    """Who is asked, among what, and what counts as right.

    Every protocol here ranks the whole gallery; wrong is whatever belongs to another product.

    Attributes:
        name: as in configs and reports.
        views: images that are i2t queries and the t2i gallery: ``'first'`` (view 0) or ``'all'``.
        captions: texts that are t2i queries and the i2t gallery: ``'first'`` or ``'all'``.
        right: what counts as right, in words.
        source: who reports it.
    """

    name: str
    views: str
    captions: str
    right: str
    source: str

    def __post_init__(self):
        for name in ('views', 'captions'):
            if getattr(self, name) not in ('first', 'all'):
                raise ValueError(
                    f"{name} of a protocol is 'first' or 'all', got {getattr(self, name)!r}"
                )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name='full/first-image',
            views='first',
            captions='first',
            right='the one image, or the one text, of the same product',
            source="EI-CLIP's table; inferred from its numbers, not stated there",
        ),
        Protocol(
            name='full/product',
            views='all',
            captions='all',
            right='i2t: any text of the product; t2i: any view of the product, the best one counts',
            source='FashionViL, FAME-ViL (its r@k_general), FashionSAP',
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name."""
    if name not in PROTOCOLS:
        raise KeyError(f'unknown retrieval protocol {name!r}; there are {list(PROTOCOLS)}')
    return PROTOCOLS[name]


def evaluate(
    embeddings: Embeddings, protocol: Protocol | str, ks: Sequence[int] = SUM_KS
) -> dict[str, float]:
    """Score embeddings under one protocol.

    Returns:
        For each direction ``i2t/R@k`` and ``t2i/R@k`` in per cent and ``i2t/median_rank``,
        ``t2i/median_rank``; ``SumR`` if ``ks`` has 1, 5 and 10; ``num_images`` and
        ``num_products``, the images and the different products that took part.
    """
    protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
    try:
        return _evaluate(embeddings, protocol, ks)
    except ValueError as error:
        raise ValueError(f'protocol {protocol.name}: {error}') from error


def _evaluate(embeddings: Embeddings, protocol: Protocol, ks: Sequence[int]) -> dict[str, float]:
    images, image_ids = _selected(
        protocol.views, embeddings.image, embeddings.image_product_id, embeddings.image_view, 'view'
    )
    products, product_ids = _selected(
        protocol.captions,
        embeddings.product,
        embeddings.product_id,
        embeddings.product_caption,
        'caption',
    )
    for gallery, side in ((products, 'texts'), (images, 'images')):
        too_large = [k for k in ks if k > len(gallery)]
        if too_large:
            raise ValueError(
                f'R@{too_large[0]} means nothing in a gallery of {len(gallery)} {side}; '
                'choose ks no larger than the gallery'
            )
    ranks = both_ranks(images, products, image_ids, product_ids)
    i2t, t2i = (recall_at(r, ks) for r in ranks)
    results = {f'i2t/R@{k}': recall for k, recall in i2t.items()}
    results |= {f't2i/R@{k}': recall for k, recall in t2i.items()}
    if set(SUM_KS) <= set(ks):
        results['SumR'] = sum_recall(i2t, t2i)
    results['i2t/median_rank'], results['t2i/median_rank'] = map(median_rank, ranks)
    results['num_images'], results['num_products'] = len(images), len(product_ids.unique())
    return results


def _selected(
    which: str, vectors: Tensor, ids: Tensor, numbers: Tensor, what: str
) -> tuple[Tensor, Tensor]:
    """The rows a protocol uses: all, or number 0 of every product."""
    if which == 'all':
        return vectors, ids
    first = numbers == 0
    lost = ids[~torch.isin(ids, ids[first])].unique()
    if len(lost):
        raise ValueError(
            f'{len(lost)} products have no {what} 0, e.g. {lost[:5].tolist()}; number the '
            f'{what}s of each product from 0'
        )
    return vectors[first], ids[first]


def recall_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown table of results of :func:`evaluate`, one row a label.

    >>> row = {'i2t/R@1': 25.7, 't2i/R@1': 28.4}
    >>> print(recall_table({'EI-CLIP': row}))
    |         | I2T R@1 | T2I R@1 | SumR |
    |:--------|--------:|--------:|-----:|
    | EI-CLIP |   25.70 |   28.40 |    – |
    """
    recalls = {key for metrics in results.values() for key in metrics if '/R@' in key}
    if not recalls or any(key[:6] not in ('i2t/R@', 't2i/R@') for key in recalls):
        got = {label: list(metrics) for label, metrics in results.items()}
        raise ValueError(f"a recall table needs the keys of evaluate(), as 'i2t/R@1'; got {got}")
    columns = [*sorted(recalls, key=lambda key: (key[:3], int(key[6:]))), 'SumR']
    names = [key.replace('i2t/', 'I2T ').replace('t2i/', 'T2I ') for key in columns]
    rows = [['', *names]] + [
        [label.replace('|', r'\|')]
        + [f'{metrics[key]:.2f}' if key in metrics else '–' for key in columns]
        for label, metrics in results.items()
    ]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        '| ' + ' | '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + ' |'
        for row in rows
    ]
    rule = [':' + '-' * (widths[0] + 1)] + ['-' * (width + 1) + ':' for width in widths[1:]]
    return '\n'.join([lines[0], '|' + '|'.join(rule) + '|', *lines[1:]])
