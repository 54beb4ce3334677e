"""The page of products as the model gets them: tokens, entities and counts by hand."""

import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import open_clip
import pytest
import tiny
from catalogues import write_coco
from test_retrieval_page import EVIL, grey

from eiclip_mm.registry import TOKENIZER
from eiclip_mm.structures import EntityVocab, clean_text

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools/visualization'))
import _reading
import browse_dataset as tool

VOCAB = EntityVocab(
    names=dict(brand=('Diesel', 'Golden Goose'), composition=('cotton', 'silk', 'wool')),
    counts=dict(brand=(30, 5), composition=(40, 10, 3)),
)
LONG = 'Golden Goose tee of cotton and silk ' + 'number nine ' * 8 + 'by Diesel'
PRODUCTS = [  # id, captions, brand, composition
    (11, ['a Golden Goose tee'], ['golden goose'], ['cotton', 'silk', 'wool']),
    (12, ['a tee of cotton', 'an old tee'], ['Nobody'], ['cotton']),
    (13, [LONG], ['Diesel'], []),
    (14, [f'a tee {EVIL}'], [], []),
    (15, ['silk scarf by Diesel'], [], []),
    (16, ['a hat'], [EVIL], ['wool']),
]
CONFIG = """
dataset = dict(
    type='CocoProducts', data_root={root!r}, views='all', ann_file='val.json', batched=True,
    tokenizer=dict(type='EntityTokenizer', model={model!r}, vocab={root!r} + '/entities.json',
                   fields=('description',), max_values=2, mention={mention!r}))
load = dict(type='LoadImageFeature', pipeline=[
    dict(type='LoadProductImage'), dict(type='ResizeEdge', scale=16, edge='long')])
padded = dict(load, pipeline=load['pipeline'] + [
    dict(type='Pad', size=(24, 32), pad_val=dict(img=200))])
train_dataloader = dict(dataset=dict(dataset, views='random', pipeline=[
    padded, dict(type='EntityDropout', prob=1.0), dict(type='PackProduct')]))
test_dataloader = dict(dataset=dict(dataset, pipeline=[load, dict(type='PackProduct')]))
bare = dict(dataset, tokenizer=None)
val_dataloader = dict(dataset=bare)
"""


