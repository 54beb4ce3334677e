"""tools/dev/soak.py in seconds: each part runs, and what it is there to notice is noticed."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import shop
import torch
from test_service import SERVE, talk, write_index
from test_tools import ROOT

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.apis.index import CatalogueIndex, Hit
from eiclip_mm.apis.search import CatalogueSearch
from eiclip_mm.apis.service import create_app

pytest.importorskip('uvicorn', reason=SERVE)
sys.path.insert(0, str(ROOT / 'tools/dev'))
import _soak_evaluator
import _soak_loader
import _soak_service
import _soak_traffic
import _usage
import soak
from _soak_traffic import ERROR_CASES, LARGE_CASES, MANY_CASES, OPEN_CASES
from _usage import Usage

FILTERS = ['brand=Diesel', 'price<=9']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A checkpoint and its index, closed."""
    folder = tmp_path_factory.mktemp('soak')
    encoder = EICLIPInferencer(shop.write_checkpoint(folder / 'tiny.pth'), device='cpu')
    write_index(folder / 'index', encoder).close()
    return folder


def test_usage_is_that_of_the_processes():
    before = _usage.usage_of(os.getpid())
    assert 1 < before.uss <= before.pss <= before.rss
    with open(__file__), subprocess.Popen(['sleep', '60']) as child:
        assert _usage.usage_of(os.getpid()).files == before.files + 1
        assert child.pid in _usage.family(os.getpid())
        both = _usage.usage_of_family(os.getpid())
        assert both.processes >= 2 and both.rss > before.rss
        child.kill()
    assert _usage.usage_of(child.pid) == Usage()


def test_the_peak_is_seen_after_it_is_gone():
    code = (  # in a process of its own: a long run's heap may have it free
        'import _usage, numpy\nbefore = _usage.reset_peak()\nnumpy.ones(2**25).sum()\n'
        'print(_usage.peak_mib() - before)'
    )
    command = [sys.executable, '-c', code]
    grown = subprocess.check_output(command, cwd=ROOT / 'tools/dev', text=True)
    assert 250 < float(grown) < 300


def test_a_trend_is_a_line_and_two_medians():
    hours = np.arange(10)
    found = _usage.trend(3600 * hours, 5.0 + hours)
    assert (found.first, found.last) == (5.5, 13.5)
    assert found.per_hour == pytest.approx(1) and found.change == pytest.approx(8 / 5.5)


def test_every_answer_of_a_service_is_looked_at(folder):
    with CatalogueIndex.open(folder / 'index') as index:
        search = CatalogueSearch(EICLIPInferencer(folder / 'tiny.pth', 'cpu'), index)
        fixed = _soak_traffic.fixed_cases(search, FILTERS, 'brand')
        of_kind = {case.kind: case for case in fixed}
        fewer = dict(json=of_kind['query'].options['json'] | dict(k=4))
        bad = [replace(of_kind['health'], status=418), replace(of_kind['query'], options=fewer)]
        cases = [*fixed, *OPEN_CASES, *MANY_CASES, *ERROR_CASES, *LARGE_CASES]
        seen, wrong, draw = _soak_service.Seen(), _soak_service.Seen(), Random(0)

        async def conversation(client):
            for case in cases:
                await _soak_service.ask(client, case, draw, 0, seen)
            for case in bad:
                await _soak_service.ask(client, case, draw, 0, wrong)

        talk(create_app(search, search.encoder), conversation)
    assert seen.faults == []
    assert seen.statuses.total() == len(cases) > 40
    assert {status for _, status in seen.statuses} == {200, 404, 405, 413, 422}
    assert len(seen.times) == sum(case.kind in ('query', 'filtered') for case in fixed)
    assert wrong.faults[0] == 'GET /health (health): status 200 is not 418'
    assert wrong.faults[1].startswith('POST /search (query): [')
    assert len(wrong.faults) == 2


def test_other_scores_or_worse_hits_are_wrong():
    hits = [dict(id=f'p{i}', score=1 - i / 10) for i in range(5)]
    asked = dict(query='tee', k=2)
    case = _soak_traffic._search('query', asked, [Hit(**hit, payload={}) for hit in hits])
    assert case.wrong(dict(hits=hits[:2])) == ''
    assert case.wrong(dict(hits=[dict(hits[0], score=1 - 1e-5), hits[1]])) == ''
    assert case.wrong(dict(hits=hits[1:3])).startswith('not the best')
    for other in (
        hits[:3],
        hits[:1],
        [hits[0], dict(hits[1], score=0.8)],
        [hits[0], dict(hits[1], id='other')],
    ):
        assert 'p0' in case.wrong(dict(hits=other))


