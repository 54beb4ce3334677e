"""Find test photos that are also in train: python tools/analysis_tools/find_duplicates.py CONFIG

Photos whose perceptual hashes (ImageHash's phash, 64 bits) lie within a Hamming distance are
compared by colour in small; a near-duplicate passes both. The hash alone is not enough: it sees no
colour, and two different shoes on white often have the same one. It needs the extra [report].
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.datasets import LoadProductImage, ProductDataset
from eiclip_mm.datasets.photo_check import records_alone
from eiclip_mm.evaluation.report import check_writable
from eiclip_mm.registry import DATASETS
from eiclip_mm.utils import load_config
from eiclip_mm.utils.sentence import refusals_told, told
from eiclip_mm.utils.whole_file import write_whole_text

SIDE = 8  # of the small photo, in cells
# Grey levels (of 255) by which no cell of a near-duplicate differs. Of real shop photos encoded
# again, resized or made 4 % brighter, 95 in 100 stay within 7; so do a few pairs of
# small pale things, such as earrings.
TOLERANCE = 8
BLANK = 8  # a photo whose cells span fewer grey levels shows nothing


@dataclass(frozen=True, eq=False)
class Photos:
    """The photos of a split that show something.

    Attributes:
        name: (N,) file, or HDF5 file and row.
        product_id: (N,) integers.
        hash: (N,) uint64, perceptual hash.
        small: (N, 8, 8, 3) uint8, the photo in small.
        total: photos with those left out because they are blank.
        products: different products, with those whose photos are all blank.
    """

    name: np.ndarray
    product_id: np.ndarray
    hash: np.ndarray
    small: np.ndarray
    total: int
    products: int


class _Described:
    """The photos of a list as (hash, small photo); read in the workers of a loader."""

    def __init__(self, images: list[dict]):
        self.images, self.load = images, LoadProductImage()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return describe(Image.fromarray(self.load(dict(self.images[i]))['img']))


@refusals_told()
def main(argv: list[str] | None = None) -> None:
    """Compare the two splits of a config and write what they share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='its train_dataloader and test_dataloader are meant')
    parser.add_argument(
        '--distance', type=int, default=4, help='bits of 64 that hashes may differ in (default 4)'
    )
    parser.add_argument('--out', type=Path, help='write the result here, as JSON')
    parser.add_argument('--workers', type=int, default=0, help='processes that read photos')
    args = parser.parse_args(argv)
    if not 0 <= args.distance <= 64:
        parser.error(f'--distance is a number of bits from 0 to 64, got {args.distance}')
    if args.workers < 0:
        parser.error(f'--workers is a number of processes, 0 or more, got {args.workers}')
    cfg = load_config(args.config)
    if args.out:
        check_writable(args.out)
    init_default_scope('eiclip_mm')
    datasets = {split: build(cfg, split) for split in ('train', 'test')}
    train, test = (read(dataset, s, args.workers) for s, dataset in datasets.items())
    twin = near_duplicates(test, train, args.distance)
    files = {f'{split}_file': Path(d.ann_file).name for split, d in datasets.items()}
    result = dict(distance=args.distance, **files, **summary(test, twin))
    report(result, test, train, twin)
    if args.out:
        with told(args.out):
            write_whole_text(args.out, json.dumps(result, indent=1) + '\n')
        print(f'written to {args.out}')


def build(cfg: Config, split: str) -> ProductDataset:
    """The data set of a config's loader, every view, no pixels read."""
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise SystemExit(f'{cfg.filename} has no {split}_dataloader; name a config with both.')
    return DATASETS.build(records_alone(loader.dataset, views='all'))


def read(dataset: ProductDataset, split: str, workers: int = 0) -> Photos:
    """Read, hash and shrink every photo of a data set."""
    images = dataset.images()
    loader = DataLoader(
        _Described(list(images.values())), batch_size=64, num_workers=workers, collate_fn=_columns
    )
    batches = list(tqdm(loader, f'{split} photos, by 64', unit='batch'))
    hashes, small = (np.concatenate(column) for column in zip(*batches, strict=True))
    spread = np.ptp(small.reshape(len(small), -1, 3), axis=1).max(1)
    shown = spread >= BLANK
    ids = np.array([image['product_id'] for image in images.values()])
    names = np.array([':'.join(map(str, key)) for key in images])
    return Photos(
        names[shown], ids[shown], hashes[shown], small[shown], len(ids), len(np.unique(ids))
    )


def _columns(rows: list[tuple]) -> list[np.ndarray]:
    return [np.stack(column) for column in zip(*rows, strict=True)]


def describe(photo: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Perceptual hash, () uint64, and the photo in small, (8, 8, 3) uint8."""
    try:
        from imagehash import phash
    except ImportError as error:
        raise ImportError("hashing photos needs ImageHash: pip install 'eiclip_mm[report]'") from (
            error
        )
    bits = phash(photo).hash.reshape(-1)
    small = photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.packbits(bits).view('>u8')[0].astype(np.uint64), np.asarray(small)


def near_duplicates(test: Photos, train: Photos, distance: int) -> np.ndarray:
    """(N,) for each test photo, the row of the train photo that is most alike, or -1.

    Every pair of hashes is compared, by popcount, one test photo with all of train at a time:
    about ten seconds for all of Fashion-Gen, less than an index would be worth.
    """
    twin = np.full(len(test.hash), -1)
    for i, hash_ in enumerate(tqdm(test.hash, 'test photos compared', unit='img')):
        rows = within(hash_, train.hash, distance)
        if len(rows):
            gap = np.abs(train.small[rows].astype(np.int16) - test.small[i]).max((1, 2, 3))
            if gap.min() <= TOLERANCE:
                twin[i] = rows[gap.argmin()]
    return twin


def within(hash_: np.uint64, hashes: np.ndarray, distance: int) -> np.ndarray:
    """Indices of the hashes (N,) uint64 that differ from one in at most ``distance`` bits."""
    return np.flatnonzero(np.bitwise_count(hashes ^ hash_) <= distance)


def summary(test: Photos, twin: np.ndarray) -> dict:
    """What is written: how many test photos and products have a near-duplicate in train."""
    product_ids = np.unique(test.product_id[twin >= 0]).tolist()
    return dict(
        images=int((twin >= 0).sum()),
        products=len(product_ids),
        of_images=test.total,
        of_products=test.products,
        product_ids=product_ids,
    )


def report(result: Mapping, test: Photos, train: Photos, twin: np.ndarray) -> None:
    """Print the counts and the first pairs."""
    for split, photos in (('train', train), ('test', test)):
        blank = photos.total - len(photos.hash)
        print(f'{split}: {result[f"{split}_file"]}, {photos.total} photos, {blank} blank, left out')
    print(
        f'{result["images"]} of {result["of_images"]} test photos, {result["products"]} of '
        f'{result["of_products"]} test products, have a near-duplicate in train'
    )
    for i in np.flatnonzero(twin >= 0)[:8]:
        print(f'  {test.name[i]} = {train.name[twin[i]]}')


if __name__ == '__main__':
    main()
