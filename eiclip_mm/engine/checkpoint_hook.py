"""mmengine's CheckpointHook, for runs that may be killed at any moment."""

from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, IterBasedTrainLoop, Runner

from eiclip_mm.registry import HOOKS
from eiclip_mm.utils.checkpoint_file import write_checkpoint

from .checkpoint_files import LateRemoval, WholeFileBackend, check_writable, remove_parts

# in the message hub, and so in checkpoints; mmengine logs names that begin with 'val'
VALIDATED, OUTDATED = 'last_validated', 'outdated_ckpts'


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """Keep a checkpoint to go on from, and the best one, whatever ends the process, and when.

    A new checkpoint is written whole, then ``last_checkpoint`` names it, then the one that it
    replaces is removed; mmengine removes first. A kill before the removal leaves both: the
    checkpoint notes what it replaces, and the run that goes on from it removes that.

    Checkpoints of an epoch are written before it is validated. A run that goes on from one that
    lacks its validation makes up for it first, so that the best checkpoint is that of an unbroken
    run.

    Args:
        **kwargs: of ``mmengine.hooks.CheckpointHook``.
    """

    file_backend: Any

    def after_load_checkpoint(self, runner: Runner | FlexibleRunner, checkpoint: dict) -> None:
        """Warn where a resumed run will not do what its config now says of the optimiser."""
        kept = checkpoint.get('optimizer')
        if not (isinstance(runner, Runner) and runner._resume and isinstance(kept, dict)):
            return
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        for now, then in zip(
            getattr(optimizer, 'param_groups', ()), kept.get('param_groups', ()), strict=False
        ):
            rate = 'initial_lr' if 'initial_lr' in now else 'lr'
            for name in (rate, 'weight_decay'):
                if name in then and now.get(name) != then[name]:
                    runner.logger.warning(
                        f'{name}={now.get(name)} of the config is not used: a resumed run keeps '
                        f'that of its checkpoint, {then[name]}. To change it start anew in '
                        'another --work-dir, with --cfg-options load_from=CHECKPOINT to keep the '
                        'weights.'
                    )
                    return

    def before_train(self, runner: Runner | FlexibleRunner) -> None:
        """See the class.

        Raises:
            CheckpointNotWritten: the folder cannot be written.
        """
        super().before_train(runner)
        outdated = list(runner.message_hub.get_info(OUTDATED, []))
        if is_main_process() and isinstance(self.file_backend, WholeFileBackend):
            setting = 'default_hooks.checkpoint.out_dir'
            check_writable(self.out_dir, setting, setting)
        self.file_backend = LateRemoval(self.file_backend, str(self.out_dir), [])
        if runner.train_loop.iter == 0:
            runner.message_hub.update_info(VALIDATED, 0)
        else:
            self._finish_what_was_cut_off(runner, outdated)

    def _finish_what_was_cut_off(
        self, runner: Runner | FlexibleRunner, outdated: list[str]
    ) -> None:
        """Name the checkpoint the run goes on from, remove what it replaced, validate it."""
        last = runner.message_hub.get_info('last_ckpt', None)
        if last and Path(last).parent == Path(str(self.out_dir)):  # not of another run
            self.last_ckpt = last
            if is_main_process():
                write_checkpoint(Path(runner.work_dir) / 'last_checkpoint', last.encode())
                remove_parts(last)
        for path in outdated:
            self.file_backend.remove(path)
        self._remove_outdated(runner)
        if _lacks_validation(runner):
            runner.logger.info('the checkpoint lacks its validation, which is made up for now')
            runner.val_loop.run()

    def after_val_epoch(
        self, runner: Runner | FlexibleRunner, metrics: dict[str, Any] | None = None
    ) -> None:
        """See the class."""
        runner.message_hub.update_info(VALIDATED, _position(runner._train_loop)[0])
        super().after_val_epoch(runner, metrics or {})

    def _save_checkpoint_with_step(
        self, runner: Runner | FlexibleRunner, step: int, meta: dict
    ) -> None:
        """Write, name, remove; mmengine calls it for each checkpoint but the best."""
        name = self.filename_tmpl.format(step)
        hub = runner.message_hub
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                replaced = self.filename_tmpl.format(self.keep_ckpt_ids[0])
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, replaced))
            self.keep_ckpt_ids.append(step)  # drops the first when it is full
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', self.last_ckpt)
        hub.update_info(OUTDATED, list(self.file_backend.outdated))
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_checkpoint(Path(runner.work_dir) / 'last_checkpoint', self.last_ckpt.encode())
        self._remove_outdated(runner)

    def _save_best_checkpoint(self, runner: Runner | FlexibleRunner, metrics: dict) -> None:
        """mmengine's; what it replaces is removed behind it."""
        wanted = self.key_indicators if self.save_best else ()
        missing = [key for key in wanted if key not in {'auto', *metrics}]
        if missing:
            raise ValueError(
                f'default_hooks.checkpoint.save_best={missing[0]!r} is none of the metrics; name '
                f'one of {sorted(metrics)}, then go on with --resume auto.'
            )
        super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated(runner)

    def _remove_outdated(self, runner: Runner | FlexibleRunner) -> None:
        info = runner.message_hub.runtime_info
        if is_main_process():
            names = [value for key, value in info.items() if key.startswith('best_ckpt')]
            self.file_backend.remove_noted(keep={*names, info.get('last_ckpt', '')})
        runner.message_hub.update_info(OUTDATED, [])


def _position(loop: Any) -> tuple[int | None, int]:
    """How far training is and how far it goes, as its loop counts; ``None`` for other loops."""
    if isinstance(loop, EpochBasedTrainLoop):
        return loop.epoch, loop.max_epochs
    return (loop.iter, loop.max_iters) if isinstance(loop, IterBasedTrainLoop) else (None, 0)


def _lacks_validation(runner: Runner | FlexibleRunner) -> bool:
    """Whether the loop would have validated where the checkpoint was written, and had not yet."""
    loop = runner.train_loop
    position, end = _position(loop)
    seen = runner.message_hub.get_info(VALIDATED, None)
    if runner.val_loop is None or None in (position, seen) or seen == position:
        return False
    loop._decide_current_val_interval()
    at_interval = position % loop.val_interval == 0 or position == end
    return position >= loop.val_begin and at_interval
