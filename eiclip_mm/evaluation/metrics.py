"""RetrievalMetric: collects embeddings from all processes and runs the named protocols."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import torch
from mmengine.dist import (
    broadcast_object_list,
    collect_results,
    get_world_size,
    is_main_process,
)
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

from eiclip_mm.registry import METRICS
from eiclip_mm.version import __version__

from .embeddings import Embeddings, numbered
from .files import VECTORS, npz_path
from .measures import SUM_KS, check_ks
from .protocols import Protocol, get_protocol
from .report import protocol_card, recall_table
from .retrieval import retrieve

REQUIRED = (*VECTORS, 'product_id')
NUMBERS = ('product_id', 'view', 'caption', 'sample_idx')
PACKAGES = ('torch', 'open_clip_torch', 'mmengine', 'mmpretrain', 'numpy')


@METRICS.register_module()
class RetrievalMetric(BaseMetric):
    """Recall of images and product texts for each other, under named protocols.

    Any model will do. A sample is one view of a product with one of its texts; the model returns
    for each a dict, or an mmengine data element, with ``image`` (D,), ``product`` (D,),
    ``product_id`` and, where there are several, the number of the ``view`` and of the ``caption``
    in the product; without them each sample is another view and a product has one text. Any
    sampler and any number of processes give the same numbers, for samples are told apart by
    ``sample_idx``, which every mmengine data set gives. Keys of the result begin with the protocol:
    ``full/first-image/i2t/R@1``. What they rest on is in ``protocol_cards`` afterwards.

    Args:
        protocols: names in :data:`~eiclip_mm.evaluation.PROTOCOLS`, or dicts with a ``name`` and
            what else :func:`~eiclip_mm.evaluation.get_protocol` takes:
            ``dict(name='101/kaleido', group='article_type', as_published=True)``.
        ks: recalls to report; SumR is reported if 1, 5 and 10 are among them.
        out: where to write the embeddings (.npz), with which ``tools/analysis_tools/report.py``
            computes everything else later. Each evaluation overwrites it.
        card: written into the dump beside what is known here: data, text, versions.
        prefix: put in front of all keys if given; needed only for two metrics in one evaluator.
        collect_device: ``'cpu'`` (through files) or ``'gpu'``, as in mmengine.
        collect_dir: folder shared by all processes, for ``'cpu'``; by default ``.dist_test``.
    """

    default_prefix = ''  # the protocol's name stands there

    def __init__(
        self,
        protocols: Sequence[str | Mapping] = ('full/first-image',),
        ks: Sequence[int] = SUM_KS,
        out: str | Path | None = None,
        card: Mapping | None = None,
        prefix: str | None = None,
        collect_device: str = 'cpu',
        collect_dir: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        chosen = [protocols] if isinstance(protocols, (str, Mapping)) else protocols
        self.protocols = [
            get_protocol(name) if isinstance(name, str) else get_protocol(**name) for name in chosen
        ]
        if not self.protocols:
            raise ValueError(f'RetrievalMetric needs a protocol, got {chosen!r}')
        names = [protocol.name for protocol in self.protocols]
        if len(set(names)) < len(names):
            raise ValueError(f'RetrievalMetric has a protocol twice among {names}')
        check_ks(ks)
        self.ks, self.card = tuple(ks), dict(card or {})
        self.out = None if out is None else npz_path(out)
        self._device = torch.device('cpu')
        self.protocol_cards: dict[str, dict] = {}

    @BaseMetric.dataset_meta.setter
    def dataset_meta(self, dataset_meta: Mapping | None) -> None:
        """Meta information of the dataset, set when the loop is built: refused before any work."""
        meta = dataset_meta or {}
        for protocol in self.protocols:
            if protocol.views == 'all' and meta.get('views', 'all') != 'all':
                raise ValueError(
                    f'protocol {protocol.name} scores every view of a product but the dataset '
                    f'gives views={meta["views"]!r}. Build the evaluation dataset with '
                    "views='all', or leave the protocol out."
                )
            known = meta.get('retrieval', {}).get('texts', {}).get('labels')
            if protocol.candidates and known is not None and protocol.candidates.group not in known:
                raise ValueError(
                    f'protocol {protocol.name} draws candidates of equal '
                    f'{protocol.candidates.group!r}, which the dataset does not label; it has '
                    f'{sorted(known)}. Give dict(name={protocol.name!r}, group=...) in protocols.'
                )
            self._check_gallery(protocol, meta)
        self._dataset_meta = dataset_meta

    def _check_gallery(self, protocol: Protocol, meta: Mapping) -> None:
        """Refuse a split with fewer products than candidates that a recall counts."""
        ids = meta.get('retrieval', {}).get('texts', {}).get('product_id')
        by_product = protocol.candidates is None and 'first' in (protocol.views, protocol.captions)
        if ids is None or not by_product:
            return
        products, largest = len(np.unique(ids)), max(self.ks)
        if products < largest:
            raise ValueError(
                f'protocol {protocol.name} ranks among {products} products, where R@{largest} '
                'means nothing. Take a split with more products, or ks='
                f'{tuple(k for k in self.ks if k <= products)} in the evaluator'
                + (
                    ', which gives no SumR: then name default_hooks.checkpoint.save_best too.'
                    if set(SUM_KS) <= set(self.ks)
                    else '.'
                )
            )

    def process(self, data_batch: object, data_samples: Sequence[Mapping]) -> None:
        """Keep one batch, stacked: far cheaper to collect than one object a sample."""
        missing = [key for key in REQUIRED if key not in data_samples[0]]
        if missing:
            raise KeyError(
                f'RetrievalMetric needs {list(REQUIRED)} of every sample; {missing} '
                f'missing among {list(data_samples[0])}'
            )
        self._device = getattr(data_samples[0]['image'], 'device', self._device)
        batch = {key: _vectors([s[key] for s in data_samples]) for key in VECTORS}
        batch |= {
            key: _numbers([s[key] for s in data_samples])
            for key in NUMBERS
            if key in data_samples[0]
        }
        self.results.append(batch)

    def evaluate(self, size: int) -> dict[str, float]:
        """Score the whole dataset of ``size`` samples; every process gets the same result."""
        parts = [_concatenated(self.results)]
        self.results.clear()
        where = {'tmpdir': self.collect_dir} if self.collect_device == 'cpu' else {}
        parts = collect_results(parts, get_world_size(), self.collect_device, **where)
        merged: list[Any] = [None]
        if is_main_process():
            try:
                merged = [self._described(merge(parts, size))]
                if self.out is not None:
                    merged[0].save(self.out)
                    print_log(f'embeddings written to {self.out}', logger='current')
            except Exception as error:  # the other processes would wait for ever
                merged = [error]
        broadcast_object_list(merged)
        if isinstance(merged[0], Exception):
            raise merged[0]
        return self.compute_metrics(merged[0])

    def compute_metrics(self, results: Embeddings) -> dict[str, float]:
        """Run the protocols, in which all processes share, and log their table."""
        results = results.to(self._device)
        runs = {p.name: retrieve(results, p, shared=True) for p in self.protocols}
        self.protocol_cards = {name: protocol_card(run) for name, run in runs.items()}
        scores = {name: run.metrics(self.ks) for name, run in runs.items()}
        print_log(f'retrieval, recall in per cent\n{recall_table(scores)}', logger='current')
        return {
            '/'.join(filter(None, (self.prefix, name, key))): value
            for name, metrics in scores.items()
            for key, value in metrics.items()
        }

    def _described(self, embeddings: Embeddings) -> Embeddings:
        """The same with labels and card."""
        known = dict((self.dataset_meta or {}).get('retrieval', {}))
        texts = known.pop('texts', None)
        card = dict(known) | dict(versions=versions()) | self.card
        return embeddings.described(texts, card)


def merge(parts: Sequence[Mapping[str, Tensor]], size: int) -> Embeddings:
    """Embeddings of a dataset of ``size`` samples from what the processes collected.

    Samples that a sampler repeated to fill its last batch are dropped by ``sample_idx``. A view
    with several captions, or a caption with several views, was embedded several times: the one of
    the lowest ``sample_idx`` is kept. Rows are sorted by product, then view or caption.
    """
    data = _concatenated(parts)
    if not data:
        raise ValueError(f'no sample was collected but the dataset has {size}')
    if 'sample_idx' not in data:
        if len(parts) > 1:
            raise ValueError(
                'with several processes the model must return sample_idx with every sample: '
                'samplers repeat some to give all processes equally many'
            )
        data['sample_idx'] = torch.arange(len(data['product_id']))
    kept = _first_of_each(data['sample_idx'])
    if len(kept) != size:
        missing = sorted(set(range(size)) - set(data['sample_idx'].tolist()))
        raise ValueError(
            f'{len(kept)} different sample_idx were collected but the dataset has {size} samples; '
            f'{len(missing)} missing, e.g. {missing[:5]}. Each sample needs a sample_idx of its '
            'own, from 0, and the sampler must give every sample to some process.'
        )
    product_id = data['product_id'][kept]
    view = data['view'][kept] if 'view' in data else numbered(product_id)
    caption = data['caption'][kept] if 'caption' in data else torch.zeros_like(product_id)
    image, product = _first_of_each(product_id, view), _first_of_each(product_id, caption)
    return Embeddings(
        image=data['image'][kept[image]],
        image_product_id=product_id[image],
        image_view=view[image],
        product=data['product'][kept[product]],
        product_id=product_id[product],
        product_caption=caption[product],
    )


def versions() -> dict[str, str]:
    """What computed a number: this package, Python and the packages it stands on."""
    found = {'eiclip_mm': __version__, 'python': python_version()}
    return found | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    """Installed version; OpenMMLab's packages also come from a fork of another name."""
    for name in (package, f'onedl-{package}'):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return 'not installed'


def _first_of_each(*keys: Tensor) -> Tensor:
    """Index of the first row of each different key, in the order of the keys.

    >>> _first_of_each(torch.tensor([7, 3, 7]), torch.tensor([0, 0, 0]))
    tensor([1, 0])
    """
    rows = torch.stack(keys, 1).numpy()
    return torch.from_numpy(np.unique(rows, axis=0, return_index=True)[1])


def _concatenated(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One dict of arrays of many; a process without samples contributes an empty dict."""
    batches = [batch for batch in batches if batch]
    keys = batches[0] if batches else ()
    return {key: torch.cat([batch[key] for batch in batches]) for key in keys}


def _vectors(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).detach().float().cpu()


def _numbers(values: Sequence[Any]) -> Tensor:
    if isinstance(values[0], Tensor):  # stacked first: one transfer a batch from the device
        return torch.stack([value.reshape(()) for value in values]).cpu().long()
    return torch.tensor(values, dtype=torch.int64)
