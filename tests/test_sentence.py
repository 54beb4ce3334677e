"""What ends a tool in a sentence, and what keeps its traceback."""

import errno
import re

import pytest
import torch

from eiclip_mm.evaluation.files import npz_path
from eiclip_mm.utils.checkpoint_file import CheckpointNotWritten
from eiclip_mm.utils.sentence import refusals_told


def test_a_refusal_of_ours_is_its_sentence():
    with (
        pytest.raises(SystemExit, match=r'^embeddings are written as \.npz, got') as stopped,
        refusals_told(),
    ):
        npz_path('x')
    assert isinstance(stopped.value.__cause__, ValueError)


def test_an_error_of_another_package_keeps_its_traceback():
    with pytest.raises(ValueError, match='batch_size'), refusals_told():
        torch.utils.data.DataLoader([1], batch_size=0)


def test_a_disk_that_takes_no_more_is_named_whoever_met_it(tmp_path):
    file = tmp_path / 'x.npz'
    full = OSError(errno.ENOSPC, 'No space left on device', str(file))
    with pytest.raises(SystemExit) as stopped, refusals_told(tmp_path / 'new', then='start anew'):
        raise full
    assert re.fullmatch(
        rf'{file} cannot be written: No space left on device; [\d.]+ MB are free in {tmp_path}\. '
        'Make room or mend it, then start anew\.',
        stopped.value.code,
    )
    with (
        pytest.raises(SystemExit, match=r'^the disk is full, then call it again\.$'),
        refusals_told(),
    ):
        raise CheckpointNotWritten(errno.ENOSPC, 'the disk is full')


def test_one_of_several_processes_raises_what_it_met(monkeypatch):
    """torchrun writes down the error of a process, and of SystemExit nothing."""
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(ValueError, match=r'\.npz'), refusals_told():
        npz_path('x')
