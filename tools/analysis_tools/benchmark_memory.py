"""Memory and time of one training step, plain and with the settings that save memory.

python tools/analysis_tools/benchmark_memory.py [--batch-size 128 --micro-batch 16 --model ViT-B-32]

Each way runs in a process of its own. Both towers of random weights, noise for photos and texts,
the contrastive loss, its gradient, no optimiser step. Memory is the peak beyond weights and batch,
gradients included. All ways begin with the same weights and must end with the same loss and norm
of the gradient.
"""

import argparse

import torch
import torch.nn.functional as F
from _benchmark import Meter, add_options, run, table

WAYS = dict(
    plain={},
    micro_batch=dict(micro_batch=True),
    grad_checkpointing=dict(grad_checkpointing=True),
    both=dict(micro_batch=True, grad_checkpointing=True),
)


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='ViT-B-32')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--micro-batch', type=int, default=16, help='pairs of a micro-batch')
    parser.add_argument('--size', type=int, default=224, help='pixels a side')
    parser.add_argument('--bf16', action='store_true', help='under bfloat16 autocast')
    add_options(parser, list(WAYS), repeats=1)
    return parser.parse_args()


def main() -> None:
    """Run every way in turn and print the medians."""
    args = parse_args()
    found = run({way: step_of(changes) for way, changes in WAYS.items()}, args)
    kind = 'bfloat16' if args.bf16 else 'float32'
    print(
        f'{args.model}, batch {args.batch_size} in micro-batches of {args.micro_batch}, '
        f'{args.size} px, {kind}, {args.device}, median of {args.repeats}\n'
    )
    plain = found.get('plain')
    clock = 'cpu' if args.device == 'cpu' else 'wall'
    columns = {
        'peak MB': lambda row: f'{row["mb"]:.0f}',
        'of plain': lambda row: f'1/{plain["mb"] / row["mb"]:.1f}' if plain else '–',
        'CPU-s': lambda row: f'{row["cpu"]:.1f}',
        's': lambda row: f'{row["wall"]:.1f}',
        'times plain': lambda row: f'{row[clock] / plain[clock]:.2f}' if plain else '–',
        'loss': lambda row: f'{row["loss"]:.5f}',
        'gradient': lambda row: f'{row["norm"]:.5f}',
    }
    print(table(found, columns))


def step_of(changes: dict):
    """The way whose towers are built with ``changes``."""

    def way(args: argparse.Namespace) -> dict:
        from eiclip_mm.models import InfoNCE, OpenCLIPTowers

        torch.manual_seed(0)
        settings = dict(changes)
        if settings.pop('micro_batch', False):
            settings['micro_batch'] = args.micro_batch
        towers = OpenCLIPTowers(args.model, **settings).to(args.device).train()
        loss_of = InfoNCE()
        image, text = noise(args, towers.length)
        ids = torch.arange(args.batch_size, device=args.device)
        step(towers, loss_of, image[:2], text[:2], ids[:2], args)  # what is made once
        towers.zero_grad()
        with Meter(args.device) as used:
            loss = step(towers, loss_of, image, text, ids, args)
        gradients = [p.grad for p in towers.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return used.result | dict(loss=loss.item(), norm=norm.item())

    return way


def noise(args: argparse.Namespace, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, size, size) uint8 and (B, L) token ids that end with CLIP's end token."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(
        256, (args.batch_size, 3, args.size, args.size), generator=generator, dtype=torch.uint8
    )
    text = torch.randint(1, 49406, (args.batch_size, length), generator=generator)
    text[:, -1] = 49407
    return image.to(args.device), text.to(args.device)


def step(towers, loss_of, image, text, ids, args: argparse.Namespace) -> torch.Tensor:
    """Loss of the batch, its gradient in the parameters."""
    with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16):
        image = F.normalize(towers.encode_image(image), dim=-1)
        product = F.normalize(towers.encode_text(text), dim=-1)[None]
        log_prior = product.new_zeros(product.shape[:2])
        loss = loss_of(image, product, log_prior, towers.log_scale, ids, ids)
    loss.backward()
    return loss.detach()


if __name__ == '__main__':
    main()
