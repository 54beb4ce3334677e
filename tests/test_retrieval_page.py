"""The page of retrievals: what it shows, of whom, and that a shop's text can do it no harm."""

import base64
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from catalogues import write_coco, write_fashiongen
from PIL import Image

from eiclip_mm.datasets import CocoProducts
from eiclip_mm.evaluation import Embeddings
from eiclip_mm.structures import EntityVocab
from eiclip_mm.visualization import thumbnail
from eiclip_mm.visualization.retrieval_page import histogram

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools/visualization'))
import compare_retrievals as tool

EVIL = '</title><script>alert("1")</script> & \'x\' onerror=a'
BRAND = '<img src=x>&"B"'
VOCAB = EntityVocab(
    names=dict(brand=('Diesel', 'Golden Goose', BRAND, 'Silk'), composition=('cotton', 'silk')),
    counts=dict(brand=(3, 2, 1, 1), composition=(4, 1)),
)
TEXTS = [f'Golden Goose tee number {i} of cotton' for i in range(12)]
TEXTS[3] = f'{EVIL} by {BRAND}'
TEXTS[5] = 'a silk scarf'
IDS = [103 - 7 * i for i in range(12)]  # descending: not the order of rows
CONFIG = """
test_dataloader = dict(dataset=dict(
    type={type!r}, data_root={root!r}, ann_file={file!r}, views='all', pipeline={pipeline!r},
    tokenizer=dict(type='EntityTokenizer', model={model!r}, vocab={root!r} + '/entities.json',
                   fields=('description',))))
"""


