"""A recorded training run again: the same comes of it, and what differs is said."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import tiny
import torch
from mmengine.config import Config
from small import TOOLS, run_in_processes, run_tool, write_data

from eiclip_mm.engine.fingerprints import weights_sha256
from eiclip_mm.engine.record_file import RECORD, read_record
from eiclip_mm.utils.digest import file_sha256

sys.path.insert(0, f'{TOOLS}/misc')
sys.path.insert(0, TOOLS)

import _run_again as again
import _run_state as state
import reproduce
from _runs import best_checkpoint

CONFIG = Path(TOOLS).parent / 'configs/eiclip_fashiongen_mini.py'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A folder with data and a config of tiny towers, as the current one."""
    folder = tmp_path_factory.mktemp('home')
    write_data(folder / 'data', train=48, validation=12)
    text = Config.fromfile(CONFIG).pretty_text.replace('data/mini_fashiongen/', 'data/')
    for name in ('scale', 'crop_size'):
        text = text.replace(f'{name}=64', f'{name}=32')
    cfg = Config.fromstring(text, '.py')
    cfg.model.towers.update(model=tiny.ARCHITECTURE, pretrained=None)
    cfg.model.tokenizer.model = tiny.ARCHITECTURE
    cfg.custom_hooks = [h for h in cfg.custom_hooks if h.type != 'CausalEffectHook']
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.batch_size, loader.num_workers = 8, 0
        loader.dataset.tokenizer.model = tiny.ARCHITECTURE
        loader.dataset.select_share = 0.3
    cfg.train_cfg.val_interval = 1
    cfg.default_hooks.logger.interval = 1
    cfg.dump(folder / 'tiny.py')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope='module')
def trained(home) -> Path:
    """Two epochs, all checkpoints kept."""
    options = ['train_cfg.max_epochs=2', 'default_hooks.checkpoint.max_keep_ckpts=-1']
    run_tool('train', 'tiny.py', '--work-dir', 'work', '--cfg-options', *options)
    return Path('work')


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """The same, to be spoilt."""
    return shutil.copytree(trained, tmp_path / 'work', ignore=lambda *_: ['reproduced'])


def status_of(*arguments) -> object:
    with pytest.raises(SystemExit) as ended:
        reproduce.main([*map(str, arguments)])
    return ended.value.code


def change(work: Path, **changes) -> None:
    """Change the latest start of a record."""
    record = json.loads((work / RECORD).read_bytes())
    record['starts'][-1].update(changes)
    (work / RECORD).write_text(json.dumps(record))


def cut(work: Path) -> None:
    """Leave what a training has when it is killed in its second epoch."""
    (work / 'epoch_2.pth').unlink()
    best_checkpoint(work).unlink()
    (work / 'last_checkpoint').write_text(str(work / 'epoch_1.pth'))


@pytest.fixture
def here(monkeypatch) -> list[tuple]:
    """What reproduce.py starts is run in this process; its commands."""
    commands = []

    def run(_, *arguments, threads, log) -> None:
        commands.append(arguments)
        run_tool('train', *arguments)

    monkeypatch.setattr(reproduce, 'run', run)
    return commands


def test_a_training_is_run_again_to_the_bit(trained, capsys):
    assert not status_of(trained)
    said = capsys.readouterr().out
    assert 'Now: nothing differs' in said and 'Verdict: identical' in said
    mine, other = (torch.load(w / 'epoch_2.pth', weights_only=True)['state_dict']
                   for w in (trained, trained / 'reproduced'))  # fmt: skip
    assert all(mine[name].equal(other[name]) for name in mine)
    # and its table is the same file
    for work in (trained, trained / 'reproduced'):
        run_tool('test', 'tiny.py', best_checkpoint(work), '--work-dir', f'{work}_tested')
    first, second = (Path(f'{work}_tested/test_results.json').read_bytes()
                     for work in (trained, trained / 'reproduced'))  # fmt: skip
    assert first == second
    assert [s['kind'] for s in read_record('work_tested')] == ['test']
    assert 'holds tests alone' in status_of('work_tested')
    # what is there is compared as it is; of other numbers it is said
    change(trained / 'reproduced', seed=0, result=_scaled(trained / 'reproduced'))
    assert status_of(trained) == 1
    said = capsys.readouterr().out
    assert 'compared as it is' in said and 'Verdict: equal to 2 digits' in said
    assert not status_of(trained, '--tolerance', 0.01)


