"""Time and memory of the evaluator, beside the bare matrix product and mmpretrain's metric.

python tools/analysis_tools/benchmark_evaluator.py [--images 32528 --texts 32528]

Each way runs in a process of its own, the ways in turn, and medians are printed. Memory is the peak
beyond the embeddings. mmpretrain's way is what its RetrievalValLoop does: score matrices of both
directions as data samples; with numpy 2.4 it needs np.in1d back, which is done here.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

WAYS = ('product', 'ours', 'mmpretrain', 'candidates')
DONE = 'RESULT '


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=32528)
    parser.add_argument('--texts', type=int, default=32528, help='also the number of products')
    parser.add_argument('--dim', type=int, default=512)
    parser.add_argument('--noise', type=float, default=0.15, help='of the images around the texts')
    parser.add_argument('--groups', type=int, default=122, help='sub-categories, for candidates')
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=WAYS)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--run', choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run every way in turn in processes of their own and print their medians."""
    args = parse_args()
    if args.run:
        print(DONE + json.dumps(measure(args)))
        return
    found = {way: [] for way in args.ways}
    for repeat in range(args.repeats):
        for way in args.ways:
            done = subprocess.run(
                [sys.executable, *sys.argv, '--run', way],
                capture_output=True,
                text=True,
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith(DONE)]
            if done.returncode or not lines:
                raise SystemExit(f'{way} failed:\n{done.stderr[-2000:]}')
            found[way].append(json.loads(lines[0].removeprefix(DONE)))
            print(f'{repeat + 1}/{args.repeats} {way}: {found[way][-1]}', file=sys.stderr)
    print(f'{args.images} images x {args.texts} texts x {args.dim}, median of {args.repeats}\n')
    print('| way | CPU-s | times the product | s | peak MB |\n|---|--:|--:|--:|--:|')
    middle = {
        way: {k: statistics.median(run[k] for run in runs) for k in ('cpu', 'wall', 'mb')}
        for way, runs in found.items()
    }
    for way, m in middle.items():
        ratio = f'{m["cpu"] / middle["product"]["cpu"]:.2f}' if 'product' in middle else '–'
        print(f'| {way} | {m["cpu"]:.2f} | {ratio} | {m["wall"]:.2f} | {m["mb"]:.0f} |')
    if {'ours', 'mmpretrain'} <= set(middle):
        ours, theirs = middle['ours'], middle['mmpretrain']
        same = found['ours'][0]['recalls'] == found['mmpretrain'][0]['recalls']
        print(
            f'\nours against mmpretrain: {theirs["cpu"] / ours["cpu"]:.1f} times less CPU time, '
            f'1/{theirs["mb"] / ours["mb"]:.0f} of the memory, recalls '
            f'{"identical" if same else "DIFFER"}'
        )
    if 'candidates' in found:
        print(f'\n101 candidates, all queries: {found["candidates"][0]["parts"]}')


def measure(args: argparse.Namespace) -> dict:
    """One way: CPU and wall seconds, peak memory beyond the embeddings in MB, recalls."""
    torch.set_num_threads(args.threads)
    import eiclip_mm.evaluation  # noqa: F401  so that imports are not measured

    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(args.texts, args.dim, generator=generator), dim=1)
    product = torch.arange(args.images) * args.texts // args.images
    image = torch.randn(args.images, args.dim, generator=generator).mul_(args.noise)
    image.add_(text[product])
    image /= image.norm(dim=1, keepdim=True)
    sides = image.to(args.device), text.to(args.device), product.to(args.device)
    reset_peak()
    before, cpu, wall = memory(), time.process_time(), time.perf_counter()
    result = globals()[f'run_{args.run}'](*sides, args)
    if args.device != 'cpu':
        torch.cuda.synchronize()
    used = dict(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall)
    mb = peak() - before if args.device == 'cpu' else torch.cuda.max_memory_allocated() / 2**20
    return used | dict(mb=mb) | result


def run_product(image, text, product, args) -> dict:
    """The matrix product alone, in tiles, nothing kept."""
    room = image.new_empty(1024, 1024)
    for rows in image.split(1024):
        for columns in text.split(1024):
            torch.mm(rows, columns.T, out=room[: len(rows), : len(columns)])
    return {}


def run_ours(image, text, product, args) -> dict:
    """Every right item of both directions, of which all measures are made."""
    from eiclip_mm.evaluation import both_ahead, recall_at

    ids = torch.arange(args.texts, device=image.device)
    ranks = [ahead[:, 0] + 1 for ahead in both_ahead(image, text, product, ids)]
    recalls = [r for found in ranks for r in recall_at(found, (1, 5, 10)).values()]
    return dict(recalls=[round(r, 3) for r in recalls])


def run_mmpretrain(image, text, product, args) -> dict:
    """RetrievalRecall, fed as mmpretrain's RetrievalValLoop feeds it."""
    from mmengine.evaluator import Evaluator
    from mmpretrain.evaluation import RetrievalRecall
    from mmpretrain.structures import DataSample

    if not hasattr(np, 'in1d'):  # gone in numpy 2.4
        np.in1d = np.isin
    texts = [torch.nonzero(product == t).flatten() for t in range(args.texts)]
    recalls = []
    for queries, gallery, right in ((image, text, product[:, None]), (text, image, texts)):
        scores = queries @ gallery.T
        samples = [
            DataSample().set_pred_score(score).set_gt_label(label)
            for score, label in zip(scores, right, strict=True)
        ]
        evaluator = Evaluator([RetrievalRecall(topk=(1, 5, 10))])
        evaluator.process(samples, None)
        recalls += evaluator.evaluate(len(samples)).values()
    return dict(recalls=[round(r, 3) for r in recalls])


def run_candidates(image, text, product, args) -> dict:
    """All protocols with candidates, all images and texts asked, drawing included."""
    from eiclip_mm.evaluation import PROTOCOLS, Embeddings, get_protocol, retrieve

    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, args.groups + 1)
    group = rng.choice(args.groups, args.texts, p=share / share.sum())
    embeddings = Embeddings(
        image=image,
        image_product_id=product,
        product=text,
        product_id=torch.arange(args.texts, device=image.device),
        labels=dict(subcategory=group.astype(str)),
    )
    parts = {}
    for name, protocol in PROTOCOLS.items():
        if protocol.candidates is not None:
            start = time.process_time()
            retrieve(embeddings, get_protocol(name, queries=None, unit='image', repeats=1))
            parts[name] = round(time.process_time() - start, 2)
    return dict(parts=parts)


def memory() -> float:
    """Resident MB now."""
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('VmRSS')) / 1024


def reset_peak() -> None:
    """Forget the peak so far, of building the embeddings (Linux)."""
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
        file.write('5')


def peak() -> float:
    """Peak resident MB since :func:`reset_peak`."""
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 1024


if __name__ == '__main__':
    main()
