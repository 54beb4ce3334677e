"""The page of a model's failures: its counts beside counts by hand, and what it shows."""

import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from catalogues import write_coco
from test_retrieval_page import EVIL, IDS, TEXTS, Tree, rank_by_hand, save, write_config

from eiclip_mm.evaluation import Embeddings

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools/visualization'))
import retrieval_gallery as tool

BRANDS = ['Diesel', 'diesel', 'Silk', 'Diesel', EVIL, 'Silk', 'Silk', 'Diesel', '', 'Silk', '', '']
MATERIALS = [
    ['cotton', 'silk'], ['silk'], ['wool'], ['cotton'], ['wool', 'silk'], ['wool'], [], ['silk'],
    ['cotton'], ['wool'], ['cotton', 'wool'], ['silk'],
]  # fmt: skip
ENTITIES = [
    dict(brand=[brand] if brand else [], composition=materials)
    for brand, materials in zip(BRANDS, MATERIALS, strict=True)
]
SAME_TEXT = {7: 6}  # product 7 has the text of product 6, in capitals


class Cells(HTMLParser):
    """The rows of each table, cell by cell, and all words of the page."""

    def __init__(self, page: str):
        super().__init__()
        self.tables, self.words, self.inside = [], '', False
        self.feed(page)
        self.words = ' '.join(self.words.split())

    def handle_starttag(self, tag, attrs):
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('td', 'th'):
            self.tables[-1][-1].append('')
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ('td', 'th')

    def handle_data(self, data):
        self.words += data
        if self.inside:
            self.tables[-1][-1][-1] += data


class Articles(Tree):
    """Also the items of each query: whether right, all words, and the headings of groups."""

    def __init__(self, page: str):
        self.groups, self.order = [], []
        super().__init__(page)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        attrs = dict(attrs)
        if tag == 'ol':
            self.articles[-1]['items'] = []
        elif tag == 'li' and self.inside('ol'):
            right = attrs.get('class') == 'right'
            self.articles[-1]['items'].append(dict(right=right, words='', other=[], same=[]))
        elif tag == 'img' and self.inside('ol'):
            self.articles[-1]['items'][-1]['alt'] = attrs['alt']

    def handle_data(self, data):
        if self.inside('article'):
            super().handle_data(data)
        elif self.inside('h2'):
            self.groups.append((data, len(self.articles)))
        if self.inside('ol') and self.articles[-1]['items']:
            own = self.articles[-1]['items'][-1]
            own['words'] += data
            if self.open[-1][0] == 'span' and 'style' in self.open[-1][1]:
                kind = 'other' if self.open[-1][1].get('class') == 'other' else 'same'
                own[kind].append(data)


@pytest.fixture(scope='module')
def scores() -> np.ndarray:
    """(12, 12) of texts and photos, all different; some right items are first."""
    scores = np.random.default_rng(4).permutation(144).reshape(12, 12) / 200
    scores[[0, 5, 9], [0, 5, 9]] += 0.8
    scores[[2, 3, 6, 8], [4, 1, 9, 10]] += 0.6025  # that share a value
    scores[[4, 1, 9, 10], [2, 3, 6, 8]] += 0.6025
    return scores.astype(np.float32)


@pytest.fixture
def case(tmp_path, scores):
    """A function (arguments) -> the page."""
    texts = list(TEXTS)
    for row, other in SAME_TEXT.items():
        texts[row] = texts[other].upper()
    images = [dict(id=i, file_name=f'{i}.png', product_id=id_) for i, id_ in enumerate(IDS)]
    annotations = [
        dict(id=i, image_id=i, caption=text, entities=ENTITIES[i]) for i, text in enumerate(texts)
    ]
    write_coco(tmp_path / 'val.json', images, annotations)
    config = write_config(tmp_path)
    one = [dict(image, id=image['id'] + 100) for image in images[:2]]  # their second photos
    write_coco(tmp_path / 'val.json', images + one, annotations)
    dump = save(tmp_path / 'model.npz', scores)

    def run(*arguments, paths=(config, dump)):
        out = tmp_path / 'page.html'
        tool.main([*paths, '--out', str(out), *arguments])
        return out.read_text(encoding='utf-8')

    run.config, run.dump, run.texts = config, dump, texts
    return run


