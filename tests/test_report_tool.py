"""tools/analysis_tools/report.py as users run it, on dumps whose ranks are known."""

import csv
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eiclip_mm.evaluation import PROTOCOLS, Embeddings, Manifest, draw_candidates, evaluate

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / 'tools/analysis_tools/report.py'
PRODUCTS = 30
ENDS = ['Card', 'Warnings']
VALIDATION = {'dataset': 'FashionGen', 'file': 'fashiongen_256_256_validation.h5', 'products': 7519}


@pytest.fixture(scope='module')
def main():
    spec = importlib.util.spec_from_file_location('report_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def report(main, capsys):
    """Run the tool in this process; its whole output."""

    def run(*argv):
        main([*map(str, argv)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(main, capsys):
    """Run the tool with bad input; what it says to the user."""

    def run(*argv):
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, argv)])
        said = stopped.value.code
        return said if isinstance(said, str) else capsys.readouterr().err

    return run


def write(path, shift=0, views=1, labels=True, **card):
    """A dump of products on a circle; photos stand ``shift`` products and a bit from their text.

    So the rank of a photo's own text is 1 + 2 * shift; brand ``far`` is five products further.
    """
    ids = torch.arange(PRODUCTS)
    image_ids = ids.repeat_interleave(views)
    far = ids >= 20

    def circle(steps):
        angle = steps.double() * 2 * math.pi / PRODUCTS
        return torch.stack([angle.cos(), angle.sin()], 1).float()

    named = {
        'brand': np.where(far.numpy(), 'far', 'near'),
        'subcategory': np.array([f'group {i % 2}' for i in range(PRODUCTS)]),
    }
    Embeddings(
        image=circle(image_ids + shift + 5 * far[image_ids] + 0.1),
        image_product_id=image_ids,
        product=circle(ids),
        product_id=ids,
        labels=named if labels else {},
        card=card,
    ).save(path)
    return path


def titles(text):
    return re.findall('^## (.*)', text, re.MULTILINE)


def line(text, start):
    """The cells of the first line of a table that starts so."""
    found = next(x for x in text.splitlines() if x.startswith(f'| {start} '))
    return [cell.strip() for cell in found.strip('|').split('|')]


