"""Time and memory of the contrastive loss, forward and backward, beside open_clip's ClipLoss.

python tools/analysis_tools/benchmark_loss.py [--batch-size 1024 4096 16384]

Each way and batch runs in a process of its own, the ways in turn. Memory is the peak beyond the
vectors, so that their gradients are counted. A batch up to 4,096 is taken three times after one to
warm up, of which the median time is printed; a larger one is taken once. ``processes`` is the tiled
way on two processes with half of the rows each: time of both, memory of one.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from _benchmark import Meter, add_options, run, table

WAYS = ('open_clip', 'plain', 'tiled', 'processes', 'siglip')


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch-size', type=int, nargs='+', default=[1024, 4096, 16384])
    parser.add_argument('--dim', type=int, default=512)
    parser.add_argument('--noise', type=float, default=0.15, help='of the images around the texts')
    parser.add_argument('--scale', type=float, default=100.0, help='inverse temperature')
    add_options(parser, WAYS, repeats=1)
    parser.set_defaults(ways=['open_clip', 'plain', 'tiled'])
    return parser.parse_args()


def main() -> None:
    """Run every way in turn and print one table a batch size."""
    args = parse_args()
    ways = {way: partial(measure, globals()[f'make_{way}']) for way in WAYS if way != 'processes'}
    for batch in args.batch_size:
        rows = run(ways | dict(processes=measure_processes), args, '--batch-size', str(batch))
        base = rows.get('open_clip', {}).get('cpu')
        columns = {
            'CPU-s': lambda row: f'{row["cpu"]:.3f}',
            "of open_clip's": lambda row, base=base: f'{row["cpu"] / base:.2f}' if base else '–',
            's': lambda row: f'{row["wall"]:.3f}',
            'peak MB': lambda row: f'{row["mb"]:.0f}',
            'loss': lambda row: f'{row["loss"]:.6f}',
        }
        print(f'\n{batch} x {args.dim}, scale {args.scale:g}, forward and backward\n')
        print(table(rows, columns))


def leaves(args: argparse.Namespace) -> list[torch.Tensor]:
    """Images and texts (B, D) and the log of the scale, with gradients."""
    (batch,) = args.batch_size
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(batch, args.dim, generator=generator), dim=1)
    image = torch.randn(batch, args.dim, generator=generator).mul_(args.noise).add_(text)
    sides = F.normalize(image, dim=1), text, torch.tensor(math.log(args.scale))
    return [side.to(args.device).requires_grad_() for side in sides]


def measure(make: Callable, args: argparse.Namespace) -> dict:
    """One way: CPU and wall seconds, peak memory in MB, value."""
    import eiclip_mm.models  # noqa: F401  before open_clip, and so that imports are not measured

    return take(make(), leaves(args), args.device)


def take(loss: Callable, sides: list[torch.Tensor], device: str) -> dict:
    """Forward and backward of one batch; see the top for how often."""
    results = []
    for _ in range(4 if len(sides[0]) <= 4096 else 1):
        for side in sides:
            side.grad = None
        with Meter(device) as used:
            value = loss(*sides)
            value.backward()
        results.append(used.result)
    times = {k: statistics.median(r[k] for r in results[1:] or results) for k in ('cpu', 'wall')}
    return times | dict(mb=max(r['mb'] for r in results), loss=value.item())


def make_open_clip() -> Callable:
    """open_clip's loss of CLIP."""
    from open_clip.loss import ClipLoss

    return lambda image, text, log_scale: ClipLoss()(image, text, log_scale.exp())


def make_siglip() -> Callable:
    """open_clip's sigmoid loss: another value, of one score matrix."""
    from open_clip.loss import SigLipLoss

    return lambda image, text, log_scale: SigLipLoss()(image, text, log_scale.exp(), -10.0)


def make_plain(tiled: bool = False) -> Callable:
    """InfoNCE with one positive each."""
    from eiclip_mm.models import InfoNCE

    def loss(image, text, log_scale, first=0):
        ids = torch.arange(len(image), device=image.device) + first
        return InfoNCE(tiled=tiled)(
            image, text[None], text.new_zeros(1, len(text)), log_scale, ids, ids
        )

    return loss


make_tiled = partial(make_plain, tiled=True)


def measure_processes(args: argparse.Namespace) -> dict:
    """The tiled way on two processes over gloo, one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (folder, args), nprocs=2)
        files = (f'{folder}/{rank}.pt' for rank in range(2))
        first, second = (torch.load(file, weights_only=True) for file in files)
    return first | dict(cpu=first['cpu'] + second['cpu'])


def _process(rank: int, folder: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', f'file://{folder}/0', rank=rank, world_size=2)
    loss = make_tiled()

    def of_half(image, text, log_scale):
        return loss(image, text, log_scale, first=rank * len(image))

    image, text, log_scale = leaves(args)
    own = [side.detach().chunk(2)[rank].clone().requires_grad_() for side in (image, text)]
    found = take(of_half, [*own, log_scale], 'cpu')
    torch.save(found, f'{folder}/{rank}.pt')
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
