"""Names of entities in a text: leftmost, longest, on word boundaries. Source: ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count

from eiclip_mm.structures import EntityVocab, clean_text, words

from .memo import Memo


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
                node[self._END] = (*node.get(self._END, ()), (k, id_))
        # No word reaches beyond a space, so texts are read in chunks, of which few are new.
        self._words, self._starts = Memo(words), Memo(self._starts_of)

    def find(self, text: str) -> list[Mention]:
        """Mentions in a clean text (see ``clean_text``), in order, without overlap."""
        chunks = text.split(' ')
        mentions, last, begin, free = [], 0, 0, 0
        for c in compress(count(), map(self._starts.__getitem__, chunks)):
            begin += sum(map(len, chunks[last:c])) + c - last
            last = c
            for start, node, end, entities in self._starts[chunks[c]]:
                if begin + start < free:
                    continue
                end += begin
                if node is not None:
                    end, entities = self._go_on(node, chunks, c, begin, end, entities)
                if entities:
                    mentions.append(Mention(begin + start, end, entities))
                    free = end
        return mentions

    def _go_on(
        self, node: dict, chunks: Sequence[str], c: int, begin: int, end: int, entities: tuple
    ) -> tuple[int, tuple]:
        """End and entities of the longest name, known up to chunk ``c``, in the chunks after it."""
        while node is not None and c + 1 < len(chunks):
            begin += len(chunks[c]) + 1
            c += 1
            node, stop, more = self._follow(node, self._words[chunks[c]])
            if more:
                end, entities = begin + stop, more
        return end, entities

    def _starts_of(self, chunk: str) -> tuple[tuple, ...]:
        """The words of a chunk that a name may begin with: start, then as :meth:`_follow`."""
        parts = self._words[chunk]
        followed = [
            (part[1], *self._follow(self._root, parts, i))
            for i, part in enumerate(parts)
            if part[0] in self._root
        ]
        return tuple(each for each in followed if each[1] or each[3])

    def _follow(self, node: dict, parts: Sequence[tuple], i: int = 0) -> tuple:
        """Go down the trie along the words from ``i`` on.

        Returns:
            the node that is reached, ``None`` if no name goes on from there; the end of the
            longest whole name and its entities, ``()`` if there is none.
        """
        end, entities = 0, ()
        for j in range(i, len(parts)):
            if (below := node.get(parts[j][0])) is None:
                return None, end, entities
            node = below
            if self._END in node:
                end, entities = parts[j][2], node[self._END]
        return (node if len(node) > (self._END in node) else None), end, entities
