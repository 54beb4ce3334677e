"""Training steps of EI-CLIP, of plain CLIP and of open_clip's own training loop, side by side.

python tools/analysis_tools/benchmark_step.py [--batch-size 64 --model ViT-B-32-quickgelu]

All three train the same towers (random weights, bfloat16 autocast) on the same drawn photos and
texts, loading included: open_clip through its ``train_one_epoch``, ``ClipLoss`` and image
transform, ours through the configs of Fashion-Gen and mmengine's Runner with every hook. Steps
after the first count. ``--data memory`` gives batches that lie on the device already. The last
lines say where the time goes and what share of the machine's matrix products is reached.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from _benchmark import Meter, add_options, run, table
from _open_clip import Pairs, Trainer
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.registry import DATA_SAMPLERS, HOOKS, MODELS
from eiclip_mm.structures import EntityVocab
from eiclip_mm.utils import load_config

CONFIGS = dict(
    clip='configs/baselines/clip-meta_fashiongen.py', ei_clip='configs/eiclip_fashiongen.py'
)
WAYS = ('open_clip', *CONFIGS, 'parts')


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='ViT-B-32-quickgelu', help='of open_clip')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--micro-batch', type=int, help='gradient cache, ours only')
    parser.add_argument('--steps', type=int, default=3, help='measured, after one that is not')
    parser.add_argument('--workers', type=int, default=0, help='of the loaders')
    parser.add_argument('--data', choices=['loader', 'memory'], default='loader')
    parser.add_argument('--names', type=int, default=4600, help='entities in the vocabulary')
    parser.add_argument('--folder', help='where the drawn photos lie or go; else temporary')
    add_options(parser, WAYS)
    return parser.parse_args()


def main() -> None:
    """Draw photos once, run every way in turn, print the medians."""
    args = parse_args()
    with contextlib.ExitStack() as stack:
        if args.folder is None:
            args.folder = stack.enter_context(tempfile.TemporaryDirectory())
        if not args.run:
            write_data(Path(args.folder), args)
        ways = {way: partial(measure_ours, way) for way in CONFIGS}
        ways.update(open_clip=measure_open_clip, parts=measure_parts)
        found = run(ways, args, '--folder', args.folder)
    parts = found.pop('parts', None)
    columns = {
        'CPU-s a step': lambda row: f'{row["cpu"]:.2f}',
        's a step': lambda row: f'{row["wall"]:.2f}',
        'pairs/s': lambda row: f'{args.batch_size / row["wall"]:.1f}',
        'peak MB': lambda row: f'{row["mb"]:.0f}',
    }
    print(
        f'{args.model}, bfloat16, batch {args.batch_size}, data from {args.data}, {args.device}\n'
    )
    print(table(found, columns))
    if {'clip', 'ei_clip'} <= set(found):
        ei, clip = found['ei_clip'], found['clip']
        print(f'\nEI modules cost {100 * (ei["cpu"] / clip["cpu"] - 1):+.1f} % CPU time', end='')
        print(f', {100 * (ei["wall"] / clip["wall"] - 1):+.1f} % wall time.')
    if parts:
        report_parts(parts, args)


def report_parts(parts: dict, args: argparse.Namespace) -> None:
    """Where the time of a step goes, and how much of the machine it uses."""
    seconds, total = parts['seconds'], sum(parts['seconds'].values())
    print('\n| part of a step of ei_clip | s | share |\n|---|--:|--:|')
    for name, value in seconds.items():
        print(f'| {name} | {value:.3f} | {100 * value / total:.0f} % |')
    reached = parts['flops'] / (total - seconds['loading'])
    print(
        f'\n{parts["flops"] / 1e12:.2f} TFLOP a step; without loading '
        f'{reached / 1e12:.2f} TFLOP/s, {100 * reached / parts["peak"]:.0f} % of the measured peak '
        f'of a bfloat16 matrix product, {parts["peak"] / 1e12:.2f} TFLOP/s.'
    )


def write_data(folder: Path, args: argparse.Namespace) -> None:
    """Photos, texts, and a vocabulary as large as that of the real catalogue."""
    if not (folder / FILES['train']).is_file():
        write_mini_fashiongen(folder, 256, 12, 12, seed=0, progress=False)
    from eiclip_mm.datasets import FashionGen

    init_default_scope('eiclip_mm')
    records = [r['entities'] for r in FashionGen(FILES['train'], data_root=str(folder)).records()]
    vocab = EntityVocab.build(records, ['composition', 'subcategory', 'brand', 'season'])
    rest = args.names - sum(len(names) for names in vocab.names.values())
    more = tuple(f'Maison {i}' for i in range(rest))
    names = dict(vocab.names, brand=vocab.names['brand'] + more)
    counts = dict(vocab.counts, brand=(*vocab.counts['brand'], *(1 for _ in more)))
    EntityVocab(names, counts).save(folder / 'entities.json')


def config_of(way: str, args: argparse.Namespace) -> Config:
    """The config of Fashion-Gen on drawn photos, as ``train.py --amp`` runs it."""
    cfg = load_config(CONFIGS[way])
    cfg = Config.fromstring(cfg.pretty_text.replace(cfg.data_root, f'{args.folder}/'), '.py')
    text = cfg.pretty_text.replace("'ViT-B-32-quickgelu'", repr(args.model))
    cfg = Config.fromstring(text, '.py')
    cfg.model.towers.pretrained = None
    if args.micro_batch:
        cfg.model.towers.micro_batch = args.micro_batch
    cfg.optim_wrapper.update(type='AutocastOptimWrapper', dtype='bfloat16')
    loader = cfg.train_dataloader
    loader.update(batch_size=args.batch_size, num_workers=args.workers)
    loader.sampler = dict(type='Again', num_samples=(args.steps + 1) * args.batch_size)
    loader.persistent_workers = args.workers > 0
    loader.dataset.update(fold='all')
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.custom_hooks = [h for h in cfg.custom_hooks if h.type != 'CausalEffectHook']
    cfg.custom_hooks.append(dict(type='StepMeter', steps=args.steps, device=args.device))
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.logger.interval = 10**6
    cfg.param_scheduler = None
    cfg.work_dir = str(Path(args.folder) / 'work_dir')
    cfg.log_level = 'ERROR'
    return cfg


@DATA_SAMPLERS.register_module()
class Again(RandomSampler):
    """Random photos, each as often as it comes: a few make many steps."""

    def __init__(self, dataset: Dataset, num_samples: int, seed: int | None = None):
        super().__init__(dataset, replacement=True, num_samples=num_samples)


@HOOKS.register_module()
class StepMeter(Hook):
    """Measures the steps after the first, then ends the training."""

    priority = 'LOWEST'

    def __init__(self, steps: int, device: str):
        self.steps, self.meter = steps, Meter(device)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """Start after the first step, stop after ``steps`` more."""
        if runner.iter == 0:
            self.meter.__enter__()
        if runner.iter == self.steps:
            self.meter.__exit__()
            raise Done


class Done(Exception):
    """Enough steps."""


def measure_ours(way: str, args: argparse.Namespace) -> dict:
    """Steps of a config of this package under mmengine's Runner."""
    cfg = config_of(way, args)
    with contextlib.redirect_stdout(io.StringIO()):
        runner = Runner.from_cfg(cfg)
        if args.data == 'memory':
            loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
            batch = runner.model.data_preprocessor(next(iter(loader)), True)
            runner._train_dataloader = DataLoader([batch] * (args.steps + 1), batch_size=None)
        with contextlib.suppress(Done):
            runner.train()
    meter = next(h for h in runner.hooks if isinstance(h, StepMeter)).meter
    return a_step(meter.result, args.steps)