@pytest.fixture()
def options(folder):
    """Of the smallest soak of the service."""
    given = ['service', folder / 'tiny.pth', '--index', folder / 'index', '--filters', *FILTERS]
    short = [
        '--minutes',
        0.05,
        '--warm-up',
        0,
        '--words',
        1500,
        '--every',
        0.5,
        '--clients',
        4,
        '--rate',
        40,
    ]
    return soak.parse_args([*map(str, given), *map(str, short)])


def test_the_service_is_started_loaded_and_ended(options, capsys):
    faults = _soak_service.run(options)
    assert [fault for fault in faults if ' grew from ' not in fault] == []  # seconds warm it up
    said = capsys.readouterr().out
    assert re.search(r'^0.05 min, 4 clients, \d+ requests, 0 wrong;', said)
    for kind in ('query', 'fresh', 'error', 'left'):
        assert f'\n| {kind} |' in said
    assert re.search(r'^\| processes \| 1 \| 1 \| 1 \|', said, re.M)


def test_growth_is_what_remains_after_the_warm_up(options):
    def samples(rss):
        return [(float(t), Usage(rss=mib, uss=90, files=20, threads=9)) for t, mib in rss]

    options.warm_up = 1
    flat = samples((t, 100 + (t < 60) * t + t % 3) for t in range(200))
    assert _soak_service.growth(flat, options) == []
    leak = samples((t, 100 + t / 10) for t in range(200))
    assert _soak_service.growth(leak, options) == ['rss grew from 107.3 to 118.5']


FEW = tuple(
    replace(way, epochs=2, share=0.5) for way in (_soak_loader.WAYS[0], _soak_loader.WAYS[4])
)


def test_loaders_leave_nothing(capsys):
    args = soak.parse_args(['loader', '--items', '1024', '--photos', '8', '--breaks', '2'])
    faults = _soak_loader.run(args, FEW)
    assert [fault for fault in faults if 'memory grew' not in fault] == []
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith('| nothing |')]
    assert [row.split(' | ')[1] for row in rows] == ['512', '512', '64', '64']


def test_what_a_loader_leaves_or_gathers_is_noticed():
    before = _soak_loader.look()
    with open(__file__), subprocess.Popen(['sleep', '60']) as child:
        held = torch.ones(1).share_memory_()
        assert 'files' in (left := _soak_loader.left_over(before, patience=0))
        assert '1 shared memory' in left and '1 processes' in left
        child.kill()
    del held
    assert _soak_loader.left_over(before) == 'nothing'
    looks = [(t, _soak_loader.Look(Usage(pss=100, files=9 + t), Usage(), t)) for t in range(20)]
    assert _soak_loader.judged('way', looks, 9, 1.0, 'nothing') == [
        'way: files here grew from 10.5 to 26.5',
        'way: shared memory grew from 1.5 to 17.5',
    ]
    grown = [(t, _soak_loader.Look(Usage(pss=100 + t), Usage(), 0)) for t in range(40)]
    assert _soak_loader.judged('way', grown, 9, 1.0, '2 files') == [
        'way: 2 files left over',
        'way: memory grew from 104 to 136 MiB',
    ]


def test_planted_ranks_are_found(capsys):
    args = soak.parse_args(['evaluator', '--rows', '3000', '--queries', '300', '--square', '1000'])
    assert _soak_evaluator.run(args) == []
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith(' | 0 |')]
    assert len(rows) in (4, 5)  # one more where the CPU multiplies bfloat16


def test_a_wrong_rank_is_noticed():
    planted = _soak_evaluator.plant(1000, 64)
    assert 1 < len(planted.image_rank.unique()) <= _soak_evaluator.GROUP
    shifted = replace(planted, image_rank=planted.image_rank + 1)
    assert _soak_evaluator.brute(shifted) == _soak_evaluator.ASKED
    assert _soak_evaluator.full(shifted) == 1000
    assert _soak_evaluator.metric(shifted) >= 1
    with pytest.raises(ValueError, match='multiple of 10'):
        _soak_evaluator.plant(1001, 64)


@pytest.mark.parametrize(
    'given',
    [
        ['loader', '--items', '0'],
        ['evaluator', '--rows', '100000000'],
        ['service', 'a.pth', '--index', 'b', '--filters', 'c=d', '--clients', '1000'],
        ['service', 'a.pth', '--index', 'b'],
    ],
)
def test_soaks_are_bounded(given, capsys):
    with pytest.raises(SystemExit) as exited:
        soak.parse_args(given)
    assert exited.value.code == 2
    assert '--' in capsys.readouterr().err


def test_the_tool_exits_with_what_it_found():
    command = ['tools/dev/soak.py', 'evaluator', '--rows', '1000', '--queries', '100']
    with pytest.raises(SystemExit) as exited:
        soak.main([*command[1:], '--square', '100'])
    assert exited.value.code == 0
