"""Rows and tables: what is written can be read again, and reads as what was measured."""

import csv
import io
import json
import re
from dataclasses import asdict, replace

import pytest
import torch
from references_protocols import arrays, random_split

from eiclip_mm.evaluation import Embeddings, draw_candidates, get_protocol, retrieve
from eiclip_mm.evaluation.report import (
    Row,
    Table,
    check_writable,
    protocol_card,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from eiclip_mm.evaluation.rows import (
    different,
    other_lists,
    published_rows,
    result_row,
    seed_rows,
    sizes,
    slice_rows,
)
from eiclip_mm.evaluation.statistics import intervals, over_seeds

KS = (1, 2)


def split(seed=0, **card):
    images, texts = random_split(seed, most=12, captions=1)
    return Embeddings(**arrays(images, texts), card=card)


def seeds_of(config, *seeds, **card):
    """Runs of different embeddings of one split, said to be seeds of a config."""
    base = split()
    runs = []
    for seed in seeds:
        noise = torch.randn(base.image.shape, generator=torch.Generator().manual_seed(seed))
        own = card | dict(model=dict(config=config, seed=seed))
        runs.append(retrieve(replace(base, image=noise, card=own), 'full/product'))
    return runs


@pytest.fixture
def table():
    nasty = Row(r'50 % & a_b|c #1 {x} ~^$ \d <e>', {'i2t/R@1': 12.345678901234567, 'SumR': 1 / 3})
    ours = Row(
        'Chloé, "ours"',
        {'i2t/R@1': 100.0, 't2i/R@10': 99.5, 'SumR': 300.0, 'i2t/MRR': 2 / 3, 'num_images': 7},
        low={'i2t/R@1': 98.7654321, 'i2t/MRR': 0.6},
        high={'i2t/R@1': 100.0, 'i2t/MRR': 0.7},
        std={'SumR': 1.25},
    )
    paper = Row('paper', {'meanR': 66.3}, source='A & B, Table 4', note='the mean alone')
    return Table('full/product', [nasty, ours, paper], caption='7 & more', level=0.9)


class TestRows:
    def test_result_has_all_measures_and_their_intervals(self):
        run = retrieve(split(), 'full/product')
        row = result_row('ours', run, KS, level=0.8, samples=50, seed=3)
        found = intervals(run, KS, 0.8, 50, 3)
        assert row.values == run.metrics(KS)
        assert len(found) > 10
        assert row.low == {key: bound.low for key, bound in found.items()}
        assert row.high == {key: bound.high for key, bound in found.items()}

    def test_no_samples_no_intervals(self):
        row = result_row('ours', retrieve(split(), 'full/product'), KS, samples=0)
        assert row.low == row.high == {}

    def test_seeds_of_a_config(self):
        runs = [*seeds_of('b', 7), *seeds_of('a', 0, 1, 2), *seeds_of('c', 5, 5)]
        (row,) = seed_rows(runs, KS, 0.9)
        assert row.method == 'a (3 seeds)'
        assert 'seeds 0, 1, 2;' in row.note
        found = over_seeds(runs[1:4], KS, 0.9)
        assert row.values['t2i/R@2'] == found['t2i/R@2'].mean
        assert row.std['t2i/R@2'] == found['t2i/R@2'].std > 0
        assert (row.low['i2t/mAP'], row.high['i2t/mAP']) == (
            found['i2t/mAP'].low,
            found['i2t/mAP'].high,
        )

    def test_seeds_that_read_other_texts_are_not_mixed(self):
        given = seeds_of('a', 0, text=dict(tags='given'))
        found = seeds_of('a', 1, text=dict(tags='from text'))
        assert list(seed_rows(given + found, KS)) == []

    def test_foreign_cards_are_no_seeds(self):
        run = retrieve(split(), 'full/product')
        models = ('CLIP', {}, {'config': 'a', 'seed': [0]}, {'config': ['a'], 'seed': 0})
        runs = [replace(run, card=card) for card in ({}, *({'model': m} for m in models))] * 2
        assert list(seed_rows(runs, KS)) == []

    def test_seeds_of_other_products_have_no_mean(self):
        runs = [*seeds_of('a', 0, 1), *seeds_of('b', 0, 1)]
        lost = runs[1].t2i.product_id[:1].tolist()
        runs[1] = runs[1].of(runs[1].t2i.product_id[1:])
        without, with_mean = seed_rows(runs, KS)
        assert (without.method, without.values) == ('a (2 seeds)', {})
        assert without.note.startswith('no mean: run 2 of 2 cannot be compared with the first: ')
        assert f'1 products are in one of them alone, e.g. {lost}' in without.note
        assert with_mean.values['t2i/R@2'] == over_seeds(runs[2:], KS)['t2i/R@2'].mean
        text = to_markdown(Table('p', [Row('m', {'SumR': 1.0}), without]))
        assert '| a (2 seeds)' not in text and '\n\n- a (2 seeds): no mean: run 2' in text

    def test_published(self):
        row = published_rows('101/eiclip')[0]
        assert row.method == 'EI-CLIP, published'
        assert row.values['i2t/R@5'] == 72.20
        assert (row.source, 'inferred' in row.note) == ('FAME-ViL (CVPR 2023), Table 1', True)

    @pytest.mark.parametrize('seed', range(5))
    def test_slices_against_counting(self, seed):
        embeddings = split(seed)
        run = retrieve(embeddings, 'full/product')
        labels = embeddings.label('subcategory').tolist()
        group = dict(zip(embeddings.product_id.tolist(), labels, strict=True))
        rows = slice_rows('ours', run, embeddings, 'subcategory', KS)
        assert {row.slice for row in rows} == set(group.values())
        for row in rows:
            for direction in ('i2t', 't2i'):
                ranking = getattr(run, direction)
                pairs = zip(ranking.product_id.tolist(), ranking.ahead[:, 0].tolist(), strict=True)
                ahead = [wrong for product, wrong in pairs if group[product] == row.slice]
                assert row.values[f'{direction}/queries'] == len(ahead)
                for k in KS:
                    share = sum(wrong < k for wrong in ahead) / len(ahead)
                    assert row.values[f'{direction}/R@{k}'] == pytest.approx(100 * share)
        sizes_ = [row.values['i2t/queries'] + row.values['t2i/queries'] for row in rows]
        assert sizes_ == sorted(sizes_, reverse=True)

    def test_a_slice_without_queries_of_one_direction(self):
        embeddings = split()
        run = retrieve(embeddings, 'full/product')
        lost = embeddings.product_id[torch.from_numpy(embeddings.label('subcategory') == 'b')]
        kept = ~torch.isin(run.t2i.product_id, lost)
        run = replace(run, t2i=run.t2i.of(run.t2i.product_id[kept]))
        rows = {row.slice: row.values for row in slice_rows('ours', run, embeddings, 'subcategory')}
        assert rows['b']['t2i/queries'] == 0
        assert 'i2t/R@1' in rows['b'] and 't2i/R@1' not in rows['b'] and 'SumR' not in rows['b']
        assert rows['a']['SumR'] == pytest.approx(
            sum(rows['a'][f'{d}/R@{k}'] for d in ('i2t', 't2i') for k in (1, 5, 10))
        )

    def test_no_value_of_a_label_has_a_name(self):
        embeddings = split()
        labels = embeddings.label('subcategory').astype('U9')
        labels[labels == 'a'] = ''
        labels[-1] = '(none)'
        embeddings = replace(embeddings, labels=dict(subcategory=labels))
        rows = slice_rows('ours', retrieve(embeddings, 'full/product'), embeddings, 'subcategory')
        assert {row.slice for row in rows} == {'b', 'c', 'd', '(none)', 'no value'}

    def test_sizes(self):
        assert sizes(retrieve(split(), 'full/first-image')) == (
            '10 images ask among 10 texts, 10 texts ask among 10 images'
        )
        run = retrieve(split(), '101/eiclip')
        assert sizes(run).endswith(f'images, candidates {run.manifest}')


class TestMarkdown:
    def test_is_aligned_and_holds_every_row(self, table):
        text = to_markdown(table)
        assert text.startswith('## full/product\n\n7 & more\n\n|')
        recalls, ranks = (part.splitlines() for part in text.split('\n\n')[2:4])
        for grid in (recalls, ranks):
            assert len({len(line) for line in grid}) == 1
            assert len({len(re.findall(r'(?<!\\)\|', line)) for line in grid}) == 1
        assert [re.split(r' *\| *', line)[1] for line in recalls[3:]] == [
            'Chloé, "ours"',
            '90 % interval',
            'std over seeds',
            'paper',
        ]
        assert recalls[2].startswith(r'| 50 % & a_b\|c #1 {x} ~^$ \d <e> |')
        assert re.split(r' *\| *', recalls[0])[1:-1] == [
            '', 'I2T R@1', 'T2I R@10', 'SumR', 'mean R',
        ]  # fmt: skip
        assert re.split(r' *\| *', recalls[4])[2:-1] == ['98.77–100.00', '', '', '']
        assert re.split(r' *\| *', recalls[6])[2:-1] == ['–', '–', '–', '66.30']
        assert len(ranks) == 4 + 1  # only ours has ranks; its bounds and spread below
        assert text.endswith('\n- paper: A & B, Table 4; the mean alone.')

    def test_slices_are_named_by_their_value(self):
        rows = [
            Row('m', {'i2t/queries': 1234, 'i2t/R@1': 1.0}, slice=v) for v in ('Acne\nStudios', 'b')
        ]
        lines = to_markdown(Table('full/product', rows, label='brand')).splitlines()
        assert lines[0] == '## full/product, m by brand'
        assert lines[4].startswith('| Acne Studios |       1,234 |')

    def test_equal_notes_share_a_line(self):
        rows = [Row(name, {'SumR': 1.0}, note='inferred') for name in 'ab']
        assert to_markdown(Table('p', rows)).endswith('\n\n- a; b: inferred.')


class TestLatex:
    def test_is_balanced_and_escaped(self, table):
        text = to_latex(table)
        plain = re.sub(r'\\[{}]', '', text)
        depth = 0
        for char in plain:
            depth += (char == '{') - (char == '}')
            assert depth >= 0
        assert depth == 0
        stack = []
        for kind, name in re.findall(r'\\(begin|end)\{(\w+)\}', text):
            assert kind == 'begin' or stack.pop() == name
            stack += [name] * (kind == 'begin')
        assert stack == []
        assert not re.search(r'(?<!\\)[%$#_]', text)
        assert '7 \\& more' in text
        assert (
            r'50 \% \& a\_b\textbar{}c \#1 \{x\} \textasciitilde{}\textasciicircum{}\$ '
            r'\textbackslash{}d \textless{}e\textgreater{}' in text
        )

    def test_every_line_has_the_columns_of_its_tabular(self, table):
        tabulars = re.findall(r'\\begin\{tabular\}\{(l+r+)\}(.*?)\\end', to_latex(table), re.DOTALL)
        assert len(tabulars) == 2
        for columns, body in tabulars:
            lines = [line for line in body.splitlines() if line.endswith(r'\\')]
            assert len(lines) >= 3
            assert {len(re.findall(r'(?<!\\)&', line)) for line in lines} == {len(columns) - 1}
            assert [rule in body for rule in (r'\toprule', r'\midrule', r'\bottomrule')] == [
                True
            ] * 3

    def test_a_name_cannot_end_a_line_or_belong_to_the_line_above(self):
        rows = [Row(name, {'SumR': 1.0}, note='a\n\nb') for name in ('[2 cm] x', '*', 'c\n\nd')]
        lines = to_latex(Table('full\n\nproduct', rows)).splitlines()
        assert '' not in lines
        assert lines[2] == r'\caption{full product}'
        body = lines[lines.index(r'\midrule') + 1 : lines.index(r'\bottomrule')]
        assert body == [r'{[}2 cm] x & 1.00 \\', r'{*} & 1.00 \\', r'c d & 1.00 \\']


class TestWritable:
    def test_tries_and_leaves_nothing(self, tmp_path):
        path = tmp_path / 'new/deep/report.md'
        check_writable(path)
        assert list(path.parent.iterdir()) == []
        path.write_text('kept')
        check_writable(path)
        assert path.read_text() == 'kept'

    def test_refuses(self, tmp_path):
        (tmp_path / 'file').touch()
        for path in (tmp_path, tmp_path / 'file/report.md', tmp_path / 'file/deep/report.md'):
            with pytest.raises(ValueError, match=f'^{path} cannot be written: .*another --out$'):
                check_writable(path)


class TestWhatDiffers:
    @pytest.mark.parametrize(
        'what, change',
        [
            ('products', dict(product_id=8, image_product_id=8)),
            ('images (product, view)', dict(image_view=1)),
            ('texts (product, caption)', dict(product_caption=1)),
        ],
    )
    def test_dumps(self, what, change):
        """Two dumps of a product that differ in one number, in another order."""
        numbers = dict(product_id=[9, 7], image_product_id=[9, 7])
        numbers |= dict(image_view=[0, 0], product_caption=[0, 0])
        vectors = torch.eye(2)

        def dump(**numbers):
            arrays = {name: torch.tensor(values) for name, values in numbers.items()}
            return Embeddings(image=vectors, product=vectors, **arrays)

        one, same = dump(**numbers), dump(**{k: v[::-1] for k, v in numbers.items()})
        other = dump(**{k: [v[0], change.get(k, v[1])] for k, v in numbers.items()})
        assert list(different({'one': one, 'same': same})) == []
        (found,) = different({'one': one, 'same': same, 'other': other})
        assert found.startswith(f'other holds other {what} than one, 1 in it alone and 1 in one')

    def test_lists(self):
        embeddings = split()
        drawn = get_protocol('101/fashionbert', queries=4, seed=3)
        lists = draw_candidates(embeddings, drawn).manifest(embeddings, origin=asdict(drawn))
        for asked in (drawn, replace(drawn, seed=1), replace(drawn, same_text=True)):
            assert other_lists(lists, asked) == ''
        for asked, what in (
            (get_protocol('101/fashionbert'), 'queries differ'),
            (get_protocol('101/kaleido', queries=4), 'candidates, unit, repeats differ'),
        ):
            found = other_lists(lists, asked)
            assert found.startswith(
                "the lists of the manifest were drawn for '101/fashionbert, 4 queries, seed 3', "
                f'not for {asked.name}: {what}, so'
            )
            assert other_lists(replace(lists, origin={}), asked) == ''


class TestData:
    def test_csv_reads_back_to_equal_numbers(self, table):
        other = Table('101/eiclip', [Row('m', {'i2t/R@3': 0.1}, slice='a')], label='brand')
        rows = list(csv.DictReader(io.StringIO(to_csv([table, other]))))
        assert [row['protocol'] for row in rows] == ['full/product'] * 3 + ['101/eiclip']
        assert (rows[3]['label'], rows[3]['slice']) == ('brand', 'a')
        for line, row in zip(rows, [*table.rows, *other.rows], strict=True):
            assert (line['method'], line['source'], line['note']) == (
                row.method,
                row.source,
                row.note,
            )
            cells = {
                f'{k} {of}': v for of in ('low', 'high', 'std') for k, v in getattr(row, of).items()
            }
            cells |= row.values
            named = ('protocol', 'method', 'label', 'slice', 'source', 'note')
            numbers = {k: float(v) for k, v in line.items() if v and k not in named}
            assert numbers == cells

    def test_json_reads_back_to_equal_numbers(self, table):
        found = json.loads(to_json([table], warnings=['w'], cards={'m': {}}))
        (read,) = found.pop('tables')
        assert [Row(**row) for row in read.pop('rows')] == table.rows
        assert Table(**read, rows=table.rows) == table
        assert found == {'warnings': ['w'], 'cards': {'m': {}}}


class TestCard:
    def test_says_what_a_result_rests_on(self):
        embeddings = split(data={'dataset': 'FashionGen'}, model={'seed': 3})
        protocol = get_protocol('101/fashionbert', queries=4, seed=11)
        card = protocol_card(retrieve(embeddings, protocol))
        lists = draw_candidates(embeddings, protocol).manifest(embeddings, origin={})
        assert card['data'] == {'dataset': 'FashionGen'} and card['model'] == {'seed': 3}
        assert card['protocol'] == asdict(protocol)
        assert card['protocol']['ties'] == 'against' and card['protocol']['seed'] == 11
        assert card['queries'] == {'i2t': 4, 't2i': 4}
        assert card['manifest'] == lists.hash
        longest = {
            direction: max(sum(number >= 0 for _, number in row) for row in listed.tolist())
            for direction, listed in (('i2t', lists.i2t_candidates), ('t2i', lists.t2i_candidates))
        }
        assert card['galleries'] == longest
        assert card == json.loads(json.dumps(card))

    def test_all_are_candidates(self):
        card = protocol_card(retrieve(split(), 'full/product'))
        images, texts = random_split(0, most=12, captions=1)
        assert card['manifest'] is None
        assert card['galleries'] == {'i2t': len(texts), 't2i': len(images)}
        assert card['queries'] == {'i2t': len(images), 't2i': len(texts)}
        assert (card['num_images'], card['num_products']) == (len(images), len(texts))
