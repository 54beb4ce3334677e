"""Keywords: frequent words of descriptions that name no other entity."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eiclip_mm.datasets import EntityTokenizer
from eiclip_mm.datasets.keywords import add_keywords
from eiclip_mm.structures import EntityVocab

VOCAB = EntityVocab(
    dict(brand=('Golden Goose', 'Goose', 'Off-White')), dict(brand=(3, 1, 1)), source='a test'
)
WORDS = ('golden', 'goose', 'off', 'white', 'tee', 'striped', '-', 'Été', '100%')


def slowly(texts, min_count):
    """Names are blanked out, longest first, then words are counted once a text."""
    names = ('golden goose', 'off-white', 'off - white', 'goose')
    count = Counter()
    for text in texts:
        text = text.lower()
        for name in names:
            text = re.sub(rf'(?<!\w){re.escape(name)}(?!\w)', ' | ', text)
        count.update(set(re.findall(r'[^\W_]+', text)))
    return {word: n for word, n in count.items() if n >= min_count}


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(' '.join), max_size=8))
def test_equals_blanking_names_out(texts):
    texts = [*texts, 'tee', 'tee']
    vocab = add_keywords(VOCAB, texts, min_count=2)
    found = dict(zip(vocab.names['keyword'], vocab.counts['keyword'], strict=True))
    assert found == slowly(texts, 2)
    assert list(vocab.counts['keyword']) == sorted(vocab.counts['keyword'], reverse=True)


def test_what_is_there_stays():
    vocab = add_keywords(VOCAB, ['Goose tee', 'plain tee'], 2)
    assert vocab.names == dict(VOCAB.names, keyword=('tee',)) and vocab.counts['keyword'] == (2,)
    assert vocab.source == 'a test; keyword: words in at least 2 texts'
    again = add_keywords(vocab, ['Goose dress', 'dress'], 1)  # not over the keywords it had
    assert again.names['keyword'] == ('dress',)


def test_refused():
    with pytest.raises(ValueError, match='no word stands in 3 of the texts; lower'):
        add_keywords(VOCAB, ['golden tee', 'golden tee'], 3)


def test_training_and_tokenizer_agree():
    """What was counted as a keyword is what the tokenizer finds."""
    texts = ['Golden Goose striped tee', 'golden striped tee', 'OFF-WHITE Striped dress']
    vocab = add_keywords(VOCAB, texts, 1)
    tokenizer = EntityTokenizer(
        'ViT-B-32', vocab, ('description',), text_types=('keyword',), max_values=3
    )
    found = [
        [vocab.names['keyword'][i - 1] for i in tokenizer({'description': t}).entity_ids[1] if i]
        for t in texts
    ]
    assert found == [['striped', 'tee'], ['golden', 'striped', 'tee'], ['striped', 'dress']]
