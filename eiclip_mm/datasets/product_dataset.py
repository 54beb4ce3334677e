"""What every product data set shares: items, views, folds of train and seeded randomness."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset, Compose

from eiclip_mm.registry import TOKENIZER
from eiclip_mm.utils.digest import hash63

from .bad_rows import MAX_BAD, BadRows
from .batches import PackProduct, write_batch
from .encoded import EncodedTexts
from .labels import text_card, text_table
from .photo_check import with_sound_photos
from .sampler import kept_generators, seed_generators

VIEWS = ('random', 'first', 'all')
FOLDS = ('all', 'fit', 'select')


def in_select_fold(product_id: int, share: float) -> bool:
    """Whether a product belongs to the slice of train that choices are made on.

    It depends on the id alone, so the slice is the same in every run, epoch and process.
    """
    # hash63 is no crc32: splits made elsewhere from a crc of the id must not meet this slice.
    return hash63(str(product_id).encode()) < share * 2**63


class ProductDataset(BaseDataset):
    """Products with photos, texts and entities; subclasses say where they are read from.

    A *record* is what a subclass's :meth:`load_records` returns for one product::

        dict(product_id=7,
             images=[dict(h5_path=..., row=3), ...] or [dict(img_path=...), ...],  # its views
             texts=[dict(description='...', name='...'), ...],  # its captions, usually one
             entities=dict(brand=['Diesel'], composition=['cotton', 'silk']))

    An *item*, given to the pipeline, holds one view and one text of a record: the keys
    ``product_id, sample_idx, view, caption, text_fields, entities``, those of the image, and
    what the tokenizer made of them: ``text`` (L,), ``text_length``, ``entity_ids`` (K, M),
    ``text_id`` and ``entities_id``, hashes of the text and of all entities, which
    ``EntityDropout`` leaves. All texts are encoded once, when the data set is loaded: ``encoded``
    has a row for each text of each record, in order. If ``encoded.text`` is replaced by (T, F)
    floats, features of a frozen trunk, items hold those.

    Unless views are random, ``metainfo['retrieval']`` tells evaluation what the products are:
    ``texts`` as :func:`~eiclip_mm.datasets.labels.text_table` gives them, ``data`` and ``text``
    for the protocol card.

    Args:
        tokenizer: config of an ``EntityTokenizer``, the same as the model's; without one the items
            hold no ids.
        pipeline: transforms, as in any mmengine data set.
        views: ``'random'``, one item a product with a view (and caption) drawn anew in each
            epoch; ``'first'``, one item a product; ``'all'``, items enough that every view
            and every caption occurs.
        fold: ``'fit'`` leaves out the slice of products on which checkpoints and entities
            are chosen, ``'select'`` is this slice, ``'all'`` is both.
        select_share: size of the slice, as a share of the products.
        seed: of the random views and of whatever the pipeline draws.
        batched: make whole batches at once, see :func:`~.batches.write_batch`; the same values,
            several times as fast. The loader needs ``collate_fn=dict(type='stack_products')`` and
            the pipeline ``PackProduct`` at its end.
        on_error: ``'skip'`` leaves out, when the data set is loaded, rows that cannot be read and
            photos that are missing or cannot be decoded; :attr:`skipped` lists them, but not what
            they take with them: the product of a bad caption, the captions of a bad image. With
            ``'raise'`` a row is an error then, and a photo when it is asked for. Rows of HDF5 are
            read but for their pixels.
        max_bad: share of the rows above which ``'skip'`` is an error, too. Rows are the pairs of a
            photo and a caption that ``views='all'`` makes, and each that :attr:`skipped` lists.
        **kwargs: of ``mmengine.dataset.BaseDataset``.
    """

    def __init__(
        self,
        *,
        tokenizer: dict | None = None,
        pipeline: Sequence = (),
        views: str = 'random',
        fold: str = 'all',
        select_share: float = 0.1,
        seed: int = 0,
        batched: bool = False,
        on_error: str = 'raise',
        max_bad: float = MAX_BAD,
        **kwargs: Any,
    ):
        for name, value, allowed in (('views', views, VIEWS), ('fold', fold, FOLDS)):
            if value not in allowed:
                raise ValueError(f'{name}={value!r} is not known; choose one of {allowed}.')
        if not 0 < select_share < 1:
            raise ValueError(f'select_share must lie between 0 and 1, got {select_share}.')
        if seed < 0:
            raise ValueError(f'seed must be at least 0, got {seed}.')
        self.views, self.fold, self.select_share, self.seed = views, fold, select_share, seed
        self.batched = batched
        self.bad = BadRows(on_error, max_bad)
        self.tokenizer = None if tokenizer is None else TOKENIZER.build(tokenizer)
        self.encoded: EncodedTexts | None = None
        # In shared memory, so that set_epoch reaches loader workers that live on.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()
        kwargs.setdefault('test_mode', views != 'random')
        super().__init__(pipeline=list(pipeline), **kwargs)
        if batched and pipeline and not isinstance(self.pipeline.transforms[-1], PackProduct):
            raise ValueError(
                'batched=True needs PackProduct as the last transform of the pipeline, got '
                f'{type(self.pipeline.transforms[-1]).__name__}; add it or leave batched out.'
            )

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The rows that were left out: ``file``, ``row`` and ``why`` of each."""
        return self.bad.skipped

    def load_records(self) -> list[dict]:
        """All records of the split, one a product; see the class.

        A row that cannot be used goes to ``self.bad.add``.
        """
        raise NotImplementedError

    def _sound_records(self) -> list[dict]:
        """The records without what cannot be used."""
        self.bad = BadRows(self.bad.on_error, self.bad.max_bad)
        records = self.load_records()
        rows = sum(map(_num_rows, records)) + len(self.skipped)
        if self.bad.on_error == 'skip':
            records = with_sound_photos(records, self.pipeline.transforms, self.bad)
        self.bad.check(self.ann_file, rows)
        if not records:
            raise ValueError(f'{self.ann_file}: no product is left; give data that can be read.')
        return records

    def load_data_list(self) -> list[dict]:
        """One entry an item; for random views the entry is the whole record."""
        records = self._sound_records()
        if self.fold != 'all':
            wanted = self.fold == 'select'
            found = len(records)
            records = [
                r for r in records if in_select_fold(r['product_id'], self.select_share) == wanted
            ]
            if not records:
                raise ValueError(
                    f'no product is left of {found} in {self.ann_file} for fold={self.fold!r} '
                    f'with select_share={self.select_share}; choose another share.'
                )
        self._metainfo['views'] = self.views
        self._encode(records)
        if self.views == 'random':
            return records
        self._metainfo['retrieval'] = self._card(records)
        return [
            item(record, i % len(record['images']), i % len(record['texts']))
            for record in records
            for i in range(1 if self.views == 'first' else _num_rows(record))
        ]

    def _encode(self, records: list[dict]) -> None:
        """Encode all texts, and tell each record the row of its first."""
        if self.tokenizer is None:
            return
        row = 0
        for record in records:
            record['text_row'] = row
            row += len(record['texts'])
        self.encoded = self.tokenizer.encode_all(
            (text, record['entities']) for record in records for text in record['texts']
        )

    def _card(self, records: list[dict]) -> dict:
        """What evaluation may know of the split; see :mod:`.labels`."""
        data = dict(
            dataset=type(self).__name__,
            file=Path(self.ann_file).name,
            fold=self.fold,
            views=self.views,
            images=sum(len(record['images']) for record in records),
            products=len(records),
            texts=sum(len(record['texts']) for record in records),
            **({'rows_left_out': len(self.skipped)} if self.skipped else {}),
        )
        card = dict(data=data, texts=text_table(records, self.tokenizer))
        if self.tokenizer is not None:
            card['text'] = text_card(self.tokenizer)
        return card

    def records(self) -> Iterator[dict]:
        """The products' ids, texts and entities, pixels unread (vocabularies, reports)."""
        for i in range(len(self)):
            yield self.get_data_info(i)

    def images(self) -> dict[tuple, dict]:
        """Every photo of the items, by its :func:`image_key`, in order."""
        found: dict[tuple, dict] = {}
        for data in self.records():
            for image in data.get('images', [data]):
                found[image_key(image)] = image
        return found

    def state_of_photos(self, transforms: Iterable) -> list:
        """What changes when the photos do: path, size and time of their files, packs or features.

        Args:
            transforms: those that load them; what has a ``state`` adds it.
        """
        files = sorted({key[0] for key in self.images()})
        stats = [(f, os.stat(f)) for f in files if os.path.isfile(f)]  # what is packed may be gone
        states = [getattr(transform, 'state', None) for transform in transforms]
        return [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats] + [
            state for state in states if state is not None
        ]

    def set_epoch(self, epoch: int) -> None:
        """Fix what random views and transforms draw; called by :class:`ProductSampler`.

        Without a call they draw from the process's generators: random, but not repeatable.
        """
        self._epoch.fill_(epoch)

    def prepare_data(self, idx: int) -> dict:
        """Run the pipeline on one item."""
        epoch = int(self._epoch)
        with kept_generators(epoch >= 0):
            return self._run(idx, epoch, self.pipeline)

    def __getitems__(self, indices: Sequence[int]) -> dict | list:
        """A whole batch, asked for by torch's loader; a list of samples if not ``batched``."""
        if not self.batched or not self.pipeline.transforms:
            return [self[i] for i in indices]
        pipeline, epoch = Compose(self.pipeline.transforms[:-1]), int(self._epoch)
        # Keeping the generators' states takes longer than a crop: once a batch is enough.
        with kept_generators(epoch >= 0):
            return write_batch((self._run(i, epoch, pipeline) for i in indices), len(indices))

    def _run(self, idx: int, epoch: int, pipeline: Compose) -> dict:
        if epoch >= 0:
            seed_generators(self.seed, epoch, idx % len(self))
        return pipeline(self._item(idx))

    def _item(self, idx: int) -> dict:
        data = self.get_data_info(idx)
        if self.views == 'random':
            view = np.random.randint(len(data['images']))
            caption = np.random.randint(len(data['texts']))
            data = item(data, view, caption)
        if self.encoded is not None:
            data.update(_text_of(self.encoded, data.pop('text_row') + data['caption']))
        return data


def _num_rows(record: dict) -> int:
    """Pairs of a photo and a caption, so many that each occurs."""
    return max(len(record['images']), len(record['texts']))


def _text_of(encoded: EncodedTexts, row: int) -> dict:
    """What the tokenizer made of a text."""
    text, entity_ids = encoded.text[row], encoded.entity_ids[row].astype(np.int64)
    ids = dict(text_id=int(encoded.text_id[row]), entities_id=hash63(entity_ids.tobytes()))
    made = dict(ids, entity_ids=entity_ids)
    if text.dtype.kind == 'f':
        return dict(made, text=text.astype(np.float32))
    length = int(encoded.length[row])
    return dict(made, text=text.astype(np.int64), text_length=length)


def image_key(image: dict) -> tuple:
    """What names a photo: its file, or its HDF5 file and row."""
    return (image['h5_path'], image['row']) if 'h5_path' in image else (image['img_path'],)


def item(record: dict, view: int, caption: int) -> dict:
    """One view and one caption of a record, as the pipeline gets it."""
    rest = {k: v for k, v in record.items() if k not in ('images', 'texts')}
    return dict(
        rest,
        view=view,
        caption=caption,
        text_fields=record['texts'][caption],
        **record['images'][view],
    )
