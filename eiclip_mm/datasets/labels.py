"""What evaluation may know of a split beside its embeddings: labels, equal texts, origin."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from json import dumps

import numpy as np

from eiclip_mm.structures import UNKNOWN, EntityVocab, entity_key
from eiclip_mm.utils.digest import hash63

from .tokenizer import EntityTokenizer


def text_table(records: Sequence[Mapping], tokenizer: EntityTokenizer | None = None) -> dict:
    """One row for each text of the records, in order.

    Returns:
        ``product_id``, ``caption`` and ``text``, (P,) int64, where ``text`` is equal for texts
        that are equal but for case and spaces; and ``labels``, a dict of (P,) strings: for each
        entity type its value, several joined by "; ", '' for none, and, if the tokenizer's
        vocabulary has the type,

        ==================  ====================================================================
        ``brand.seen``      ``seen`` or ``unseen`` in training
        ``brand.frequency`` ``head``, ``tail`` or ``unseen``: the most frequent names, which
                            together make up half of the occurrences in training, are the head
        ``brand.mention``   ``mentioned`` or ``not mentioned`` in the text itself
        ==================  ====================================================================

        Of several values the rarest decides, and each counts as mentioned.
    """
    rows = [(record, number) for record in records for number in range(len(record['texts']))]
    texts = [' '.join(record['texts'][number].values()) for record, number in rows]
    types = dict.fromkeys(type_ for record in records for type_ in record['entities'])
    labels = {
        type_: ['; '.join(record['entities'].get(type_, ())) for record, _ in rows]
        for type_ in types
    }
    if tokenizer is not None:
        mentions = [_mentioned(tokenizer, text) for text in texts]
        for k, type_ in enumerate(tokenizer.vocab.types):
            rank = _frequency(tokenizer.vocab, type_)
            ids = [
                [tokenizer.vocab.id(type_, name) for name in record['entities'].get(type_, ())]
                for record, _ in rows
            ]
            rarest = [max(map(rank.__getitem__, own), default=3) for own in ids]
            labels[f'{type_}.frequency'] = [('head', 'tail', 'unseen', '')[r] for r in rarest]
            labels[f'{type_}.seen'] = [('seen', 'seen', 'unseen', '')[r] for r in rarest]
            labels[f'{type_}.mention'] = [
                '' if not own else
                'mentioned' if found & {(k, id_) for id_ in own} else 'not mentioned'
                for own, found in zip(ids, mentions, strict=True)
            ]  # fmt: skip
    return dict(
        product_id=np.array([record['product_id'] for record, _ in rows], dtype=np.int64),
        caption=np.array([number for _, number in rows], dtype=np.int64),
        text=np.array([_number(text) for text in texts], dtype=np.int64),
        labels={name: np.array(values, dtype=str) for name, values in labels.items()},
    )


def text_card(tokenizer: EntityTokenizer) -> dict:
    """How products become text, and where the vocabulary comes from, as plain JSON."""
    vocab = dumps(tokenizer.vocab.to_dict(), sort_keys=True)
    return tokenizer.reading | dict(
        tags=tokenizer.tags,
        context_length=tokenizer.subwords.context_length,
        vocab_source=tokenizer.vocab.source,
        vocab_sha256=sha256(vocab.encode()).hexdigest()[:16],
    )


def _number(text: str) -> int:
    """63 bits that are equal where the texts are, but for case and spaces."""
    return hash63(entity_key(text).encode())


def _mentioned(tokenizer: EntityTokenizer, text: str) -> set[tuple[int, int]]:
    return {entity for mention in tokenizer.matcher.find(text) for entity in mention.entities}


def _frequency(vocab: EntityVocab, type_: str) -> list[int]:
    """For each entity id 0 (head), 1 (tail) or 2 (unseen)."""
    counts = np.array(vocab.counts[type_])
    order = np.argsort(-counts, kind='stable')
    before = np.cumsum(counts[order]) - counts[order]
    rank = np.ones(len(counts) + 1, dtype=int)
    rank[1 + order] = np.where(before < counts.sum() / 2, 0, 1)
    rank[UNKNOWN] = 2
    return rank.tolist()
