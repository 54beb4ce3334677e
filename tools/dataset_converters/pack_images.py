"""Write the photos of a config's data sets as plain pixels, which need no decoding.

python tools/dataset_converters/pack_images.py CONFIG [--splits train test] [--size 256]

Writes ``packed/`` beside the data, or into ``--out``, which ``LoadProductImage(packed=...)`` of a
config names. A call that was broken off goes on where it stopped, a finished one adds what is new.
"""

import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from tqdm import tqdm

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.datasets.bad_rows import ON_ERROR
from eiclip_mm.datasets.pack_writer import PackWriter
from eiclip_mm.datasets.packed import Pack
from eiclip_mm.datasets.transforms import LoadProductImage
from eiclip_mm.registry import DATASETS, TRANSFORMS
from eiclip_mm.utils import load_config

SPLITS = ('train', 'val', 'test')


def main(argv: list[str] | None = None) -> None:
    """Pack each file of products once, or check what was packed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('--splits', nargs='+', choices=SPLITS, default=SPLITS)
    parser.add_argument(
        '--size', type=int, help='pixels of the shorter edge; larger photos are resized'
    )
    parser.add_argument('--out', type=Path, help="folder; by default packed/ in the data's folder")
    parser.add_argument(
        '--verify', action='store_true', help='pack nothing, compare what is packed with checksums'
    )
    parser.add_argument('--on-error', choices=ON_ERROR, help="by default the data set's own")
    args = parser.parse_args(argv)
    if args.size is not None and args.size < 1:
        raise SystemExit(f'--size must be at least 1 pixel, got {args.size}.')
    try:
        cfg = load_config(args.config)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    init_default_scope('eiclip_mm')
    loaders = [cfg.get(f'{split}_dataloader') for split in args.splits]
    found = [loader.dataset for loader in loaders if loader]
    if args.on_error:
        found = [Config(dict(dataset, on_error=args.on_error)) for dataset in found]
    datasets = {(dataset.get('data_root'), dataset.ann_file): dataset for dataset in found}
    if not datasets:
        raise SystemExit(f'{args.config} has no dataloader for {" or ".join(args.splits)}.')
    for dataset in datasets.values():
        try:
            verify(dataset, args.out) if args.verify else pack(dataset, args.out, args.size)
        except (ValueError, OSError) as error:
            raise SystemExit(str(error)) from error


def place(dataset, out: Path | None) -> tuple[Path, str]:
    """Folder and name of a data set's pack."""
    file = Path(dataset.ann_file)
    return out or file.parent / 'packed', file.stem


def pack(cfg: dict, out: Path | None, size: int | None) -> None:
    """Add the photos of a data set that its pack lacks."""
    # all products and all their views, whatever the split takes of them
    wanted = dict(cfg, tokenizer=None, pipeline=[], fold='all', views='random')
    dataset = DATASETS.build(wanted)
    images = sorted(dataset.images().values(), key=lambda image: image.get('row', -1))
    if not images:
        raise SystemExit(f'{dataset.ann_file} has no photos.')
    load, resize = LoadProductImage(in_order=True), _resize(size)
    folder, name = place(dataset, out)
    try:
        writer = PackWriter(folder, name, images, size)
    except OSError as error:
        raise SystemExit(f'cannot write to {folder}: {error}. Give another --out.') from error
    before = len(writer)
    missing = [image for image in images if image not in writer]
    try:
        for image in tqdm(missing, name, unit='photo', mininterval=1):
            if image not in writer:  # one file may go by two names, a.jpg and x/../a.jpg
                writer.add(image, resize(load(dict(image)))['img'])
        writer.finish()
    except (ValueError, OSError) as error:
        raise SystemExit(
            f'{error}\nThe pack in {folder} is not complete. What is there stays: run this again '
            'once the photo can be read or the disk has room.'
        ) from error
    finally:
        writer.close()
    print(f'{folder / name}.photos: {len(writer)} photos, {len(writer) - before} of them new')


def _resize(size: int | None):
    """A transform that shrinks larger photos as open_clip resizes, and leaves others alone."""
    if size is None:
        return lambda results: results
    edge = TRANSFORMS.build(
        dict(type='ResizeEdge', scale=size, edge='short', backend='pillow', interpolation='bicubic')
    )
    return lambda results: edge(results) if min(results['img_shape']) > size else results


def verify(cfg: dict, out: Path | None) -> None:
    """Compare every packed photo with its checksum."""
    dataset = DATASETS.build(dict(cfg, tokenizer=None, pipeline=[], lazy_init=True))
    folder, name = place(dataset, out)
    if not (folder / f'{name}.index').is_file():
        raise SystemExit(f'{folder / name}.index does not exist: nothing is packed there.')
    packed = Pack(folder / f'{name}.index')
    damaged = packed.damaged()
    if damaged:
        raise SystemExit(
            f'{packed.data}: {len(damaged)} of {len(packed)} photos are damaged, e.g. '
            f'{", ".join(damaged[:5])}. Delete the pack and pack again.'
        )
    print(f'{packed.data}: {len(packed)} photos, all as they were packed')


if __name__ == '__main__':
    main()
