"""The numbers of the pages are those of docs/results."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = dict(products='full/product', mini='full/first-image')
SUFFIXES = dict(products='products', mini='fashiongen_mini')
SEEDS = dict(products=('0', '1'), mini=('0',))  # of ablations
ROWS = {
    1: 'clip-zeroshot',
    2: 'clip',
    3: 'clip-meta',
    4: 'eiclip-all',
    5: 'eiclip',
}


def numbers(cell: str) -> list[float]:
    return [float(x.replace('−', '-')) for x in re.findall(r'[+−]?\d+\.\d+', cell)]


def lines_of(page: str, data: str) -> list[list[str]]:
    """The lines of tables in a page's part about a data set, as cells."""
    text = (ROOT / page).read_text(encoding='utf-8')
    if page == 'docs/experiments.md':
        products, mini = re.split(r'^## Mini Fashion-Gen', text, flags=re.MULTILINE)
        text = (mini if data == 'mini' else products).split('## What entities do')[0]
    cells = re.findall(r'^\|(.+)\|$', text, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.split('|')] for line in cells]


def results(data: str) -> dict:
    whole = json.loads((ROOT / f'docs/results/{data}.json').read_text(encoding='utf-8'))
    return whole['tables'][DATA[data]]


@pytest.mark.parametrize('data', DATA)
def test_ablations(data):
    """Means over the seeds that ablations have, less row 5 of the same seeds."""
    rows = {name: row['measures']['SumR']['by_seed'] for name, row in results(data)['rows'].items()}
    row5, seen = rows[f'eiclip_{SUFFIXES[data]}'], 0
    for label, *cells in lines_of('docs/experiments.md', data):
        if len(cells) != 2:  # another table
            continue
        for name in re.findall(r'`(eiclip-[\w-]+)`', label):
            own = rows[f'{name}_{SUFFIXES[data]}']
            seeds = sorted({*SEEDS[data]} & {*own})
            total = sum(own[seed] for seed in seeds) / len(seeds)
            beside = total - sum(row5[seed] for seed in seeds) / len(seeds)
            shown = [numbers(cell)[0] for cell in cells]
            assert shown == pytest.approx([total, beside], abs=0.051), name
            seen += 1
    assert seen >= 20


@pytest.mark.parametrize(
    ('title', 'results', 'count'),
    [
        ('Some rows trained again', 'products_again', 6),
        ('Twins, and the code as it is now', 'products_twins', 2),
        ('The last layer of the text tower trained', 'products_unlocked', 3),
    ],
)
def test_rows_trained_again(title, results, count):
    path = ROOT / f'docs/results/{results}.json'
    found = json.loads(path.read_text(encoding='utf-8'))['tables']['full/product']
    differences, seen = {d['name']: d for d in found['differences']}, 0
    page = (ROOT / 'docs/experiments.md').read_text(encoding='utf-8')
    part = page.split(f'#### {title}\n')[1].split('\n#')[0]
    for line in re.findall(r'^\|(.+)\|$', part, flags=re.MULTILINE):
        label, *cells = (cell.strip() for cell in line.split('|'))
        name = re.match(r'`([\w-]+)`|row 5$', label)
        if not name:
            continue
        stem = f'{name[1] or "eiclip"}_products'
        mean = found['rows'][stem]['measures']['SumR']['mean']
        other = re.search(r'row \d|clip-meta[\w-]+', cells[1])[0]
        other = other if other.startswith('row') else f'{other}_products'
        d = differences[f'{stem if name[1] else "row 5"} − {other}']
        assert numbers(cells[0]) == pytest.approx([mean], abs=0.051)
        shown = [d['difference'], d['low'], d['high']]
        assert numbers(cells[1]) == pytest.approx(shown, abs=0.051), label
        assert numbers(cells[2]) == pytest.approx(list(d['by_seed'].values()), abs=0.051)
        seen += 1
    assert seen == count


@pytest.mark.parametrize(
    ('page', 'data'),
    [
        ('README.md', 'products'),
        ('docs/experiments.md', 'products'),
        ('docs/experiments.md', 'mini'),
    ],
)
def test_rows_of_the_poster(page, data):
    rows, seen = results(data)['rows'], set()
    for label, *cells in lines_of(page, data):
        if not (match := re.match(r'([1-5]), ', label)) or len(cells) < 3:
            continue
        measures = rows[f'{ROWS[int(match[1])]}_{SUFFIXES[data]}']['measures']
        if data == 'mini':
            shown = dict(SumR=cells[0])
        else:
            names = [f'{way}/R@{k}' for way in ('i2t', 't2i') for k in (1, 5, 10)]
            shown = dict(zip((*names, 'SumR'), cells, strict=False))
        for name, cell in shown.items():
            assert numbers(cell)[0] == pytest.approx(measures[name]['mean'], abs=0.051)
        seen.add(int(match[1]))
    assert seen >= {2, 3, 4, 5}
