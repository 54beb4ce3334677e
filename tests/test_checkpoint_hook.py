"""Checkpoints of real, small runs that end at any of their writes, and of damaged work dirs."""

import errno
import os
import resource
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import runs
import torch
from mmengine.hooks import Hook
from runs import same, weights

from eiclip_mm.engine import SafeCheckpointHook, checkpoint_files, checkpoint_hook, last_good
from eiclip_mm.engine.checkpoint_files import check_writable
from eiclip_mm.utils.checkpoint_file import CheckpointNotWritten, write_checkpoint

MEASURE = 'full/first-image/t2i/MRR'
SAVE = dict(
    type='SafeCheckpointHook', interval=1, max_keep_ckpts=1, rule='greater', save_best=MEASURE
)


class StopAtValidation(Hook):
    def __init__(self, step):
        self.step = step  # two are an epoch

    def before_val(self, runner):
        if runner.iter == self.step:
            raise KeyboardInterrupt


class Validations(Hook):
    def __init__(self):
        self.seen = []

    def after_val_epoch(self, runner, metrics=None):
        self.seen.append(runner.epoch)


class Better(Hook):
    """Each validation better than the one before."""

    priority = 'VERY_HIGH'

    def after_val_epoch(self, runner, metrics=None):
        metrics[MEASURE] = float(runner.epoch)


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    return runs.write_catalogue(tmp_path_factory.mktemp('mini'))


def make(catalogue, work_dir, *hooks, save=None, epochs=3, **changes):
    """A runner that goes on from the last good checkpoint of its work dir."""
    checkpoint, _ = last_good(work_dir)
    return runs.make_runner(
        catalogue, work_dir, epochs=epochs, hooks=('StepSeedHook', 'PlainCheckpointHook', *hooks),
        default_hooks=dict(checkpoint=SAVE | (save or {})), resume=checkpoint is not None,
        load_from=str(checkpoint) if checkpoint else None, **changes,
    )  # fmt: skip


def files(work_dir: Path) -> list[str]:
    return sorted(p.name for p in work_dir.iterdir() if p.suffix in ('.pth', '.part'))


def hub(work_dir: Path, name: str) -> dict:
    info = torch.load(work_dir / name, weights_only=True)['message_hub']['runtime_info']
    return {
        k: v.rpartition('/')[2] if k.endswith('_ckpt') else v
        for k, v in info.items()
        if k in ('best_score', 'best_ckpt', 'last_ckpt', 'keep_ckpt_ids', 'last_validated')
    }


@pytest.fixture(scope='module')
def unbroken(catalogue, tmp_path_factory):
    """Work dir, state and number of writes of a run that is not interrupted."""
    work_dir = tmp_path_factory.mktemp('unbroken')
    writes = []

    def counted(path, content):
        writes.append(Path(path).name)
        write_checkpoint(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_files, 'write_checkpoint', counted)
        patch.setattr(checkpoint_hook, 'write_checkpoint', counted)
        runner = make(catalogue, work_dir)
        runner.train()
    assert writes.count('last_checkpoint') >= 3 and any(n.startswith('best') for n in writes)
    return work_dir, weights(runner), len(writes)


@pytest.mark.parametrize('after', [False, True], ids=['before', 'after'])
def test_ended_at_any_write_and_resumed(catalogue, unbroken, tmp_path, monkeypatch, after):
    """One run that is interrupted at its first write, resumed, interrupted at its second, …"""
    reference, state, writes = unbroken
    done = left = 0

    def interrupted(path, content):
        nonlocal left
        left -= 1
        if after or left:
            write_checkpoint(path, content)
        if not left:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_files, 'write_checkpoint', interrupted)
    monkeypatch.setattr(checkpoint_hook, 'write_checkpoint', interrupted)
    while done < 2 * writes:
        left = done = done + 1
        runner = make(catalogue, tmp_path)
        try:
            runner.train()
        except KeyboardInterrupt:
            checkpoint, passed_over = last_good(tmp_path)
            assert not passed_over and (checkpoint or not files(tmp_path) or not after)
        else:
            break
    assert done > 3
    assert same(weights(runner), state)
    assert files(tmp_path) == files(reference)
    for name in files(reference):
        assert hub(tmp_path, name) == hub(reference, name)


def test_the_validation_that_is_lacking_is_made_up_for_once(catalogue, unbroken, tmp_path):
    reference = unbroken[0]
    with pytest.raises(KeyboardInterrupt):
        make(catalogue, tmp_path, StopAtValidation(4)).train()
    seen = Validations()
    make(catalogue, tmp_path, seen).train()
    assert seen.seen == [2, 3] and files(tmp_path) == files(reference)