def a_step(result: dict, steps: int) -> dict:
    """Figures of one step from those of several; memory is a peak already."""
    return dict(cpu=result['cpu'] / steps, wall=result['wall'] / steps, mb=result['mb'])


def measure_open_clip(args: argparse.Namespace) -> dict:
    """Steps of open_clip's own loop: its loss, optimiser groups, clipping and loader."""
    import open_clip

    model, transform, _ = open_clip.create_model_and_transforms(args.model, output_dict=True)
    trainer = Trainer(model, args.device, args.batch_size, 'amp_bf16')
    pairs = Pairs(
        Path(args.folder) / FILES['train'], open_clip.get_tokenizer(args.model), transform
    )
    some = [pairs[i % len(pairs)] for i in range(args.batch_size)]
    batch = [torch.stack(column).to(args.device) for column in zip(*some, strict=True)]

    def loader(steps: int) -> DataLoader:
        if args.data == 'memory':
            return DataLoader([batch] * steps, batch_size=None)
        order = Again(pairs, steps * args.batch_size)
        return DataLoader(pairs, args.batch_size, sampler=order, num_workers=args.workers)

    trainer.epoch(loader(1))
    with Meter(args.device) as used:
        trainer.epoch(loader(args.steps))
    return a_step(used.result, args.steps)


def measure_parts(args: argparse.Namespace) -> dict:
    """Seconds of each part of a step, FLOPs of a step, and the machine's own peak."""
    cfg = config_of('ei_clip', args)
    init_default_scope('eiclip_mm')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    cast = torch.autocast(torch.device(args.device).type, torch.bfloat16)
    encode_text, in_text = model.towers.encode_text, []

    def timed_text(tokens):
        clock = Clock(args.device)
        text = encode_text(tokens)
        in_text.append(clock.lap())
        return text

    model.towers.encode_text = timed_text
    rounds = []
    for _ in range(args.steps + 1):
        seconds, clock = {}, Clock(args.device)
        batch = next(iter(loader))
        seconds['loading'] = clock.lap()
        batch = model.data_preprocessor(batch, True)
        with cast:
            image = model.encode_image(batch.pop('image'))
            seconds['image tower, forward'] = clock.lap()
            losses = model.losses(image, batch.pop('text'), batch.pop('entity_ids'), batch)
            seconds['text tower, forward'] = in_text[-1]
            seconds['EI modules and losses, forward'] = clock.lap() - in_text[-1]
        model.parse_losses(losses)[0].backward()
        seconds['backward'] = clock.lap()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds['clipping and optimiser'] = clock.lap()
        rounds.append(seconds)
    middle = {name: statistics.median(r[name] for r in rounds[1:]) for name in rounds[0]}
    return dict(seconds=middle, flops=flops(model, loader, cast), peak=peak(args.device))


class Clock:
    """Seconds between laps, the device's work included."""

    def __init__(self, device: str):
        self.device = device
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        if self.device != 'cpu':
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds, self.start = now - self.start, now
        return seconds


def flops(model, loader: DataLoader, cast) -> int:
    """Floating-point operations of the products of one step, forward and backward."""
    batch = model.data_preprocessor(next(iter(loader)), True)
    model.towers.micro_batch = None  # what is computed twice counts once
    with FlopCounterMode(display=False) as counter, cast:
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        loss.backward()
    return counter.get_total_flops()


def peak(device: str) -> float:
    """FLOP/s of the best of several large bfloat16 matrix products."""
    size = 4096 if device == 'cpu' else 16384
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    best, clock = 0.0, Clock(device)
    for _ in range(4):
        a @ a
        best = max(best, 2 * size**3 / clock.lap())
    return best


if __name__ == '__main__':
    main()
