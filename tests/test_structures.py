"""Texts as they are compared, and the vocabulary of entities: building, files, broken files."""

import html
import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references_data import split_words

from eiclip_mm.structures import (
    UNKNOWN,
    EntityVocab,
    clean_text,
    entity_key,
    is_plain,
    resolve_path,
    words,
)

ASCII = st.text(st.characters(max_codepoint=127), max_size=40)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates as well
PRODUCTS = (
    dict(brand=['Diesel'], composition=['cotton', 'silk']),
    dict(brand=['DIESEL'], composition=['cotton', 'Cotton']),
    dict(brand=['Diesel']),
    dict(brand=['Levi&#039;s'], composition=['silk']),
    dict(brand=["Levi's"], composition=['wool']),
    dict(brand=['Kiton, Napoli'], composition=['']),
)


@pytest.mark.parametrize(
    'raw, clean',
    [
        ('Levi&#039;s', "Levi's"),
        ('Comme des Gar&#231;ons', 'Comme des Garçons'),
        ('Rag &amp;amp; Bone', 'Rag & Bone'),  # escaped twice
        ('H&M &unknown; R&D', 'H&M &unknown; R&D'),
        ('Chloe\u0301', 'Chloé'),
        ('  a\tb\n\u00a0\u3000c ', 'a b c'),
        ('Nike™ 2m²', 'Nike™ 2m²'),
        ('Gol\x00den\ufeff', 'Golden'),
        ('\x00', ''),
        ('', ''),
        ('half \ud800 pair', 'half \ufffd pair'),
        ('\ud83d\ude42', '🙂'),
        ('שלום <b>&lt;', 'שלום <b><'),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


@given(ANY_TEXT)
@settings(deadline=None, max_examples=200)
def test_clean_text_can_be_written_and_stays(text):
    clean = clean_text(text)
    clean.encode()  # lone surrogates would raise
    assert '&' in clean or clean_text(clean) == clean  # what was escaped three times is not
    assert '\x00' not in clean and clean == clean.strip()


@pytest.mark.parametrize(
    'one, other, same',
    [
        ('LEVI&#039;S', "Levi's", True),
        ('Levi’s', "Levi's", True),
        ('Ｄｉｅｓｅｌ', 'diesel', True),
        ('STRASSE', 'Straße', True),
        (' Golden   Goose ', 'golden goose', True),
        ('Chloé', 'Chloe', False),
        ('Off-White', 'Off White', False),
    ],
)
def test_entity_key(one, other, same):
    assert (entity_key(one) == entity_key(other)) is same


@given(st.one_of(ANY_TEXT, ASCII))
@settings(deadline=None, max_examples=400)
def test_words(text):
    for own in (text, clean_text(text)):
        assert words(own) == split_words(own)


@pytest.mark.parametrize(
    'text, plain',
    [('Slim-fit 50% "tee"', True), ('', True), (' a  b ', True), ('H&M', False), ('é', False),
     ('a\tb', False), ('a\x7f', False), ('a\x1b[0m', False)],
)  # fmt: skip
def test_is_plain(text, plain):
    assert is_plain(text) is plain


def slowly_cleaned(text: str) -> str:
    """What :func:`clean_text` says, step by step for every text."""
    text = html.unescape(html.unescape(text))
    text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    text = re.sub(r'[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]', '', text)
    return ' '.join(unicodedata.normalize('NFC', text).split())


@pytest.mark.parametrize(
    'texts', [ANY_TEXT, ASCII, st.text('aZ \t\n\r\x0b\x0c\x1c\x7f&#39;lt', max_size=20)]
)
@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_clean_text_and_entity_key_are_the_slow_reference(texts, data):
    text = data.draw(texts)
    clean = slowly_cleaned(text)
    assert clean_text(text) == clean
    folded = unicodedata.normalize('NFKC', clean).casefold().replace('’', "'")
    assert entity_key(text) == folded


def test_build():
    vocab = EntityVocab.build(PRODUCTS, ['brand', 'composition'], source='six products')
    assert vocab.types == ('brand', 'composition')
    # most frequent first, then by name; the spelling met most often; a product counts once
    assert vocab.names['brand'] == ('Diesel', "Levi's", 'Kiton, Napoli')
    assert vocab.counts['brand'] == (3, 2, 1)
    assert [name.casefold() for name in vocab.names['composition']] == ['cotton', 'silk', 'wool']
    assert vocab.counts['composition'] == (2, 2, 1)
    assert vocab.size('brand') == 4
    assert [vocab.id('brand', name) for name in ('LEVI&#039;S', 'levi’s', 'Nobody', '')] == [
        2, 2, UNKNOWN, UNKNOWN,
    ]  # fmt: skip


def test_build_leaves_out_rare_names():
    vocab = EntityVocab.build(PRODUCTS, ['composition', 'brand'], min_count=2)
    assert vocab.types == ('composition', 'brand')
    assert vocab.names['brand'] == ('Diesel', "Levi's")
    assert vocab.id('brand', 'Kiton, Napoli') == UNKNOWN


@pytest.mark.parametrize('name', ['', '  ', '\x00', '&nbsp;'])
def test_build_skips_empty_names(name):
    vocab = EntityVocab.build([dict(brand=[name, 'Gas'])], ['brand'])
    assert vocab.names == {'brand': ('Gas',)}


def test_build_keeps_odd_names_apart():
    names = ['-', '?!', 'שלום', '漢字', '\ud800', 'A&amp;amp;B', 'A&B', 'A&amp;B', 'a b', 'a-b']
    names += ['x&amp;amp;amp;y', 'x&amp;y', 'long ' * 300]
    vocab = EntityVocab.build([dict(brand=[name]) for name in names], ['brand'])
    ids = [vocab.id('brand', name) for name in names]
    assert ids[5] == ids[6] == ids[7]
    assert vocab.counts['brand'][0] == 3  # A&B
    assert len(vocab.names['brand']) == len({entity_key(n) for n in vocab.names['brand']})


def test_build_errors():
    with pytest.raises(ValueError, match=r"type \['colour'\] at least 1 time"):
        EntityVocab.build(PRODUCTS, ['brand', 'colour'])
    with pytest.raises(ValueError, match=r"type \['brand'\] at least 9 time"):
        EntityVocab.build(PRODUCTS, ['brand'], min_count=9)
    with pytest.raises(TypeError, match="'brand' of a product must be a list, got 'Diesel'"):
        EntityVocab.build([dict(brand='Diesel')], ['brand'])


@given(
    st.lists(st.lists(st.sampled_from(['Gas', 'gas', 'GAS', 'Puma', 'b', 'a', '']))), st.integers()
)
@settings(deadline=None, max_examples=100)
def test_ids_do_not_depend_on_the_order_of_products(brands, seed):
    products = [dict(brand=[*names, 'Gas']) for names in (*brands, [])]
    shuffled = random.Random(seed).sample(products, len(products))
    one, other = (EntityVocab.build(p, ['brand']) for p in (products, shuffled))
    assert list(map(entity_key, one.names['brand'])) == list(map(entity_key, other.names['brand']))
    assert one.counts == other.counts


@pytest.mark.parametrize(
    'names, counts, message',
    [
        (('Gas', 'GAS'), (1, 1), r"'brand' has names that are empty or occur twice.*\['gas'\]"),
        (('Gas', ' '), (1, 1), r"empty or occur twice after case-folding: \[''\]"),
        (('Gas', 'Puma'), (1,), "'brand' has 2 names but 1 counts"),
        ((), (), "'brand' has no names; leave the type out"),
    ],
)
def test_vocabulary_refuses(names, counts, message):
    with pytest.raises(ValueError, match=message):
        EntityVocab({'brand': names}, {'brand': counts})


def test_unknown_type():
    vocab = EntityVocab({'brand': ('Gas',)}, {'brand': (1,)})
    with pytest.raises(KeyError, match=r"'color' is not in the vocabulary; it has \['brand'\]"):
        vocab.id('color', 'red')


def test_save_and_load(tmp_path):
    vocab = EntityVocab.build(PRODUCTS, ['brand', 'composition'], source='six')
    path = tmp_path / 'new' / 'entities.json'
    vocab.save(path)
    loaded = EntityVocab.load(path)
    assert loaded == vocab and loaded.source == 'six'
    assert loaded == EntityVocab.from_dict(json.loads(json.dumps(vocab.to_dict())))
    assert loaded.id('brand', 'diesel') == 1
    assert 'Kiton, Napoli' in path.read_text(encoding='utf-8')


GOOD = dict(format='eiclip_mm.entity_vocab/1', names={'brand': ['Gas']}, counts={'brand': [1]})


@pytest.mark.parametrize(
    'content, message',
    [
        ('{"format": ', 'is not JSON'),
        ('', 'is not JSON'),
        ('\xff\xfe', 'is not JSON'),
        ([1], 'is not an entity vocabulary: its "format" is \'list\''),
        ({}, '"format" is None'),
        (dict(GOOD, format='eiclip_mm.entity_vocab/9'), 'entity_vocab/9.*build_entities'),
        ({k: v for k, v in GOOD.items() if k != 'names'}, "is damaged.*'names'"),
        (dict(GOOD, names=[]), 'is damaged'),
        (dict(GOOD, names={'brand': None}), 'is damaged'),
        (dict(GOOD, counts={'brand': ['x']}), 'is damaged.*rebuild'),
        (dict(GOOD, counts={}), 'is damaged.*1 names but 0 counts'),
        (dict(GOOD, names={'brand': ['Gas', 'gas']}), 'is damaged.*occur twice'),
    ],
)
def test_broken_files(tmp_path, content, message):
    path = tmp_path / 'entities.json'
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError, match=message) as error:
        EntityVocab.load(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.json does not exist.*build_entities\.py'):
        EntityVocab.load(tmp_path / 'none.json')


def test_resolve_path():
    assert resolve_path(Path('a/b')) == 'a/b'
    assert Path(resolve_path('package:eiclip_mm/structures.py')).is_file()
    with pytest.raises(FileNotFoundError, match=r'no_such_package is not installed.*pip install'):
        resolve_path('package:no_such_package/model')