def test_what_was_made_up_for_is_not_again(catalogue, tmp_path):
    """A better checkpoint notes its validation."""
    with pytest.raises(KeyboardInterrupt):
        make(catalogue, tmp_path, Better(), StopAtValidation(4)).train()
    for epochs, validated in ((2, [2]), (2, []), (3, [3])):
        seen = Validations()
        make(catalogue, tmp_path, Better(), seen, epochs=epochs).train()
        assert seen.seen == validated, (epochs, seen.seen)


@pytest.mark.parametrize(('stopped', 'expected'), [(6, [3]), (4, [2, 3])])
def test_what_is_validated_at_an_interval(catalogue, tmp_path, stopped, expected):
    """Validation after the second epoch and, as it is the last, the third."""
    every_second = dict(train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=2))
    with pytest.raises(KeyboardInterrupt):
        make(catalogue, tmp_path, StopAtValidation(stopped), **every_second).train()
    seen = Validations()
    make(catalogue, tmp_path, seen, **every_second).train()
    assert seen.seen == expected


def test_what_is_not_due_is_not_made_up_for(catalogue, tmp_path):
    every_second = dict(train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=2))
    make(
        catalogue, tmp_path, epochs=1, train_cfg=dict(by_epoch=True, max_epochs=1, val_begin=2)
    ).train()
    seen = Validations()
    make(catalogue, tmp_path, seen, **every_second).train()
    assert seen.seen == [2, 3]


def test_a_run_that_counts_iterations(catalogue, tmp_path):
    steps = dict(
        train_cfg=dict(by_epoch=False, max_iters=2, val_interval=1), save=dict(by_epoch=False)
    )
    with pytest.raises(KeyboardInterrupt):
        make(catalogue, tmp_path, StopAtValidation(1), **steps).train()
    assert files(tmp_path) == ['iter_1.pth']
    seen = Validations()
    make(catalogue, tmp_path, seen, **steps).train()
    assert len(seen.seen) == 2
    assert 'iter_2.pth' in files(tmp_path) and len(files(tmp_path)) == 2


