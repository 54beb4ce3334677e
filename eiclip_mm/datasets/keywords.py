"""Words that descriptions use often, as an entity type of their own.

Metadata name a product's brand or colour, not that it is striped or has a hood. Frequent words of
the description get vectors of their own beside the text tower: a bag of words in EA-Learner's
tables, neither the poster's metadata nor a known confounder. The word stays in the text. CLIP with
a frozen trunk has nothing like it, so EI-CLIP with keywords is to be read beside EI-CLIP without.
Function words are not left out. Source: ours.
"""

from collections import Counter
from collections.abc import Iterable

from eiclip_mm.structures import EntityVocab, clean_text, words

from .matcher import EntityMatcher

KEYWORD = 'keyword'


def add_keywords(vocab: EntityVocab, texts: Iterable[str], min_count: int) -> EntityVocab:
    """The vocabulary with the type "keyword": words of training texts that name nothing else.

    Args:
        vocab: the entities of the metadata; words inside their mentions are left out. Keywords
            that it has are made anew.
        texts: one for each training product.
        min_count: a word counts as a keyword if so many texts have it.

    >>> vocab = EntityVocab({'brand': ('Golden Goose',)}, {'brand': (2,)})
    >>> texts = ['Golden Goose striped tee', 'striped golden tee', 'Golden Goose striped dress']
    >>> add_keywords(vocab, texts, min_count=2).names['keyword']
    ('striped', 'tee')
    """
    names = {t: own for t, own in vocab.names.items() if t != KEYWORD}
    counts = {t: vocab.counts[t] for t in names}
    matcher = EntityMatcher(EntityVocab(names, counts))
    found: Counter[str] = Counter()
    for text in map(clean_text, texts):
        mentions = iter(matcher.find(text))
        mention = next(mentions, None)
        free = set()
        for word, start, end in words(text):
            while mention is not None and mention.end <= start:
                mention = next(mentions, None)
            if (mention is None or end <= mention.start) and word.isalnum():
                free.add(word)
        found.update(free)
    kept = sorted((-n, word) for word, n in found.items() if n >= min_count)
    if not kept:
        raise ValueError(
            f'no word stands in {min_count} of the texts; lower the number, or leave keywords out.'
        )
    return EntityVocab(
        names | {KEYWORD: tuple(word for _, word in kept)},
        counts | {KEYWORD: tuple(-n for n, _ in kept)},
        source=f'{vocab.source}; {KEYWORD}: words in at least {min_count} texts',
    )
