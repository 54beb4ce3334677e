"""The tool that compares two models: what it prints, writes and refuses."""

import importlib.util
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eiclip_mm.evaluation import Embeddings, draw_candidates, get_protocol, retrieve
from eiclip_mm.evaluation.statistics import Difference, compare

_spec = importlib.util.spec_from_file_location(
    'compare', Path(__file__).resolve().parents[1] / 'tools/analysis_tools/compare.py'
)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def embeddings(noise, seed=0, views=2, products=60):
    """A model whose images are its texts and some noise: the less noise, the better."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(products, 16, generator=g)
    ids = torch.arange(products).repeat_interleave(views)
    return Embeddings(
        image=text[ids] + noise * torch.randn(len(ids), 16, generator=g),
        image_product_id=ids,
        product=text,
        product_id=torch.arange(products),
        product_text=torch.arange(products) // 2,
        labels={'kind': np.array(['shoe', 'shirt', 'hat'])[np.arange(products) % 3]},
    )


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """In a folder with models of two seeds, a function (arguments) -> what is printed."""
    monkeypatch.chdir(tmp_path)
    for name, noise in (('bad', 2.0), ('good', 1.0)):
        for seed in (0, 1):
            embeddings(noise, seed).save(f'{name}_{seed}.npz')

    def run(*arguments):
        tool.main([*arguments])
        return capsys.readouterr().out

    return run


def refused(run, *arguments):
    """The message a command ends with."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    return end.value.code


def test_better_model_wins(run):
    """The report, its JSON and the functions of the package say the same."""
    options = ['--samples', '300', '--level', '0.9', '--seed', '3', '--ks', '2']
    printed = run('bad_0.npz', 'good_0.npz', *options, '--out', 'new/out.json')
    written = json.loads(Path('new/out.json').read_text())
    assert written['a'] == ['bad_0.npz'] and written['b'] == ['good_0.npz']
    assert list(written['protocols']) == ['full/first-image', 'full/product']
    assert printed.startswith('A: bad_0.npz\nB: good_0.npz\n\n## full/first-image\n\n60 products,')
    for name, content in written['protocols'].items():
        a, b = (retrieve(Embeddings.load(f'{x}_0.npz'), name) for x in ('bad', 'good'))
        expected = compare(a, b, ks=(1, 2, 5, 10), level=0.9, samples=300, seed=3)
        assert content['measures'] == {key: asdict(value) for key, value in expected.items()}
        d = expected['SumR']
        assert d.low > 0
        assert (
            f'\nB is better by {d.difference:.2f} SumR [{d.low:.2f}, {d.high:.2f}], p = 0.0033'
            in (printed)
        )
        d = expected['t2i/R@2']
        row = [f'{d.a:.2f}', f'{d.b:.2f}', f'{d.difference:+.2f}', f'[{d.low:.2f}, {d.high:.2f}]']
        assert re.search(r'\| t2i/R@2 +\| +' + r' \| +'.join(map(re.escape, row)), printed)
    assert '90 % interval' in printed


def test_worse_model_loses(run):
    printed = run('good_0.npz', 'bad_0.npz', '--protocols', 'full/first-image')
    won = re.search(r'\nA is better by ([\d.]+) SumR \[([\d.]+), ([\d.]+)\], p = 0.0005\n', printed)
    value, low, high = map(float, won.groups())
    assert 0 < low < value < high
    assert '## full/product' not in printed


def test_a_model_and_itself(run):
    printed = run('good_0.npz', 'good_0.npz')
    assert 'no difference is shown: B - A is 0.00 SumR [0.00, 0.00], p = 1\n' in printed


def test_a_protocol_named_twice_is_run_once(run):
    common = ['bad_0.npz', 'good_0.npz', '--samples', '99', '--protocols', 'full/product']
    assert run(*common, 'full/product') == run(*common)