def test_a_run_forked_into_another_folder_leaves_the_first_alone(catalogue, unbroken, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    make(catalogue, first, epochs=1).train()
    before = {p.name: p.read_bytes() for p in first.glob('*.pth')}
    runner = runs.make_runner(
        catalogue, second, epochs=3, hooks=('StepSeedHook', 'PlainCheckpointHook'), resume=True,
        default_hooks=dict(checkpoint=SAVE), load_from=str(first / 'epoch_1.pth'),
    )  # fmt: skip
    runner.train()
    assert same(weights(runner), unbroken[1])
    assert {p.name: p.read_bytes() for p in first.glob('*.pth')} == before


def train_on_a_full_disk(catalogue, work_dir) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then write() fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    torch.set_num_threads(1)  # threads do not survive a fork
    try:
        make(catalogue, work_dir).train()
    except CheckpointNotWritten as error:
        os._exit(error.errno)


def test_a_disk_that_fills_up_costs_an_epoch_and_no_more(catalogue, unbroken, tmp_path):
    make(catalogue, tmp_path, epochs=1).train()
    before = {p.name: p.read_bytes() for p in tmp_path.glob('*.pth')}
    process = get_context('fork').Process(target=train_on_a_full_disk, args=(catalogue, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == errno.EFBIG
    assert {p.name: p.read_bytes() for p in tmp_path.glob('*.pth')} == before
    runner = make(catalogue, tmp_path)
    runner.train()
    assert same(weights(runner), unbroken[1]) and files(tmp_path) == files(unbroken[0])


def test_settings_of_the_optimiser_that_a_resume_restores_are_named(catalogue, tmp_path, caplog):
    make(catalogue, tmp_path, epochs=1).train()
    for lr, named in ((0.003, False), (0.0003, True)):
        optimiser = dict(optimizer=dict(type='AdamW', lr=lr))
        runner = make(catalogue, tmp_path, epochs=1, optim_wrapper=optimiser, log_level='WARNING')
        runner.logger.addHandler(caplog.handler)
        caplog.clear()
        runner.train()
        warned = 'initial_lr=0.0003 of the config is not used' in caplog.text
        assert warned is named and ('of its checkpoint, 0.003.' in caplog.text) is named
        assert runner.optim_wrapper.optimizer.param_groups[0]['initial_lr'] == 0.003


def test_a_measure_that_is_not_there_is_named(catalogue, tmp_path):
    with pytest.raises(ValueError, match=r"save_best='full/first-image/SumR' is none .*'full/"):
        make(catalogue, tmp_path, save=dict(save_best='full/first-image/SumR'), epochs=1).train()
    make(catalogue, tmp_path, epochs=1).train()  # goes on, and makes up for the validation
    assert files(tmp_path) == ['best_full_first-image_t2i_MRR_epoch_1.pth', 'epoch_1.pth']


@pytest.mark.parametrize('name', ['epoch_1.pth', 'epoch_7.pth', 'last_checkpoint'])
def test_what_a_kill_left_is_removed_and_last_checkpoint_mended(catalogue, tmp_path, name):
    """Also where nothing more is to be written: the last epoch was complete."""
    make(catalogue, tmp_path, epochs=1).train()
    (tmp_path / f'.{name}.999999999.part').write_bytes(b'half')
    (tmp_path / 'last_checkpoint').write_text('epoch_0.pth')
    before = {p.name: p.read_bytes() for p in tmp_path.glob('*.pth')}
    make(catalogue, tmp_path, epochs=1).train()
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')
    assert {p.name: p.read_bytes() for p in tmp_path.glob('*.pth')} == before
    assert not list(tmp_path.glob('.*'))


class TestLastGood:
    @pytest.fixture
    def work_dir(self, unbroken, tmp_path):
        """Three epochs, the third the newest, whatever the times of the files say."""
        saved = torch.load(unbroken[0] / 'epoch_3.pth', weights_only=True)
        for epoch in (3, 1, 2):
            saved['meta'] |= dict(epoch=epoch, iter=2 * epoch, time=f'20260101_00000{epoch}')
            torch.save(saved, tmp_path / f'epoch_{epoch}.pth')
        (tmp_path / 'last_checkpoint').write_text('/moved/since/epoch_3.pth')
        return tmp_path

    def test_the_newest(self, work_dir):
        assert last_good(work_dir) == (work_dir / 'epoch_3.pth', [])
        shutil.copytree(work_dir, work_dir / 'copy')
        assert last_good(work_dir / 'copy')[0] == work_dir / 'copy/epoch_3.pth'

    def test_a_copy_does_not_go_on_from_where_it_was_copied(self, work_dir):
        (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_3.pth'))
        shutil.copytree(work_dir, work_dir / 'copy')
        (work_dir / 'copy/epoch_3.pth').unlink()
        assert last_good(work_dir / 'copy')[0] == work_dir / 'copy/epoch_2.pth'

    def test_damaged_and_strange_ones_are_passed_over(self, work_dir):
        path = work_dir / 'epoch_3.pth'
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        good, passed_over = last_good(work_dir)
        assert good == work_dir / 'epoch_2.pth'
        assert [str(path) in line and 'is damaged' in line for line in passed_over] == [True]
        middle = bytearray(content)
        middle[len(content) // 2] ^= 1
        path.write_bytes(middle)
        assert last_good(work_dir)[0] == work_dir / 'epoch_2.pth'
        torch.save(dict(meta=dict(time='3', iter=9), optimizer=os.getcwd), path)
        good, (line,) = last_good(work_dir)
        assert good == work_dir / 'epoch_2.pth' and 'cannot be read as plain data' in line
        torch.save(dict(state_dict={}, meta=dict(time='3', iter=9)), path)
        good, (line,) = last_good(work_dir)
        assert good == work_dir / 'epoch_2.pth' and 'weights alone' in line

    def test_none(self, work_dir, tmp_path):
        assert last_good(tmp_path / 'nowhere') == (None, [])
        for path in work_dir.glob('*.pth'):
            path.write_bytes(b'')
        good, passed_over = last_good(work_dir)
        assert good is None and len(passed_over) == 3
        for path in work_dir.glob('*.pth'):
            path.unlink()
        good, (line,) = last_good(work_dir)
        assert (
            good is None and line == 'checkpoint /moved/since/epoch_3.pth is missing, or no file.'
        )

    def test_a_folder_of_checkpoints_elsewhere_is_found_by_last_checkpoint(self, work_dir):
        other = work_dir / 'work'
        other.mkdir()
        (other / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
        assert last_good(other)[0] == work_dir / 'epoch_3.pth'
        (other / 'last_checkpoint').write_text('')  # cut off, of mmengine's own hook
        assert last_good(other) == (None, [])


@pytest.mark.parametrize('place', ['file/work', '/proc/work', '/dev/null'])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=r'work dir .* cannot be written: .*MB are free in .*--work-'):
        check_writable(tmp_path / place)


def test_it_is_mmengine_s_hook_with_its_arguments():
    hook = SafeCheckpointHook(interval=2, save_best=['a', 'b'], rule='less')
    assert (hook.interval, hook.key_indicators, hook.priority) == (2, ['a', 'b'], 'VERY_LOW')