def _scaled(work: Path) -> dict:
    """The result with metrics larger by half a percent."""
    result = read_record(work)[-1]['result']
    return dict(result, metrics={k: v * 1.005 for k, v in result['metrics'].items()})


def test_a_resumed_training_is_the_one_never_broken(trained, copied, capsys):
    cut(copied)
    config = read_record(trained)[0]['config']['file']
    run_tool('train', trained / config, '--work-dir', copied, '--resume')
    starts = reproduce.training(copied)
    assert [start['began']['epoch'] for start in starts] == [0, 1]
    run_tool('train', trained / config, '--work-dir', copied, '--resume')  # nothing left to do
    assert len(read_record(copied)) == 3 and reproduce.training(copied) == starts
    found = again.compare(trained, reproduce.training(trained), copied, starts)
    assert found.identical and len(found.weights) == 2
    assert not status_of(copied, '--checks-only')
    assert 'Between start 1 and start 2: nothing differs' in capsys.readouterr().out


@pytest.mark.parametrize('epochs', [1, 2])
def test_a_reproduction_that_was_killed_goes_on(trained, copied, here, epochs, capsys):
    """In its second epoch, or behind its last step."""
    if epochs == 1:
        cut(copied)
    files = read_record(copied)[-1]['files']
    change(copied, result=None, files={})
    assert 'begun with other data' in status_of(trained, '--out', copied) and not here
    change(copied, files=files)
    assert not status_of(trained, '--out', copied)
    said = capsys.readouterr().out
    assert 'did not end and goes on' in said and 'Verdict: identical' in said
    assert [start['began']['epoch'] for start in reproduce.training(copied)] == [0, epochs]
    assert not status_of(trained, '--out', copied)
    assert 'compared as it is' in capsys.readouterr().out and len(here) == 1


def test_one_that_was_killed_before_its_record_begins(trained, here, tmp_path, capsys):
    out = tmp_path / 'out'
    (out / '20260101_000000').mkdir(parents=True)
    for name in ('tools.log', '.lock', 'tiny.py', '.run_record.json.1.part'):
        (out / name).touch()
    assert not status_of(trained, '--out', out)
    assert 'Verdict: identical' in capsys.readouterr().out and len(here) == 1


@pytest.mark.parametrize('name', ['tiny.py', 'notes.txt'])
def test_a_folder_of_something_else_is_left_alone(trained, here, tmp_path, name):
    (tmp_path / name).touch()
    assert 'kept no record' in status_of(trained, '--out', tmp_path)
    if name != 'tiny.py':
        (tmp_path / 'tools.log').touch()
        assert 'kept no record' in status_of(trained, '--out', tmp_path)
    assert not here


def test_a_seed_that_was_drawn_is_no_other_setting(trained, copied, capsys):
    (start,) = read_record(copied)
    config = copied / start['config']['file']
    cfg = Config.fromfile(config)
    cfg.randomness.seed = None
    cfg.dump(config)
    change(copied, config=dict(start['config'], sha256=file_sha256(config)))
    assert not status_of(copied, '--out', trained)
    assert 'compared as it is' in capsys.readouterr().out
    change(copied, seed=start['seed'] + 1)
    assert 'another training' in status_of(copied, '--out', trained)
    assert 'randomness.seed' in capsys.readouterr().out


