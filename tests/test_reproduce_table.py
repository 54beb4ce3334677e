"""The tool that makes the table again: its numbers, and that no run is made twice or mixed up."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from mmengine.config import Config
from torch.nn.functional import normalize

from eiclip_mm.evaluation import Embeddings

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools/analysis_tools'
NOISE = {1: 6.0, 2: 2.0, 3: 1.5, 4: 1.3, 5: 1.2, 'oracle': 1.0}
MINI = 'fashiongen_mini'
INTERRUPTED = '\ninterrupted; the same command, without --fresh, goes on from here\n'
CLIP, ALL = f'configs/baselines/clip_{MINI}.py', f'configs/ablations/eiclip-all_{MINI}.py'


@pytest.fixture(scope='module')
def modules():
    """The tool and its parts, by name."""
    sys.path.insert(0, str(TOOLS))
    names = ('reproduce_table', '_plan', '_results', '_runs', 'compare')
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(TOOLS))


@pytest.fixture
def plan(modules):
    return modules['_plan']


@pytest.fixture
def table(modules, capsys):
    """A function (arguments) -> what is printed."""

    def table(*arguments):
        modules['reproduce_table'].main([*map(str, arguments)])
        return capsys.readouterr().out

    return table


# ---------------------------------------------------------------------------- numbers


def dump(noise, seed, views=2, products=30):
    """A model whose photos are its texts and some noise."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(products, 16, generator=g)
    ids = torch.arange(products).repeat_interleave(views)
    photos = text[ids] + noise * torch.randn(len(ids), 16, generator=g)
    return Embeddings(
        image=normalize(photos),
        image_product_id=ids,
        product=normalize(text),
        product_id=torch.arange(products),
        card=dict(model=dict(config='ours', seed=seed), versions=dict(eiclip_mm='0')),
    )


def sum_r(path):
    """SumR of first photos, by a loop over queries."""
    arrays = np.load(path)
    scores = arrays['image'][arrays['image_view'] == 0] @ arrays['product'].T
    total = 0.0
    for side in (scores, scores.T):
        ranks = [sum(row >= row[i]) for i, row in enumerate(side)]
        total += sum(100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10))
    return total


def effect(kept, names):
    return dict(type='brand', effect=0.1, low=-0.1, high=0.2, kept=kept, entities=[1, 2]) | dict(
        names=names, intervals={name: [value - 1, value + 1] for name, value in names.items()}
    )


@pytest.fixture(scope='module')
def runs_there(modules, tmp_path_factory):
    """A folder with the repository's configs, and finished runs of all rows but the fourth."""
    folder, plan = tmp_path_factory.mktemp('finished'), modules['_plan']
    (folder / 'configs').symlink_to(ROOT / 'configs')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for entry in plan.entries('mini', [1, 2, 3, 5], ['clip-meta-neutral']):
            for run in plan.runs_of(entry, [0, 1], Path('w/mini')):
                run.folder.mkdir(parents=True)
                dump(NOISE[entry.row or 'oracle'], run.seed).save(run.dump)
                if entry.row == 5:
                    names = {f'n{i}': i / 10 + run.seed for i in range(25)}
                    text = json.dumps([effect(run.seed == 0, names)])
                    (run.folder / 'causal_effects.json').write_text(text)
                plan.write(run, done=True)
    return folder


@pytest.fixture
def finished(runs_there, monkeypatch):
    """In that folder, the arguments that show what is there."""
    monkeypatch.chdir(runs_there)
    return ['--data', 'mini', '--no-run', '--work-dir', 'w', '--seeds', 0, 1]


