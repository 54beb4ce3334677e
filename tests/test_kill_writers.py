"""Tools killed while they write, and on full disks: what stands, and the same command again."""

import itertools
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from eiclip_mm.utils.whole_together import check_empty, whole_files, whole_folder

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools/dev'))
import _kill_cases
import _kills

FORK = multiprocessing.get_context('fork')
QUICK = ('build_entities', 'catalogue', 'pack_images', 'report')


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    return tmp_path_factory.mktemp('inputs')


@pytest.fixture(scope='module', params=QUICK)
def trial(request, inputs, tmp_path_factory):
    make = _kill_cases.cases()[request.param]
    return _kills.Trial(make(inputs), tmp_path_factory.mktemp(request.param))


def test_a_killed_tool_run_again_gives_what_an_unbroken_one_gives(trial):
    draw = random.Random(1)
    for at_a_write in (True, False):
        trial.kill(draw, at_a_write)
    assert trial.counts['kills']
    assert trial.problems == []


def test_a_full_disk_is_a_sentence(trial):
    trial.fill_the_disk(200)
    assert trial.counts['full disks'] == 1
    assert trial.problems == []


def test_a_kill_that_damages_is_found(trial):
    """The harness itself: parts that are neither, mixes, leftovers."""
    old, new = dict(a=1, b=1), dict(a=2, b=2)
    case = _kills.Case(('x.py',), dict, together=True)
    assert _kills.problem(case, dict(a=1, b=1), old, new) is None
    assert _kills.problem(case, dict(b=2), old, new) is None
    assert 'mix' in _kills.problem(case, dict(a=1, b=2), old, new)
    assert 'a is neither' in _kills.problem(case, dict(a=3), old, new)
    assert not _kills.same(np.zeros(2), np.ones(2)) and not _kills.same('a', 1)
    (trial.folder / '.a.7.part').touch()
    assert _kills.leftovers(trial.folder) == ['.a.7.part']
    assert 'left over' in trial._differs()
    (trial.folder / '.a.7.part').unlink()


# ----------------------------------------------------------- files and folders that are whole


def end_of(target, *args) -> int:
    process = FORK.Process(target=target, args=args)
    process.start()
    process.join()
    return process.exitcode


def die(path) -> None:
    with whole_folder(path) as folder:
        (folder / 'deep').mkdir()
        (folder / 'deep/file').write_text('half')
        signal.raise_signal(signal.SIGKILL)


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def test_a_folder_is_there_once_it_is_filled(tmp_path):
    path = tmp_path / 'new/out [1]*'
    with whole_folder(path) as folder:
        (folder / 'file').write_text('all')
        assert not path.exists()
    assert names(path.parent) == ['out [1]*', 'out [1]*/file']
    with pytest.raises(FileExistsError, match='is there and not empty'), whole_folder(path):
        raise AssertionError('it is begun')
    (tmp_path / 'empty').mkdir()
    with whole_folder(tmp_path / 'empty') as folder:
        (folder / 'file').write_text('all')
    assert names(tmp_path / 'empty') == ['file']


def test_a_mounted_disk_is_refused_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match=r'/proc is where a disk is mounted.* inside it'):
        check_empty(Path('/proc'))
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'link').symlink_to('disk')
    monkeypatch.setattr(os.path, 'ismount', lambda path: path == str(tmp_path / 'disk'))
    for name in ('disk', 'link'):
        with pytest.raises(FileExistsError, match='give a folder'), whole_folder(tmp_path / name):
            raise AssertionError('it is begun')
    with whole_folder(tmp_path / 'disk/inside') as folder:
        (folder / 'file').write_text('all')
    assert names(tmp_path / 'disk') == ['inside', 'inside/file']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_no_folder(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / 'out') as folder:
        (folder / 'file').write_text('half')
        raise error
    assert names(tmp_path) == []


def test_a_kill_leaves_no_folder_and_the_next_writer_cleans_up(tmp_path):
    assert end_of(die, tmp_path / 'out') == -signal.SIGKILL
    assert not (tmp_path / 'out').exists() and len(names(tmp_path)) == 3
    with whole_folder(tmp_path / 'out') as folder:
        (folder / 'file').write_text('all')
    assert names(tmp_path) == ['out', 'out/file']


def test_the_folder_of_a_process_at_work_stays(tmp_path):
    def write(path) -> None:
        with whole_folder(path) as folder:
            (folder / 'file').write_text('of another')

    (tmp_path / '.out.x.parts').mkdir()  # no process's
    with pytest.raises(OSError), whole_folder(tmp_path / 'out') as folder:
        (folder / 'mine').write_text('mine')
        assert end_of(write, tmp_path / 'out') == 0
        assert (folder / 'mine').is_file()
    assert names(tmp_path) == ['.out.x.parts', 'out', 'out/file']


def test_files_that_belong_together(tmp_path):
    one, other = tmp_path / 'a.md', tmp_path / 'a.json'
    for text in (b'old', b'new'):
        with whole_files(one, other) as (a, b):
            a.write(text)
            b.write(text)
            assert not one.exists() or one.read_bytes() == b'old'
        assert one.read_bytes() == other.read_bytes() == text
    with pytest.raises(ValueError), whole_files(one, other) as (a, b):
        a.write(b'third')
        raise ValueError
    assert one.read_bytes() == other.read_bytes() == b'new'
    assert names(tmp_path) == ['a.json', 'a.md']


@pytest.mark.parametrize('event', range(1, 9))
def test_no_kill_leaves_a_mix(tmp_path, event):
    """At each change of a file in turn."""

    def write(text: bytes) -> None:
        with whole_files(tmp_path / 'a', tmp_path / 'b') as files:
            for file in files:
                file.write(text)

    def killed() -> None:
        count = itertools.count(1)
        folder = str(tmp_path)

        def hook(name, args):
            if (
                name in ('open', *_kills.CHANGES)
                and folder in str(args[0])
                and next(count) == event
            ):
                signal.raise_signal(signal.SIGKILL)

        sys.addaudithook(hook)
        write(b'new')

    write(b'old')
    code = end_of(killed)
    found = {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith('.part')}
    assert len(set(found.values())) <= 1, 'a mix'
    assert code == -signal.SIGKILL or found == dict(a=b'new', b=b'new')
    assert found == dict(a=b'old', b=b'old') or event > 3
    write(b'new')
    assert names(tmp_path) == ['a', 'b'] and (tmp_path / 'a').read_bytes() == b'new'
