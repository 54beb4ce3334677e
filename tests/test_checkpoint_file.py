"""Checkpoint files: damage is noticed, code is not run, a full disk changes nothing."""

import errno
import os
import resource
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from mmengine.runner import CheckpointLoader

from eiclip_mm.utils.checkpoint_file import (
    TRUST,
    CheckpointError,
    CheckpointNotWritten,
    check_whole,
    read_checkpoint,
    write_checkpoint,
)

CONTENT = dict(
    state_dict=dict(weight=torch.arange(300.0).reshape(20, 15), count=torch.tensor(3)),
    meta=dict(epoch=2, cfg='model = dict()'),
)


class Stranger:
    """What runs when a pickle that holds it is read."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def path(tmp_path):
    torch.save(CONTENT, tmp_path / 'epoch_2.pth')
    return tmp_path / 'epoch_2.pth'


def is_content(loaded) -> bool:
    return loaded['meta'] == CONTENT['meta'] and all(
        loaded['state_dict'][k].equal(v) for k, v in CONTENT['state_dict'].items()
    )


@fuzz
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path_factory, where, bit):
    path = tmp_path_factory.mktemp('flip') / 'epoch_1.pth'
    torch.save(CONTENT, path)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        assert is_content(read_checkpoint(path))
    except CheckpointError as error:
        assert str(path) in str(error)


@fuzz
@given(left=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_noticed(tmp_path_factory, left):
    path = tmp_path_factory.mktemp('cut') / 'epoch_1.pth'
    torch.save(CONTENT, path)
    os.truncate(path, int(left * path.stat().st_size))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_torch_itself_does_not_notice(path):
    """The reason for all this; when it fails, torch checks and check_whole may go."""
    content = path.read_bytes()
    weight = CONTENT['state_dict']['weight'].numpy().tobytes()
    path.write_bytes(content.replace(weight, weight[:-1] + b'\x00'))
    assert not is_content(torch.load(path))
    with pytest.raises(CheckpointError, match=r'is damaged \(record .*/data/0 differs from its ch'):
        check_whole(path)


def test_whole_files_are_read_old_format_too(path, tmp_path):
    torch.save(CONTENT, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    for file in (path, tmp_path / 'old.pth', str(path)):
        assert is_content(read_checkpoint(file))
        assert is_content(CheckpointLoader.load_checkpoint(str(file), 'cpu', None))


def test_a_config_that_mmengine_would_run_is_left_out(tmp_path, monkeypatch):
    torch.save(dict(meta=dict(config='import os', epoch=1)), tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['meta'] == dict(epoch=1)
    torch.save(['no', 'dict'], tmp_path / 'b.pth')
    assert read_checkpoint(tmp_path / 'b.pth') == ['no', 'dict']


@pytest.mark.filterwarnings('ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
def test_code_runs_only_where_it_is_trusted(tmp_path, monkeypatch):
    folder = tmp_path / 'ran'
    torch.save(dict(a=Stranger(folder), meta=dict(config='x = 1')), tmp_path / 'a.pth')
    sentence = rf'as plain data \(it names \w+\.mkdir\): .* --trust, or set {TRUST}=1'
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(tmp_path / 'a.pth')
    assert not folder.exists()
    monkeypatch.setenv(TRUST, '1')
    assert read_checkpoint(tmp_path / 'a.pth')['meta'] == dict(config='x = 1')
    assert folder.is_dir()


def fill_the_disk(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then write() fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, 1 << 12))
    try:
        write_checkpoint(path, bytes(1 << 20))
    except CheckpointNotWritten as error:
        sentence = f'checkpoint {path} (1.0 MB) could not be written: File too large; '
        plain = error.strerror.startswith(sentence) and 'MB are free in' in error.strerror
        os._exit(error.errno if plain else 1)


def test_a_full_disk_is_named_and_leaves_the_old(path):
    process = get_context('fork').Process(target=fill_the_disk, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == errno.EFBIG
    assert is_content(read_checkpoint(path)) and len(list(path.parent.iterdir())) == 1


def test_a_folder_that_cannot_be_is_named(path):
    with pytest.raises(CheckpointNotWritten, match=r'File exists; .* MB are free in .* Make room'):
        write_checkpoint(path / 'epoch_3.pth', b'')
