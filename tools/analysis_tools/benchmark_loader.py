"""Images per CPU-second from the file to the batch, at 224 px: common ways and ours.

python tools/analysis_tools/benchmark_loader.py [--photos 2000]

Draws Fashion-Gen-like products of 256 px into a temporary folder, as contiguous HDF5, as a pack and
as JPEG. Each way makes the batches of one epoch in a process of its own, without loader workers, so
that all it costs is its own CPU time; slow ways stop after ``--few`` photos. Our texts are encoded
when the data set is loaded, which is not counted here: see benchmark_text.py.
"""

import eiclip_mm  # noqa: F401, I001  before anything imports torchvision

import argparse
import tempfile
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import h5py
import open_clip
import torch
from _benchmark import Meter, add_options, run, table
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from eiclip_mm.datasets import FashionGen, stack_products
from eiclip_mm.datasets.pack_writer import PackWriter
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.structures import EntityVocab

WAYS = ('naive', 'open_clip', 'mmpretrain', 'plain', 'packed', 'uncropped')
NAMES = dict(
    naive='h5py for pixels and texts, Pillow, torchvision, tokenizer, default_collate',
    open_clip="JPEG files, open_clip's training transform and tokenizer (its CsvDataset)",
    mmpretrain="h5py, mmpretrain's transforms and PackInputs, texts left to the model",
    plain='ours, HDF5',
    packed='ours, packed',
    uncropped='ours, packed, cropped without resizing',
)
SLOW = ('naive', 'open_clip')
SIZE, BATCH = 224, 64
TYPES = ('composition', 'subcategory', 'brand', 'season')
TEXTS = (*TYPES, 'description')  # as our configs read


def main() -> None:
    """Write the data, run every way in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--photos', type=int, default=2000)
    parser.add_argument('--few', type=int, default=384, help='photos for the slow ways')
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    add_options(parser, WAYS)
    args = parser.parse_args()
    ways = {way: partial(measure, way) for way in WAYS}
    if args.run:
        run(ways, args)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.photos)
        found = run(ways, args, '--folder', folder)
    print(f'{args.photos} photos of 256 px, batches of {BATCH}, median of {args.repeats}\n')
    naive = found.get('naive')
    columns = {
        'images per CPU-second': lambda row: f'{row["rate"]:,.0f}',
        'times naive': lambda row: f'{row["rate"] / naive["rate"]:.1f}' if naive else '–',
    }
    print(table({NAMES[way]: row for way, row in found.items()}, columns))


def write(folder: Path, photos: int) -> None:
    """One split in three forms."""
    write_mini_fashiongen(folder, num_train=photos // 2, num_validation=1, num_general=1)
    with h5py.File(folder / FILES['train']) as drawn, h5py.File(folder / 'data.h5', 'w') as file:
        for key in drawn:
            file[key] = drawn[key][:photos]  # contiguous, without a filter
    dataset = FashionGen(str(folder / 'data.h5'), views='all')
    images = dataset.images()
    writer = PackWriter(folder / 'packed', 'data', list(images.values()))
    with h5py.File(folder / 'data.h5') as file:
        for image in images.values():
            pixels = file['input_image'][image['row']]
            writer.add(image, pixels)
            Image.fromarray(pixels).save(folder / f'{image["row"]}.jpg', quality=90)
    writer.finish()
    writer.close()


def measure(way: str, args: argparse.Namespace) -> dict:
    """One epoch of a way, after a batch that warms up: images per CPU-second."""
    init_default_scope('eiclip_mm')
    cv2.setNumThreads(args.threads)
    batches: Iterable = iter(globals()[f'{way}_batches'](args.folder))
    next(batches)
    limit = args.few if way in SLOW else args.photos
    with Meter('cpu') as used:
        images = sum(count for count in islice(batches, limit // BATCH - 1))
    return used.result | dict(rate=images / used.result['cpu'])


class Naive(Dataset):
    """What a first version looks like: all is read and made for each sample."""

    def __init__(self, folder: Path, jpeg: bool):
        self.folder, self.jpeg = folder, jpeg
        self.file = h5py.File(folder / 'data.h5', 'r')
        self.tokenizer = open_clip.get_tokenizer('ViT-B-32')
        if jpeg:
            self.transform = image_transform_v2(PreprocessCfg(size=SIZE), is_train=True)
        else:
            self.transform = pillow_transform()

    def __len__(self) -> int:
        return len(self.file['input_image'])

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.jpeg:
            image = Image.open(self.folder / f'{row}.jpg')
        else:
            image = Image.fromarray(self.file['input_image'][row])
        text = ' '.join(self.file[f'input_{key}'][row, 0].decode('latin-1') for key in TEXTS)
        return self.transform(image), self.tokenizer([text])[0]


def pillow_transform():
    """RandomResizedCrop with Pillow's bicubic and our range, flip, normalised floats."""
    from torchvision import transforms as T

    crop = T.RandomResizedCrop(SIZE, scale=(0.5, 1), interpolation=T.InterpolationMode.BICUBIC)
    normalise = T.Normalize(PreprocessCfg().mean, PreprocessCfg().std)
    return T.Compose([crop, T.RandomHorizontalFlip(), T.ToTensor(), normalise])


