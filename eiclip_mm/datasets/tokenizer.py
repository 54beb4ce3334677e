"""Entity-aware tokenizer: where a product's text loses its wrong meaning.

Source: ours, on the paper's motive: sub-word tokens intertwine entities ("Canada Goose", "Golden
Goose"), and the language part should be entity-aware. How it is done is our reconstruction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import open_clip

from eiclip_mm.registry import TOKENIZER
from eiclip_mm.structures import UNKNOWN, EntityVocab, clean_text, resolve_path, words

MENTION = ('keep', 'cut', 'token')
TAGS = ('given', 'text')


class SubWords:
    """One face for open_clip's two tokenizers: sub-word ids, special ids, sizes.

    Args:
        model: an open_clip model name, or an architecture as ``OpenCLIPTowers`` takes it.
        context_length: tokens L of a text, the special ones included; the model's by default.
    """

    def __init__(self, model: str | Mapping, context_length: int | None = None):
        if isinstance(model, str):
            inner = open_clip.get_tokenizer(model, context_length=context_length)
        else:
            text_cfg = model['text_cfg']
            length = context_length
            if length is None:
                length = text_cfg.get('context_length', 77)
            if 'hf_model_name' in text_cfg:
                folder = resolve_path(text_cfg.get('hf_tokenizer_name', text_cfg['hf_model_name']))
                inner = open_clip.tokenizer.HFTokenizer(folder, context_length=length)
            else:
                inner = open_clip.SimpleTokenizer(context_length=length)
        self.context_length = inner.context_length
        if hasattr(inner, 'sot_token_id'):
            self.start, self.end, self.pad = inner.sot_token_id, inner.eot_token_id, 0
            self.size = inner.vocab_size
            self.encode = inner.encode
        else:
            hf = inner.tokenizer
            self.start = hf.cls_token_id if hf.cls_token_id is not None else hf.bos_token_id
            self.end = hf.sep_token_id if hf.sep_token_id is not None else hf.eos_token_id
            self.pad, self.size = hf.pad_token_id, len(hf)
            if self.start is None or self.end is None or self.pad is None:
                raise ValueError(
                    f'the tokenizer of {model!r} lacks a start, end or padding token; '
                    'EntityTokenizer needs all three.'
                )
            self._hf, self._clean = hf, inner.clean_fn
            self.encode = self._encode_hf

    def _encode_hf(self, text: str) -> list[int]:
        return self._hf.encode(self._clean(text), add_special_tokens=False, verbose=False)


@dataclass(frozen=True)
class Mention:
    """A name in a text: characters ``start`` to ``end``, and whom it may name.

    ``entities`` holds (type number, entity id); more than one where types share a name.
    """

    start: int
    end: int
    entities: tuple[tuple[int, int], ...]


class EntityMatcher:
    """Finds the names of a vocabulary in a text: leftmost, longest, on word boundaries.

    A trie over words, so the time does not grow with the number of names. A name without a letter
    or digit ("-", where a shop has no brand) is found in no text.

    >>> vocab = EntityVocab({'brand': ('Goose', 'Golden Goose')}, {'brand': (1, 1)})
    >>> [(m.start, m.end, m.entities) for m in EntityMatcher(vocab).find('a GOLDEN goose tee')]
    [(2, 14, ((0, 2),))]
    """

    _END = ''

    def __init__(self, vocab: EntityVocab, types: Sequence[str] | None = None):
        self._root: dict = {}
        for k, type_ in enumerate(vocab.types):
            if types is not None and type_ not in types:
                continue
            for id_, name in enumerate(vocab.names[type_], 1):
                if not any(map(str.isalnum, name)):
                    continue
                node = self._root
                for word, _, _ in words(clean_text(name)):
                    node = node.setdefault(word, {})
                node.setdefault(self._END, []).append((k, id_))

    def find(self, text: str) -> list[Mention]:
        """Mentions in a clean text (see ``clean_text``), in order, without overlap."""
        parts = words(text)
        mentions, i = [], 0
        while i < len(parts):
            node, found, j = self._root, None, i
            while j < len(parts) and (node := node.get(parts[j][0])) is not None:
                j += 1
                if self._END in node:
                    found = (j, node[self._END])
            if found is None:
                i += 1
                continue
            mentions.append(Mention(parts[i][1], parts[found[0] - 1][2], tuple(found[1])))
            i = found[0]
        return mentions


@dataclass(frozen=True)
class Encoded:
    """What a model sees of a product's text and metadata.

    Attributes:
        text: (L,) int64 token ids, padded.
        entity_ids: (K, M) int64, 0 where there is none or it is unknown.
        text_id: 63-bit hash of the text: equal texts have equal ids.
        composed: the text that was encoded, for people.
        mentions: the names found in it.
        dropped: sub-words that did not fit into L.
    """

    text: np.ndarray
    entity_ids: np.ndarray
    text_id: int
    composed: str
    mentions: tuple[Mention, ...]
    dropped: int


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
            ``('composition', 'subcategory', 'brand', 'season', 'description')``, row 3.
        mention: see above.
        mention_types: entity types whose names are looked for in the text; all by default.
        tags: ``'given'``, entities come from the metadata, or from the text where a product has
            no metadata at all; ``'text'``, metadata is ignored, as with a shopper's query.
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
            vocab = EntityVocab.from_dict(vocab)
        elif not isinstance(vocab, EntityVocab):
            vocab = EntityVocab.load(vocab)
        unknown = set(mention_types or ()) - set(vocab.types)
        if unknown:
            raise ValueError(
                f'mention_types {sorted(unknown)} are not in the vocabulary; it has {vocab.types}.'
            )
        self.vocab, self.fields, self.mention, self.tags = vocab, tuple(fields), mention, tags
        self.max_values = max_values
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
        given = {t: v for t, v in (entities or {}).items() if v} if self.tags == 'given' else {}
        for type_, values in given.items():
            if isinstance(values, str):
                raise TypeError(
                    f'entities[{type_!r}] must be a list, got {values!r}; write [{values!r}].'
                )
        text = self.compose(text_fields, given)
        mentions = tuple(self.matcher.find(text))
        tokens, dropped = self._tokens(text, mentions)
        return Encoded(
            text=tokens,
            entity_ids=self._entity_ids(given, mentions),
            text_id=int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), 'big') >> 1,
            composed=text,
            mentions=mentions,
            dropped=dropped,
        )

    def compose(self, text_fields: Mapping[str, str], entities: Mapping[str, Sequence[str]]) -> str:
        """The text a product is encoded as: the fields in order, one space between."""
        parts = []
        for name in self.fields:
            if name in text_fields:
                parts.append(text_fields[name])
            elif name in self.vocab.types:
                parts.extend(entities.get(name, ()))
            else:
                raise KeyError(
                    f'field {name!r} is neither a text field of the data set '
                    f'({sorted(text_fields)}) nor an entity type ({self.vocab.types}).'
                )
        return clean_text(' '.join(parts))

    @property
    def reading(self) -> dict:
        """How a product becomes text and ids, as plain JSON; models keep it in checkpoints."""
        return dict(fields=list(self.fields), mention=self.mention, max_values=self.max_values)

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
        return np.stack(
            [self._pad(self.subwords.encode(n)) for t in self.vocab.names.values() for n in t]
        )

    def _tokens(self, text: str, mentions: Sequence[Mention]) -> tuple[np.ndarray, int]:
        room = self.subwords.context_length - 2
        if self.mention == 'keep':
            ids = self.subwords.encode(text)
            return self._pad(ids), max(len(ids) - room, 0)
        ids, end = [], 0
        for mention in mentions:
            ids += self.subwords.encode(text[end : mention.start])
            ids.append(self._extra_id(mention))
            end = mention.end
        ids += self.subwords.encode(text[end:])
        dropped = max(len(ids) - room, 0)
        if dropped and self.mention == 'token':
            ordinary = [i for i, token in enumerate(ids) if token < self.subwords.size]
            gone = set(ordinary[-dropped:])
            ids = [token for i, token in enumerate(ids) if i not in gone]
        return self._pad(ids), dropped

    def _extra_id(self, mention: Mention) -> int:
        if self.mention == 'cut':
            return self.subwords.size
        k, id_ = mention.entities[0]
        return self.subwords.size + self._first_of_type[k] + id_ - 1

    @cached_property
    def _first_of_type(self) -> list[int]:
        sizes = [len(names) for names in self.vocab.names.values()]
        return [sum(sizes[:k]) for k in range(len(sizes))]

    def _pad(self, ids: Sequence[int]) -> np.ndarray:
        tokens = np.full(self.subwords.context_length, self.subwords.pad, dtype=np.int64)
        ids = [self.subwords.start, *ids[: len(tokens) - 2], self.subwords.end]
        tokens[: len(ids)] = ids
        return tokens

    def _entity_ids(
        self, entities: Mapping[str, Sequence[str]], mentions: Sequence[Mention]
    ) -> np.ndarray:
        found: list[list[int]] = [[] for _ in self.vocab.types]
        if entities:
            for k, type_ in enumerate(self.vocab.types):
                found[k] = [self.vocab.id(type_, name) for name in entities.get(type_, ())]
        else:
            for mention in mentions:
                for k, id_ in mention.entities:
                    found[k].append(id_)
        ids = np.zeros((len(found), self.max_values), dtype=np.int64)
        for k, values in enumerate(found):
            known = list(dict.fromkeys(id_ for id_ in values if id_ != UNKNOWN))
            ids[k, : len(known)] = known[: self.max_values]
        return ids
