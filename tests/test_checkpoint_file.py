"""Checkpoint files: damage is noticed, code is not run, a full disk changes nothing."""

import errno
import os
import resource
import signal
import zipfile
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
    Inflated,
    check_content,
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


def packed(path: Path, content: object) -> Path:
    """A file of torch.save, compressed; torch reads it."""
    torch.save(content, path.with_suffix('.plain'))
    with (
        zipfile.ZipFile(path.with_suffix('.plain')) as plain,
        zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive,
    ):
        for record in plain.namelist():
            archive.writestr(record, plain.read(record))
    return path


@pytest.mark.filterwarnings('ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
def test_what_unpacks_to_more_is_not_unpacked_unless_trusted(tmp_path, monkeypatch):
    small = packed(tmp_path / 'small.pth', CONTENT)
    large = packed(tmp_path / 'large.pth', dict(CONTENT, more=torch.zeros(10**6)))
    expanded = tmp_path / 'expanded.pth'
    torch.save(dict(CONTENT, more=torch.zeros(1).expand(10**9)), expanded)
    cases = {
        small: 'its records are compressed, and torch.save compresses none',
        large: r'a file of [\d,]{5,6} bytes, whose lists, texts and tensors would take 4,00\d,\d+',
        expanded: r'a file of \d,\d+ bytes, whose lists, texts and tensors would take 4,000,0',
    }
    with monkeypatch.context() as patch:
        # is noticed before anything is unpacked
        patch.setattr(zipfile.ZipFile, 'testzip', lambda archive: pytest.fail('it is unpacked'))
        for path in (small, large):
            with pytest.raises(CheckpointError, match=cases[path]):
                read_checkpoint(path)
    for path, says in cases.items():
        with pytest.raises(
            CheckpointError, match=rf'{path.name} is not .*\({says}.* set {TRUST}=1'
        ):
            read_checkpoint(path)
    monkeypatch.setenv(TRUST, '1')
    assert all(is_content(read_checkpoint(path)) for path in cases)


def nested(depth: int, width: int = 2) -> list:
    value = [1]
    for _ in range(depth):
        value = [value] * width
    return value


def in_itself(value: list) -> list:
    value.append(value)
    return value


def known() -> list:
    """Chains of 61 lists, each of which ends in the one before."""
    chains = [nested(60, 1)]
    for _ in range(2):
        value = chains[-1]
        for _ in range(60):
            value = [value]
        chains.append(value)
    return chains


SHARED = {
    'lists': (nested(40), r'a file of 9 bytes, .* would take 3,298,534,883,327'),
    'more lists': (nested(90), r'would take more than 2\*\*63'),
    'a text': (['a' * 10**5] * 10**5, 'would take 10,000,000,001'),
    'a text as keys': ([{'a' * 10**4: 1}] * 10**4, 'would take 100,0'),
    'a tensor': (dict(a=(torch.zeros(100),) * 10**4), 'would take 4,000,00'),
    'bytes': (bytearray(10**7), 'would take 10,000,000'),
    'deep': (nested(100, 1), 'lists in lists, more than 100 deep'),
    'deep in a part that is known': (known(), 'more than 100 deep'),
    'a list in itself': (in_itself([]), 'more than 100 deep'),
    'two of them': (in_itself(in_itself([])), 'more than 100 deep'),
}


@pytest.mark.parametrize('case', SHARED)
def test_what_is_named_again_and_again_is_refused(case):
    content, says = SHARED[case]
    with pytest.raises(Inflated, match=says):
        check_content(content, 9)


def test_what_a_training_shares_is_not():
    weight = torch.zeros(10**6)
    check_content(dict(state_dict=dict(a=weight, b=weight.view(10, -1))), 4 * 10**6)
    betas = (0.9, 0.999)
    check_content([dict(betas=betas, lr=0.1, foreach=None)] * 10**3, 9)
    check_content(nested(99, 1), 9)
    check_content({frozenset({1}), 'a'}, 9)
    deep = nested(50, 1)
    check_content([deep, nested(9, 1), [deep]], 9)


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