def naive_batches(folder: Path, jpeg: bool = False) -> Iterable[int]:
    """See ``NAMES``."""
    for image, _ in DataLoader(Naive(folder, jpeg), BATCH, shuffle=True):
        yield len(image)


def open_clip_batches(folder: Path) -> Iterable[int]:
    """See ``NAMES``; its module asks for packages that nothing else here needs."""
    return naive_batches(folder, jpeg=True)


CROP = [dict(type='RandomResizedCrop', scale=SIZE, crop_ratio_range=(0.5, 1.0))]
FLIP = [dict(type='RandomFlip', prob=0.5)]


def ours(folder: Path, pipeline: list, batched: bool = True, collate=stack_products) -> DataLoader:
    """A loader of our data set, every row an item, in an epoch of training."""
    file = str(folder / 'data.h5')
    products = FashionGen(file, TYPES).records()
    vocab = EntityVocab.build((product['entities'] for product in products), TYPES)
    tokenizer = dict(type='EntityTokenizer', model='ViT-B-32', vocab=vocab, fields=TEXTS)
    dataset = FashionGen(
        file,
        TYPES,
        views='all',
        pipeline=pipeline,
        batched=batched,
        tokenizer=tokenizer if batched else None,
    )
    dataset.set_epoch(0 if batched else -1)
    return DataLoader(dataset, BATCH, shuffle=True, collate_fn=collate)


def mmpretrain_batches(folder: Path) -> Iterable[int]:
    """See ``NAMES``; texts travel as strings, as its retrieval models take them."""
    keys = ('text_fields', 'product_id')
    pipeline = [dict(type='LoadProductImage'), *CROP, *FLIP, dict(type='PackInputs')]
    pipeline[-1].update(algorithm_keys=keys)
    for batch in ours(folder, pipeline, batched=False, collate=default_collate):
        yield len(batch['inputs'])


def our_batches(folder: Path, crop: list, packed: bool) -> Iterable[int]:
    """The pipeline of ``configs/_base_/datasets/fashiongen.py``."""
    load = dict(type='LoadProductImage', packed=str(folder / 'packed') if packed else None)
    dropout = dict(type='EntityDropout', prob=0.1)
    for batch in ours(folder, [load, *crop, *FLIP, dropout, dict(type='PackProduct')]):
        yield len(batch['image'])


plain_batches = partial(our_batches, crop=CROP, packed=False)
packed_batches = partial(our_batches, crop=CROP, packed=True)
uncropped_batches = partial(
    our_batches, crop=[dict(type='mmpretrain.RandomCrop', crop_size=SIZE)], packed=True
)


if __name__ == '__main__':
    main()
