"""The data sets through torch's loader, very many items: what stays open, shared or alive."""

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import h5py
import torch
from _usage import Usage, family, trend, usage_of
from mmengine.registry import init_default_scope
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from eiclip_mm.datasets import FashionGen, stack_products
from eiclip_mm.datasets.pack_writer import PackWriter
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.structures import EntityVocab

TYPES = ('composition', 'subcategory', 'brand', 'season')
TEXTS = ('brand', 'description')
SIDE, BATCH, WORKERS = 64, 64, 2
GROWTH, ROOM = 1.05, 9  # flat is within 5 % and so many MiB, or so many files: those of a batch


@dataclass(frozen=True)
class Way:
    """How a loader is set up, and how much goes through it.

    Attributes:
        start: how workers are started, ``'fork'`` or ``'spawn'``.
        persistent: whether they live from epoch to epoch.
        batched: whole batches at once, or samples that are collated.
        packed: photos from a pack, or from HDF5.
        share: of all items.
        epochs: into which they are cut.
    """

    start: str
    persistent: bool
    batched: bool
    packed: bool
    share: float
    epochs: int

    def __str__(self) -> str:
        words = (
            self.start,
            'workers stay' if self.persistent else 'new workers',
            'batched' if self.batched else 'collated',
            'pack' if self.packed else 'HDF5',
        )
        return ', '.join(words)


WAYS = (
    Way('fork', True, True, True, share=0.80, epochs=40),
    Way('fork', False, True, True, share=0.08, epochs=40),
    Way('fork', True, False, True, share=0.05, epochs=10),
    Way('fork', True, True, False, share=0.04, epochs=10),
    Way('fork', False, False, False, share=0.01, epochs=10),
    Way('spawn', True, True, True, share=0.01, epochs=5),
    Way('spawn', False, True, False, share=0.01, epochs=5),
)


@dataclass(frozen=True)
class Look:
    """What is there at a moment.

    Attributes:
        own: of this process.
        workers: of all that come from it.
        shared: pieces of shared memory that this process has mapped or that bear its number.
    """

    own: Usage
    workers: Usage
    shared: int


def look() -> Look:
    """At this process and its workers."""
    pid, *others = family(os.getpid())
    mapped = Path('/proc/self/maps').read_text().count('/dev/shm/')
    named = sum(f'_{pid}_' in name for name in os.listdir('/dev/shm'))
    return Look(usage_of(pid), sum(map(usage_of, others), Usage()), mapped + named)


