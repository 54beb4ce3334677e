"""How a tokenizer reads a product, in words: tokens by their spelling, entities by their names."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.datasets import EntityTokenizer
from eiclip_mm.registry import TOKENIZER
from eiclip_mm.structures import UNKNOWN, clean_text
from eiclip_mm.visualization import Named, ReadText, Token


class Reader:
    """Reads products as a tokenizer does, and says what became of each name and sub-word.

    Args:
        config: of an ``EntityTokenizer``.
        tokenizer: built from it.
    """

    def __init__(self, config: Mapping, tokenizer: EntityTokenizer):
        self.config, self.tokenizer, self._longer = dict(config), tokenizer, tokenizer
        self._entities = [(t, n) for t, names in tokenizer.vocab.names.items() for n in names]

    def __call__(
        self, text_fields: Mapping[str, str], entities: Mapping[str, Sequence[str]]
    ) -> ReadText:
        """What the model gets of a product."""
        encoded = self.tokenizer(text_fields, entities)
        types = self.tokenizer.vocab.types
        marks = [(m.start, m.end, [types[k] for k, _ in m.entities]) for m in encoded.mentions]
        kept = self._bare(self.tokenizer, encoded.text)
        all_ids = kept
        if encoded.dropped:
            longer = self._with_room(len(kept) + encoded.dropped + 2)
            all_ids = self._bare(longer, longer(text_fields, entities).text)
        return ReadText(
            text=encoded.composed,
            mentions=marks,
            tokens=list(self._tokens(all_ids, kept)),
            entities=list(self._named(entities, encoded.entity_ids)),
        )

    def _with_room(self, length: int) -> EntityTokenizer:
        """The same tokenizer for texts of ``length`` tokens at least."""
        if self._longer.subwords.context_length < length:
            config = dict(self.config, vocab=self.tokenizer.vocab, context_length=length)
            self._longer = TOKENIZER.build(config)
        return self._longer

    @staticmethod
    def _bare(tokenizer: EntityTokenizer, text: np.ndarray) -> list[int]:
        """A text's ids between start and end."""
        ids = text.tolist()
        return ids[1 : ids.index(tokenizer.subwords.end, 1)]

    def _tokens(self, ids: Sequence[int], kept: Sequence[int]) -> Iterator[Token]:
        """All tokens of a text, of which ``kept`` is a part in order."""
        place = 0
        for id_ in ids:
            fits = place < len(kept) and kept[place] == id_
            place += fits
            yield self._token(id_, not fits)

    def _token(self, id_: int, dropped: bool) -> Token:
        added = id_ - self.tokenizer.subwords.size
        if added < 0:
            return Token(spelling(self.tokenizer, id_), dropped=dropped)
        if self.tokenizer.mention == 'cut':
            return Token('<entity>', dropped=dropped)
        type_, name = self._entities[added]
        return Token(f'<{type_}:{name}>', type_, dropped)

    def _named(
        self, entities: Mapping[str, Sequence[str]], entity_ids: np.ndarray
    ) -> Iterator[Named]:
        """The names of the metadata, and those that were read from the text instead."""
        vocab = self.tokenizer.vocab
        for k, type_ in enumerate(vocab.types):
            got = [int(id_) for id_ in entity_ids[k] if id_ != UNKNOWN]
            given = {vocab.id(type_, name): name for name in entities.get(type_, ())}
            for name in map(clean_text, entities.get(type_, ())):
                id_ = vocab.id(type_, name)
                count = vocab.counts[type_][id_ - 1] if id_ else 0
                yield Named(type_, name, id_, count, 'metadata', id_ not in got)
            for id_ in got:
                if id_ not in given:
                    name, count = vocab.names[type_][id_ - 1], vocab.counts[type_][id_ - 1]
                    yield Named(type_, name, id_, count, 'text')
        for type_, names in entities.items():
            if type_ not in vocab.types:  # the model has no such type
                yield from (Named(type_, name, UNKNOWN, 0, 'metadata') for name in names)


def spelling(tokenizer: EntityTokenizer, id_: int) -> str:
    """A sub-word as its tokenizer writes it."""
    subwords = tokenizer.subwords
    if subwords.hugging_face is not None:
        return subwords.hugging_face.convert_ids_to_tokens(id_)
    return subwords.open_clip.decode([id_]).strip()
