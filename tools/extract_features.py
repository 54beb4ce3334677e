"""Embed a split in shards: python tools/extract_features.py CONFIG CHECKPOINT --out FOLDER

Many processes share the work (TOOL=extract_features.py bash tools/dist_test.sh CONFIG CHECKPOINT 8
--out FOLDER), and a call that was killed goes on where it was. report.py and compare.py read the
folder as they read a dump of tools/test.py, with the same numbers in it.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from _cli import add_common, checkpoint_path, load_checkpoint, read_config, start_processes
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_dist_info, is_main_process
from mmengine.runner import Runner
from torch.utils.data import DataLoader
from tqdm import tqdm

from eiclip_mm.engine.hooks import unwrapped
from eiclip_mm.evaluation.embeddings import Embeddings
from eiclip_mm.evaluation.files import SHARDS, VECTORS, json_object, shard_name
from eiclip_mm.evaluation.metrics import merge, versions
from eiclip_mm.utils.sentence import refusals_told
from eiclip_mm.utils.whole_file import remove_leftovers, write_whole_text
from eiclip_mm.utils.whole_together import whole_folder

# what says which products a data set holds; all else is as test_dataloader reads its own
PRODUCTS = ('type', 'data_root', 'data_prefix', 'ann_file', 'fold', 'select_share')


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint of a training run, or "none" for the towers as pretrained')
    add('--out', required=True, type=Path, help='folder, shared by all processes')
    add('--split', choices=['test', 'train', 'val'], default='test', help='whose products')
    add('--shard-size', type=int, default=65536, help='items of a shard: a view with a text each')
    add('--format', choices=['npy', 'parquet'], default='npy', help='files in a shard')
    add_common(parser)
    args = parser.parse_args(argv)
    if args.shard_size < 1:
        parser.error(f'--shard-size must be at least 1, got {args.shard_size}')
    if args.format == 'parquet' and find_spec('pyarrow') is None:
        parser.error("--format parquet needs pyarrow: pip install 'eiclip_mm[report]'")
    return args


@refusals_told()
def main(argv: Sequence[str] | None = None) -> None:
    """Read the config, load the weights, embed the shards that are this process's turn."""
    args = parse_args(argv)
    cfg = read_config(args)
    path = checkpoint_path(cfg, args.checkpoint)
    cfg.test_dataloader = loader_of(cfg, args.split)
    cfg.test_evaluator = dict(type='RetrievalMetric', ks=(1,))  # collects; nothing is scored
    start_processes(cfg)
    runner = Runner.from_cfg(cfg)
    model = load_checkpoint(runner, cfg.filename, path)
    for moment in ('before_run', 'before_test', 'before_test_epoch'):
        runner.call_hook(moment)
    todo = [None]
    if is_main_process():
        try:
            todo = [open_folder(args, runner, model)]
        except OSError as error:
            todo = [SystemExit(f'--out {args.out} cannot be written: {error}')]
        except (Exception, SystemExit) as error:  # the other processes would wait for ever
            todo = [error]
    broadcast_object_list(todo)
    if isinstance(todo[0], BaseException):
        raise todo[0]
    rank, world = get_dist_info()
    try:
        embed(runner, args, todo[0][rank::world])
    except OSError as error:
        raise SystemExit(
            f'{error}\nWhole shards stay in {args.out}; the same call goes on from them.'
        ) from error


def loader_of(cfg: Config, split: str) -> dict:
    """``test_dataloader`` over the products of a split: views and pixels as in a test."""
    loader = cfg.test_dataloader.copy()
    if split != 'test':
        source = cfg[f'{split}_dataloader'].dataset
        dataset = {k: v for k, v in loader.dataset.items() if k not in PRODUCTS}
        loader.dataset = dataset | {k: source[k] for k in PRODUCTS if k in source}
    return loader


