"""What a model makes of one split, in memory and in files: all that evaluation ever reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eiclip_mm.utils.untrusted import shown
from eiclip_mm.utils.whole_file import whole_file

from .files import (
    FORMATS,
    LABEL,
    UNREADABLE,
    VECTORS,
    integers,
    json_object,
    native,
    npz_path,
    read_folder,
)
from .npz import open_npz

NUMBERS = dict(
    image=('image_product_id', 'image_view'),
    product=('product_id', 'product_caption', 'product_text'),
)
REQUIRED = ('image', 'image_product_id', 'product', 'product_id')
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False, kw_only=True)
class Embeddings:
    """What a model makes of one split: embedded once, scored by every protocol.

    Attributes:
        image: (N, D) image embeddings, one for each view of each product; floating.
        image_product_id: (N,) integers, the product an image shows.
        product: (P, D) text embeddings, one for each caption of each product.
        product_id: (P,) integers, the product a text describes.
        image_view: (N,) integers, number of the view within its product, from 0; if left out, the
            images of a product are numbered in their order.
        product_caption: (P,) integers, the same of the texts.
        product_text: (P,) integers, equal where the texts are equal; optional.
        labels: for each name, (P,) strings: what a product is. A label may restrict candidates
            (``subcategory``) or cut the result into slices (``brand``); '' is no value.
        card: how the embeddings came about, as plain JSON; see ``docs/protocols.md``.
    """

    image: Tensor
    image_product_id: Tensor
    product: Tensor
    product_id: Tensor
    image_view: Tensor = None  # type: ignore[assignment]  # numbered below where not given
    product_caption: Tensor = None  # type: ignore[assignment]  # as well
    product_text: Tensor | None = None
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    card: Mapping = field(default_factory=dict)

    def __post_init__(self) -> None:
        for ids, numbers in (('image_product_id', 'image_view'), ('product_id', 'product_caption')):
            integer = getattr(self, ids).dtype in INTEGERS  # others are refused below
            if integer and getattr(self, numbers) is None:
                object.__setattr__(self, numbers, numbered(getattr(self, ids)))
        for side in VECTORS:
            self._check_side(side)
        for name, values in self.labels.items():
            if values.shape != self.product_id.shape or values.dtype.kind != 'U':
                raise ValueError(
                    f'label {name!r} must be {len(self.product_id)} strings, one for each text, '
                    f'got {values.shape} of {values.dtype}'
                )

    def _check_side(self, side: str) -> None:
        vectors = getattr(self, side)
        keys = {n: getattr(self, n) for n in NUMBERS[side] if getattr(self, n) is not None}
        for name, key in keys.items():
            if vectors.ndim != 2 or key.shape != vectors.shape[:1] or key.dtype not in INTEGERS:
                raise ValueError(
                    f'{side} must be (rows, D) and {name} as many integers, such as int64, got '
                    f'{tuple(vectors.shape)} and {tuple(key.shape)} of {key.dtype}'
                )
        _check_vectors(side, vectors)
        own = list(keys)[:2]
        if (keys[own[1]] < 0).any():
            raise ValueError(f'{own[1]} counts from 0, got {int(keys[own[1]].min())}')
        rows = torch.stack([keys[name] for name in own], 1)
        distinct, count = rows.unique(dim=0, return_counts=True)
        if (count > 1).any():
            raise ValueError(
                f'{int((count > 1).sum())} pairs of ({", ".join(own)}) occur more than '
                f'once, e.g. {distinct[count > 1][:5].tolist()}; number the views and captions '
                'of each product from 0'
            )

    def to(self, device: str | torch.device) -> 'Embeddings':
        """The same on another device; evaluation runs where the arrays are."""
        names = [*VECTORS, *(n for side in VECTORS for n in NUMBERS[side])]
        arrays = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        return replace(self, **{n: array.to(device) for n, array in arrays.items()})

    def described(self, texts: Mapping | None, card: Mapping) -> 'Embeddings':
        """The same with a card, and labels and equal texts by product id and caption.

        Args:
            texts: ``product_id``, ``caption`` and ``text``, (T,) integers; ``labels``, a dict of
                (T,) strings, as data sets of this package give in
                ``metainfo['retrieval']['texts']``; texts without a row get '' and a text of
                their own. ``None`` where nothing is known.
            card: plain JSON.
        """
        if texts is None:
            return replace(self, card=card)
        place = {
            pair: row
            for row, pair in enumerate(
                zip(texts['product_id'].tolist(), texts['caption'].tolist(), strict=True)
            )
        }
        own = zip(self.product_id.tolist(), self.product_caption.tolist(), strict=True)
        rows = np.array([place.get(pair, -1) for pair in own])
        missing = -1 - np.arange(len(rows))  # different from each other and from every hash
        return replace(
            self,
            product_text=torch.from_numpy(np.where(rows < 0, missing, texts['text'][rows])),
            labels={n: np.where(rows < 0, '', v[rows]) for n, v in texts['labels'].items()},
            card=card,
        )

    def label(self, name: str) -> np.ndarray:
        """(P,) strings, the label of that name.

        Raises:
            ValueError: there is no such label; says which there are.
        """
        if name not in self.labels:
            raise ValueError(
                f'the embeddings have no label {name!r}; they have {sorted(self.labels)}. Data '
                f'sets of this package write one for each entity type; in a dump of your own, add '
                f'the array {LABEL + name!r}, one string for each text'
            )
        return self.labels[name]

    def arrays(self) -> dict[str, np.ndarray]:
        """What files hold, by name: vectors as float32, numbers as int64, labels as strings."""
        arrays = {name: getattr(self, name) for side in VECTORS for name in (side, *NUMBERS[side])}
        return {name: _to_numpy(array) for name, array in arrays.items() if array is not None} | {
            LABEL + name: values for name, values in self.labels.items()
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`arrays` and the card to an .npz, which is there once it is complete."""
        path = npz_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        card = np.array(json.dumps(self.card, ensure_ascii=False))
        arrays: dict[str, Any] = self.arrays()
        with whole_file(path) as file:
            np.savez(file, **arrays, card=card)

    @classmethod
    def load(cls, path: str | Path) -> 'Embeddings':
        """Read what :meth:`save` wrote, or arrays of the same names from elsewhere.

        A folder holds each array as ``NAME.npy`` (mapped into memory, so it may be large), or the
        columns ``image, image_product_id, …`` in ``image.parquet`` and ``product, product_id, …``
        in ``product.parquet``, or the shards of ``tools/extract_features.py``, which are read as
        one dump. Integers of any kind become int64.

        Raises:
            FileNotFoundError: there is no such file or folder.
            ValueError: it does not hold embeddings; says what is wrong.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(
                f'embeddings {path} do not exist. Write them with tools/test.py --out, with '
                f'RetrievalMetric(out=...) or as {FORMATS}.'
            )
        try:
            if not path.is_file() and not path.is_dir():  # a pipe would never end
                raise ValueError('it is neither a file nor a folder')
            if path.is_dir():
                return cls._from_arrays(read_folder(path))
            with open(path, 'rb') as file, open_npz(file) as arrays:
                return cls._from_arrays(arrays)
        except UNREADABLE as error:
            raise ValueError(f'{path} does not hold embeddings: {shown(error, 500)}') from error

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> 'Embeddings':
        known = {name for side in VECTORS for name in (side, *NUMBERS[side])}
        labels = [name for name in arrays if name.startswith(LABEL)]
        missing = sorted(set(REQUIRED) - arrays.keys())
        unknown = sorted(name[:50] for name in arrays.keys() - known - {'card', *labels})
        if missing or unknown:  # before any array is read: an unknown one may be of any size
            more = f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''
            raise ValueError(
                f'it lacks {missing} and has unknown {unknown[:5]}{more}; expected '
                f"{sorted(known)}, 'card' and labels such as '{LABEL}brand'"
            )
        of_kind = {name: native if name in VECTORS else integers for name in known}
        return cls(
            **{
                name: torch.from_numpy(of_kind[name](name, arrays[name]))
                for name in known & arrays.keys()
            },
            labels={n.removeprefix(LABEL): np.asarray(arrays[n]).astype(str) for n in labels},
            card=json_object('card', arrays['card']) if 'card' in arrays else {},
        )


def _check_vectors(side: str, vectors: Tensor) -> None:
    if not vectors.is_floating_point():
        raise ValueError(f'{side} must be floating, such as float32, got {vectors.dtype}')
    if vectors.dtype == torch.float64:
        rows = (vectors.float().isinf() & vectors.isfinite()).any(1).nonzero().flatten()
        if len(rows):
            raise ValueError(
                f'{side} has float64 numbers beyond float32, in which evaluation computes, in '
                f'{len(rows)} of {len(vectors)} rows, first in row {int(rows[0])}: up to '
                f'{float(vectors[rows[0]].abs().max()):.3g}, at most 3.4e38; normalise them first'
            )


def numbered(ids: Tensor) -> Tensor:
    """Number of each row among those of its id, in their order.

    >>> numbered(torch.tensor([7, 3, 7, 7, 3]))
    tensor([0, 0, 1, 2, 1])
    """
    order = ids.argsort(stable=True)
    in_order = ids[order]
    number = torch.empty_like(order)
    number[order] = torch.arange(len(ids), device=ids.device) - torch.searchsorted(
        in_order, in_order
    )
    return number


def _to_numpy(tensor: Tensor) -> np.ndarray:
    dtype = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor.detach().cpu().to(dtype).numpy()
