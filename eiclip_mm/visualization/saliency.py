"""Which parts of a photo make its cosine with a product: by covering them, and by gradient.

Covering is exact. The gradient's map is Grad-CAM (Selvaraju et al., 2017) with four changes, each
for a better agreement with covering. The photo's length counts as constant: a cosine does not
change with the length of a vector, so that features times slopes would add up to 0, and the ground
of a photo would always speak against the match. Features count from those of a blank photo. Each
place has its own slope (HiResCAM; Draelos & Carin, 2020), not the mean of all. No ReLU: what speaks
against the match shows as well. How far both agree: docs/diagnostics.md. Captum and
pytorch-grad-cam offer more methods; this one needs a hook and ten lines.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from open_clip.modified_resnet import AttentionPool2d
from timm.layers import AttentionPool2d as TimmAttentionPool2d
from timm.layers import RotAttentionPool2d, SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

POOLS = (SelectAdaptivePool2d, AttentionPool2d, TimmAttentionPool2d, RotAttentionPool2d)
BATCH = 64  # covered photos at a time
Embed = Callable[[Tensor], Tensor]  # (B, 3, height, width) uint8 -> (B, D)


def grad_cam(visual: nn.Module, embed: Embed, pixels: Tensor, product: Tensor) -> np.ndarray:
    """What each place of the last feature map adds to the cosine, as far as slopes can tell.

    Of a convolutional trunk the map is what it pools; of a ViT it is the patches that enter the
    last block, behind which the class token alone counts.

    Args:
        visual: the image tower of an open_clip model.
        embed: embeds photos with it, of any length; its weights stay as they are.
        pixels: (3, height, width) uint8, one photo as the model gets it.
        product: (D,) unit length.

    Returns:
        (rows, columns) float32, divided by the largest absolute value.

    Raises:
        ValueError: a tower that has no such map.
    """
    seen = []

    def watch(module: nn.Module, args: tuple) -> tuple:
        seen.append(args[0].detach().requires_grad_())
        return seen[-1], *args[1:]

    hook = _reader_of_the_last_map(visual).register_forward_pre_hook(watch)
    try:
        with torch.enable_grad():
            embed(_ground(pixels).expand_as(pixels)[None])
            image = embed(pixels[None])[0]
            cosine = image @ product / image.norm().detach()
            (slope,) = torch.autograd.grad(cosine, seen[1])
    finally:
        hook.remove()
    blank, features, slope = (
        _as_map(visual, x.detach().float(), pixels.shape[1:]) for x in (*seen, slope)
    )
    cam = ((features - blank) * slope).sum(0)
    return (cam / cam.abs().max().clamp(min=1e-12)).cpu().numpy()


def _reader_of_the_last_map(visual: nn.Module) -> nn.Module:
    """The module whose input is the last map of features that have a place."""
    for owner, name in (('transformer', 'resblocks'), ('trunk', 'blocks')):
        blocks = getattr(getattr(visual, owner, None), name, None)
        if blocks is not None and hasattr(blocks[-1], 'attn'):
            return blocks[-1]
    pools = [module for module in visual.modules() if isinstance(module, POOLS)]
    if not pools:
        raise ValueError(
            f'{type(visual).__name__}: no Grad-CAM of this image tower, which is neither a ViT '
            'nor pools a feature map; take --image occlusion.'
        )
    return pools[-1]


def _as_map(visual: nn.Module, x: Tensor, size: Sequence[int]) -> Tensor:
    """(C, rows, columns) of what the module reads: a map, or tokens (1, L, C), patches last."""
    if x.ndim == 4:
        x = x[0]
        return x.permute(2, 0, 1) if x.shape[2] > x.shape[1] else x  # Swin: channels last
    x = x[0] if x.shape[0] == 1 else x[:, 0]
    trunk = getattr(visual, 'trunk', None)
    owner: Any = visual if trunk is None else trunk.patch_embed
    rows, columns = (pixels // side for pixels, side in zip(size, owner.patch_size, strict=True))
    return x[-rows * columns :].T.reshape(-1, rows, columns)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two maps of a photo, the larger one averaged onto the smaller's grid."""
    grid = tuple(map(min, a.shape, b.shape))
    maps = [adaptive_avg_pool2d(torch.from_numpy(x)[None], grid).flatten() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(maps))[0, 1])


@torch.no_grad()
def occlusion(embed: Embed, pixels: Tensor, product: Tensor, cells: int) -> np.ndarray:
    """By how much the cosine drops where a cell of the photo is covered; exact, and slower.

    Covered is: painted in the median colour of the photo's border, in a shop its ground.

    Args:
        embed: embeds photos, in unit length.
        pixels, product: see :func:`grad_cam`.
        cells: rows and columns of the grid.

    Returns:
        (cells, cells) float32, cosine before less cosine after.

    Raises:
        ValueError: more cells than pixels, or none.
    """
    height, width = pixels.shape[1:]
    if not 1 <= cells <= min(height, width):
        raise ValueError(
            f'the photo is {height} x {width} pixels: cells must be from 1 to '
            f'{min(height, width)}, got {cells}.'
        )
    edges = [np.linspace(0, size, cells + 1).round().astype(int) for size in (height, width)]
    colour = _ground(pixels)
    covered = pixels.repeat(cells * cells, 1, 1, 1)
    for number, photo in enumerate(covered):
        (top, bottom), (left, right) = (
            edge[place : place + 2]
            for edge, place in zip(edges, divmod(number, cells), strict=True)
        )
        photo[:, top:bottom, left:right] = colour
    after = torch.cat([embed(part) @ product for part in covered.split(BATCH)])
    before = embed(pixels[None])[0] @ product
    return (before - after).reshape(cells, cells).float().cpu().numpy()


def _ground(pixels: Tensor) -> Tensor:
    """(3, 1, 1) median colour of the outermost pixels."""
    sides = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    return torch.cat(sides, 1).median(1).values[:, None, None]
