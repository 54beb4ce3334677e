"""From HDF5 files to a table of recalls, beside open_clip's own loader, loop and metrics.

python tools/analysis_tools/benchmark_end_to_end.py [--products 512 --epochs 4]

A small CLIP from random weights, in float32 as in the quick start: it reads the drawn catalogue,
trains, embeds the validation split and scores it. Every way sees as many pairs; imports included.
"""

import argparse
import contextlib
import io
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from _benchmark import Meter, add_options, run, table
from _open_clip import Pairs, Trainer
from torch.utils.data import DataLoader

CONFIGS = dict(
    clip='configs/baselines/clip-meta_fashiongen_mini.py',
    ei_clip='configs/eiclip_fashiongen_mini.py',
)
WAYS = ('open_clip', *CONFIGS)
BATCH = 64
PHASES = ('CPU-s to start', 'CPU-s to train', 'CPU-s to evaluate')


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--products', type=int, default=512, help='in train; a quarter to test on')
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--folder', help='where the drawn photos lie or go; else temporary')
    add_options(parser, WAYS)
    return parser.parse_args()


def main() -> None:
    """Draw the catalogue once, run every way in turn, print the medians."""
    args = parse_args()
    with contextlib.ExitStack() as stack:
        if args.folder is None:
            args.folder = stack.enter_context(tempfile.TemporaryDirectory())
        if not args.run:
            write_data(args)
        ways = {way: partial(measure_ours, way) for way in CONFIGS}
        found = run(ways | dict(open_clip=measure_open_clip), args, '--folder', args.folder)
    columns = {name: lambda row, name=name: f'{row[name]:.1f}' for name in PHASES}
    columns['CPU-s in all'] = lambda row: f'{sum(row[name] for name in PHASES):.1f}'
    columns['s in all'] = lambda row: f'{row["wall"]:.1f}'
    columns['peak MB'] = lambda row: f'{row["mb"]:.0f}'
    pairs = args.products // BATCH * BATCH * args.epochs
    print(f'{pairs} pairs of training, {args.products // 4} products to test on\n')
    print(table(found, columns))


def write_data(args: argparse.Namespace) -> None:
    """The catalogue and its vocabulary."""
    from mmengine.registry import init_default_scope

    from eiclip_mm.datasets import FashionGen
    from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
    from eiclip_mm.structures import EntityVocab

    write_mini_fashiongen(args.folder, args.products, args.products // 4, 12, progress=False)
    init_default_scope('eiclip_mm')
    train = FashionGen(FILES['train'], data_root=args.folder)
    entities = [record['entities'] for record in train.records()]
    EntityVocab.build(entities, train.entity_types).save(Path(args.folder, 'entities.json'))


class Phases:
    """CPU seconds from one call of :meth:`end` to the next, from the start of the process on."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """A phase ends here."""
        self.seconds[name] = time.process_time() - sum(self.seconds.values())


def measure_ours(way: str, args: argparse.Namespace) -> dict:
    """A config of the quick start through mmengine's Runner, training and test."""
    phases = Phases()
    with Meter(args.device) as used, contextlib.redirect_stdout(io.StringIO()):
        from mmengine.config import Config
        from mmengine.runner import Runner

        import eiclip_mm  # noqa: F401

        cfg = Config.fromfile(CONFIGS[way])
        cfg = Config.fromstring(cfg.pretty_text.replace(cfg.data_root, f'{args.folder}/'), '.py')
        cfg.model.towers.pretrained = None
        cfg.work_dir, cfg.log_level = str(Path(args.folder, 'work_dir')), 'ERROR'
        cfg.train_dataloader.dataset.fold = 'all'
        cfg.train_cfg.max_epochs = args.epochs
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.custom_hooks = [h for h in cfg.custom_hooks if h.type != 'CausalEffectHook']
        cfg.default_hooks.checkpoint.save_best = None
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            loader.update(num_workers=0, persistent_workers=False)
        runner = Runner.from_cfg(cfg)
        phases.end(PHASES[0])
        runner.train()
        phases.end(PHASES[1])
        runner.test()
        phases.end(PHASES[2])
    return used.result | phases.seconds


def measure_open_clip(args: argparse.Namespace) -> dict:
    """open_clip's transforms, tokenizer, loop and metrics."""
    phases = Phases()
    with Meter(args.device) as used, contextlib.redirect_stdout(io.StringIO()):
        import eiclip_mm  # noqa: F401  before anything imports torchvision

        # isort: split
        import open_clip
        from mmengine.config import Config
        from open_clip.transform import image_transform
        from open_clip_train.train import get_clip_metrics

        from eiclip_mm.datasets.synthetic import FILES

        architecture = Config.fromfile(CONFIGS['clip']).architecture.to_dict()
        size = architecture['vision_cfg']['image_size']
        model = open_clip.model.CLIP(**architecture, output_dict=True)
        trainer = Trainer(model, args.device, BATCH, 'fp32')
        tokenizer = open_clip.SimpleTokenizer()
        train = Pairs(
            Path(args.folder, FILES['train']), tokenizer, image_transform(size, True), args.products
        )
        loader = DataLoader(train, BATCH, shuffle=True, drop_last=True)
        phases.end(PHASES[0])
        for _ in range(args.epochs):
            trainer.epoch(loader)
        phases.end(PHASES[1])
        test = Pairs(
            Path(args.folder, FILES['validation']), tokenizer, image_transform(size, False)
        )
        model.eval()
        with torch.no_grad():
            rows = [model(*(x.to(args.device) for x in batch)) for batch in DataLoader(test, 128)]
            image, text = (
                torch.cat([r[k] for r in rows]) for k in ('image_features', 'text_features')
            )
            get_clip_metrics(image, text, rows[0]['logit_scale'])
        phases.end(PHASES[2])
    return used.result | phases.seconds


if __name__ == '__main__':
    main()