def open_folder(args: argparse.Namespace, runner: Runner, model: Mapping) -> list[int]:
    """Begin the folder, or check that it is of the same; numbers of the shards still to do."""
    dataset = runner.test_dataloader.dataset
    known = dict(dataset.metainfo.get('retrieval', {}))
    texts = known.pop('texts', None)
    about = dict(
        format='eiclip_mm.shards/1',
        items=len(dataset),
        shard_size=args.shard_size,
        shards=-(-len(dataset) // args.shard_size),
        files=args.format,
        weights=digest_of_weights(runner.model),
        data=digest_of_data(dataset, runner.cfg.test_dataloader.dataset, texts),
        card=known | dict(versions=versions(), model=model),
    )
    path = args.out / SHARDS
    remove_leftovers(path)
    if path.is_file():
        try:
            begun = json_object(SHARDS, path.read_text(encoding='utf-8'))
        except ValueError as error:  # also what is not UTF-8
            raise SystemExit(
                f'{args.out} cannot go on: {error}. Give another --out, or delete the folder.'
            ) from error
        check_same(begun, about, args.out)
    elif args.out.exists() and any(args.out.iterdir()):
        raise SystemExit(f'{args.out} holds other files and no {SHARDS}; give another --out.')
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        write_whole_text(path, json.dumps(about, indent=1, ensure_ascii=False))
    todo = [i for i in range(about['shards']) if not (args.out / shard_name(i)).is_dir()]
    done = about['shards'] - len(todo)
    runner.logger.info(f'{len(dataset)} items in {about["shards"]} shards, {done} of them done')
    return todo


def check_same(begun: Mapping, about: Mapping, out: Path) -> None:
    """Refuse a folder of another model or other data: its shards would not fit together."""
    differ = [key for key in about if key != 'card' and begun.get(key) != about[key]]
    if differ:
        theirs, ours = ({key: place.get(key) for key in differ} for place in (begun, about))
        raise SystemExit(
            f'{out} was begun with {theirs}, here it is {ours}; the shards would not fit '
            'together. Give another --out, or delete the folder.'
        )


def digest_of_weights(model: torch.nn.Module) -> str:
    """Of all that the model computes with: architecture, weights, entity vocabulary."""
    model = unwrapped(model)
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def digest_of_data(dataset, config: Mapping, texts: Mapping | None) -> str:
    """Of how items are read, their texts, and the state of their photos."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in ('product_id', 'caption', 'text') if texts else ():
        digest.update(np.ascontiguousarray(texts[name]))
    if hasattr(dataset, 'images'):
        state = dataset.state_of_photos(dataset.pipeline.transforms)
        digest.update(repr((list(dataset.images()), state)).encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def embed(runner: Runner, args: argparse.Namespace, shards: Sequence[int]) -> None:
    """Embed shards with the model of the runner, and write each when it is whole."""
    loader, metric = runner.test_dataloader, runner.test_loop.evaluator.metrics[0]
    texts = loader.dataset.metainfo.get('retrieval', {}).get('texts')
    plan = list(batches(shards, args.shard_size, len(loader.dataset), loader.batch_size))
    # one loader for all shards: its workers read ahead over the borders
    items = DataLoader(
        loader.dataset,
        batch_sampler=[rows for _, rows in plan],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )
    runner.model.eval()
    began, count = time.perf_counter(), sum(len(rows) for _, rows in plan)
    progress = tqdm(total=count, unit='item', disable=not is_main_process(), mininterval=1)
    for data, (shard, rows) in zip(items, plan, strict=True):
        metric.process(data, runner.model.test_step(data))
        progress.update(len(rows))
        if rows.stop == min((shard + 1) * args.shard_size, len(loader.dataset)):
            embeddings = merge(metric.results, rows.stop - shard * args.shard_size)
            metric.results.clear()
            write(args.out / shard_name(shard), with_texts(embeddings, texts), args.format)
    progress.close()
    rate = count / (time.perf_counter() - began)
    runner.logger.info(f'{count} items, {rate:.1f} a second, by this process; see {args.out}')


def batches(
    shards: Sequence[int], shard_size: int, size: int, batch_size: int
) -> Iterator[tuple[int, range]]:
    """Pairs of a shard and a range of items; no batch crosses the border of a shard."""
    for shard in shards:
        end = min((shard + 1) * shard_size, size)
        for start in range(shard * shard_size, end, batch_size):
            yield shard, range(start, min(start + batch_size, end))


def with_texts(embeddings: Embeddings, texts: Mapping | None) -> Embeddings:
    """The same with labels and equal texts; only the table's rows of its products are looked at."""
    if texts is None:
        return embeddings
    rows = np.isin(texts['product_id'], embeddings.product_id.numpy())
    own = {name: texts[name][rows] for name in ('product_id', 'caption', 'text')}
    own['labels'] = {name: values[rows] for name, values in texts['labels'].items()}
    return embeddings.described(own, card={})


def write(folder: Path, embeddings: Embeddings, files: str) -> None:
    """Write a shard, which is there once it is whole."""
    arrays = embeddings.arrays()
    with whole_folder(folder) as part:
        if files == 'npy':
            for name, array in arrays.items():
                np.save(part / f'{name}.npy', array)
            return
        for side in VECTORS:
            own = {n: a for n, a in arrays.items() if n.startswith('image') == (side == 'image')}
            write_parquet(part / f'{side}.parquet', own)


def write_parquet(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """One column an array; vectors as lists of equal length."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        name: pa.array(array) if array.ndim == 1
        else pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        for name, array in arrays.items()
    }  # fmt: skip
    parquet.write_table(pa.table(columns), path)


if __name__ == '__main__':
    main()
