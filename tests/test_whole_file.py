"""Files that are complete or not there: exceptions, kills, full disks, leftovers."""

import errno
import multiprocessing
import os
import resource
import signal

import pytest

from eiclip_mm.utils.whole_file import whole_file, write_whole_text

FORK = multiprocessing.get_context('fork')


def end_of(target, *args) -> int:
    process = FORK.Process(target=target, args=args)
    process.start()
    process.join()
    return process.exitcode


def die_writing(path) -> None:
    with whole_file(path) as file:
        file.write(b'half')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def fill_the_disk(path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then write() fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    try:
        with whole_file(path) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        os._exit(error.errno)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'a [1]*.json'  # a name that glob would read otherwise
    write_whole_text(path, 'old é')
    return path


def names(path):
    return [p.name for p in path.parent.iterdir()]


def test_a_file_is_replaced(path):
    assert path.read_text(encoding='utf-8') == 'old é'
    with whole_file(path) as file:
        file.write(b'new')
        file.flush()
        assert path.read_text(encoding='utf-8') == 'old é'
    assert path.read_text() == 'new' and names(path) == [path.name]


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old(path, error):
    with pytest.raises(error), whole_file(path) as file:
        file.write(b'half')
        raise error
    assert path.read_text(encoding='utf-8') == 'old é' and names(path) == [path.name]


def test_a_kill_leaves_the_old_and_the_next_writer_cleans_up(path):
    assert end_of(die_writing, path) == -signal.SIGKILL
    assert path.read_text(encoding='utf-8') == 'old é' and len(names(path)) == 2
    write_whole_text(path, 'new')
    assert path.read_text() == 'new' and names(path) == [path.name]


def test_the_part_of_a_process_at_work_stays(path):
    with whole_file(path) as file:
        assert end_of(write_whole_text, path, 'of another') == 0
        file.write(b'mine')
    assert path.read_text() == 'mine' and names(path) == [path.name]


def test_a_full_disk_leaves_the_old(path):
    assert end_of(fill_the_disk, path) == errno.EFBIG
    assert path.read_text(encoding='utf-8') == 'old é' and names(path) == [path.name]


def test_a_link_stays_a_link_and_a_pipe_a_pipe(path, tmp_path):
    link, pipe = tmp_path / 'link', tmp_path / 'pipe'
    link.symlink_to(path)
    write_whole_text(link, 'new')
    assert link.is_symlink() and path.read_text() == 'new'
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole_text(pipe, 'through')
    assert os.read(reader, 99) == b'through' and pipe.is_fifo()
    os.close(reader)


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        write_whole_text(tmp_path / 'nowhere' / 'file', '')
