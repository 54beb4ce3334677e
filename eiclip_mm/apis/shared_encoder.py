"""What concurrent requests ask to be encoded: checked one by one, encoded together."""

import base64
import io
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from fastapi import HTTPException
from PIL import Image
from prometheus_client import CollectorRegistry, Gauge, Histogram
from torch import Tensor, stack

from .batching import Batcher
from .encoder import Encoder, Reading
from .encoder import Product as AnyProduct
from .messages import Limits, Product
from .photos import MAX_ASPECT

Image.init()
# others run programs (EPS) or unpack without a bound
FORMATS = [name for name in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'AVIF') if name in Image.OPEN]
# sub-words of a long run of letters take its length squared: 10,000 letters, 4 s
_LONG_WORD = re.compile(r'[^\W\d_]{201}')


class _Text(NamedTuple):
    product: AnyProduct
    entities: bool


class SharedEncoder:
    """An encoder that many requests share: photos on one thread, texts on another.

    Args:
        encoder: embeds.
        limits: of a photo, a batch and a queue.
        pool: threads that decode photos.
        registry: of the metrics.
    """

    def __init__(
        self, encoder: Encoder, limits: Limits, pool: Executor, registry: CollectorRegistry
    ):
        self.encoder, self.limits = encoder, limits
        sizes = Histogram(
            'eiclip_batch_size', 'Items that were encoded together.', ['kind'],
            buckets=[2**i for i in range(11)], registry=registry,
        )  # fmt: skip
        taken = Gauge('eiclip_queue_length', 'Items not yet answered.', ['kind'], registry=registry)
        settings = (limits.max_batch, limits.max_wait_ms, limits.max_queue)
        self._photos = Batcher(
            self._encode_photos, self._sized, pool, *settings, sizes.labels('photo').observe
        )
        self._texts = Batcher(
            self._encode_texts, None, None, *settings, sizes.labels('text').observe
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
        products = [self._product(text, name.format(i)) for i, text in enumerate(texts)]
        return await self._texts([_Text(product, entities) for product in products])

    def _product(self, item: str | Product, place: str) -> AnyProduct:
        if isinstance(item, str):
            product, texts = item, [item]
            if not item.strip():
                raise HTTPException(422, f'{place} is empty.')
        else:
            product = item.model_dump()
            texts = [text for text in product.values() if isinstance(text, str)]
            known = (*self.encoder.text_fields, 'entities')
            if not set(product) <= {*known} or not any(product.values()):
                raise HTTPException(422, f'{place} must have some of {known}, and no other key.')
        if any(map(_LONG_WORD.search, texts)):
            raise HTTPException(422, f'{place} has a word of more than 200 letters.')
        return product

    def _encode_texts(self, texts: Sequence[_Text]) -> list[tuple[np.ndarray, Reading]]:
        found: dict[int, tuple[np.ndarray, Reading]] = {}
        for entities in (True, False):
            rows = [i for i, text in enumerate(texts) if text.entities == entities]
            if rows:
                vectors, readings = self.encoder.encode_and_explain(
                    [texts[i].product for i in rows], len(rows), False, 'numpy', entities
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
