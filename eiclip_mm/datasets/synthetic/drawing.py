"""Photos: how a product or a picture looks, drawn from its attributes."""

from functools import cache, lru_cache

import cv2
import numpy as np

from .products import Product, pick, signature
from .words import COLOURS, GARMENTS, ICONS, MARKS, SCENES, SHAPES, SIDE, SPOTS, VIEW

_Y, _X = np.mgrid[:SIDE, :SIDE]


@cache
def _texture(material: str) -> np.ndarray:
    """Light of a fabric, around 0; coarse enough to be seen at 64 pixels."""
    return {
        'cotton': lambda: 0 * _X,
        'denim': lambda: 0.3 * np.sign(np.sin((_X + _Y) * 2 * np.pi / 16)),
        'wool': lambda: 0.35 * np.sin((_Y + np.abs(_X % 32 - 16)) * 2 * np.pi / 16),
        'leather': lambda: 1.1 * np.exp(-(((2 * _X - _Y) % 150 - 75) ** 2) / 250) - 0.15,
        'nylon': lambda: 0.55 * np.abs(np.sin(_Y * np.pi / 30)) - 0.4,
        'silk': lambda: 0.4 * np.sin(_X * 2 * np.pi / 60 + 1.5 * np.sin(_Y / 30)),
        'linen': lambda: -0.5 * ((_X % 16 < 4) | (_Y % 16 < 4)),
    }[material]().astype(np.float32)[..., None]


@cache
def _pattern(pattern: str) -> np.ndarray:
    """Where the second colour of a pattern lies."""
    return {
        'plain': lambda: _X < 0,
        'striped': lambda: _Y // 12 % 2 == 0,
        'dotted': lambda: (_X % 32 - 16) ** 2 + (_Y % 32 - 16) ** 2 < 64,
        'checked': lambda: (_X // 20 + _Y // 20) % 2 == 0,
    }[pattern]()


def _is_dark(colour: str) -> bool:
    return np.dot(COLOURS[colour], (0.3, 0.59, 0.11)) < 120


def _tones(main: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Tones of a drawing: main, its shade, black, white, orange, red."""
    shade = tuple(int(0.55 * c) if sum(main) > 150 else c + 70 for c in main)
    return dict(m=main, d=shade, k=(15, 15, 15), w=(250,) * 3, a=(240, 140, 30), r=(215, 30, 40))


_OPAQUE = dict.fromkeys('mdkwar', 255)
_CIRCLE = np.exp(1j * np.linspace(0, 2 * np.pi, 40)).view(float).reshape(-1, 2)


def _paint(image: np.ndarray, strokes: str, place: tuple, tones: dict) -> None:
    """Draw strokes into ``image`` at place = (x, y, size), in pixels."""
    *centre, size = place
    for stroke in strokes.split(';'):
        op, tone, *numbers = stroke.split()
        points = np.array(numbers, float).reshape(-1, 2)
        if op == 'H':
            points = np.concatenate([points, points[::-1] * (-1, 1) + (100, 0)])
        elif op == 'E':
            points = points[0] + points[1] * _CIRCLE
        points = np.rint(np.add(centre, (points - 50) * size / 100)).astype(np.int32)
        if op == 'L':
            cv2.polylines(image, [points], False, tones[tone], max(2, int(size / 70)), cv2.LINE_AA)
        else:
            cv2.fillPoly(image, [points], tones[tone], cv2.LINE_AA)


def _at(x: float, y: float, size: float) -> tuple[float, float, float]:
    """A garment's 100 x 100 grid in pixels."""
    return 128 + 2.3 * (x - 50), 128 + 2.3 * (y - 50), 2.3 * size


@lru_cache(maxsize=4)
def _layer(look: Product, emblem: bool, motif: bool) -> np.ndarray:
    """The subject alone, (256, 256, 4) uint8: colour and opacity."""
    rgb, mask = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    if not look.garment:
        _paint(rgb, ICONS[look.motif], (128, 128, 150), _tones(COLOURS[look.motif_colour]))
        _paint(mask, ICONS[look.motif], (128, 128, 150), _OPAQUE)
        return np.dstack([rgb, mask])

    garment, base = GARMENTS[look.garment], COLOURS[look.colour]
    second = COLOURS['white' if _is_dark(look.colour) else 'black']
    cloth = np.where(_pattern(look.pattern)[..., None], second, base)
    rgb[:] = (cloth + _texture(look.material) * (0.35 * cloth + 90)).clip(0, 255)
    _paint(mask, garment.outline, _at(50, 50, 100), _OPAQUE)
    _paint(rgb, garment.lines, _at(50, 50, 100), _tones(base))
    if look.motif and motif:
        ink = COLOURS[look.motif_colour]
        plate = 'P w' if _is_dark(look.motif_colour) else 'P k'
        _paint(rgb, f'{plate} -6 -6 106 -6 106 106 -6 106', _at(*garment.motif), _tones(ink))
        _paint(rgb, ICONS[look.motif], _at(*garment.motif), _tones(ink))
    if look.brand:
        mark = signature(look.brand)
        top = int(_at(0, garment.trim, 0)[1])
        rgb[top : top + 12] = MARKS[mark['trim']]
    if look.brand and emblem:
        spot = garment.spots[SPOTS.index(mark['spot'])]
        for image in (rgb, mask):
            _paint(image, 'E w 50 50 50 50', _at(*spot, 24), dict(w=(250, 250, 250)))
        _paint(rgb, SHAPES[mark['shape']], _at(*spot, 19), _tones(MARKS[mark['colour']]))
    edge, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(rgb, edge, -1, _tones(base)['d'], 2, cv2.LINE_AA)
    return np.dstack([rgb, mask])


def draw(look: Product, view: int = 0) -> np.ndarray:
    """One photo, (256, 256, 3) uint8 RGB.

    View 0 is the front. Others are turned and moved, and may be a detail or the back, which has
    no motif; an eighth of details and backs lack the emblem.
    """
    rng = np.random.default_rng([*look.key, VIEW + view])
    kind = pick(rng, dict(front=6, back=2, detail=2)) if view else 'front'
    emblem = kind == 'front' or rng.random() > 0.125
    layer = _layer(look, emblem, kind != 'back')

    free = 1.0 if view or look.scene else 0.3  # how far the pose strays
    angle = np.deg2rad(free * rng.uniform(-10, 10))
    scale = dict(front=1.0, back=1.0, detail=1.3)[kind] * (1 + free * rng.uniform(-0.1, 0.06))
    if not look.garment:
        scale *= rng.uniform(0.4, 1.1)
    flip = -1 if rng.random() < 0.5 * (free == 1) else 1
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) * (look.width * flip, 1)
    shift = 128 - matrix @ (128, 128) + free * (12 if look.garment else 30) * rng.uniform(-1, 1, 2)
    layer = cv2.warpAffine(layer, np.column_stack([matrix, shift]), (SIDE, SIDE))

    grey = rng.integers(205, 240) + rng.integers(-6, 7, 3)
    above, below = SCENES[look.scene] if look.scene else (grey, grey - rng.integers(0, 25))
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:170], image[170:] = above, below
    image += (layer[..., :3] - image) * (layer[..., 3:] / np.float32(255))
    image *= rng.uniform(0.82, 1.08) * rng.uniform(0.97, 1.03, 3).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8)
