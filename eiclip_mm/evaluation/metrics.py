"""RetrievalMetric: collects embeddings from all processes and runs the named protocols."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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

from .functional import SUM_KS
from .protocols import Embeddings, evaluate, get_protocol, npz_path, recall_table

VECTORS = ('image', 'product')
NUMBERS = ('product_id', 'view', 'caption', 'sample_idx')


@METRICS.register_module()
class RetrievalMetric(BaseMetric):
    """Recall of images and product texts for each other, under named protocols.

    A sample is one view of a product with one of its texts; the model returns for each a dict of
    ``image`` (D,), ``product`` (D,), ``product_id``, ``view``, ``caption`` and ``sample_idx``. Any
    sampler and any number of processes give the same numbers, for samples are told apart by
    ``sample_idx``. Keys of the result begin with the protocol: ``full/first-image/i2t/R@1``.

    Args:
        protocols: names in :data:`~eiclip_mm.evaluation.PROTOCOLS`.
        ks: recalls to report; SumR is reported if 1, 5 and 10 are among them.
        out: where to write the embeddings (.npz), for other protocols or tables later. Each
            evaluation overwrites it.
        prefix: put in front of all keys if given; needed only for two metrics in one evaluator.
        collect_device: ``'cpu'`` (through files) or ``'gpu'``, as in mmengine.
        collect_dir: folder shared by all processes, for ``'cpu'``; by default ``.dist_test``.
    """

    default_prefix = ''  # the protocol's name stands there

    def __init__(
        self,
        protocols: Sequence[str] = ('full/first-image',),
        ks: Sequence[int] = SUM_KS,
        out: str | Path | None = None,
        prefix: str | None = None,
        collect_device: str = 'cpu',
        collect_dir: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        names = [protocols] if isinstance(protocols, str) else protocols
        self.protocols = [get_protocol(name) for name in names]
        self.ks = tuple(ks)
        self.out = None if out is None else npz_path(out)
        if not self.protocols or not self.ks:
            raise ValueError(
                f'RetrievalMetric needs a protocol and a k, got {names!r} and {self.ks}'
            )

    @BaseMetric.dataset_meta.setter
    def dataset_meta(self, dataset_meta: Mapping | None) -> None:
        """Meta information of the dataset, set when the loop is built: refused before any work."""
        views = (dataset_meta or {}).get('views', 'all')
        for protocol in self.protocols:
            if protocol.views == 'all' and views != 'all':
                raise ValueError(
                    f'protocol {protocol.name} scores every view of a product but the dataset '
                    f"gives views={views!r}. Build the evaluation dataset with views='all', or "
                    f'leave the protocol out.'
                )
        self._dataset_meta = dataset_meta

    def process(self, data_batch: object, data_samples: Sequence[Mapping]) -> None:
        """Keep one batch, stacked: far cheaper to collect than one object a sample."""
        missing = [key for key in VECTORS + NUMBERS if key not in data_samples[0]]
        if missing:
            raise KeyError(
                f'RetrievalMetric needs {list(VECTORS + NUMBERS)} of every sample; {missing} '
                f'missing among {list(data_samples[0])}'
            )
        batch = {key: _vectors([s[key] for s in data_samples]) for key in VECTORS}
        batch |= {key: _numbers([s[key] for s in data_samples]) for key in NUMBERS}
        self.results.append(batch)

    def evaluate(self, size: int) -> dict[str, float]:
        """Score the whole dataset of ``size`` samples; every process gets the same result."""
        parts = [_concatenated(self.results)]
        self.results.clear()
        where = {'tmpdir': self.collect_dir} if self.collect_device == 'cpu' else {}
        parts = collect_results(parts, get_world_size(), self.collect_device, **where)
        outcome = [None]
        if is_main_process():
            try:
                outcome = [self.compute_metrics(merge(parts, size))]
            except Exception as error:  # the other processes would wait for ever
                outcome = [error]
        broadcast_object_list(outcome)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def compute_metrics(self, results: Embeddings) -> dict[str, float]:
        """Dump the embeddings, run the protocols and log their table."""
        if self.out is not None:
            results.save(self.out)
            print_log(f'embeddings written to {self.out}', logger='current')
        scores = {p.name: evaluate(results, p, self.ks) for p in self.protocols}
        print_log(f'retrieval, recall in per cent\n{recall_table(scores)}', logger='current')
        return {
            '/'.join(filter(None, (self.prefix, name, key))): value
            for name, metrics in scores.items()
            for key, value in metrics.items()
        }


def merge(parts: Sequence[Mapping[str, Tensor]], size: int) -> Embeddings:
    """Embeddings of a dataset of ``size`` samples from what the processes collected.

    Samples that a sampler repeated to fill its last batch are dropped by ``sample_idx``. A view
    with several captions, or a caption with several views, was embedded several times: the one of
    the lowest ``sample_idx`` is kept. Rows are sorted by product, then view or caption.
    """
    data = _concatenated(parts)
    if not data:
        raise ValueError(f'no sample was collected but the dataset has {size}')
    kept = _first_of_each(data['sample_idx'])
    if len(kept) != size:
        missing = sorted(set(range(size)) - set(data['sample_idx'].tolist()))
        raise ValueError(
            f'{len(kept)} different sample_idx were collected but the dataset has {size} samples; '
            f'{len(missing)} missing, e.g. {missing[:5]}. Each sample needs a sample_idx of its '
            'own, from 0, and the sampler must give every sample to some process.'
        )
    product_id, view, caption = (data[key][kept] for key in ('product_id', 'view', 'caption'))
    image, product = _first_of_each(product_id, view), _first_of_each(product_id, caption)
    return Embeddings(
        image=data['image'][kept[image]],
        image_product_id=product_id[image],
        image_view=view[image],
        product=data['product'][kept[product]],
        product_id=product_id[product],
        product_caption=caption[product],
    )


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


def _numbers(values: Sequence[Tensor | int]) -> Tensor:
    if isinstance(values[0], Tensor):  # stacked first: one transfer a batch from the device
        return torch.stack([value.reshape(()) for value in values]).cpu().long()
    return torch.tensor(values, dtype=torch.int64)