def keys(row: int, type_: str) -> set[str]:
    return {name.lower() for name in ENTITIES[row][type_]}


def first_wrong(scores: np.ndarray) -> list[int]:
    return [max((j for j in range(12) if j != i), key=lambda j: scores[i, j]) for i in range(12)]


@pytest.mark.parametrize('direction', ['t2i', 'i2t'])
def test_what_failures_share_is_counted_by_hand(case, scores, direction):
    page = case('--direction', direction)
    own = scores if direction == 't2i' else scores.T
    rank, wrong = rank_by_hand(own), first_wrong(own)
    failed = [i for i in range(12) if rank[i] > 1]
    assert 5 < len(failed) < 12
    rows = {row[0]: row[1:] for row in Cells(page).tables[0][1:]}
    assert list(rows) == ['brand', 'composition']
    for type_, cells in rows.items():
        asked = [i for i in failed if keys(i, type_)]
        same = [bool(keys(i, type_) & keys(wrong[i], type_)) for i in asked]
        chance = [
            np.mean([bool(keys(i, type_) & keys(j, type_)) for j in range(12) if j != i])
            for i in asked
        ]
        assert 0 < sum(same) < len(same) < 12
        assert cells == [
            str(len(asked)), f'{100 * np.mean(same):.1f} %', f'{100 * np.mean(chance):.1f} %'
        ]  # fmt: skip
    words = Cells(page).words
    assert f'{12 - len(failed)} find their {"photo" if direction == "t2i" else "text"} first' in (
        words
    )
    assert f'{len(failed)} find another one first' in words


@pytest.mark.parametrize('direction', ['t2i', 'i2t'])
def test_the_first_items_and_the_right_one_are_shown(case, scores, direction):
    own = scores if direction == 't2i' else scores.T
    rank = rank_by_hand(own)
    assert (rank > 5).any() and (rank == 1).any()
    articles = Articles(case('--direction', direction)).articles
    assert len(articles) == 12
    shown = [int(article['heading'].split()[-1]) for article in articles]
    assert shown == sorted(rank, reverse=True)
    for article in articles:
        row = IDS.index(int(article['heading'].split()[1].rstrip(':')))
        best = sorted(range(12), key=lambda j: -own[row, j])[:5]
        best += [] if row in best else [row]
        items = article['items']
        assert [item['alt'] for item in items] == [f'photo of: {case.texts[j]}' for j in best]
        assert [item['right'] for item in items] == [j == row for j in best]
        for item, j in zip(items, best, strict=True):
            place = 1 + sum(own[row] > own[row, j])
            words = item['words'].split()
            assert words[: 3 if j == row else 2] == (
                ['✓'] * (j == row) + [f'{place}.', f'{own[row, j]:.3f}']
            )
            if j == row:
                assert item['same'] == item['other'] == []
                continue
            both = [t for t in ('brand', 'composition') if keys(row, t) and keys(j, t)]
            same = [t for t in both if keys(row, t) & keys(j, t)]
            assert item['same'] == same
            other = [f'≠ {", ".join(ENTITIES[j][t])}' for t in both if t not in same]
            assert item['other'] == other


def test_near_duplicates_are_noted(case, tmp_path):
    """Photos 2 and 3 are equal; product 7 has the text of product 6. Both are found first."""
    scores = np.full((12, 12), 0.1, np.float32) + 0.8 * np.eye(12, dtype=np.float32)
    scores[7, 6] = 0.95
    scores[8, 6] = 0.95  # no duplicate
    scores[3, 2] = 0.2
    dump = save(tmp_path / 'twins.npz', scores)
    loaded = Embeddings.load(dump)
    loaded.image[3] = loaded.image[2] * 0.5
    loaded.save(dump)  # query 3 now finds photo 2 first: 0.2 before 0.1
    page = case(paths=[case.config, dump])
    assert '3 of the failures find a near-duplicate' not in page
    words = Cells(page).words
    assert (
        '2 of the failures find a near-duplicate of the right product first: 1 have its text, 1 a '
        'photo of the same vector.'
    ) in words
    found = {a['heading'].split()[1]: a['items'] for a in Articles(page).articles}
    assert 'same text' in found[f'{IDS[7]}:'][0]['words']
    assert 'same photo' in found[f'{IDS[3]}:'][0]['words']
    assert 'same' not in found[f'{IDS[8]}:'][0]['words']


