"""Which words and entities of a product make its cosine with a photo: each left out in turn.

Exact, not estimated: the text is read and embedded again without it, CE-Selector weighing anew.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eiclip_mm.structures import UNKNOWN, clean_text, words


@dataclass(frozen=True)
class LeftOut:
    """Something that was left out.

    Attributes:
        kind: ``'word'``, of the text alone; ``'entity'``, of the entities alone, the text as it is;
            ``'both'``, an entity together with its name in the text; ``'entities'``, all of them.
        name: what was left out.
        type: its entity type.
        weight: CE-Selector's of the entity, in [0, 1].
        drop: cosine before less cosine after: above 0 it speaks for the match.
        start: first character in the text.
    """

    kind: str
    name: str
    drop: float
    type: str | None = None
    weight: float | None = None
    start: int | None = None


def left_out(encoder: Any, product: Any, image: Tensor) -> tuple[float, list[LeftOut]]:
    """The cosine of a photo and a product, and by how much each part of the product raises it.

    Args:
        encoder: an :class:`eiclip_mm.apis.Encoder`.
        product: as its ``encode_products`` takes it.
        image: (D,) unit length.
    """
    read, reading = encoder.read(product), encoder.explain(product)[0]
    ids = torch.from_numpy(read.entity_ids[0]).long()  # (K, M)
    parts = list(_parts(encoder.tokenizer, reading, ids))
    texts = _texts(encoder.tokenizer, [text for _, text, _ in parts])
    texts = torch.cat([torch.from_numpy(read.text[:1]).long(), texts])
    all_ids = torch.stack([ids, *(own for *_, own in parts)])
    with torch.no_grad():
        pieces = zip(
            texts.split(encoder.batch_size), all_ids.split(encoder.batch_size), strict=True
        )
        vectors = torch.cat([encoder.embed_tokens(*piece)[0].float().cpu() for piece in pieces])
    cosine = vectors @ image
    drops = (cosine[0] - cosine[1:]).tolist()
    found = [LeftOut(**of, drop=drop) for (of, *_), drop in zip(parts, drops, strict=True)]
    return float(cosine[0]), found


def _parts(tokenizer: Any, reading: Any, ids: Tensor) -> Iterator[tuple[dict, str, Tensor]]:
    """What can be left out: what it is, the text without it, the entity ids without it."""
    text, mentions = reading.text, tokenizer.matcher.find(reading.text)
    for start, end in _units(tokenizer.mention, text, mentions):
        of = dict(kind='word', name=text[start:end], start=start)
        yield of, _without(text, [(start, end)]), ids
    vocab = tokenizer.vocab
    for entity in reading.entities:
        k, id_ = vocab.types.index(entity.type), vocab.id(entity.type, entity.name)
        of = dict(name=entity.name, type=entity.type, weight=entity.weight, start=entity.start)
        rest = ids.clone()
        kept = [own for own in ids[k].tolist() if own not in (UNKNOWN, id_)]
        rest[k] = torch.tensor(kept + [UNKNOWN] * (ids.shape[1] - len(kept)))
        yield dict(of, kind='entity'), text, rest
        spans = [(m.start, m.end) for m in mentions if (k, id_) in m.entities]
        if spans:
            yield dict(of, kind='both'), _without(text, spans), rest
    if reading.entities:
        yield dict(kind='entities', name='all entities'), text, torch.zeros_like(ids)


def _units(mention: str, text: str, mentions: Sequence) -> Iterator[tuple[int, int]]:
    """Words by their characters; where mentions are tokens of their own, each whole mention."""
    whole = [] if mention == 'keep' else [(m.start, m.end) for m in mentions]
    inside = np.zeros(len(text), dtype=bool)
    for start, end in whole:
        inside[start:end] = True
    plain = [
        (start, end)
        for word, start, end in words(text)
        if any(map(str.isalnum, word)) and not inside[start]
    ]
    yield from sorted(whole + plain)


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """A text without some of its characters."""
    for start, end in reversed(spans):
        text = f'{text[:start]} {text[end:]}'
    return clean_text(text)


def _texts(tokenizer: Any, texts: list[str]) -> Tensor:
    """(T, L) token ids of texts that are composed already."""
    whole = copy(tokenizer)
    whole.fields = ('text',)
    return torch.from_numpy(whole.encode_all((dict(text=text), None) for text in texts).text).long()
