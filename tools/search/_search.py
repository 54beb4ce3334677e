"""What the search tools share: a model, and the vectors of items."""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from eiclip_mm.apis.catalogue import open_photo
from eiclip_mm.apis.encoder import Encoder

CHUNK = 256  # items that are embedded, then written


def add_index(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The option that names an index."""
    parser.add_argument(
        '--index', metavar='WHERE', required=required,
        help='folder, or http(s)://host:port/collection of a Qdrant server',
    )  # fmt: skip


def photo_vectors(
    encoder: Encoder, photos: Sequence[str | None], pool: ThreadPoolExecutor
) -> tuple[np.ndarray, dict[int, str]]:
    """(n, D) unit rows, of NaN where there is no photo or none that can be read; and why not."""
    broken: dict[int, str] = {}

    def sized(row: int) -> torch.Tensor | None:
        try:
            return encoder.sizing(open_photo(photos[row]))
        except (OSError, ValueError) as error:
            broken[row] = str(error)
            return None

    vectors = np.full((len(photos), encoder.dim), np.nan, dtype=np.float32)
    rows = [row for row, photo in enumerate(photos) if photo]
    for start in range(0, len(rows), encoder.batch_size):
        part = rows[start : start + encoder.batch_size]
        read = [(row, pixels) for row, pixels in zip(part, pool.map(sized, part), strict=True)
                if pixels is not None]  # fmt: skip
        if read:
            with torch.no_grad():
                embedded = encoder.embed_pixels(torch.stack([pixels for _, pixels in read]))
            vectors[[row for row, _ in read]] = embedded.float().cpu().numpy()
    return vectors, dict(sorted(broken.items()))


def product_vectors(encoder: Encoder, products: Sequence[dict | None]) -> np.ndarray:
    """(n, D) unit rows of products, of NaN where there is none."""
    vectors = np.full((len(products), encoder.dim), np.nan, dtype=np.float32)
    rows = [row for row, product in enumerate(products) if product is not None]
    if rows:
        vectors[rows] = encoder.encode_products(
            [products[row] for row in rows], progress=False, output='numpy'
        )
    return vectors


def as_product(payload: dict) -> dict:
    """What an encoder reads of an indexed item."""
    return payload['text_fields'] | dict(entities=payload['entities'])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal; the first row is its head."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return '\n'.join([lines[0], '  '.join('-' * width for width in widths), *lines[1:]])