@pytest.mark.parametrize(
    ('p', 'level', 'sentence'),
    [
        (0.04, 0.95, 'A is better by 3.00 SumR [0.10, 5.90], p = 0.04'),
        (0.04, 0.99, 'no difference is shown: B - A is -3.00 SumR [-5.90, -0.10], p = 0.04'),
        (0.6, 0.95, 'no difference is shown: B - A is -3.00 SumR [-5.90, -0.10], p = 0.6'),
    ],
)
def test_sentence_follows_p_and_level(p, level, sentence):
    assert tool.verdict(Difference(203, 200, -3, -5.9, -0.1, p), level) == sentence


def test_seeds_by_pattern_or_list(run):
    printed = run('bad_*.npz', 'good_1.npz,good_0.npz', '--out', 'out.json', '--samples', '99')
    assert 'A: mean of 2 runs, bad_0.npz, bad_1.npz\nB: mean of 2 runs, good_1.npz, g' in printed
    measures = json.loads(Path('out.json').read_text())['protocols']['full/product']['measures']
    for side, name in (('a', 'bad'), ('b', 'good')):
        runs = [retrieve(Embeddings.load(f'{name}_{i}.npz'), 'full/product') for i in (0, 1)]
        mean = sum(run.metrics()['SumR'] for run in runs) / 2
        assert measures['SumR'][side] == pytest.approx(mean)


def test_full_product_only_where_there_are_views(run):
    embeddings(1.0, views=1).save('one.npz')
    printed = run('one.npz', 'one.npz')
    assert '## full/first-image' in printed and '## full/product' not in printed


def test_candidates(run):
    """Drawn from a label, or taken from a manifest; both models get the same."""
    common = ['bad_0.npz', 'good_0.npz', '--protocols', '101/eiclip', '--samples', '99']
    drawn = run(*common, '--group', 'kind')
    protocol = get_protocol('101/eiclip', group='kind')
    one = embeddings(1.0)
    origin = {}
    manifest = draw_candidates(one, protocol).manifest(one, origin)
    assert f'candidates {manifest.hash}\n' in drawn
    other = draw_candidates(one, replace(protocol, seed=1)).manifest(one, origin)
    other.save('manifest.npz')
    assert f'candidates {other.hash}\n' in run(*common, '--manifest', 'manifest.npz')
    assert manifest.hash != other.hash
    assert 'Warning' not in run(*common, '--manifest', 'manifest.npz')  # nobody knows
    replace(other, origin=asdict(protocol)).save('manifest.npz')
    assert (
        "Warning: the lists of the manifest were drawn for '101/eiclip, group kind', not for"
        in (run(*common, '--manifest', 'manifest.npz'))
    )


def test_as_published(run):
    """Of the protocols that have defects and candidates; others stay as they are."""
    names = ['--protocols', '101/fashionsap', 'full/product', '--group', 'kind', '--as-published']
    printed = run('bad_0.npz', 'good_0.npz', *names)
    assert '## 101/fashionsap as published, group kind\n' in printed
    assert '## full/product\n' in printed