class Page(HTMLParser):
    """The products by id, with photos, marks, tokens and entities of each; tables; all words."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.words, self.rows = [], [], '', []
        self.heading, self.products, self.own = '', {}, None
        self.feed(page)
        self.close()
        assert self.open == []
        self.words = ' '.join(self.words.split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in ('meta', 'img', 'br'):
            self.open.append((tag, attrs))
        if tag == 'article':
            self.own = dict(photos=[], marks=[], tokens=[], dropped=[], entities=[])
        elif tag == 'img':
            self.own['photos'].append(attrs)
        elif tag == 'li':
            kind = 'tokens' if self.inside('ol') else 'entities'
            self.own[kind].append('')
            self.own['dropped'] += [attrs.get('class') == 'dropped'] if kind == 'tokens' else []
        elif tag == 'tr':
            self.rows.append([])
        elif tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag
        if tag == 'h2':
            self.products[int(self.heading.split()[-1])], self.heading = self.own, ''

    def handle_data(self, data):
        self.words += data
        if self.inside('h2'):
            self.heading += data
        elif self.inside('li'):
            kind = 'tokens' if self.inside('ol') else 'entities'
            self.own[kind][-1] = ' '.join(f'{self.own[kind][-1]}{data}'.split(' '))
        elif self.inside('table') and self.rows and not self.inside('caption'):
            if self.rows[-1] and (self.inside('td') or self.inside('th')):
                self.rows[-1][-1] += data
        elif self.inside('mark'):
            self.own['marks'].append((data, self.open[-1][1]['title']))

    def inside(self, tag: str) -> bool:
        return tag in [name for name, _ in self.open]

    def entities(self, product_id: int) -> list[str]:
        return [' '.join(entity.split()) for entity in self.products[product_id]['entities']]


def write(folder: Path, mention: str = 'keep') -> str:
    """The products, two photos of 11 and of 12; photo i is of grey level i, and square."""
    VOCAB.save(folder / 'entities.json')
    images, annotations = [], []
    for product_id, captions, brand, composition in PRODUCTS:
        for number in range(2 if product_id < 13 else 1):
            id_ = 10 * product_id + number
            images.append(dict(id=id_, file_name=f'{id_}.png', product_id=product_id))
        for caption in captions:
            own = dict(brand=brand, composition=composition)
            annotations.append(
                dict(id=len(annotations), image_id=10 * product_id, caption=caption, entities=own)
            )
    write_coco(folder / 'val.json', images, annotations)
    config = folder / 'config.py'
    config.write_text(CONFIG.format(root=str(folder), model=tiny.ARCHITECTURE, mention=mention))
    return str(config)


@pytest.fixture
def browse(tmp_path):
    """A function (arguments) -> the page."""
    configs = {}

    def run(*arguments, mention='keep'):
        config = configs.setdefault(mention, write(tmp_path, mention))
        out = tmp_path / 'page.html'
        tool.main([config, '--out', str(out), *arguments])
        return Page(out.read_text(encoding='utf-8'))

    return run


def subwords(text: str) -> list[str]:
    tokenizer = open_clip.SimpleTokenizer()
    return [tokenizer.decode([id_]).strip() for id_ in tokenizer.encode(text)]


# ---------------------------------------------------------------------------------- products


@pytest.mark.parametrize('split', ['train', 'test'])
def test_texts_are_shown_as_they_are_cut(browse, split):
    page = browse('--split', split)
    assert set(page.products) == {11, 12, 13, 14, 15, 16}
    for product_id, captions, *_ in PRODUCTS:
        own = page.products[product_id]
        assert own['tokens'] == [t for text in captions for t in subwords(clean_text(text))]
        kept = 14  # 16 with start and end
        dropped = [i >= kept for text in captions for i in range(len(subwords(clean_text(text))))]
        assert own['dropped'] == dropped
    assert any(page.products[13]['dropped']) and not any(page.products[12]['dropped'])
    assert page.products[11]['marks'] == [('Golden Goose', 'brand')]
    assert page.products[15]['marks'] == [('silk', 'composition'), ('Diesel', 'brand')]


@pytest.mark.parametrize(
    ('mention', 'tokens'),
    [
        ('cut', ['a', '<entity>', 'tee']),
        ('token', ['a', '<brand:Golden Goose>', 'tee']),
    ],
)
def test_mentions_that_are_no_words_any_more(browse, mention, tokens):
    page = browse('--ids', '11', mention=mention)
    assert page.products[11]['tokens'] == tokens


def test_tokens_of_entities_stay_when_a_text_is_too_long(browse):
    own = browse('--ids', '13', mention='token').products[13]
    words = [
        '<brand:Golden Goose>', *subwords('tee of'), '<composition:cotton>', 'and',
        '<composition:silk>', *subwords('number nine ' * 8), 'by', '<brand:Diesel>',
    ]  # fmt: skip
    assert own['tokens'] == words
    ordinary = [i for i, word in enumerate(words) if word[0] != '<']
    gone = ordinary[14 - len(words) :]
    assert [i for i, dropped in enumerate(own['dropped']) if dropped] == gone


def test_entities_are_known_unknown_left_out_or_from_the_text(browse):
    page = browse('--split', 'test')
    assert page.entities(11) == [
        'brand golden goose #2, 5×', 'composition cotton #1, 40×', 'composition silk #2, 10×',
        'composition wool left out',
    ]  # fmt: skip
    assert page.entities(12) == ['brand Nobody unknown', 'composition cotton #1, 40×'] * 2
    assert page.entities(14) == ['no entity']
    assert page.entities(15) == [
        'brand Diesel #1, 30×, from the text', 'composition silk #2, 10×, from the text'
    ]  # fmt: skip
    assert page.entities(16)[0] == f'brand {EVIL} unknown'


def test_photos_are_stored_and_sized_ones_of_every_view(browse):
    page = browse('--split', 'train')
    photos = page.products[12]['photos']
    assert [photo['alt'] for photo in photos] == [
        'photo 1, stored', 'photo 1, as the model gets it',
        'photo 2, stored', 'photo 2, as the model gets it',
    ]  # fmt: skip
    assert grey(photos[0]) == pytest.approx(120, abs=1)
    assert grey(photos[2]) == pytest.approx(121, abs=1)
    # 16 x 16 pixels of the photo on 24 x 32 of grey 200
    expected = (256 * 120 + (768 - 256) * 200) / 768
    assert grey(photos[1]) == pytest.approx(expected, abs=2)
    assert grey(browse('--split', 'test').products[12]['photos'][1]) == pytest.approx(120, abs=1)
    assert 'EntityDropout' in page.words  # said, not done: entities are all there
    assert len(page.entities(11)) == 4


# ------------------------------------------------------------------------------------ counts


def test_counts_are_of_the_whole_split(browse):
    page = browse('--number', '1')
    assert len(page.products) == 1
    assert '6 products, 8 photos, 7 texts; 2 texts (28.6 %) are longer than 16 tokens' in page.words
    table = {row[0]: row[1:] for row in page.rows[1:]}
    # of 7 texts: brand given with 5 (12 has two captions), of them 12, 12 and 16 unknown, 11 and 13
    # named in the text; known ones reach the model from 11, 13 and, from the text, 15
    assert table['brand'] == ['2', '71.4 %', '60.0 %', '40.0 %', '42.9 %']
    # given with 4: 11, twice 12, 16; one caption of 12 names it; reaches with these and 15
    assert table['composition'] == ['3', '57.1 %', '0.0 %', '25.0 %', '71.4 %']


@pytest.mark.parametrize(
    ('arguments', 'ids', 'says'),
    [
        (['--pick', 'first', '--number', '2'], [11, 12], 'the first 2 of 6 products'),
        (['--pick', 'rare', '--number', '3'], [12, 16, 11], 'the 3 of 6 products with an entity'),
        (['--pick', 'no-entity'], [14], '1 of the 1 products of which no entity'),
        (['--pick', 'truncated'], [13, 14], '2 of the 2 products whose text loses tokens'),
        (['--ids', '15', '12'], [15, 12], '2 of all 6 products, asked for by id'),
    ],
)
def test_what_is_picked(browse, arguments, ids, says):
    page = browse(*arguments)
    assert list(page.products) == ids
    assert says in page.words


def test_random_ones_are_the_same_again(browse):
    drawn = [list(browse('--number', '3').products) for _ in range(2)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3


def test_nothing_to_show(browse, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], 'PRODUCTS', PRODUCTS[4:5])
    page = browse('--pick', 'truncated')
    assert page.products == {} and 'There is no such product.' in page.words


def test_word_pieces_of_a_hugging_face_tokenizer(tmp_path_factory):
    model = tiny.bert_architecture(tmp_path_factory)
    config = tiny.tokenizer(model=model, vocab=tiny.VOCAB)
    reader = _reading.Reader(config, TOKENIZER.build(config))
    text = reader(dict(description='Kurta by Diesel'), {})
    assert [token.text for token in text.tokens] == ['kurt', '##a', 'by', 'diesel']
    long = reader(dict(description='a tee by Diesel ' * 5), {})
    assert [token.dropped for token in long.tokens] == [False] * 14 + [True] * 6


def test_a_hostile_text_stays_text_and_the_page_needs_nothing_else(browse, tmp_path):
    page = browse()
    assert EVIL in page.words
    assert not {tag for tag, _ in page.tags} & {'script', 'link', 'iframe', 'object'}
    assert not {name for _, attrs in page.tags for name in attrs if name.startswith('on')}
    raw = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert '://' not in raw and 'url(' not in raw and '@import' not in raw


def test_it_leaves_random_numbers_as_they_were(browse):
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    browse('--number', '2')
    assert np.random.random() == expected


def test_what_cannot_be_shown_is_refused(browse, capsys, tmp_path):
    with pytest.raises(SystemExit, match='product 99 is not in config, train, which has'):
        browse('--ids', '11', '99')
    with pytest.raises(SystemExit, match='the val data set has no tokenizer, so no text is read'):
        browse('--split', 'val')
    (tmp_path / 'empty.py').write_text('x = 1\n')
    with pytest.raises(SystemExit, match='has no train_dataloader; name a config with one'):
        tool.main([str(tmp_path / 'empty.py'), '--out', str(tmp_path / 'x.html')])
    with pytest.raises(SystemExit, match=r'config no\.py does not exist'):
        tool.main(['no.py', '--out', str(tmp_path / 'x.html')])
    with pytest.raises(SystemExit):
        browse('--number', '0')
    assert '--number: must be at least 1, got 0' in capsys.readouterr().err
