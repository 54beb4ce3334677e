"""An exported model beside the one it was made from: vectors, recall, speed."""

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from eiclip_mm.apis import Encoder
from eiclip_mm.apis.catalogue import open_photo, read_catalogue
from eiclip_mm.apis.photos import read_photo
from eiclip_mm.evaluation.functional import both_ranks

KS = (1, 5, 10)
ROWS = 16  # that are timed at a time


@dataclass(frozen=True, eq=False)
class Vectors:
    """What a model makes of a sample.

    Attributes:
        image, product: (P, D).
        seconds: a photo and a product take, the tower alone; median over batches.
    """

    image: Tensor
    product: Tensor
    seconds: tuple[float, float]

    def recall(self) -> list[float]:
        """R@1, R@5, R@10 in %, of photos that ask for their text, then of texts."""
        ids = torch.arange(len(self.image))
        ranks = both_ranks(self.image, self.product, ids, ids)
        return [100 * float((own <= k).float().mean()) for own in ranks for k in KS]

    def difference(self, other: 'Vectors') -> float:
        """The largest of all entries."""
        pairs = ((self.image, other.image), (self.product, other.product))
        return max(float((a - b).abs().max()) for a, b in pairs)

    def mean_cosine(self, other: 'Vectors') -> float:
        """With the other model's vectors of the same photos and texts."""
        pairs = ((self.image, other.image), (self.product, other.product))
        return float(torch.stack([(a * b).sum(1).mean() for a, b in pairs]).mean())


@dataclass(frozen=True, eq=False)
class Sample:
    """Photos and products, one of each a product."""

    photos: Sequence
    products: Sequence[dict]

    def embedded(self, encoder: Encoder) -> Vectors:
        """All of it; photos are sized and texts read by the encoder, too."""
        encoded = encoder.read(self.products)
        pixels = torch.stack([encoder.sizing(photo) for photo in self.photos])
        columns = (encoded.text, encoded.entity_ids, encoded.length)
        text, ids, length = (torch.from_numpy(column).long() for column in columns)

        def embed_texts(text: Tensor, ids: Tensor, length: Tensor) -> Tensor:
            return encoder.embed_tokens(text[:, : length.max()], ids)[0]

        image, of_photo = _timed(encoder.embed_pixels, pixels)
        product, of_product = _timed(embed_texts, text, ids, length)
        return Vectors(image, product, (of_photo, of_product))


@torch.no_grad()
def _timed(embed: Callable, *columns: Tensor) -> tuple[Tensor, float]:
    parts, seconds = [], []
    for rows in zip(*(column.split(ROWS) for column in columns), strict=True):
        began = time.perf_counter()
        parts.append(embed(*rows).float().cpu())
        seconds.append((time.perf_counter() - began) / len(rows[0]))
    return torch.cat(parts), float(np.median(seconds))


def sample(
    encoder: Encoder, catalogue: Path | None, config: Config, split: str, number: int
) -> Sample:
    """The first products of a catalogue, or of a split of the config, that have photo and text."""
    types = encoder.tokenizer.vocab.types
    with tempfile.TemporaryDirectory() as folder:
        if catalogue is None:
            catalogue = Path(folder) / 'config.py'
            config.dump(catalogue)
        found = read_catalogue(catalogue, encoder.text_fields, types, split=split)
    whole = (item for item in found if item.photo and item.has_text)
    items = list(itertools.islice(whole, number))
    if not items:
        raise ValueError(f'{catalogue} has no product with a photo and a text.')
    photos = [open_photo(item.photo) for item in items]
    for item, photo in zip(items, photos, strict=True):
        try:
            read_photo(photo)
        except (ValueError, OSError) as error:
            raise ValueError(f'product {item.id}: {error}; leave it out of {catalogue}.') from error
    return Sample(
        photos,
        [dict(item.text_fields, entities=item.entities) for item in items],
    )


def made_up(encoder: Encoder) -> Sample:
    """Photos of noise, and texts that name entities: for a machine without the data."""
    draw = np.random.default_rng(0)
    vocab = encoder.tokenizer.vocab
    photos, products = [], []
    for _ in range(32):
        photos.append(draw.integers(0, 256, (*draw.integers(60, 300, 2), 3), np.uint8))
        entities = {t: [str(draw.choice(names))] for t, names in vocab.names.items()}
        text = ' '.join(name for own in entities.values() for name in own) or 'a red tee'
        texts = {field: ' '.join([text] * draw.integers(1, 9)) for field in encoder.text_fields}
        products.append(dict(texts, entities=entities))
    return Sample(photos, products)