def test_what_is_said_when_it_is_interrupted(monkeypatch, capfd):
    monkeypatch.setattr(reproduce, 'training', lambda _: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(os, '_exit', sys.exit)
    assert status_of('work') == 130
    assert capfd.readouterr().err == '\ninterrupted; the same command goes on from here\n'


def test_several_processes_are_recorded_once_and_the_command_is_said(home):
    run_in_processes(
        2, 'train', 'tiny.py', '--work-dir', 'two', '--cfg-options', 'train_cfg.max_epochs=1'
    )
    (start,) = read_record('two')
    assert start['world_size'] == 2
    said = status_of('two')
    command = f'dist_train.sh two/{start["config"]["file"]} 2 --work-dir two/reproduced'
    assert f'{command} --resume auto --cfg-options' in said


class TestWhatDiffers:
    def test_data(self, copied, capsys):
        vocab = Path('data/entities.json')
        before = vocab.read_bytes()
        vocab.write_bytes(before + b'\n')
        try:
            assert status_of(copied, '--checks-only') == 1
            assert 'put them back, or give --anyway' in status_of(copied)
        finally:
            vocab.write_bytes(before)
        assert f'| data | data/entities.json | {len(before)} bytes' in capsys.readouterr().out
        assert not status_of(copied, '--checks-only')

    def test_times_alone_do_not_decide(self, copied, capsys):
        file = Path('data/fashiongen_256_256_train.h5')
        (start,) = read_record(copied)
        (name,) = [name for name in start['files'] if name.endswith(file.name)]
        photos = {split: dict(s, times='0') for split, s in start['photos'].items()}
        files = start['files'] | {name: start['files'][name] | dict(modified=1)}
        change(copied, photos=photos, files=files)
        assert not status_of(copied, '--checks-only')
        said = capsys.readouterr().out
        assert f'| time | {name} |' in said and '| time | photos of train |' in said
        assert '| data |' not in said

    def test_content_decides(self):
        whole = dict(size=2**31, sha256='a', rule='64 samples', modified=1)
        photos = dict(count=1, missing=0, bytes=9, names_and_sizes='a', times='b')

        def kinds(files, photos) -> list[str]:
            rest = dict(code={}, environment={}, host={}, variables={})
            before = dict(files=dict(a=whole), photos=dict(train=first), **rest)
            rows = state.difference_of(before, dict(files=files, photos=photos, **rest))
            return [kind for kind, *_ in rows]

        first = photos
        assert kinds(dict(a=dict(whole, modified=2)), dict(train=photos)) == ['time']
        assert kinds(dict(a=dict(whole, sha256='b', modified=2)), {}) == ['data', 'data']
        moved = dict(photos, names_and_sizes='c', times='c')
        assert kinds(dict(a=whole, b=whole), dict(train=moved)) == ['data', 'data']

    def test_moved_data(self, copied):
        Path('data').rename('elsewhere')
        try:
            said = status_of(copied)
        finally:
            Path('elsewhere').rename('data')
        assert 'data of train cannot be read' in said and 'link' in said

    def test_packages_machine_and_code_do_not_stop_it(self, copied, capsys):
        (start,) = read_record(copied)
        environment = dict(start['environment'], torch='2.6.0')
        host = dict(start['host'], threads=64)
        change(copied, environment=environment, host=host, code=dict(sha256='0', version='0.0.1'))
        assert not status_of(copied, '--checks-only')
        said = capsys.readouterr().out
        assert f'| package | torch | 2.6.0 | {torch.__version__} |' in said
        assert '| machine | threads | 64 |' in said and '| code | eiclip_mm | 0.0.1, 0' in said


class TestBadInput:
    def test_a_changed_config_is_not_run(self, copied, capsys):
        config = copied / read_record(copied)[0]['config']['file']
        config.write_text(config.read_text() + '\nopen("ran", "w").close()\n')
        assert 'a config is code' in status_of(copied, '--checks-only')
        assert not Path('ran').exists()
        assert not status_of(copied, '--checks-only', '--trust')
        assert Path('ran').exists() and 'trusted' in capsys.readouterr().out

    def test_a_config_elsewhere_is_not_run(self, copied):
        change(copied, config=dict(file='../evil.py', sha256=''))
        assert 'outside' in status_of(copied, '--trust')

    def test_a_config_that_is_gone(self, copied):
        change(copied, config=dict(file='x/gone.py', sha256=''))
        assert 'is not there' in status_of(copied)

    def test_links_that_go_round(self, copied):
        config = copied / read_record(copied)[0]['config']['file']
        config.unlink()
        config.symlink_to(config.name)
        assert 'is not there' in status_of(copied)
        work = copied.with_name('loop')
        work.symlink_to('loop')
        assert 'is no work dir' in status_of(work, '--out', copied)

    def test_a_work_dir_compared_with_itself(self, trained, tmp_path, capsys):
        (tmp_path / 'link').symlink_to(trained.resolve())
        for out in ('work', 'work/../work', tmp_path / 'link'):
            assert status_of(trained, '--out', out) == 2
            assert f'{out} is work itself' in capsys.readouterr().err
        (tmp_path / 'reproduced').symlink_to('.')
        assert status_of(tmp_path) == 2
        assert 'give another --out' in capsys.readouterr().err

    @pytest.mark.parametrize('tolerance', ['nan', '-1', 'inf'])
    def test_a_tolerance_that_is_none(self, trained, capsys, tolerance):
        assert status_of(trained, f'--tolerance={tolerance}') == 2
        assert 'give a number from 0 on, such as 0.01' in capsys.readouterr().err

    def test_no_record(self, copied, tmp_path):
        assert 'is no work dir' in status_of(tmp_path / 'nowhere')
        (copied / RECORD).unlink()  # of a version without
        assert 'kept no record' in status_of(copied)

    def test_a_stranger_s_record(self, copied):
        (copied / RECORD).write_text(
            '{"format": "eiclip_mm.run_record", "version": 1, "starts": 1}'
        )
        assert 'no list of starts' in status_of(copied)

    def test_a_training_that_did_not_end(self, copied):
        change(copied, result=None)
        assert '--resume auto' in status_of(copied)

    def test_a_beginning_that_is_not_recorded(self, copied):
        change(copied, began=dict(epoch=1, iter=4))
        assert 'from step 4' in status_of(copied)

    def test_a_folder_of_another_training(self, copied, home):
        config = copied / read_record(copied)[0]['config']['file']
        text = config.read_text().replace('max_epochs=2', 'max_epochs=3')
        assert text != config.read_text()
        config.write_text(text)
        assert 'another training' in status_of(copied, '--trust', '--out', 'work')


def start(kind='train', began=0, ended=None, **rest) -> dict:
    return dict(kind=kind, began=dict(iter=began), result=ended and dict(iter=ended), **rest)


def test_a_start_with_no_step_left_ends_one_that_was_killed():
    killed, last = start(), start(began=8, ended=8)
    assert again.of_training([killed, last, start(began=8, ended=8)]) == [killed, last]


def test_the_latest_training_is_looked_at():
    old, new, killed, last = start(ended=8), start(), start(began=4), start(began=6, ended=8)
    nothing_left, test = start(began=8, ended=8), dict(kind='test')
    found = again.of_training([old, test, new, killed, last, nothing_left, test])
    assert found == [new, killed, last]


@pytest.mark.parametrize(
    ('step', 'verdict'),
    [(0.0, 'identical'), (8e-7, 'equal to 6 digits'), (0.03, 'equal to 1 digits'), (9, 'differs')],
)
def test_the_verdict_is_of_the_largest_relative_difference(tmp_path, step, verdict, capsys):
    dirs, starts = [], []
    for i, value in enumerate((1.0, 1.0 - step)):
        work = tmp_path / str(i)
        work.mkdir()
        state = dict(a=torch.ones(3, dtype=torch.float64), n=torch.tensor(4))
        state['a'][1] = value
        torch.save(dict(state_dict=state), work / 'epoch_1.pth')
        saved = dict(role='last_ckpt', file='epoch_1.pth', weights=weights_sha256(state))
        dirs.append(work)
        starts.append([dict(folder='x', result=dict(metrics=dict(a=1.0), checkpoints=[saved]))])
    found = again.compare(dirs[0], starts[0], dirs[1], starts[1])
    assert found.weights[0][1:3] == (2, int(step > 0))
    assert found.weights[0][3] == pytest.approx(step)
    assert found.verdict == verdict
    assert again.report(found, tolerance=0.0) == (step == 0)
    assert again.report(found, tolerance=10.0)
    assert f'Verdict: {verdict}' in capsys.readouterr().out
    (dirs[1] / 'epoch_1.pth').unlink()  # the record still tells them apart
    found = again.compare(dirs[0], starts[0], dirs[1], starts[1])
    assert found.identical == (step == 0)
