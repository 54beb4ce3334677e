"""Photos, products and queries as unit vectors, whatever runs the towers."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eiclip_mm.datasets.encoded import EncodedTexts
from eiclip_mm.datasets.tokenizer import EntityTokenizer
from eiclip_mm.structures import clean_text

from .photos import Photo, PhotoSizing

Product = str | Mapping
OUTPUTS = ('torch', 'numpy')
KINDS = ('photo', 'product', 'query')


@dataclass(frozen=True)
class Entity:
    """An entity that a text was read with.

    Attributes:
        type, name: as the vocabulary prints them.
        weight: CE-Selector's, in [0, 1]: 0 means that the intervention leaves it out.
        count: products of train that have it; 0 for one added later.
        start, end: its characters in the text; ``None``, from metadata that the text does not name.
    """

    type: str
    name: str
    weight: float
    count: int
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Reading:
    """How a text is read: cleaned, and with which entities."""

    text: str
    entities: tuple[Entity, ...]

    def to_dict(self) -> dict:
        """Plain JSON."""
        return asdict(self)


class Encoder:
    """What embeds; subclasses run the towers.

    Args:
        tokenizer: reads texts as the model was trained to.
        sizing: photos as the model was tested on.
        batch_size: rows at a time.

    Attributes:
        name: what results are labelled with.
        dim: embedding width D.
        sha256: of the checkpoint that it runs, or was made of.
    """

    name: str
    dim: int
    sha256: str

    def __init__(self, tokenizer: EntityTokenizer, sizing: PhotoSizing, batch_size: int = 64):
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}.')
        self.tokenizer, self.sizing, self.batch_size = tokenizer, sizing, batch_size

    # What subclasses give.

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, height, width) uint8 -> (B, D) unit length."""
        raise NotImplementedError

    def embed_tokens(self, text: Tensor, entity_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Products of (B, L) token ids and (B, K, M) entity ids.

        Returns:
            (B, D) unit vectors, and CE-Selector's weights (B, K, M), zeros of a model without.
        """
        raise NotImplementedError

    # What users call.

    def encode_images(
        self,
        images: Photo | Sequence[Photo],
        batch_size: int | None = None,
        progress: bool = True,
        output: str = 'torch',
    ) -> Tensor | np.ndarray:
        """(n, D) unit vectors of photos; see :func:`~eiclip_mm.apis.read_photo` for what one is.

        Args:
            images: photos, or one.
            batch_size: rows at a time; the encoder's own by default.
            progress: show a bar where it takes long.
            output: ``'torch'``, on the CPU, or ``'numpy'``; float32.
        """
        photos = list(images) if isinstance(images, (list, tuple)) else [images]
        parts = [torch.zeros(0, self.dim)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, torch.no_grad():
            for own in self._slices(len(photos), batch_size, progress):
                pixels = torch.stack(list(pool.map(self.sizing, photos[own])))
                parts.append(self.embed_pixels(pixels).float().cpu())
        return _as(torch.cat(parts), output)

    def encode_products(
        self,
        products: Product | Sequence[Product],
        batch_size: int | None = None,
        progress: bool = True,
        output: str = 'torch',
        entities: bool = True,
    ) -> Tensor | np.ndarray:
        """(n, D) unit vectors of products as their texts and metadata say.

        Args:
            products: descriptions, or dicts with the text fields of the model
                (:attr:`text_fields`) and ``entities``, for each type a list of names, e.g.
                ``dict(description='low sneakers', entities=dict(brand=['Golden Goose']))``.
                Entities are read from the text where a product has none; types and fields that the
                model does not know are not read.
            entities: ``False`` leaves all entities unknown: what the model makes of the text
                without the intervention.
            batch_size, progress, output: see :meth:`encode_images`.
        """
        vectors, _ = self._embed(self.read(products), entities, batch_size, progress)
        return _as(vectors, output)

    def encode_queries(self, queries: str | Sequence[str], **kwargs: Any) -> Tensor | np.ndarray:
        """(n, D) unit vectors of free texts, entities found in them; see :meth:`encode_products`.

        Raises:
            TypeError: a query that is no text.
        """
        return self.encode_products(_check_queries(queries), **kwargs)

    def explain(self, products: Product | Sequence[Product]) -> list[Reading]:
        """The entities that each product or query is read with, and CE-Selector's weights."""
        return self.encode_and_explain(products, progress=False)[1]

    def encode_and_explain(
        self,
        products: Product | Sequence[Product],
        batch_size: int | None = None,
        progress: bool = True,
        output: str = 'torch',
        entities: bool = True,
    ) -> tuple[Tensor | np.ndarray, list[Reading]]:
        """:meth:`encode_products` and :meth:`explain` at once.

        With ``entities=False`` readings have the text alone.
        """
        listed = _listed(products)
        encoded = self.read(listed)
        vectors, weights = self._embed(encoded, entities, batch_size, progress)
        known = [
            {(k, int(ids[k, m])): float(own[k, m]) for k, m in np.argwhere(ids).tolist()}
            for ids, own in zip(encoded.entity_ids * entities, weights, strict=True)
        ]
        readings = [self._reading(p, found) for p, found in zip(listed, known, strict=True)]
        return _as(vectors, output), readings

    def __call__(
        self, inputs: Any, kind: str, batch_size: int | None = None, progress: bool = True
    ) -> list[dict]:
        """One dict an input, with its ``embedding`` (D,), of texts also its ``entities``.

        Args:
            inputs: photos, products or queries, or one of them.
            kind: which they are: ``'photo'``, ``'product'`` or ``'query'``.
            batch_size, progress: see :meth:`encode_images`.
        """
        if kind not in KINDS:
            raise ValueError(f'kind={kind!r} is not known; choose one of {KINDS}.')
        options: dict[str, Any] = dict(batch_size=batch_size, progress=progress, output='numpy')
        if kind == 'photo':
            return [dict(embedding=row) for row in self.encode_images(inputs, **options)]
        if kind == 'query':
            _check_queries(inputs)
        rows, readings = self.encode_and_explain(inputs, **options)
        return [
            dict(embedding=row, **reading.to_dict())
            for row, reading in zip(rows, readings, strict=True)
        ]

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Names of the text fields the model reads; a bare text is the last of them."""
        return self.tokenizer.text_fields

    def read(self, products: Product | Sequence[Product]) -> EncodedTexts:
        """Products as token ids and entity ids."""
        return self.tokenizer.encode_all(self._parts(p) for p in _listed(products))

    def _parts(self, product: Product) -> tuple[dict, dict]:
        """Text fields and entities of a product."""
        fields = dict.fromkeys(self.text_fields, '')
        if isinstance(product, str):
            return {**fields, self.text_fields[-1]: product} if fields else {}, {}
        if not isinstance(product, Mapping):
            raise TypeError(f'a product must be a text or a dict, got {type(product).__name__}.')
        entities = product.get('entities') or {}
        given = {k: v for k, v in product.items() if k in fields}
        wrong = {k: v for k, v in given.items() if not isinstance(v, str)}
        if (not given and not entities) or wrong or not isinstance(entities, Mapping):
            raise ValueError(
                f'a product must have texts {self.text_fields} and may have entities, a list of '
                f'names for each type, got {dict(product)!r:.200}.'
            )
        return fields | given, dict(entities)

    def _reading(self, product: Product, weights: Mapping[tuple[int, int], float]) -> Reading:
        fields, entities = self._parts(product)
        text = clean_text(self.tokenizer.compose(fields, entities))
        places: dict[tuple[int, int], tuple[int, int]] = {}
        for mention in self.tokenizer.matcher.find(text):
            for key in mention.entities:
                places.setdefault(key, (mention.start, mention.end))
        vocab = self.tokenizer.vocab
        found = []
        for (k, id_), weight in weights.items():
            type_ = vocab.types[k]
            name, count = vocab.names[type_][id_ - 1], vocab.counts[type_][id_ - 1]
            place = places.get((k, id_), (None, None))
            found.append(Entity(type_, name, weight, count, *place))
        return Reading(text, tuple(found))

    @torch.no_grad()
    def _embed(
        self, encoded: EncodedTexts, entities: bool, batch_size: int | None, progress: bool
    ) -> tuple[Tensor, Tensor]:
        """(T, D) unit vectors and (T, K, M) weights."""
        ids = torch.from_numpy(encoded.entity_ids).long() * entities
        text = torch.from_numpy(encoded.text).long()
        vectors, weights = [torch.zeros(0, self.dim)], [torch.zeros(0, *ids.shape[1:])]
        for own in self._slices(len(text), batch_size, progress):
            longest = int(encoded.length[own].max())  # what is beyond is padding
            embedded = self.embed_tokens(text[own, :longest], ids[own])
            for parts, rows in zip((vectors, weights), embedded, strict=True):
                parts.append(rows.float().cpu())
        return torch.cat(vectors), torch.cat(weights)

    def _slices(self, n: int, batch_size: int | None, progress: bool) -> Iterator[slice]:
        size = batch_size or self.batch_size
        starts = range(0, n, size)
        hidden = not progress or len(starts) < 4
        for start in tqdm(starts, unit=' rows', unit_scale=size, disable=hidden):
            yield slice(start, min(start + size, n))


def _listed(products: Product | Sequence[Product]) -> list[Product]:
    return [products] if isinstance(products, (str, Mapping)) else list(products)


def _check_queries(queries: str | Sequence[str]) -> list[str]:
    listed: list[Any] = _listed(queries)
    for query in listed:
        if not isinstance(query, str):
            raise TypeError(f'a query must be a str, got {type(query).__name__}.')
    return listed


def _as(vectors: Tensor, output: str) -> Tensor | np.ndarray:
    if output not in OUTPUTS:
        raise ValueError(f'output={output!r} is not known; choose one of {OUTPUTS}.')
    return vectors.numpy() if output == 'numpy' else vectors
