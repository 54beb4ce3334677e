"""What concurrent requests ask to be encoded: checked one by one, encoded together."""

import base64
import io
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from fastapi import HTTPException
from PIL import Image
from prometheus_client import CollectorRegistry, Gauge, Histogram
from torch import Tensor, stack

from eiclip_mm.structures import clean_text

from .batching import Batcher
from .encoder import Encoder, Reading
from .encoder import Product as AnyProduct
from .messages import Limits, Product
from .photos import MAX_ASPECT

Image.init()
# others run programs (EPS) or unpack without a bound
FORMATS: list[str] = [
    name for name in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'AVIF') if name in Image.OPEN
]
# sub-words of a long run of letters take its length squared: 10,000 letters, 4 s
_LONG_WORD = re.compile(r'[^\W\d_]{201}')


class _Text(NamedTuple):
    place: str
    product: AnyProduct
    entities: bool


class SharedEncoder:
    """An encoder that many requests share: photos on one thread, texts on another.

    Args:
        encoder: embeds.
        limits: of a photo, a batch and a queue.
        registry: of the metrics.
    """

    def __init__(self, encoder: Encoder, limits: Limits, registry: CollectorRegistry):
        self.encoder, self.limits = encoder, limits
        sizes = Histogram(
            'eiclip_batch_size', 'Items that were encoded together.', ['kind'],
            buckets=[2**i for i in range(11)], registry=registry,
        )  # fmt: skip
        taken = Gauge('eiclip_queue_length', 'Items not yet answered.', ['kind'], registry=registry)
        settings = (limits.max_batch, limits.max_wait_ms, limits.max_queue)
        decoders = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self._photos = Batcher(
            self._encode_photos, self._sized, decoders, *settings, sizes.labels('photo').observe
        )
        cleaner = ThreadPoolExecutor(1)
        self._texts = Batcher(
            self._encode_texts, self._readable, cleaner, *settings, sizes.labels('text').observe
        )
        taken.labels('photo').set_function(lambda: self._photos.taken)
        taken.labels('text').set_function(lambda: self._texts.taken)

    def start(self) -> None:
        """Begin; inside the event loop."""
        self._photos.start()
        self._texts.start()

    async def stop(self) -> None:
        """End; no request may be waiting any more."""
        await self._photos.stop()
        await self._texts.stop()

    async def photos(self, photos: Sequence[str], name: str = 'photos[{}]') -> list[np.ndarray]:
        """(D,) unit vector of each photo in base64.

        Raises:
            HTTPException: 422, one that cannot be read; ``name`` with its number says which.
            Busy: the queue is full.
        """
        return await self._photos([(name.format(i), photo) for i, photo in enumerate(photos)])

    async def texts(
        self,
        texts: Sequence[str | Product],
        name: str = 'texts[{}]',
        entities: bool = True,
    ) -> list[tuple[np.ndarray, Reading]]:
        """(D,) unit vector of each text or product, and how it was read.

        Args:
            texts: queries or products.
            name: what errors call one, with its number.
            entities: ``False`` leaves all entities unknown.

        Raises:
            HTTPException: 422, one that the model cannot read.
            Busy: the queue is full.
        """
        places = [name.format(i) for i in range(len(texts))]
        products = [self._product(*both) for both in zip(texts, places, strict=True)]
        return await self._texts(
            [_Text(*both, entities) for both in zip(places, products, strict=True)]
        )

    def _product(self, item: str | Product, place: str) -> AnyProduct:
        if isinstance(item, str):
            if not item.strip():
                raise HTTPException(422, f'{place} is empty.')
            return item
        product = item.model_dump()
        known = (*self.encoder.text_fields, 'entities')
        if not set(product) <= {*known} or not any(product.values()):
            raise HTTPException(422, f'{place} must have some of {known}, and no other key.')
        return product

    def _readable(self, text: _Text) -> _Text:
        """A text without long words, as the tokenizer cleans it: that joins what seems apart."""
        joined = clean_text(' '.join(_strings(text.product)))
        if not joined:
            raise HTTPException(422, f'{text.place} is empty.')
        if _LONG_WORD.search(self.encoder.tokenizer.subwords.clean(joined)):
            raise HTTPException(422, f'{text.place} has a word of more than 200 letters.')
        return text

    def _encode_texts(self, texts: Sequence[_Text]) -> list[tuple[np.ndarray, Reading]]:
        found: dict[int, tuple[np.ndarray, Reading]] = {}
        for entities in (True, False):
            rows = [i for i, text in enumerate(texts) if text.entities == entities]
            if rows:
                vectors, readings = self.encoder.encode_and_explain(
                    [texts[i].product for i in rows],
                    batch_size=len(rows),
                    progress=False,
                    output='numpy',
                    entities=entities,
                )
                found |= zip(rows, zip(vectors, readings, strict=True), strict=True)
        return [found[i] for i in range(len(texts))]

    def _encode_photos(self, pixels: Sequence[Tensor]) -> np.ndarray:
        return self.encoder.embed_pixels(stack(list(pixels))).float().cpu().numpy()

    def _sized(self, asked: tuple[str, str]) -> Tensor:
        """(3, height, width) uint8: small, whatever was sent, while it waits."""
        place, photo = asked
        most = self.limits.max_pixels
        try:
            file = io.BytesIO(base64.b64decode(''.join(photo.split()), validate=True))
            with Image.open(file, formats=FORMATS) as image:
                short, long = sorted(image.size)
                if short * long <= most and long <= MAX_ASPECT * short:
                    return self.encoder.sizing(image)
            reason = f'{short} x {long} pixels; at most {most} are read, sides up to {MAX_ASPECT}:1'
        except Image.UnidentifiedImageError:
            reason = f'it is no image of {", ".join(FORMATS)}'
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            reason = f'at most {most} pixels are read'
        except Exception as error:  # decoders raise whatever they meet
            reason = str(error).rstrip('.')
        raise HTTPException(422, f'{place} cannot be read: {reason}.')


def _strings(product: AnyProduct) -> list[str]:
    """All texts of a product, names of entities too."""
    if isinstance(product, str):
        return [product]
    texts = [value for value in product.values() if isinstance(value, str)]
    return texts + [name for names in product['entities'].values() for name in names]