def test_groups_hold_every_query(case, scores):
    page = case('--group-by', 'brand', '--number', '12')
    rank = rank_by_hand(scores)
    rows = Cells(page).tables[1][1:]
    expected = {}
    for row, brand in enumerate(BRANDS):
        expected.setdefault(brand or '(none)', []).append(rank[row])
    assert {row[0] for row in rows} == set(expected)
    for name, *cells in rows:
        own = np.array(expected[name])
        share, median = 100 * (own == 1).mean(), np.median(own)
        assert cells == [str(len(own)), f'{share:.1f} %', f'{median:g}']
    failures = [sum(np.array(expected[row[0]]) > 1) for row in rows]
    assert failures == sorted(failures, reverse=True)
    tree = Articles(page)
    starts = [number for _, number in tree.groups] + [12]
    assert [name.removeprefix('brand: ') for name, _ in tree.groups] == [row[0] for row in rows]
    for (name, start), end in zip(tree.groups, starts[1:], strict=True):
        for article in tree.articles[start:end]:
            row = IDS.index(int(article['heading'].split()[1].rstrip(':')))
            assert (BRANDS[row] or '(none)') == name.removeprefix('brand: ')


def test_what_is_picked():
    rank, lead = np.array([1, 3, 1, 90, 3]), np.array([0.1, -0.1, 0.4, -0.8, -0.3])
    assert tool.picked(rank, lead, 'worst', 3) == [3, 4, 1]
    assert tool.picked(rank, lead, 'best', 3) == [2, 0, 1]
    drawn = tool.picked(rank, lead, 'random', 3)
    assert len(set(drawn)) == 3 and drawn == tool.picked(rank, lead, 'random', 3)
    assert rank[drawn].tolist() == sorted(rank[drawn], reverse=True)


def test_best_wrong_is_the_same_in_parts(monkeypatch, scores):
    import _failures
    import torch

    queries, gallery = torch.from_numpy(scores), torch.eye(12)
    monkeypatch.setattr(_failures, 'CHUNK', 5)
    rows, lead = _failures.best_wrong(queries, gallery)
    assert rows.tolist() == first_wrong(scores)
    expected = scores.diagonal() - scores[np.arange(12), rows]
    np.testing.assert_array_equal(lead, expected)


def test_a_model_without_failures(case, tmp_path):
    page = case(paths=[case.config, save(tmp_path / 'perfect.npz', np.eye(12))])
    words = Cells(page).words
    assert '12 find their photo first' in words and '0 find another one first' in words
    assert Cells(page).tables == [] and 'near-duplicate' not in page


def test_a_hostile_name_stays_text_and_the_page_needs_nothing_else(case):
    page = case('--group-by', 'brand')
    assert Cells(page).tables[1][1:] and EVIL in [row[0] for row in Cells(page).tables[1]]
    tree = Articles(page)
    assert not {tag for tag, _ in tree.tags} & {'script', 'link', 'iframe', 'object'}
    assert not {name for _, attrs in tree.tags for name in attrs if name.startswith('on')}
    assert '://' not in page and 'url(' not in page and '@import' not in page


def refused(run, capsys, *arguments, **changes) -> str:
    with pytest.raises(SystemExit) as end:
        run(*arguments, **changes)
    return capsys.readouterr().err if end.value.code == 2 else end.value.code


def test_wrong_arguments_are_refused(case, capsys, tmp_path):
    assert '--number: must be at least 1, got 0' in refused(case, capsys, '--number', '0')
    assert "--group-by colour: no product has this entity type; they have ['brand'" in refused(
        case, capsys, '--group-by', 'colour'
    )
    assert 'config no.py does not exist' in refused(case, capsys, paths=['no.py', case.dump])
    message = refused(case, capsys, paths=[case.config, 'no.npz'])
    assert 'embeddings no.npz do not exist' in message
    other = save(tmp_path / 'other.npz', np.eye(12), ids=[i + 1000 for i in IDS])
    message = refused(case, capsys, paths=[case.config, other])
    assert 'are not in the test split of' in message
