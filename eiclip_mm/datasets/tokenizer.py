"""Entity-aware tokenizer: where a product's text loses its wrong meaning.

Source: ours, on the paper's motive: sub-word tokens intertwine entities ("Canada Goose", "Golden
Goose"), and the language part should be entity-aware. How it is done is our reconstruction.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from mmengine.dist import is_main_process
from tqdm import tqdm

from eiclip_mm.registry import TOKENIZER
from eiclip_mm.structures import UNKNOWN, EntityVocab, clean_text
from eiclip_mm.utils.digest import hash63

from .encoded import Encoded, EncodedTexts
from .matcher import EntityMatcher, Mention
from .subwords import SubWords

MENTION = ('keep', 'cut', 'token')
TAGS = ('given', 'text')
CHUNK = 4096  # texts that encode_all encodes at a time
_NAMES = re.compile(r'{(\w+)}')
SILENT = 100_000  # texts that take no progress bar


@TOKENIZER.register_module()
class EntityTokenizer:
    """Description and metadata in, token ids and entity ids out.

    A mention in the text is treated in one of three ways:

    ========  ==================================================================================
    mention   "a Golden Goose tee" becomes
    ========  ==================================================================================
    keep      ``<start> a golden goose tee <end>``, the ids open_clip itself gives
    cut       ``<start> a <entity> tee <end>``: the arrow from the words to their sense is cut
    token     ``<start> a <brand:Golden Goose> tee <end>``, one token of its own per entity
    ========  ==================================================================================

    Too long a text loses sub-words from its end, never the end token; with ``token`` the tokens
    of entities stay and ordinary sub-words go. What was lost is counted in ``Encoded.dropped``.
    Entities travel as ids beside the text in any case.

    Args:
        model: open_clip model name or architecture, the same as the towers'.
        vocab: an :class:`EntityVocab`, its JSON file, or its ``to_dict`` form; ``None`` for a model
            without entities, as CLIP itself.
        fields: what the text is made of, in order: text fields of the data set and entity
            types. ``('description',)`` is row 2 of the poster's table; metadata in front,
            ``('composition', 'subcategory', 'brand', 'season', 'description')``, row 3. A pattern
            such as ``'by {brand}.'`` is left out where a product has no value.
        mention: see above.
        mention_types: entity types whose names are looked for in the text; all by default.
        tags: ``'given'``, entities come from the metadata, or from the text where a product has
            no metadata at all; ``'text'``, metadata is ignored, as with a shopper's query.
        text_types: entity types that are always read from the text, whatever the tags: those that
            no metadata give, such as the keywords of ``build_entities.py --keywords``.
        max_values: values M of one entity type that are kept; further ones are left out.
        context_length: tokens L; the model's own by default.
    """

    def __init__(
        self,
        model: str | Mapping,
        vocab: EntityVocab | Mapping | str | Path | None,
        fields: Sequence[str],
        mention: str = 'keep',
        mention_types: Sequence[str] | None = None,
        tags: str = 'given',
        text_types: Sequence[str] = (),
        max_values: int = 4,
        context_length: int | None = None,
    ):
        for name, value, allowed in (('mention', mention, MENTION), ('tags', tags, TAGS)):
            if value not in allowed:
                raise ValueError(f'{name}={value!r} is not known; choose one of {allowed}.')
        if max_values < 1:
            raise ValueError(f'max_values must be at least 1, got {max_values}.')
        if not fields:
            raise ValueError("fields is empty; give at least ('description',).")
        if vocab is None:
            vocab = EntityVocab(names={}, counts={})
        elif isinstance(vocab, Mapping):
            vocab = EntityVocab.from_dict(dict(vocab))
        elif not isinstance(vocab, EntityVocab):
            vocab = EntityVocab.load(vocab)
        unknown = set(mention_types or ()) - set(vocab.types)
        if unknown:
            raise ValueError(
                f'mention_types {sorted(unknown)} are not in the vocabulary; it has {vocab.types}.'
            )
        self.vocab, self.fields, self.mention, self.tags = vocab, tuple(fields), mention, tags
        missing = set(text_types) - set(vocab.types)
        if missing:
            raise ValueError(
                f'text_types {sorted(missing)} are not in the vocabulary; it has {vocab.types}. '
                'Keywords are added by tools/dataset_converters/build_entities.py --keywords.'
            )
        self.text_types, self.max_values = tuple(text_types), max_values
        self.subwords = SubWords(model, context_length)
        if self.subwords.context_length < 3:
            raise ValueError(f'context_length must be at least 3, got {context_length}.')
        self.matcher = EntityMatcher(vocab, mention_types)

    def __call__(
        self,
        text_fields: Mapping[str, str],
        entities: Mapping[str, Sequence[str]] | None = None,
    ) -> Encoded:
        """Encode one product, or a query as ``tokenizer({'description': query})``."""
        given = self._given(entities)
        text = self.compose(text_fields, given)
        mentions = tuple(self.matcher.find(text))
        ids = []
        for piece in self._pieces(text, mentions):
            ids += self.subwords.encode(piece) if isinstance(piece, str) else [piece]
        kept = self._fitted(ids)
        return Encoded(
            text=self._padded([kept])[0],
            entity_ids=self._entity_ids(given, mentions),
            text_id=_text_id(text),
            composed=text,
            mentions=mentions,
            dropped=len(ids) - len(kept),
        )

    def encode_all(
        self, pairs: Iterable[tuple[Mapping[str, str], Mapping[str, Sequence[str]] | None]]
    ) -> EncodedTexts:
        """Encode many products, equal ones once: for a data set, when it is loaded.

        Args:
            pairs: text fields and entities of each product, as a call takes them.
        """
        keys: dict[tuple, int] = {}  # of distinct products: their rows
        row = [keys.setdefault(self._key(*pair), len(keys)) for pair in pairs]
        distinct = list(keys)
        starts = range(0, max(len(distinct), 1), CHUNK)
        silent = len(distinct) <= SILENT or not is_main_process()
        bar = tqdm(starts, unit=' texts', unit_scale=CHUNK, disable=silent)
        parts = [self._encode_keys(distinct[start : start + CHUNK]) for start in bar]
        return EncodedTexts.joined(parts, row)

    def _key(
        self, text_fields: Mapping[str, str], entities: Mapping[str, Sequence[str]] | None
    ) -> tuple:
        """All that a product's ids depend on: its text, not yet cleaned, and its tags."""
        given = self._given(entities)
        tags = tuple((type_, tuple(values)) for type_, values in given.items())
        return self._joined(text_fields, given), tags

    def _encode_keys(self, keys: Sequence[tuple]) -> EncodedTexts:
        """Encode products by their keys."""
        texts = [clean_text(joined) for joined, _ in keys]
        # With tags and whole texts nobody asks what the text mentions.
        always = self.mention != 'keep' or bool(self.text_types)
        mentions = [
            self.matcher.find(text) if always or not tags else ()
            for text, (_, tags) in zip(texts, keys, strict=True)
        ]
        pieces = [self._pieces(*both) for both in zip(texts, mentions, strict=True)]
        stretches = [p for own in pieces for p in own if isinstance(p, str)]
        encoded = iter(self.subwords.encode_all(stretches))
        rows = [
            self._fitted(
                np.concatenate([next(encoded) if isinstance(p, str) else [p] for p in own])
            )
            for own in pieces
        ]
        entity_ids = np.zeros((len(keys), len(self.vocab.types), self.max_values), np.int32)
        for i, (_, tags) in enumerate(keys):
            entity_ids[i] = self._entity_ids(dict(tags), mentions[i])
        return EncodedTexts(
            text=self._padded(rows).astype(np.int32),
            length=np.array([len(ids) + 2 for ids in rows], dtype=np.int32),
            entity_ids=entity_ids,
            text_id=np.array([_text_id(text) for text in texts], dtype=np.int64),
        )

    def compose(self, text_fields: Mapping[str, str], entities: Mapping[str, Sequence[str]]) -> str:
        """The text a product is encoded as: the fields in order, one space between."""
        return clean_text(self._joined(text_fields, entities))

    def _joined(self, text_fields: Mapping[str, str], entities: Mapping[str, Sequence[str]]) -> str:
        return ' '.join(self._part(field, text_fields, entities) for field in self.fields)

    def _part(
        self, field: str, text_fields: Mapping[str, str], entities: Mapping[str, Sequence[str]]
    ) -> str:
        names = _NAMES.findall(field)
        if not names:
            return self._value(field, text_fields, entities)
        values = {name: self._value(name, text_fields, entities) for name in names}
        return _NAMES.sub(lambda m: values[m[1]], field) if all(values.values()) else ''

    def _value(
        self, name: str, text_fields: Mapping[str, str], entities: Mapping[str, Sequence[str]]
    ) -> str:
        if name in text_fields:
            return text_fields[name]
        if name not in self.vocab.types:
            raise KeyError(
                f'field {name!r} is neither a text field of the data set '
                f'({sorted(text_fields)}) nor an entity type ({self.vocab.types}).'
            )
        return ' '.join(entities.get(name, ()))

    def _given(self, entities: Mapping[str, Sequence[str]] | None) -> dict[str, Sequence[str]]:
        """The tags that count: none where they are read from the text."""
        given = {t: v for t, v in (entities or {}).items() if v} if self.tags == 'given' else {}
        for type_, values in given.items():
            if isinstance(values, str):
                raise TypeError(
                    f'entities[{type_!r}] must be a list, got {values!r}; write [{values!r}].'
                )
        return given

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Names of the text fields it reads, those that are no entity types, in their order."""
        names = [name for field in self.fields for name in _NAMES.findall(field) or [field]]
        return tuple(dict.fromkeys(name for name in names if name not in self.vocab.types))

    @property
    def reading(self) -> dict:
        """How a product becomes text and ids, as plain JSON; models keep it in checkpoints."""
        more = dict(text_types=list(self.text_types)) if self.text_types else {}
        return dict(
            fields=list(self.fields), mention=self.mention, max_values=self.max_values, **more
        )

    @cached_property
    def extra_tokens(self) -> list[list[int]]:
        """For each token beyond the model's own, the sub-words its embedding starts from.

        ``cut`` adds the one placeholder, which starts from all names; ``token`` adds one token
        for each entity, type by type in the order of the vocabulary.
        """
        # A name of which a tokenizer keeps nothing (zero-width characters) starts from the end.
        names = [
            self.subwords.encode(name) or [self.subwords.end]
            for type_ in self.vocab.names.values()
            for name in type_
        ]
        if self.mention == 'keep':
            return []
        return names if self.mention == 'token' else [[i for ids in names for i in ids]]

    def encode_names(self) -> np.ndarray:
        """(N, L) token ids of every entity's bare name, type by type."""
        names = [name for own in self.vocab.names.values() for name in own]
        return self._padded([self._fitted(ids) for ids in self.subwords.encode_all(names)])

    def _pieces(self, text: str, mentions: Sequence[Mention]) -> list[str | int]:
        """Stretches of text, and the ids that stand for mentions."""
        if self.mention == 'keep':
            return [text]
        pieces: list[str | int] = []
        end = 0
        for mention in mentions:
            pieces += [text[end : mention.start], self._extra_id(mention)]
            end = mention.end
        return [*pieces, text[end:]]

    def _fitted(self, ids: Sequence[int] | np.ndarray) -> Sequence[int] | np.ndarray:
        """What of a text's ids finds room between start and end."""
        room = self.subwords.context_length - 2
        dropped = len(ids) - room
        if dropped > 0 and self.mention == 'token':
            ordinary = [i for i, token in enumerate(ids) if token < self.subwords.size]
            gone = set(ordinary[-dropped:])
            ids = [token for i, token in enumerate(ids) if i not in gone]
        return ids[:room]

    def _extra_id(self, mention: Mention) -> int:
        if self.mention == 'cut':
            return self.subwords.size
        k, id_ = mention.entities[0]
        return self.subwords.size + self._first_of_type[k] + id_ - 1

    @cached_property
    def _first_of_type(self) -> list[int]:
        return [self.vocab.rows(type_).start - 1 for type_ in self.vocab.types]

    def _padded(self, rows: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """(T, L) int64: start, the ids of each row, end, padding."""
        own, column = self.subwords, np.arange(self.subwords.context_length)
        length = np.array([len(ids) for ids in rows], dtype=np.int64)[:, None]
        tokens = np.full((len(rows), len(column)), own.pad)
        tokens[:, 0] = own.start
        if length.any():
            tokens[(column > 0) & (column <= length)] = np.concatenate(rows)
        tokens[column == length + 1] = own.end
        return tokens

    def _entity_ids(
        self, entities: Mapping[str, Sequence[str]], mentions: Sequence[Mention]
    ) -> np.ndarray:
        found: list[list[int]] = [[] for _ in self.vocab.types]
        for mention in mentions:
            for k, id_ in mention.entities:
                found[k].append(id_)
        for k, type_ in enumerate(self.vocab.types):
            if entities and type_ not in self.text_types:
                found[k] = [self.vocab.id(type_, name) for name in entities.get(type_, ())]
        ids = np.zeros((len(found), self.max_values), dtype=np.int64)
        for k, values in enumerate(found):
            known = list(dict.fromkeys(id_ for id_ in values if id_ != UNKNOWN))
            ids[k, : len(known)] = known[: self.max_values]
        return ids


def _text_id(text: str) -> int:
    return hash63(text.encode())
