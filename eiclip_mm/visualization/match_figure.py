"""Why a photo and a product match, as a picture: needs matplotlib, the extra [report]."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from eiclip_mm.utils.whole_file import whole_file

from .left_out import LeftOut

FOR, AGAINST = '#b2182b', '#2166ac'  # the ends of the map of colours, RdBu
MOST = 24  # words that are shown, those that matter most
PANEL = 2.6  # inches


def match_figure(
    pixels: np.ndarray,
    maps: Mapping[str, np.ndarray],
    parts: Sequence[LeftOut],
    title: str,
    path: Path,
) -> None:
    """Write the picture; its suffix says in which format.

    Args:
        pixels: (height, width, 3) uint8, the photo as the model gets it.
        maps: by the name of the method (rows, columns), above 0 what speaks for the match.
        parts: of the product, see :func:`~.left_out.left_out`.
        title: one line above.
        path: the file. The same picture gives the same SVG.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    rows = _rows(parts)
    photos = len(maps) + 1
    height = max(PANEL + 0.8, 0.9 + 0.2 * len(rows))
    figure = Figure(figsize=(PANEL * photos + 4.8, height), layout='constrained')
    ratios = [*[PANEL] * photos, 4.4]
    *axes, bars = figure.subplots(1, photos + 1, width_ratios=ratios, squeeze=False)[0]
    grey = pixels.mean(2) / 255
    axes[0].imshow(pixels)
    axes[0].set_title('photo', fontsize='small')
    for own, (name, values) in zip(axes[1:], maps.items(), strict=True):
        _overlay(own, grey, values)
        own.set_title(name, fontsize='small')
    for own in axes:
        own.set_axis_off()
    _bars(bars, rows)
    figure.suptitle(title, fontsize='medium', parse_math=False)
    metadata = {'Date': None} if path.suffix == '.svg' else None
    with whole_file(path) as file, matplotlib.rc_context({'svg.hashsalt': path.name}):
        figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)


def _rows(parts: Sequence[LeftOut]) -> list[tuple[LeftOut, LeftOut | None]]:
    """The words that matter most, in the order of the text; each entity, and with its name."""
    plain = [part for part in parts if part.kind == 'word']
    most = sorted(plain, key=lambda part: -abs(part.drop))[:MOST]
    named = {(part.type, part.name): part for part in parts if part.kind == 'both'}
    rows = [part for part in plain if part in most]
    rows += [part for part in parts if part.kind in ('entity', 'entities')]
    return [(part, named.get((part.type, part.name))) for part in rows]


def _overlay(axes: Axes, grey: np.ndarray, values: np.ndarray) -> None:
    """The photo in grey under the map, red for the match, blue against it."""
    most = max(float(np.abs(values).max()), 1e-12)
    extent = (0, grey.shape[1], grey.shape[0], 0)
    axes.imshow(grey, cmap='gray', vmin=0, vmax=1, extent=extent)
    axes.imshow(
        values,
        cmap='RdBu_r',
        norm=TwoSlopeNorm(0, -most, most),
        alpha=0.15 + 0.6 * np.abs(values) / most,
        extent=extent,
        interpolation='nearest',
    )


def _bars(axes: Axes, rows: Sequence[tuple[LeftOut, LeftOut | None]]) -> None:
    for place, (part, both) in enumerate(rows):
        if both is not None:
            axes.barh(place, both.drop, 0.8, color=_colour(both.drop), alpha=0.3)
        axes.barh(place, part.drop, 0.8 if both is None else 0.4, color=_colour(part.drop))
    axes.set_yticks(range(len(rows)))
    labels = axes.set_yticklabels([_label(part) for part, _ in rows], fontsize=8, parse_math=False)
    for label, (part, _) in zip(labels, rows, strict=True):
        label.set_fontweight('normal' if part.kind == 'word' else 'bold')
    axes.invert_yaxis()
    axes.axvline(0, color='black', lw=0.8)
    pale = '; pale: without it and its name' if any(both for _, both in rows) else ''
    axes.set_xlabel(f'drop of the cosine without it{pale}', fontsize=8)
    axes.tick_params(axis='x', labelsize=8)
    axes.tick_params(axis='y', length=0)
    axes.locator_params(axis='x', nbins=5)
    axes.spines[['top', 'right', 'left']].set_visible(False)


def _colour(drop: float) -> str:
    return FOR if drop > 0 else AGAINST


def _label(part: LeftOut) -> str:
    if part.weight is None:
        return part.name
    return f'{part.type}: {part.name} (weight {part.weight:.2f})'