class Tree(HTMLParser):
    """What the page says: every tag with its attributes, all words, marks, and each article."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.words, self.marks, self.articles = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []  # every tag is closed

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'br', 'img'):
            self.open.append((tag, dict(attrs)))
        if tag == 'article':
            self.articles.append(dict(heading='', chips=[], sides=[]))
        elif tag == 'section':
            self.articles[-1]['sides'].append([])
        elif tag == 'li' and self.inside('section'):
            self.articles[-1]['sides'][-1].append(
                dict(right=dict(attrs).get('class') == 'right', words='')
            )
        elif tag == 'img':
            article = self.articles[-1]
            place = article['sides'][-1][-1] if self.inside('section') else article
            place['image'] = dict(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.inside('mark'):
            self.marks.append((data, self.open[-1][1]['title']))
        if self.inside('h2'):
            self.articles[-1]['heading'] += data
        elif self.inside('section') and self.inside('li'):
            self.articles[-1]['sides'][-1][-1]['words'] += data
        elif self.inside('article') and self.inside('li'):
            self.articles[-1]['chips'].append(data.strip())

    def inside(self, tag: str) -> bool:
        return tag in [name for name, _ in self.open]


def save(path: Path, scores: np.ndarray, order=None, ids=IDS, texts=None) -> str:
    """A model whose text i scores ``scores[i, j]`` with photo j, and all with second views best."""
    order = np.arange(len(ids)) if order is None else order
    n = len(ids)
    image = np.eye(n, n + 1)
    second = np.eye(n, n + 1)[:2]
    second[:, -1] = 9  # against which no protocol of first views asks
    Embeddings(
        image=torch.from_numpy(np.concatenate([image, second])).float(),
        image_product_id=torch.tensor([*ids, *ids[:2]]),
        image_view=torch.tensor([0] * n + [1, 1]),
        product=torch.from_numpy(np.c_[scores, np.ones(n)][order]).float(),
        product_id=torch.tensor(ids)[order],
        product_text=None if texts is None else torch.from_numpy(texts)[order],
    ).save(path)
    return str(path)


def write_config(folder: Path, kind='CocoProducts', file='val.json', pipeline=()) -> str:
    VOCAB.save(folder / 'entities.json')
    path = folder / 'config.py'
    path.write_text(
        CONFIG.format(
            type=kind, root=str(folder), file=file, pipeline=list(pipeline), model=tiny.ARCHITECTURE
        )
    )
    return str(path)


def write_products(folder: Path, texts=TEXTS) -> str:
    """Twelve products, the first two with a second photo; photo i is of grey level i."""
    rows = [*range(12), 0, 1]
    images = [dict(id=i, file_name=f'{i}.png', product_id=IDS[row]) for i, row in enumerate(rows)]
    annotations = [
        dict(id=i, image_id=i, caption=text, entities=dict(brand=[BRAND if i == 3 else 'Diesel']))
        for i, text in enumerate(texts)
    ]
    write_coco(folder / 'val.json', images, annotations)
    return write_config(folder)


@pytest.fixture(scope='module')
def scores():
    """Those of A and of B, (2, 12, 12), all different."""
    rng = np.random.default_rng(1)
    scores = rng.permutation(288).reshape(2, 12, 12) / 1000
    scores[1][np.arange(0, 12, 2), np.arange(0, 12, 2)] += 0.15  # B is better on every other
    return scores.astype(np.float32)


@pytest.fixture
def case(tmp_path, scores, capsys):
    """Paths of a config and two dumps, and a function (arguments) -> the page."""
    paths = [
        write_products(tmp_path),
        save(tmp_path / 'a.npz', scores[0]),
        save(tmp_path / 'b.npz', scores[1], order=np.random.default_rng(2).permutation(12)),
    ]

    def run(*arguments, paths=paths):
        out = tmp_path / 'page.html'
        tool.main([*paths, '--out', str(out), *arguments])
        return out.read_text(encoding='utf-8')

    run.paths = paths
    return run


def refused(run, capsys, *arguments, **changes) -> str:
    with pytest.raises(SystemExit) as end:
        run(*arguments, **changes)
    return capsys.readouterr().err if end.value.code == 2 else end.value.code


def grey(image: dict) -> float:
    data = base64.b64decode(image['src'].removeprefix('data:image/jpeg;base64,'), validate=True)
    return np.asarray(Image.open(io.BytesIO(data))).mean()


def rank_by_hand(scores: np.ndarray) -> np.ndarray:
    """(Q,) of scores whose right item is on the diagonal."""
    return np.array([1 + sum(row > row[i]) for i, row in enumerate(scores)])


# ------------------------------------------------------------------------------ what is shown


@pytest.mark.parametrize('direction', ['t2i', 'i2t'])
def test_ranks_scores_and_photos_are_those_of_the_models(case, scores, direction):
    tree = Tree(case('--direction', direction, '--pick', 'random', '--number', '12'))
    assert len(tree.articles) == 12
    tables = scores if direction == 't2i' else scores.transpose(0, 2, 1)
    before, after = map(rank_by_hand, tables)
    assert len({*before, *after}) > 5  # ranks beyond the first five are among them
    for article in tree.articles:
        row = IDS.index(int(article['heading'].split()[1].rstrip(':')))
        assert article['heading'].split() == (
            f'Product {IDS[row]}: rank {before[row]} → {after[row]}'.split()
        )
        assert article['image']['alt'] == f'photo of: {TEXTS[row]}'
        for table, side in zip(tables, article['sides'], strict=True):
            best = sorted(range(12), key=lambda j: -table[row, j])[:5]
            assert [item['image']['alt'] for item in side] == [
                f'photo of: {TEXTS[j]}' for j in best
            ]
            assert [item['right'] for item in side] == [j == row for j in best]
            for item, j in zip(side, best, strict=True):
                assert item['words'].split()[-1] == f'{table[row, j]:.3f}'
                assert ('✓' in item['words']) == (j == row)
                assert grey(item['image']) == pytest.approx(j, abs=1.5)


def test_summary_counts_every_query(case, scores):
    words = ' '.join(' '.join(Tree(case('--number', '2')).words).split())
    gain = rank_by_hand(scores[0]) - rank_by_hand(scores[1])
    assert (gain > 0).any() and (gain < 0).any()
    assert '12 texts ask among 12 photos' in words
    assert (
        f'moves up for {(gain > 0).sum()} , down for {(gain < 0).sum()} and '
        f'stays for {(gain == 0).sum()} .'
    ) in words
    assert f'2 of {(gain != 0).sum()} queries whose rank changes' in words
    for bar in histogram(gain):
        assert f'{bar.label}: {bar.count}' in words  # said
        assert f'{bar.label} {bar.count}' in words  # drawn


def test_histogram_has_a_bar_for_every_query():
    gain = np.array([1000, 999, 100, 99, 10, 9, 1, 0, -1, -10, -10])
    bars = {bar.label: bar.count for bar in histogram(gain)}
    assert bars == {
        '+1,000 to 9,999': 1, '+100 to 999': 2, '+10 to 99': 2, '+1 to 9': 2, '0': 1,
        '−1 to 9': 1, '−10 to 99': 2, '−100 to 999': 0, '−1,000 to 9,999': 0,
    }  # fmt: skip
    assert sum(bars.values()) == len(gain)


@pytest.mark.parametrize(
    ('pick', 'rows', 'count'),
    [
        ('gains', [1, 0, 2], 3),
        ('losses', [4, 3], 2),
        ('both', [1, 0, 4, 3], 5),
        ('random', [1, 0, 2, 5, 4, 3], 6),
    ],
)
def test_what_is_picked(pick, rows, count):
    before, after = np.array([20, 4, 90, 1, 3, 7]), np.array([10, 1, 60, 9, 5, 7])
    assert tool.picked(before, after, pick, 99 if pick != 'both' else 4) == (rows, count)


def test_fewer_are_picked_and_random_is_the_same_again():
    before, after = np.arange(1, 101), np.arange(100, 0, -1)
    rows, count = tool.picked(before, after, 'random', 7)
    assert len(set(rows)) == 7 and count == 100
    assert (rows, count) == tool.picked(before, after, 'random', 7)
    assert tool.picked(before, after, 'gains', 1) == ([99], 50)
    assert tool.picked(before, after, 'losses', 1) == ([0], 50)
    assert tool.picked(before, after, 'both', 3) == ([99, 98, 0], 100)
    assert tool.picked(before, before, 'both', 3) == ([], 0)


def test_a_collapsed_model_has_nothing_right_among_the_first(case, tmp_path):
    flat = save(tmp_path / 'flat.npz', np.full((12, 12), 0.5))
    tree = Tree(case('--pick', 'random', '--number', '3', paths=[*case.paths[:2], flat]))
    assert [a['heading'].split()[-1] for a in tree.articles] == ['12'] * 3
    assert not any(item['right'] for a in tree.articles for item in a['sides'][1])
    assert [len(side) for a in tree.articles for side in a['sides']] == [5] * 6


def test_fewer_than_five_products_and_nothing_to_show(tmp_path):
    row = tool.Ranked(np.arange(2), torch.eye(2), torch.eye(2), np.array([1, 1])).top(1)
    assert row == [(1, 1.0), (0, 0.0)]
    page = tool.Page(('A', 'B'), 't2i', np.ones((2, 4), int), 4, [], 'none', 'p')
    assert 'There is no such query.' in tool.retrieval_page(page)


# ------------------------------------------------------------------------- texts and photos


def test_names_in_the_text_are_marked_with_their_types(case):
    tree = Tree(case('--pick', 'random', '--number', '12'))
    assert set(tree.marks) == {
        ('Golden Goose', 'brand'),
        ('cotton', 'composition'),
        (BRAND, 'brand'),
        ('silk', 'brand or composition'),
    }
    hues = {a['title']: a['style'] for tag, a in tree.tags if tag == 'mark'}
    assert hues['brand'] == hues['brand or composition'] != hues['composition']
    chips = {tuple(filter(None, article['chips'])) for article in tree.articles}
    assert chips == {('brand', 'Diesel'), ('brand', BRAND)}


@pytest.mark.parametrize('direction', ['t2i', 'i2t'])
def test_a_hostile_text_stays_text(case, direction):
    page = case('--direction', direction, '--pick', 'random', '--number', '12')
    tags = Tree(page).tags
    assert f'photo of: {TEXTS[3]}' in [attrs.get('alt') for _, attrs in tags]
    assert {tag for tag, _ in tags if tag[0] != '/'} == {
        'html', 'head', 'meta', 'title', 'style', 'body', 'h1', 'h2', 'h3', 'p', 'b', 'br', 'code',
        'svg', 'text', 'rect', 'ul', 'ol', 'li', 'article', 'section', 'div', 'span', 'img', 'mark',
    }  # fmt: skip
    allowed = {
        'lang', 'charset', 'name', 'content', 'http-equiv', 'class', 'style', 'title', 'alt', 'src',
        'viewbox', 'role', 'aria-labelledby', 'aria-label', 'id', 'x', 'y', 'width', 'height',
        'text-anchor', 'fill',
    }  # fmt: skip
    assert {name for _, attrs in tags for name in attrs} <= allowed


def test_the_page_needs_nothing_from_outside(case):
    page = case()
    sources = [attrs['src'] for tag, attrs in Tree(page).tags if tag == 'img']
    assert len(sources) > 20
    assert all(source.startswith('data:image/jpeg;base64,') for source in sources)
    assert '://' not in page and 'url(' not in page and '@import' not in page


def test_photos_become_small():
    image = Image.open(io.BytesIO(thumbnail(np.full((256, 128, 3), 70, np.uint8))))
    assert (image.format, image.size) == ('JPEG', (48, 96))
    assert Image.open(io.BytesIO(thumbnail(np.zeros((8, 9, 3), np.uint8)))).size == (9, 8)


def test_photos_of_fashiongen_also_where_features_are_loaded(tmp_path, case, scores):
    rows = [dict(productID=id_, description=text) for id_, text in zip(IDS, TEXTS, strict=True)]
    write_fashiongen(tmp_path / 'val.h5', rows)
    pipeline = [dict(type='LoadImageFeature', pipeline=[dict(type='LoadProductImage')])]
    config = write_config(tmp_path, 'FashionGen', 'val.h5', pipeline)
    tree = Tree(case('--pick', 'random', '--number', '12', paths=[config, *case.paths[1:]]))
    assert len(tree.articles) == 12
    for article in tree.articles:
        row = TEXTS.index(article['image']['alt'].removeprefix('photo of: '))
        assert grey(article['image']) == pytest.approx(row, abs=1.5)


# ------------------------------------------------------------------------------ what is refused


def test_dumps_of_two_splits_are_refused(case, capsys, tmp_path):
    other = save(tmp_path / 'other.npz', np.eye(11), ids=IDS[:11])
    message = refused(case, capsys, paths=[*case.paths[:2], other])
    assert message.startswith(f'{other} holds other products than {case.paths[1]}, 0 in it alone')


def test_a_config_of_other_products_is_refused(case, capsys, tmp_path):
    ids = [1000 + i for i in range(12)]
    paths = [save(tmp_path / f'{n}.npz', np.eye(12) + n, ids=ids) for n in range(2)]
    message = refused(case, capsys, paths=[case.paths[0], *paths])
    assert message == (
        f'12 products of {paths[0]} are not in the test split of {case.paths[0]} (val.json), e.g. '
        '[1000, 1001, 1002, 1003, 1004]; give the config that the embeddings were made with'
    )


def test_a_config_of_other_texts_is_refused(case, capsys, tmp_path):
    own = CocoProducts('val.json', data_root=str(tmp_path), views='first')
    texts = own.metainfo['retrieval']['texts']['text']
    other = texts.copy()
    other[4] += 1
    paths = [save(tmp_path / f'{n}.npz', np.eye(12) + n, texts=other) for n in range(2)]
    message = refused(case, capsys, paths=[case.paths[0], *paths])
    assert 'but of other texts: the data are not those that were embedded' in message
    # of two models that read other fields, one may agree
    save(Path(paths[1]), np.eye(12), texts=texts)
    assert len(Tree(case('--pick', 'random', paths=[case.paths[0], *paths])).articles) == 12


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--number', '0'], '--number: must be at least 1, got 0'),
        (['--direction', 'x'], "invalid choice: 'x'"),
    ],
)
def test_wrong_arguments_are_refused(case, capsys, arguments, says):
    assert says in refused(case, capsys, *arguments)


def test_wrong_files_are_refused(case, capsys, tmp_path):
    config, a, b = case.paths
    assert 'A and B are the same embeddings' in refused(case, capsys, paths=[config, a, a])
    assert 'config no.py does not exist' in refused(case, capsys, paths=['no.py', a, b])
    assert 'embeddings no.npz do not exist' in refused(case, capsys, paths=[config, a, 'no.npz'])
    (tmp_path / 'empty.py').write_text('x = 1\n')
    message = refused(case, capsys, paths=[str(tmp_path / 'empty.py'), a, b])
    assert message.endswith('has no test_dataloader; name a config with one')
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit, match='cannot be written'):
        tool.main([config, a, b, '--out', str(tmp_path / 'file' / 'page.html')])


def test_names_are_taken_from_the_cards(tmp_path):
    save(tmp_path / 'x.npz', np.eye(12))
    dump = Embeddings.load(tmp_path / 'x.npz')
    assert tool.named('runs/x.npz', dump) == 'x.npz'
    card = json.loads('{"model": {"config": "eiclip", "seed": 3}}')
    assert tool.named('runs/x.npz', dump.described(None, card)) == 'eiclip, seed 3, x.npz'