def run(args: argparse.Namespace, ways: Sequence[Way] = WAYS) -> list[str]:
    """Every way in turn, then iterations that are broken off; what went wrong."""
    init_default_scope('eiclip_mm')
    torch.set_num_threads(1)  # threads do not survive a fork
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.photos)
        for start in sorted({way.start for way in ways}):  # what starts once stays: its tracker
            list(islice(epoch(loader(folder, Way(start, False, True, True, 0, 1), 1)), 1))
        print(
            '| way | items | seconds | files: here, workers | shared | threads: here, workers '
            '| PSS MiB, first fifth | last fifth | left over |'
        )
        print('|---|--:|--:|--:|--:|--:|--:|--:|---|')
        for way in ways:
            faults += passed(folder, way, max(BATCH, int(args.items * way.share)))
        for persistent in (True, False):
            way = Way('fork', persistent, True, True, share=0, epochs=args.breaks // 2)
            faults += passed(folder, way, way.epochs * BATCH * 8, broken=True)
    return faults


def write(folder: Path, photos: int) -> None:
    """One split as HDF5 and as a pack."""
    write_mini_fashiongen(folder, photos // 2, 1, 1, seed=0, progress=False)
    os.rename(folder / FILES['train'], folder / 'data.h5')
    images = FashionGen(str(folder / 'data.h5'), views='all').images()
    writer = PackWriter(folder / 'packed', 'data', list(images.values()))
    with h5py.File(folder / 'data.h5') as file:
        for image in images.values():
            writer.add(image, file['input_image'][image['row']])
    writer.finish()
    writer.close()


def loader(folder: str, way: Way, items: int) -> DataLoader:
    """Over random items of the split, ``items`` an epoch."""
    file = f'{folder}/data.h5'
    products = FashionGen(file, TYPES).records()
    vocab = EntityVocab.build((product['entities'] for product in products), TYPES)
    load = dict(type='LoadProductImage', packed=f'{folder}/packed' if way.packed else None)
    crop = dict(type='CenterCrop', crop_size=SIDE)
    dataset = FashionGen(
        file,
        TYPES,
        views='all',
        batched=way.batched,
        pipeline=[load, crop, dict(type='PackProduct')],
        tokenizer=dict(type='EntityTokenizer', model='ViT-B-32', vocab=vocab, fields=TEXTS),
    )
    return DataLoader(
        dataset,
        BATCH,
        sampler=RandomSampler(dataset, replacement=True, num_samples=items),
        num_workers=WORKERS,
        persistent_workers=way.persistent,
        multiprocessing_context=way.start,
        collate_fn=stack_products,
    )


def epoch(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """Its batches; the next ones draw anew."""
    loader.dataset.set_epoch(int(loader.dataset._epoch) + 1)
    yield from loader


def passed(folder: str, way: Way, items: int, broken: bool = False) -> list[str]:
    """Send items through a loader and print a row; what went wrong.

    Args:
        folder: of the data.
        way: how.
        items: in all epochs together.
        broken: leave each epoch after its first batch.
    """
    before, began, looks, seen, faults = look(), time.monotonic(), [], 0, []
    batches = loader(folder, way, max(BATCH, items // way.epochs))
    expected = sums(batches.dataset)
    for number in range(way.epochs):
        for i, batch in enumerate(iterator := epoch(batches)):
            seen += len(batch['image'])
            found = batch['image'].sum((1, 2, 3), dtype=torch.int64)
            if not found.equal(expected[batch['sample_idx']]):
                faults.append(f'{way}: other pixels in epoch {number}, batch {i}')
            if i == len(batches) // 2 or broken:
                looks.append((time.monotonic() - began, look()))
            if broken:
                break
        iterator.close()
        del batch
    seconds = time.monotonic() - began
    del batches, iterator
    gc.collect()
    left = left_over(before)
    name = f'{way}, broken off {way.epochs} times' if broken else str(way)
    return faults + judged(name, looks, seen, seconds, left)


def sums(dataset: FashionGen) -> Tensor:
    """(items,) sum of the pixels of each, read here without a loader."""
    rows = range(len(dataset))
    if dataset.batched:
        images = dataset.__getitems__(rows)['image']
    else:
        images = torch.stack([dataset[i]['image'] for i in rows])
    return images.sum((1, 2, 3), dtype=torch.int64)


def judged(
    name: str, looks: list[tuple[float, Look]], items: int, seconds: float, left: str
) -> list[str]:
    """Print the row of a way; what of it is wrong."""
    times, middle = [t for t, _ in looks], looks[len(looks) // 2][1]
    pss = trend(times, [each.own.pss + each.workers.pss for _, each in looks])
    columns = [
        *(f'{middle.own.files}, {middle.workers.files}', str(middle.shared)),
        *(f'{middle.own.threads}, {middle.workers.threads}', f'{pss.first:.0f}', f'{pss.last:.0f}'),
    ]
    print(f'| {name} | {items:,} | {seconds:.0f} | {" | ".join(columns)} | {left} |', flush=True)
    faults = [f'{name}: {left} left over'] * (left != 'nothing')
    if pss.last > pss.first * GROWTH + ROOM:
        faults.append(f'{name}: memory grew from {pss.first:.0f} to {pss.last:.0f} MiB')
    for what, of in (
        ('files here', lambda each: each.own.files),
        ('files of workers', lambda each: each.workers.files),
        ('shared memory', lambda each: each.shared),
        ('threads', lambda each: each.own.threads + each.workers.threads),
    ):
        t = trend(times, [of(each) for _, each in looks])
        if t.last > t.first + ROOM:
            faults.append(f'{name}: {what} grew from {t.first:g} to {t.last:g}')
    return faults


def left_over(before: Look, patience: float = 5) -> str:
    """What is there that was not before, in words; workers get a moment to end."""
    end = time.monotonic() + patience
    while True:
        now = look()
        counts = {
            'files': now.own.files - before.own.files,
            'shared memory': now.shared - before.shared,
            'threads': now.own.threads - before.own.threads,
            'processes': now.workers.processes - before.workers.processes,
        }
        more = [f'{n} {what}' for what, n in counts.items() if n > 0]
        if not more or time.monotonic() > end:
            return ', '.join(more) or 'nothing'
        time.sleep(0.1)