def test_same_text(run):
    """Products 2n and 2n + 1 share a text, so a model that knows no more has them right."""
    one = embeddings(0.0)
    mixed = replace(one, product=one.product[torch.arange(60) // 2 * 2])
    mixed = replace(mixed, image=mixed.product[one.image_product_id])
    mixed.save('mixed.npz')
    strict = run('mixed.npz', 'mixed.npz')
    assert re.search(r'i2t/R@1 +\| +0.00', strict)
    printed = run('mixed.npz', 'mixed.npz', '--same-text')
    assert '## full/product, same text\n' in printed
    assert re.search(r'i2t/R@1 +\| 100.00', printed)


def test_different_splits_are_refused(run):
    embeddings(1.0, products=59).save('fewer.npz')
    assert (
        'images (product, view): 2 are in the first alone, 0 in the second alone, e.g. (59, 0)'
        in (refused(run, 'good_0.npz', 'fewer.npz'))
    )
    one = embeddings(1.0)
    replace(one, product_caption=one.product_caption + (one.product_id == 7)).save('caption.npz')
    assert 'texts (product, caption): 1 are in the first alone, 1 in the second alone' in (
        refused(run, 'good_0.npz', 'caption.npz')
    )
    labels = {'kind': one.labels['kind'][::-1].copy()}
    replace(one, labels=labels).save('labels.npz')
    names = ['--protocols', '101/eiclip', '--group', 'kind']
    assert 'run 2 of 2 cannot be compared with the first: manifest is' in (
        refused(run, 'good_0.npz', 'labels.npz', *names)
    )


def test_different_texts_are_refused_where_equal_ones_count(run):
    one = embeddings(1.0)
    replace(one, product_text=one.product_text.flip(0)).save('renamed.npz')
    run('good_0.npz', 'renamed.npz', '--same-text')  # the same texts are equal
    rolled = torch.arange(60).roll(1)
    texts = {name: getattr(one, name)[rolled] for name in ('product', 'product_id', 'product_text')}
    replace(one, **texts, product_caption=None).save('rolled.npz')
    assert 'B - A is 0.00 SumR [0.00, 0.00]' in run('good_0.npz', 'rolled.npz', '--same-text')
    replace(one, product_text=one.product_id).save('longer.npz')
    assert 'good_0.npz and longer.npz call other texts identical' in (
        refused(run, 'good_0.npz', 'longer.npz', '--same-text')
    )
    run('good_0.npz', 'longer.npz')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.npz', 'good_0.npz'], 'embeddings none.npz do not exist'),
        (['good_0.npz', 'seed*.npz'], "no embeddings match 'seed*.npz'"),
        (['--protocols', '102/eiclip'], "unknown retrieval protocol '102/eiclip'; there are"),
        (['--protocols', '101/eiclip'], "the embeddings have no label 'subcategory'"),
        (
            ['--manifest', 'none.npz', '--protocols', '101/eiclip'],
            'manifest none.npz does not exist',
        ),
        (['--ks', '61'], 'R@61 means nothing in a gallery of 60'),
        (['--level', '95'], 'level is a share between 0 and 1, as 0.95, got 95.0'),
        (['--samples', '38'], 'intervals of level 0.95 need from 39 to 1,000,000 samples, got 38'),
        (['good_0.npz,./good_0.npz', 'bad_0.npz'], 'a dump is given twice in'),
        (['--out', 'bad_0.npz/out.json'], 'cannot be written: '),
        (['none.npz', 'good_0.npz', '--out', '.'], '. cannot be written: Is a directory'),
    ],
)
def test_errors_are_one_sentence(run, arguments, message):
    if arguments[0].startswith('--'):
        arguments = ['bad_0.npz', 'good_0.npz', *arguments]
    assert message in refused(run, *arguments)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--as-published'], '--as-published changes nothing but 101/fashionbert, 101/kaleido'),
        (['--manifest', 'm.npz'], '--manifest is for one protocol; name it'),
        (
            ['--manifest', 'm.npz', '--protocols', '101/eiclip', '101/kaleido'],
            'is for one protocol',
        ),
        (['--manifest', 'm.npz', '--protocols', '101/eiclip', '--group', 'kind'], 'no --group'),
    ],
)
def test_options_that_do_not_go_together(run, capsys, arguments, message):
    assert refused(run, 'bad_0.npz', 'good_0.npz', *arguments) == 2
    assert message in capsys.readouterr().err


def test_links_that_go_round_are_no_dump(run):
    Path('loop.npz').symlink_to('loop.npz')
    assert 'loop.npz do not exist' in refused(run, 'good_0.npz', 'loop.npz')


def test_out_is_tried_before_scoring(run):
    """And leaves nothing behind where scoring fails."""
    assert 'none.npz do not exist' in refused(run, 'none.npz', 'good_0.npz', '--out', 'new/o.json')
    assert list(Path('new').iterdir()) == []