class TestTables:
    def test_every_format_from_the_command_line(self, tmp_path):
        dumps = [
            write(tmp_path / f'{s}.npz', s, views=2, model=dict(config='ours', seed=s))
            for s in (0, 1)
        ]
        out = tmp_path / 'out'
        done = subprocess.run(
            [sys.executable, TOOL, *dumps, '--out', out, '--samples', '40', '--slices', 'brand'],
            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        text = (out / 'report.md').read_text(encoding='utf-8')
        assert done.stdout == text
        names = ['full/first-image', 'full/product', '101/eiclip', '101/fashionbert']
        names += ['101/kaleido', '101/fashionsap']
        kinds = ('', ', ours, seed 0 by brand', ', ours, seed 1 by brand')
        assert titles(text) == [*(n + kind for n in names for kind in kinds), 'Card', 'Warnings']

        found = json.loads((out / 'report.json').read_text(encoding='utf-8'))
        values = {
            (table['protocol'], row['method']): row['values']
            for table in found['tables']
            for row in table['rows']
            if not table['label']
        }
        for seed, dump in enumerate(dumps):
            for name in names:
                expected = evaluate(Embeddings.load(dump), name)
                assert values[name, f'ours, seed {seed}'] == expected
        mean = values['full/product', 'ours (2 seeds)']
        both = [values['full/product', f'ours, seed {s}']['SumR'] for s in (0, 1)]
        assert mean['SumR'] == pytest.approx(sum(both) / 2)
        assert found['bootstrap'] == {'samples': 40, 'level': 0.95, 'seed': 0}
        assert found['cards']['ours, seed 1']['full/product']['model'] == dict(
            config='ours', seed=1
        )

        rows = list(csv.DictReader((out / 'report.csv').read_text(encoding='utf-8').splitlines()))
        main = [row for row in rows if not row['label']]
        assert len(main) == 6 * 3 and len(rows) == 6 * 3 + 6 * 2 * 2
        for row in main:
            assert float(row['SumR']) == values[row['protocol'], row['method']]['SumR']
            assert float(row['SumR low']) <= float(row['SumR']) <= float(row['SumR high'])
        latex = (out / 'report.tex').read_text(encoding='utf-8')
        assert latex.count(r'\begin{table}') == len(found['tables']) == 18

    def test_known_ranks_and_slices(self, report, tmp_path):
        text = report(write(tmp_path / 'a.npz'), '--slices', 'brand', '--ks', 1, 5, 11)
        # 20 near products: rank 1. 10 far ones: five texts on either side are nearer, rank 11.
        assert line(text, tmp_path / 'a.npz')[1:4] == ['66.67', '66.67', '100.00']
        assert line(text, 'near')[1:6] == ['20', '20', '100.00', '100.00', '100.00']
        assert line(text, 'far')[1:6] == ['10', '10', '0.00', '0.00', '100.00']
        assert text.index('| near ') < text.index('| far ')

    def test_defaults_follow_the_dump(self, report, tmp_path):
        one = write(tmp_path / 'one.npz', labels=False)
        assert titles(report(one, '--samples', 0)) == ['full/first-image', 'Card', 'Warnings']
        two = write(tmp_path / 'two.npz', views=2, labels=False)
        assert titles(report(two, '--samples', 0))[:2] == ['full/first-image', 'full/product']
        text = report(one, two, '--samples', 0)
        assert titles(text) == ['full/first-image', 'full/product', 'Card', 'Warnings']
        assert [text.split('## Card')[0].count(f'| {dump} ') for dump in (one, two)] == [2, 4]

    def test_no_samples_no_intervals(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz', labels=False)
        assert '% interval' not in report(dump, '--samples', 0)
        assert '| 80 % interval' in report(dump, '--samples', 20, '--level', 0.8)

    def test_the_same_twice(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz')
        assert report(dump, '--samples', 40) == report(dump, '--samples', 40)


class TestProtocols:
    def test_changed_protocols_have_another_name(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz')
        text = report(
            dump, '--protocols', 'full/product', '101/fashionbert', '101/eiclip',
            '--group', 'brand', '--queries', 'all', '--samples', 0,
        )  # fmt: skip
        assert titles(text)[:3] == [
            'full/product',
            '101/fashionbert, group brand, all queries',
            '101/eiclip, group brand',
        ]
        assert '30 images ask among up to 20 texts' in text  # the 20 near products

    def test_as_published_stands_beside(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz')
        names = ['full/first-image', '101/fashionsap']
        text = report(dump, '--protocols', *names, '--as-published', '--samples', 0)
        assert titles(text)[:3] == [*names, '101/fashionsap as published']

    def test_same_text(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz')
        with np.load(dump) as stored:
            arrays = dict(stored)
        np.savez(dump, **arrays, product_text=np.zeros(PRODUCTS, np.int64))
        text = report(dump, '--same-text', '--protocols', 'full/product', '--samples', 0)
        assert titles(text)[0] == 'full/product, same text'
        assert line(text, dump)[1:9] == ['100.00'] * 6 + ['600.00', '100.00']

    def test_manifests_are_written_and_read(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz')
        manifests = tmp_path / 'manifests'
        options = (dump, '--protocols', '101/fashionsap', '--samples', 0)
        drawn = report(*options, '--seed', 5, '--save-manifests', manifests)
        (path,) = manifests.iterdir()
        stored = Manifest.load(path)
        assert path.name == f'101_fashionsap-seed-5-{stored.hash}.npz'
        assert stored.origin['name'] == '101/fashionsap, seed 5' and stored.origin['seed'] == 5
        read = report(*options, '--manifest', path)
        assert f'candidates {stored.hash}' in read
        assert line(read, dump) == line(drawn, dump)
        assert f'candidates {stored.hash}' not in report(*options)

    def test_lists_of_another_protocol(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz')
        path = tmp_path / 'lists.npz'
        lists = draw_candidates(Embeddings.load(dump), '101/eiclip')
        origin = asdict(PROTOCOLS['101/eiclip'])
        for protocol, given, said in (
            ('101/eiclip', origin, '"101/eiclip"'),
            ('101/fashionsap', origin, '"101/eiclip"'),
            ('101/fashionsap', {}, '"not stated in the manifest"'),
        ):
            lists.manifest(Embeddings.load(dump), given).save(path)
            options = ('--protocols', protocol, '--manifest', path, '--samples', 0)
            text = report(dump, *options)
            assert f'- manifest_origin: `{said}`' in text
            warned = "drawn for '101/eiclip', not for 101/fashionsap: candidates, queries differ"
            assert (warned in text) == (protocol == '101/fashionsap' and given == origin)

    def test_too_small_for_candidates(self, report, refused, tmp_path):
        """What nobody asked for by name is left out; the rest is reported."""
        dump = write(tmp_path / 'a.npz')
        text = report(dump, '--samples', 0, '--ks', 1, 16)  # of groups of 15
        assert titles(text) == ['full/first-image', '101/kaleido', '101/fashionsap', *ENDS]
        assert 'R@16 means nothing in a gallery of 15 texts' in text
        whole = Embeddings.load(dump)
        alone = np.array([f'group {i}' for i in range(PRODUCTS)])
        replace(whole, labels={'subcategory': alone}).save(dump)
        text = report(dump, '--samples', 0)
        assert titles(text) == ['full/first-image', '101/kaleido', '101/fashionsap', *ENDS]
        for name in ('101/eiclip', '101/fashionbert'):
            assert f'- {dump} is left out of a table: protocol {name}: the candidate pool' in text
            assert 'the candidate pool is empty' in refused(dump, '--protocols', name)
        first = torch.arange(2)
        sides = {name: getattr(whole, name)[first] for name in ('image', 'product')}
        ids = dict(product_id=first, image_product_id=first)
        labels = {'subcategory': alone[:2]}
        Embeddings(**sides, **ids, labels=labels).save(dump)
        text = report(dump, '--samples', 0, '--ks', 1)
        assert titles(text)[0] == 'full/first-image' and 'the candidate pool is empty' in text


class TestPublished:
    def test_stands_under_fashion_gen_alone(self, report, tmp_path):
        options = ('--samples', 0, '--protocols', 'full/first-image', '101/fashionbert')
        real = write(tmp_path / 'real.npz', data=VALIDATION)
        mini = write(tmp_path / 'mini.npz', data=VALIDATION | {'products': 300})
        assert 'Kaleido-BERT (CVPR 2021), Table 2' in report(real, *options)
        for text in (report(mini, *options), report(real, mini, *options)):
            assert 'published' not in text.split('## Card')[0]
        assert 'published' not in report(real, *options, '--no-published').split('## Card')[0]
        text = report(mini, *options, '--published', '--queries', 'all')
        assert line(text, 'EI-CLIP row 5 (EI-CLIP), published')[1:4] == [
            '25.70',
            '54.50',
            '66.80',
        ]
        assert 'Kaleido-BERT, published' in text and 'FashionBERT, published' not in text

    def test_cards_are_printed_once(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz', data=VALIDATION, versions={'torch': '2'})
        text = report(dump, '--samples', 0).split('## Card')[1]
        assert text.count('- versions: `{"torch": "2"}`') == 1
        assert text.count('- protocol: ') == 5
        bare = write(tmp_path / 'b.npz')
        assert '- no card: where it comes from is not known' in report(bare, '--samples', 0)


class TestWarnings:
    @staticmethod
    def warnings(text):
        return text.split('## Warnings')[1].strip().splitlines()

    def test_what_holds_of_all_is_said_once(self, report, tmp_path):
        full = write(tmp_path / 'full.npz')
        names = ('--samples', 0, '--protocols', 'full/first-image', '101/eiclip')
        lines = self.warnings(report(full, *names))
        assert sum('do not say everything' in line for line in lines) == 1
        # groups of 15 products leave 14 wrong candidates
        (short,) = [line for line in lines if 'i2t queries' in line]
        assert short.startswith('- 101/eiclip: ') and '30 of 30' in short
        chosen = write(tmp_path / 'chosen.npz', model={'chosen_on': {'reported': True}})
        lines = self.warnings(report(full, chosen, *names))
        assert short in lines
        (own,) = [line for line in lines if 'chosen on the reported split' in line]
        assert own.startswith(f'- {chosen}: ')

    def test_other_products_and_no_mean(self, report, tmp_path):
        one, two = (
            write(tmp_path / f'{s}.npz', views=2, model=dict(config='ours', seed=s)) for s in (0, 1)
        )
        whole = Embeddings.load(two)
        texts, images = whole.product_id != 7, whole.image_product_id != 7
        arrays = {
            name: getattr(whole, name)[images if 'image' in name else texts]
            for name in ('image', 'image_product_id', 'product', 'product_id')
        }
        Embeddings(**arrays, card=whole.card).save(two)
        text = report(one, two, '--samples', 0, '--protocols', 'full/product')
        for seed, dump in enumerate((one, two)):
            recall = evaluate(Embeddings.load(dump), 'full/product')['i2t/R@1']
            assert line(text, f'ours, seed {seed}')[1] == f'{recall:.2f}'
        assert '| ours (2 seeds)' not in text and '- ours (2 seeds): no mean: run 2 of 2' in text
        (warned,) = (x for x in self.warnings(text) if 'rows are not comparable' in x)
        assert warned.startswith('- ours, seed 1 holds other products than ours, seed 0, 0 in it')
        assert 'and 1 in ours, seed 0 alone, e.g. 7: ' in warned

    def test_names_stay_in_their_line(self, report, tmp_path):
        dump = write(
            tmp_path / 'a.npz', model={'config': 'a\n\n## b|c', 'chosen_on': 1}, **{'x\n## y': 1}
        )
        text = report(dump, '--samples', 0, '--protocols', 'full/first-image')
        assert titles(text) == ['full/first-image', *ENDS]
        assert r'a ## b\|c:' in text and '- x ## y: `1`' in text


class TestDuplicates:
    @staticmethod
    def found(path, ids, **more):
        path.write_text(json.dumps(dict(product_ids=ids) | more), encoding='utf-8')
        return '--duplicates', path

    def test_are_a_slice(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz')
        few = ('--samples', 0, '--protocols', 'full/first-image')
        text = report(dump, *few, *self.found(tmp_path / 'd.json', [3, 5, 99]))
        assert titles(text)[1] == f'full/first-image, {dump} by photo in train'
        assert [line(text, name)[1] for name in ('near-duplicate', 'none')] == ['2', '28']
        text = report(dump, *few, *self.found(tmp_path / 'd.json', []))
        assert titles(text) == ['full/first-image', *ENDS] and '--duplicates' not in text

    def test_of_another_split_are_no_slice(self, report, tmp_path):
        dump = write(tmp_path / 'a.npz')
        options = self.found(tmp_path / 'd.json', [99, 100])
        text = report(dump, '--samples', 0, '--protocols', 'full/first-image', *options)
        assert titles(text) == ['full/first-image', *ENDS]
        assert f'- {dump} has none of the 2 products of --duplicates; run find_dup' in text

    @pytest.mark.parametrize('ids', [['3'], [3.0], [None], [True], 3, '3', {'3': 1}])
    def test_must_be_integers(self, refused, tmp_path, ids):
        dump = write(tmp_path / 'a.npz')
        said = refused(dump, *self.found(tmp_path / 'd.json', ids))
        assert 'd.json is not what find_duplicates.py --out writes: ' in said

    def test_must_be_json_in_a_file(self, refused, tmp_path):
        dump, path = write(tmp_path / 'a.npz'), tmp_path / 'd.json'
        assert 'd.json is not there, or no file' in refused(dump, '--duplicates', path)
        path.write_text('[' * 10**5, encoding='utf-8')
        assert 'd.json is not JSON of ours: ' in refused(dump, '--duplicates', path)
        said = refused(dump, '--duplicates', os.devnull)  # of /dev/zero, none would come
        assert '/dev/null is not there, or no file' in said


class TestBadInput:
    def test_dumps(self, refused, tmp_path):
        assert 'nowhere.npz do not exist' in refused('nowhere.npz')
        path = tmp_path / 'text.npz'
        path.write_text('no archive', encoding='utf-8')
        assert 'text.npz does not hold embeddings' in refused(path)
        dump = write(tmp_path / 'a.npz')
        assert 'a dump is given twice' in refused(dump, dump)
        assert 'a dump is given twice' in refused(dump, f'{tmp_path}/./a.npz')
        (tmp_path / 'loop.npz').symlink_to('loop.npz')
        assert 'loop.npz do not exist' in refused(dump, tmp_path / 'loop.npz')

    def test_out(self, refused, tmp_path):
        """Is tried before the dumps are read."""
        (tmp_path / 'file').touch()
        assert 'report.md cannot be written: ' in refused('no.npz', '--out', tmp_path / 'file')
        (tmp_path / 'out/report.md').mkdir(parents=True)
        assert 'Is a directory' in refused('no.npz', '--out', tmp_path / 'out')

    def test_labels(self, refused, tmp_path):
        dump = write(tmp_path / 'a.npz')
        said = refused(dump, '--protocols', '101/eiclip', '--group', 'season')
        assert said.startswith(f'{dump}: protocol 101/eiclip')
        assert "no label 'season'; they have ['brand', 'subcategory']" in said
        assert "no label 'season'" in refused(dump, '--slices', 'season')
        said = refused(dump, '--group', 'season')
        assert said.startswith("the embeddings have no label 'season'; they have ['brand', 'sub")

    def test_settings(self, refused, tmp_path):
        dump = write(tmp_path / 'a.npz', labels=False)
        assert "invalid choice: 'full'" in refused(dump, '--protocols', 'full')
        assert 'R@31 means nothing in a gallery of 30 texts' in refused(dump, '--ks', 31)
        assert 'recall needs ks of 1 or more, got (0,)' in refused(dump, '--ks', 0)
        assert 'level is a share between 0 and 1, as 0.95, got 95' in refused(dump, '--level', 95)
        for samples in (-1, 38, 1_000_001):
            said = refused(dump, '--samples', samples)
            assert 'intervals of level 0.95 need from 39 to 1,000,000 samples, got' in said
        assert '--as-published changes nothing but 101/fashionbert, 101/kaleido' in refused(
            dump, '--protocols', 'full/pair', '--as-published'
        )
        assert 'product_text' in refused(dump, '--same-text')

    def test_manifests(self, refused, tmp_path):
        dump = write(tmp_path / 'a.npz')
        for options in ([], ['--protocols', '101/eiclip', '101/kaleido']):
            said = refused(dump, '--manifest', 'm.npz', *options)
            assert 'is for one protocol; name it: --protocols 101/fashionbert' in said
        one = ('--protocols', '101/eiclip', '--manifest', 'm.npz')
        assert 'no --queries, --group or --save-manifests' in refused(
            dump, *one, '--queries', 'all'
        )
        assert 'manifest m.npz does not exist' in refused(dump, *one)
