"""Time and memory of the evaluator, beside the bare matrix product and mmpretrain's metric.

python tools/analysis_tools/benchmark_evaluator.py [--images 32528 --texts 32528]

Each way runs in a process of its own, the ways in turn, and medians are printed. Memory is the peak
beyond the embeddings. mmpretrain's way is what its RetrievalValLoop does: score matrices of both
directions as data samples; with numpy 2.4 it needs np.in1d back, which is done here.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from _benchmark import Meter, add_options, run, table

WAYS = ('product', 'ours', 'mmpretrain', 'candidates')


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=32528)
    parser.add_argument('--texts', type=int, default=32528, help='also the number of products')
    parser.add_argument('--dim', type=int, default=512)
    parser.add_argument('--noise', type=float, default=0.15, help='of the images around the texts')
    parser.add_argument('--groups', type=int, default=122, help='sub-categories, for candidates')
    add_options(parser, WAYS)
    return parser.parse_args()


def main() -> None:
    """Run every way in turn and print the medians."""
    args = parse_args()
    found = run({way: partial(measure, globals()[f'run_{way}']) for way in WAYS}, args)
    print(f'{args.images} images x {args.texts} texts x {args.dim}, median of {args.repeats}\n')
    bare = found.get('product', {}).get('cpu')
    columns = {
        'CPU-s': lambda row: f'{row["cpu"]:.2f}',
        'times the product': lambda row: f'{row["cpu"] / bare:.2f}' if bare else '–',
        's': lambda row: f'{row["wall"]:.2f}',
        'peak MB': lambda row: f'{row["mb"]:.0f}',
    }
    print(table(found, columns))
    if {'ours', 'mmpretrain'} <= set(found):
        ours, theirs = found['ours'], found['mmpretrain']
        same = ours['recalls'] == theirs['recalls']
        print(
            f'\nours against mmpretrain: {theirs["cpu"] / ours["cpu"]:.1f} times less CPU time, '
            f'1/{theirs["mb"] / ours["mb"]:.0f} of the memory, recalls '
            f'{"identical" if same else "DIFFER"}'
        )
    if 'candidates' in found:
        print(f'\n101 candidates, all queries: {found["candidates"]["parts"]}')


def measure(way: Callable[..., dict], args: argparse.Namespace) -> dict:
    """One way: CPU and wall seconds, peak memory beyond the embeddings in MB, recalls."""
    import eiclip_mm.evaluation  # noqa: F401  so that imports are not measured

    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(args.texts, args.dim, generator=generator), dim=1)
    product = torch.arange(args.images) * args.texts // args.images
    image = torch.randn(args.images, args.dim, generator=generator).mul_(args.noise)
    image.add_(text[product])
    image /= image.norm(dim=1, keepdim=True)
    sides = image.to(args.device), text.to(args.device), product.to(args.device)
    with Meter(args.device) as used:
        result = way(*sides, args)
    return used.result | result


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


if __name__ == '__main__':
    main()
