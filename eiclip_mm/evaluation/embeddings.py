"""What a model makes of one split, in memory and in files: all that evaluation ever reads."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

VECTORS = ('image', 'product')
NUMBERS = dict(
    image=('image_product_id', 'image_view'),
    product=('product_id', 'product_caption', 'product_text'),
)
REQUIRED = ('image', 'image_product_id', 'product', 'product_id')
LABEL = 'label.'  # label.brand is the array of the label brand
# what numpy raises, depending on where in a file the damage is
UNREADABLE = (
    ValueError, TypeError, KeyError, AttributeError, EOFError, NotImplementedError, BadZipFile,
    TokenError, zlib.error,
)  # fmt: skip
FORMATS = 'a .npz file, or a folder of .npy files or of image.parquet and product.parquet'


@dataclass(frozen=True, eq=False, kw_only=True)
class Embeddings:
    """What a model makes of one split: embedded once, scored by every protocol.

    Attributes:
        image: (N, D) image embeddings, one for each view of each product.
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
    image_view: Tensor | None = None
    product_caption: Tensor | None = None
    product_text: Tensor | None = None
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    card: Mapping = field(default_factory=dict)

    def __post_init__(self):
        for ids, numbers in (('image_product_id', 'image_view'), ('product_id', 'product_caption')):
            if getattr(self, numbers) is None:
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
            if vectors.ndim != 2 or key.shape != vectors.shape[:1] or key.is_floating_point():
                raise ValueError(
                    f'{side} must be (rows, D) and {name} as many integers, got '
                    f'{tuple(vectors.shape)} and {tuple(key.shape)} of {key.dtype}'
                )
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

    def save(self, path: str | Path) -> None:
        """Write the arrays of the class to an .npz: vectors as float32, numbers as int64."""
        path = npz_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for side in VECTORS for name in (side, *NUMBERS[side])}
        np.savez(
            path,
            **{name: _to_numpy(array) for name, array in arrays.items() if array is not None},
            **{LABEL + name: values for name, values in self.labels.items()},
            card=np.array(json.dumps(self.card, ensure_ascii=False)),
        )

    @classmethod
    def load(cls, path: str | Path) -> 'Embeddings':
        """Read what :meth:`save` wrote, or arrays of the same names from elsewhere.

        A folder holds each array as ``NAME.npy`` (mapped into memory, so it may be large), or the
        columns ``image, image_product_id, …`` in ``image.parquet`` and ``product, product_id, …``
        in ``product.parquet``.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(
                f'embeddings {path} do not exist. Write them with tools/test.py --out, with '
                f'RetrievalMetric(out=...) or as {FORMATS}.'
            )
        try:
            return cls._from_arrays(_read(path))
        except UNREADABLE as error:
            raise ValueError(f'{path} does not hold embeddings: {error}') from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray]) -> 'Embeddings':
        card = arrays.pop('card', None)
        labels = {n: arrays.pop(n) for n in list(arrays) if n.startswith(LABEL)}
        known = {name for side in VECTORS for name in (side, *NUMBERS[side])}
        missing = sorted(set(REQUIRED) - arrays.keys())
        unknown = sorted(arrays.keys() - known)
        if missing or unknown:
            raise ValueError(
                f'it lacks {missing} and has unknown {unknown}; expected {sorted(known)}, '
                f"'card' and labels such as '{LABEL}brand'"
            )
        return cls(
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            labels={n.removeprefix(LABEL): np.asarray(v).astype(str) for n, v in labels.items()},
            card={} if card is None else json.loads(str(card)),
        )


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.is_file():
        with open(path, 'rb') as file:
            stored = np.load(file, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise ValueError(f'one array alone; expected {FORMATS}')
            with stored:
                return {name: stored[name] for name in stored.files}
    if (path / 'image.parquet').is_file():
        return _read_parquet(path / 'image.parquet') | _read_parquet(path / 'product.parquet')
    files = sorted(path.glob('*.npy'))
    if not files:
        raise ValueError(f'an empty folder; expected {FORMATS}')
    # 'c': private to this process, so that torch may have it, but read from the file when needed
    return {file.stem: np.load(file, mmap_mode='c', allow_pickle=False) for file in files}


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        from pyarrow import ArrowInvalid, compute, parquet
    except ImportError as error:
        raise ImportError(
            "reading parquet needs pyarrow: pip install 'eiclip_mm[report]'"
        ) from error
    try:
        table = parquet.read_table(path)
    except ArrowInvalid as error:
        raise ValueError(f'{path.name}: {error}') from error
    if table.num_rows == 0:
        raise ValueError(f'{path.name} has no rows')
    arrays = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name not in VECTORS:
            if name.startswith(LABEL):
                column = column.cast('string').fill_null('')
            arrays[name] = column.to_numpy(zero_copy_only=False)
            continue
        lengths = set(compute.list_value_length(column).to_pylist())
        if len(lengths) > 1 or None in lengths:
            raise ValueError(f'{path.name}: vectors of column {name!r} differ in length')
        values = column.flatten().to_numpy(zero_copy_only=False)
        arrays[name] = values.reshape(table.num_rows, -1).copy()
    return {
        name: array.astype(str) if array.dtype == object else array.copy()
        for name, array in arrays.items()
    }


def npz_path(path: str | Path) -> Path:
    """The path, which must end in .npz: numpy would append it in silence."""
    if Path(path).suffix != '.npz':
        raise ValueError(f'embeddings are written as .npz, got the path {str(path)!r}')
    return Path(path)


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