@pytest.fixture(scope='module')
def written(runs_there, modules):
    """What the tool wrote for rows and oracle: folder, and the JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs_there)
        options = ['--work-dir', 'w', '--seeds', '0', '1', '--out', 'o']
        ablations = ['--ablations', 'clip-meta-neutral']
        modules['reproduce_table'].main(['--data', 'mini', '--no-run', *options, *ablations])
    folder = runs_there / 'o'
    return folder, json.loads((folder / 'mini.json').read_text(encoding='utf-8'))


def dumps(stem):
    return f'w/mini/{stem}_{MINI}/seed*/embeddings.npz'


def test_numbers_are_those_of_a_loop(finished, written):
    _, found = written
    assert list(found['tables']) == list(found['protocols']) == ['full/first-image', 'full/product']
    for stem in ('clip', 'clip-meta', 'eiclip', 'clip-meta-neutral'):
        row = found['tables']['full/first-image']['rows'][f'{stem}_{MINI}']['measures']['SumR']
        loop = [sum_r(dumps(stem).replace('*', str(seed))) for seed in (0, 1)]
        assert list(row['by_seed'].values()) == pytest.approx(loop, rel=1e-4)
        assert row['mean'] == pytest.approx(np.mean(loop), rel=1e-4)
        assert row['std'] == pytest.approx(np.std(loop, ddof=1), rel=1e-4)
        assert row['low'] < row['mean'] < row['high']


def test_differences_are_those_of_compare(finished, written, modules, tmp_path):
    modules['compare'].main([dumps('clip-meta'), dumps('eiclip'), '--out', f'{tmp_path}/c.json'])
    protocols = json.loads((tmp_path / 'c.json').read_text())['protocols']
    names = [f'row {b} − row {a}' for a, b in ((2, 3), (3, 5))]
    names.append(f'clip-meta-neutral_{MINI} − row 3')  # its compare_with
    for name, part in written[1]['tables'].items():
        assert [d['name'] for d in part['differences']] == names
        d, expected = part['differences'][1], protocols[name]['measures']['SumR']
        assert {k: d[k] for k in expected} == pytest.approx(expected, rel=1e-4)
        assert d['relative'] == pytest.approx(100 * (d['b'] / d['a'] - 1), abs=0.01)
        assert np.mean(list(d['by_seed'].values())) == pytest.approx(d['difference'], rel=1e-3)


def test_share_of_the_gap(written):
    folder, found = written
    part = found['tables']['full/product']
    stems = ('clip-meta', 'eiclip', 'clip-meta-neutral')
    sums = [part['rows'][f'{stem}_{MINI}']['measures']['SumR'] for stem in stems]
    for seed, share in part['gap']['by_seed'].items():
        row3, row5, oracle = (s['by_seed'][seed] for s in sums)
        assert row3 < oracle and share == pytest.approx((row5 - row3) / (oracle - row3), rel=1e-3)
    row3, row5, oracle = (s['mean'] for s in sums)
    assert part['gap']['share'] == pytest.approx((row5 - row3) / (oracle - row3), rel=1e-3)
    said = f'row 5 closes {100 * part["gap"]["share"]:.0f} %'
    assert said in (folder / 'mini.md').read_text(encoding='utf-8')


def test_no_gap_has_no_share(modules):
    assert modules['_results'].share(200.0, 210.0, 200.0) is None


def test_what_is_missing_is_said(finished, table, tmp_path):
    """A row without runs, no oracle, a run of other settings; then nothing at all."""
    path = Path(f'w/mini/clip_{MINI}/seed1/run.json')
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | dict(sha256='other')))
    printed = table(*finished, '--rows', '2', '4', '--out', tmp_path)
    path.write_text(before)
    assert f'row 4, eiclip-all_{MINI}: not run.' in printed and 'oracle' not in printed
    assert f'Warning: clip_{MINI} seed 1 was made with other settings' in printed
    printed = table(*finished, '--work-dir', 'empty', '--out', tmp_path)
    assert 'No run is finished.' in printed and not Path('empty').exists()


def test_effects_are_means_over_seeds(written):
    (row,) = written[1]['effects']
    assert row['kept_in'] == 1 and len(row['by_seed']) == 2
    assert row['most'][0] == ['n24', 2.9, [[1.4, 3.4], [2.4, 4.4]]]
    assert row['least'][-1] == ['n0', 0.5, [[-1.0, 1.0], [0.0, 2.0]]]
    page = (written[0] / 'mini.md').read_text(encoding='utf-8')
    (line,) = [line for line in page.splitlines() if ' n24 ' in line]
    cells = [cell.strip() for cell in line.split('|')[1:-1]]
    assert cells == ['brand', 'n24', '+2.9000', '+1.4000 … +3.4000; +2.4000 … +4.4000']
    assert len(row['most']) == len(row['least']) == 10


def test_files_are_the_same_when_made_again(finished, written, table, tmp_path):
    folder, _ = written
    printed = table(*finished, '--out', tmp_path, '--ablations', 'clip-meta-neutral')
    assert (folder / 'mini.md').read_text(encoding='utf-8') in printed
    pictures = [f'_{name}.{suffix}' for name in ('effects', 'ladder') for suffix in ('png', 'svg')]
    names = sorted(f'mini{end}' for end in ['.md', '.json', *pictures])
    assert sorted(p.name for p in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name
    (tmp_path / 'products_effects.svg').touch()
    table(*finished, '--out', tmp_path, '--rows', '2')  # no row 5, no effects
    left = {p.name for p in tmp_path.iterdir() if '_effects' in p.name}
    assert left == {'products_effects.svg'} and (tmp_path / 'mini_ladder.svg').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rows', '4-6'], '--rows [6]: the table has rows [1, 2, 3, 4, 5].'),
        (['--rows', 'all'], '--rows all: give numbers as 5 or 1-3'),
        (
            ['--ablations', 'eiclip-frozn'],
            "--ablations ['eiclip-frozn']: for --data mini there are",
        ),
    ],
)
def test_unknown_names_are_refused(finished, table, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        table(*finished, '--out', tmp_path, *arguments)
    assert message in stopped.value.code
    assert ("'eiclip-frozen'" in stopped.value.code) is (arguments[0] == '--ablations')


def test_what_is_not_installed_is_said_before_anything_runs(table, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'scipy', None)
    with pytest.raises(
        SystemExit, match=r"^scipy not installed: pip install 'eiclip_mm\[report\]'"
    ):
        table('--data', 'mini')
    assert not list(tmp_path.iterdir())


def test_one_command_at_a_time_in_a_folder(finished, table, tmp_path, in_folder):
    arguments = [word for word in finished if word != '--no-run']
    with in_folder('w/mini'):
        with pytest.raises(SystemExit, match=r'another reproduce_table\.py works in w/mini; wait'):
            table(*arguments, '--out', tmp_path)
        table(*finished, '--rows', '2', '--out', tmp_path)  # only looks
    with in_folder('w/mini'):
        pass


def test_rows_of_the_table_are_no_ablations(plan, finished):
    assert 'eiclip-all' not in {e.stem for e in plan.entries('mini', [], [])}
    assert plan.entries('mini', [3], None) == [plan.Entry(plan.ROWS[3] + f'_{MINI}.py', 3)]


# ---------------------------------------------------------------------------- runs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return small.write_data(tmp_path_factory.mktemp('mini'), 40, 12)


@pytest.fixture
def commands(plan, data, tmp_path, monkeypatch):
    """Configs of row 2, of an ablation that tests its checkpoint; the commands as they are run."""
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(ROOT / CLIP)
    cfg = Config.fromstring(cfg.pretty_text.replace(cfg.data_root, f'{data}/'), '.py')
    cfg.model.towers.pretrained = None
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.train_dataloader.batch_size = 16
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].num_workers = 0
        cfg[f'{name}_dataloader'].dataset.select_share = 0.4
    for path in (CLIP, ALL):
        Path(path).parent.mkdir(parents=True)
    cfg.dump(CLIP)
    cfg.checkpoint_of = CLIP
    cfg.dump(ALL.replace('all', 'other'))
    found = []

    def run(*command, threads, log, label):
        found.append((Path(command[0]).stem, label))
        small.run_tool(Path(command[0]).stem, *command[1:])

    monkeypatch.setattr(plan, 'run', run)
    return found


def have_all(plan, seeds=(3,)):
    chosen = plan.entries('mini', [2], ['eiclip-other'])
    runs = [run for entry in chosen for run in plan.runs_of(entry, seeds, Path('w'))]
    return runs, plan.carry_out(runs, jobs=1)


def test_runs_train_and_borrow_checkpoints(plan, commands):
    clip, other = (f'clip_{MINI} seed 3', f'eiclip-other_{MINI} seed 3')
    (run, borrowed), failed = have_all(plan)
    assert not failed
    assert commands == [
        ('train', f'[1/2] {clip}'), ('test', f'[1/2] {clip}'), ('test', f'[2/2] {other}')
    ]  # fmt: skip
    cards = [Embeddings.load(r.dump).card['model'] for r in (run, borrowed)]
    assert cards[0]['seed'] == cards[1]['seed'] == 3
    assert cards[0]['checkpoint_sha256'] == cards[1]['checkpoint_sha256']


def test_runs_are_made_once(plan, commands, capsys, monkeypatch):
    def run(*command, log, label, **_):
        commands.append((Path(command[0]).stem, label))
        for name in ('best_x.pth', 'embeddings.npz'):
            (log.parent / name).touch()

    monkeypatch.setattr(plan, 'run', run)
    (run, _), failed = have_all(plan)
    assert not failed and len(commands) == 3
    commands.clear()
    assert have_all(plan)[1] == [] and commands == []

    plan.write(run, done=False)  # as if killed before the end of test.py
    assert have_all(plan)[1] == []
    label = f'[1/1] clip_{MINI} seed 3'
    assert commands == [('train', label), ('test', label)]
    assert run.done and [p.name for p in run.folder.parent.iterdir()] == ['seed3']

    commands.clear()
    text = Path(CLIP).read_text()
    Path(CLIP).write_text(text.replace('lr=0.0005', 'lr=0.0004'))
    capsys.readouterr()
    assert Path(CLIP).read_text() != text and have_all(plan)[1] == []
    assert [name for name, _ in commands] == ['train', 'test', 'test']  # what borrows is made anew
    assert 'made with other settings before, kept in w/clip_' in capsys.readouterr().out
    assert sorted(p.name for p in run.folder.parent.iterdir()) == ['seed3', 'seed3.1']


def test_a_run_that_fails_stops_no_other(plan, commands, monkeypatch):
    def run(*command, log, **_):
        commands.append(Path(command[1]).stem)
        (log.parent / 'best_x.pth').touch()
        if 'seed1' in str(log):
            raise SystemExit('no luck')

    monkeypatch.setattr(plan, 'run', run)
    _, failed = have_all(plan, (1, 2))
    assert failed == [
        f'[1/4] clip_{MINI} seed 1: no luck',
        f'[3/4] eiclip-other_{MINI} seed 1: clip_{MINI} seed 1, whose checkpoint it tests, is not '
        'finished; run again.',
    ]
    assert commands.count(f'clip_{MINI}') == 3 and commands.count(f'eiclip-other_{MINI}') == 1


def test_weights_to_start_from_are_made_first(modules, plan, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / 'configs', 'configs')
    config, weights = (
        'configs/clip_general_mini.py',
        Path('work_dirs/clip_general_mini/epoch_6.pth'),
    )
    made = []

    def train_start(config):
        made.append(config)
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.touch()

    def start():
        made.clear()
        chosen = plan.entries('mini', [1, 3], None)
        plan.carry_out([r for e in chosen for r in plan.runs_of(e, (0, 1), Path('w'))], jobs=1)
        return made

    monkeypatch.setattr(modules['_runs'], 'train_start', train_start)
    monkeypatch.setattr(plan, 'have', lambda run, *_: made.append(run.name))
    rows = [f'clip-zeroshot_{MINI} seed 0', *(f'clip-meta_{MINI} seed {seed}' for seed in (0, 1))]
    assert start() == [config, *rows]
    assert start() == rows
    text = Path(config).read_text()
    Path(config).write_text(text.replace('lr=1e-3', 'lr=2e-3'))
    with pytest.raises(SystemExit) as stopped:
        start()
    assert stopped.value.code == (
        f'{weights} was made with other settings than {config} has now; move {weights.parent} '
        'away and run again.'
    )
    assert made == []
    weights.with_name('epoch_6.pth.sha256').unlink()  # as the quick start leaves them
    assert start() == rows


def test_a_tool_that_fails_ends_with_its_last_words(modules, tmp_path, capsys):
    runs = modules['_runs']
    runs.PROCESSES.set_forkserver_preload([])  # imports that this tool needs none of
    tool, log = tmp_path / 'tool.py', tmp_path / 'logs/run.log'
    lines = 'Epoch(train)  [1][3/4] eta: 0:00:05  loss: 1.25\n'
    tool.write_text(f'import sys\nprint({lines!r}, *sys.argv[1:])\nsys.exit("no photos")\n')
    with pytest.raises(SystemExit) as stopped:
        runs.run(str(tool), 'c.py', threads=1, log=log, label='[1/1] x')
    assert stopped.value.code.endswith(f'{log}:\n{log.read_text().strip()}')
    assert 'no photos' in log.read_text() and 'c.py' in log.read_text()
    assert '[1/1] x: epoch 1, loss 1.25, remaining 0:00:05\n' in capsys.readouterr().out


def test_what_is_said_after_ctrl_c_is_the_tool_s(modules, monkeypatch, capfd):
    monkeypatch.setattr(os, '_exit', sys.exit)
    for given, said in (((), INTERRUPTED), (('do this',), '\ninterrupted; do this\n')):
        with pytest.raises(SystemExit) as stopped, modules['_runs'].ends_at_once(*given):
            signal.raise_signal(signal.SIGINT)
        assert stopped.value.code == 130 and capfd.readouterr().err == said


@pytest.mark.parametrize(('by', 'status'), [('SIGKILL', -signal.SIGKILL), ('SIGINT', 130)])
def test_a_tool_ends_with_who_started_it(tmp_path, by, status):
    """And so do its workers; Ctrl-C is a SIGINT to all processes of the terminal."""
    tool, pids = tmp_path / 'tool.py', tmp_path / 'pids'
    tool.write_text(
        'import os, subprocess, sys, time\nfrom pathlib import Path\n'
        'worker = subprocess.Popen(["sleep", "300"])\n'
        'Path(sys.argv[1]).write_text(f"{os.getpid()} {worker.pid}.")\ntime.sleep(300)\n'
    )
    code = f'r.run({str(tool)!r}, {str(pids)!r}, log=r.Path({str(tmp_path / "log")!r}))'
    code = (
        f'import _runs as r; r.PROCESSES.set_forkserver_preload([])\nwith r.ends_at_once(): {code}'
    )
    paths = os.pathsep.join([str(ROOT / 'tools'), str(ROOT)])
    starter = subprocess.Popen(
        [sys.executable, '-c', code],
        env=os.environ | {'PYTHONPATH': paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert wait_for(lambda: pids.is_file() and pids.read_text().endswith('.'))
    finally:
        os.killpg(starter.pid, signal.Signals[by])
        _, errors = starter.communicate(timeout=60)
    assert starter.returncode == status
    assert errors == ('' if by == 'SIGKILL' else INTERRUPTED)
    running = [Path(f'/proc/{pid}/stat') for pid in pids.read_text().rstrip('.').split()]
    assert wait_for(lambda: not any(map(is_alive, running)))


def is_alive(stat):
    try:
        return stat.read_text().rpartition(')')[2].split()[0] != 'Z'  # a zombie has ended
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(true, seconds=60):
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return found
