"""The tools that kill_writers.py kills, each with small real data."""

import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shop
import small
import torch
from _kills import ROOT, Case, end_of, start
from mmengine.config import Config
from mmengine.registry import DefaultScope

import eiclip_mm.apis  # noqa: F401  (what the tools import, imported once)
from eiclip_mm.apis import CatalogueIndex
from eiclip_mm.datasets import pack_writer
from eiclip_mm.datasets.packed import Pack
from eiclip_mm.evaluation import Embeddings
from eiclip_mm.registry import MODELS
from eiclip_mm.utils import register_all_modules

PRODUCTS = 24
NOT_EMPTY = 'is not an empty folder'


def cases() -> dict[str, Callable[[Path], Case]]:
    """A function for each tool, from a folder for what several share to a case."""
    torch.set_num_threads(1)  # threads do not survive a fork
    warnings.simplefilter('ignore')
    register_all_modules()
    return dict(
        build_entities=entities,
        catalogue=converter,
        make_mini_fashiongen=mini,
        pack_images=packs,
        build_index=index,
        add_entities=more_entities,
        extract_features=features,
        export_towers=towers,
        report=report,
        export_onnx=onnx,
    )


def digests(folder: Path) -> dict[str, Any]:
    """SHA-256 of each file, but for those that are being written."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and not any(p[0] == '.' for p in path.relative_to(folder).parts)
    }


def there(folder: Path) -> dict[str, Any]:
    """Names of the files alone."""
    return dict.fromkeys(digests(folder), 'there')


def once(path: Path, write: Callable[[Path], Any]) -> Path:
    """The path, written by the first who asks."""
    if not path.exists():
        write(path)
    return path


def data(inputs: Path) -> Path:
    """A config with a mini Fashion-Gen."""

    def write(folder: Path) -> None:
        small.write_data(folder, 20, 12)
        config = Config.fromfile(ROOT / 'configs/eiclip_fashiongen_mini.py')
        config.model.tokenizer.vocab = str(folder / 'entities.json')
        config.work_dir, config.model.towers.pretrained = 'work', None
        for split in ('train', 'val', 'test'):
            loader = config[f'{split}_dataloader']
            loader.num_workers, loader.batch_size = 0, 16
            loader.dataset.data_root = str(folder)
            loader.dataset.tokenizer.vocab = str(folder / 'entities.json')
        config.dump(folder / 'config.py')

    return once(inputs / 'data', write)


def store(inputs: Path) -> Path:
    """A shop: photos, a checkpoint, a table of half its products and one of all."""

    def write(folder: Path) -> None:
        folder.mkdir()
        shop.write_photos(folder, PRODUCTS)
        shop.write_checkpoint(folder / 'a.pth')
        rows = shop.rows(PRODUCTS)
        shop.write_csv(folder / 'half.csv', rows[: PRODUCTS // 2])
        rows[3]['description'] = 'a silk scarf'
        shop.write_csv(folder / 'shop.csv', rows)

    return once(inputs / 'shop', write)


def tool(path: str, *argv: object) -> Callable[[Path], None]:
    """A beginning: the tool has run, with these arguments, in the folder."""

    def run(folder: Path) -> None:
        if end_of(start(Case((path, *map(str, argv)), dict), folder)):
            raise SystemExit(f'{path} fails: {Path(f"{folder}.log").read_text()[-1500:]}')

    return run


def entities(inputs: Path) -> Case:
    """Over a vocabulary of other settings."""
    name, config = 'dataset_converters/build_entities.py', data(inputs) / 'config.py'
    begin = tool(name, config, '--out', 'entities.json', '--types', 'season')
    return Case((name, str(config), '--out', 'entities.json'), digests, begin, together=True)


def converter(inputs: Path) -> Case:
    """Over the conversion of another table."""
    name, folder = 'dataset_converters/catalogue.py', store(inputs)
    options = ('--out', 'out', '--entities', 'brand', 'composition', '--val-share', '0.3')
    begin = tool(name, folder / 'half.csv', *options)
    return Case((name, str(folder / 'shop.csv'), *options), digests, begin, together=True)


def mini(_: Path) -> Case:
    """Over files of another seed."""
    name = 'dataset_converters/make_mini_fashiongen.py'
    sizes = ('--num-train', '44', '--num-validation', '4', '--num-general', '4', '--out', 'out')
    argv = (name, *sizes, '--force')
    return Case(argv, digests, tool(name, *sizes, '--seed', 1), together=True)


def packs(inputs: Path) -> Case:
    """From nothing, train and test; photos count once the index tells of them."""

    def content(folder: Path) -> dict[str, Any]:
        found = {}
        for index in sorted(folder.glob('out/*.index')):
            pack = Pack(index)
            if damaged := pack.damaged():
                raise ValueError(f'{damaged} are damaged')
            found[index.name] = [hashlib.sha256(photo).hexdigest() for photo in map(bytes, pack)]
        return found

    def prepare() -> None:
        pack_writer.FLUSH = 8

    config = data(inputs) / 'config.py'
    argv = ('dataset_converters/pack_images.py', str(config), '--out', 'out')
    return Case(argv, content, prepare=prepare)


def items(folder: Path) -> dict[str, Any]:
    """Payload and vectors of each item of an index, and whose they are."""
    found = {}
    try:
        opened = CatalogueIndex.open(folder / 'index')
    except FileNotFoundError:
        return {}
    with opened as index:
        for ids, vectors, payloads in index.scan(with_vectors=True):
            found |= dict(zip(ids, (json.dumps(p, sort_keys=True) for p in payloads), strict=True))
            for side, rows in vectors.items():
                found |= {f'{id_}, {side}': row for id_, row in zip(ids, rows, strict=True)}
        if 'unfinished' not in index.about:  # then no model takes it for its own
            found['of'] = index.about['sha256']
    return found


def small_parts() -> None:
    """Let the search tools write often."""
    sys.path[:0] = [str(ROOT / 'tools/search')]
    import _search

    _search.CHUNK = 4


def index(inputs: Path) -> Case:
    """New products, one that changed, in an index that is there."""
    name, folder = 'search/build_index.py', store(inputs)
    options = ('--index', 'index')
    begin = tool(name, folder / 'a.pth', folder / 'half.csv', *options)
    argv = (name, str(folder / 'a.pth'), str(folder / 'shop.csv'), *options)
    return Case(argv, items, begin, small_parts)


def more_entities(inputs: Path) -> Case:
    """A brand more, of an index whose products have it."""
    folder = store(inputs)
    begin = tool('search/build_index.py', folder / 'a.pth', folder / 'shop.csv', '--index', 'index')

    def content(place: Path) -> dict[str, Any]:
        whole = {k: v for k, v in digests(place).items() if k == 'new.pth'}
        return whole | items(place)

    argv = (
        'search/add_entities.py', str(folder / 'a.pth'), '--type', 'brand', '--names', 'Nobody',
        '--out', 'new.pth', '--index', 'index', '--from-index',
    )  # fmt: skip
    return Case(argv, content, begin)


def features(inputs: Path) -> Case:
    """Shards of 8 items."""
    folder = data(inputs)

    def write(path: Path) -> None:
        torch.manual_seed(0)
        model = MODELS.build(Config.fromfile(folder / 'config.py').model)
        torch.save(dict(state_dict=model.state_dict()), path)

    DefaultScope.get_instance('kills', scope_name='eiclip_mm')
    once(folder / '0.pth', write)

    def content(place: Path) -> dict[str, Any]:
        found = digests(place / 'out') if (place / 'out').is_dir() else {}
        shards = {name.partition('/')[0] for name in found} - {'shards.json'}
        if shards and len(shards) == json.loads((place / 'out/shards.json').read_text())['shards']:
            found['read'] = Embeddings.load(place / 'out').image.numpy()
        return found

    argv = (
        'extract_features.py', str(folder / 'config.py'), str(folder / '0.pth'),
        '--out', 'out', '--shard-size', '8', '--work-dir', 'work',
    )  # fmt: skip
    return Case(argv, content)


def towers(inputs: Path) -> Case:
    """For open_clip."""
    argv = ('deployment/export_towers.py', str(store(inputs) / 'a.pth'), '--out', 'out')
    return Case(argv, digests, together=True, over=NOT_EMPTY)


def onnx(inputs: Path) -> Case:
    """Both graphs."""
    argv = ('deployment/export_onnx.py', str(store(inputs) / 'a.pth'), '--out', 'out')
    # the exporter numbers names anew in each process
    return Case(argv, there, together=True, over=NOT_EMPTY)


def report(inputs: Path) -> Case:
    """Over the report of another dump."""

    def write(folder: Path) -> None:
        folder.mkdir()
        draw = np.random.default_rng(0)
        for name in ('a', 'b'):
            ids = torch.arange(40)
            rows = [torch.tensor(draw.normal(size=(40, 8)), dtype=torch.float32) for _ in range(2)]
            sides = dict(image=rows[0], product=rows[1], image_product_id=ids, product_id=ids)
            Embeddings(**sides).save(folder / f'{name}.npz')

    name, folder = 'analysis_tools/report.py', once(inputs / 'dumps', write)
    options = ('--out', 'out', '--protocols', 'full/product', '--samples', '40')
    begin = tool(name, folder / 'a.npz', *options)
    return Case((name, str(folder / 'b.npz'), *options), digests, begin, together=True)
