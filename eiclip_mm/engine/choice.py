"""On which products checkpoints are chosen: said in every checkpoint, and not the reported ones."""

from collections.abc import Mapping
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner

from eiclip_mm.registry import HOOKS

ALLOW = 'choose_on_reported_split'  # the explicit line of a config


@HOOKS.register_module()
class CheckpointChoiceHook(Hook):
    """Refuse to choose checkpoints on the split that is reported, unless a config says so.

    A number of the split on which the best of many checkpoints was chosen is too good. The line
    ``choose_on_reported_split = True`` in a config allows it. Either way each checkpoint says in
    ``meta['chosen_on']`` what was used, and protocol cards repeat it. Source: ours.
    """

    def before_train(self, runner: Runner) -> None:
        """See the class."""
        choice = chosen_on(runner.cfg)
        if choice and choice['reported'] and not runner.cfg.get(ALLOW):
            raise ValueError(
                f'checkpoints would be chosen by {choice["by"]} on {choice["file"]}, the split '
                'that test_dataloader reports. Validate on a slice of train '
                "(val_dataloader.dataset.fold='select' and fold='fit' for training), switch "
                f'save_best off, or write {ALLOW} = True into the config; it will be said in '
                'every result.'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """See the class."""
        checkpoint['meta']['chosen_on'] = chosen_on(runner.cfg)


def chosen_on(cfg: Mapping) -> dict | None:
    """What the best checkpoint of a config is chosen on, as plain JSON; ``None``: not chosen.

    Returns:
        ``file`` and ``fold`` of the validation data set, ``by`` the measure, and ``reported``,
        whether the test data set has products of it.
    """
    by = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best')
    val, test = (
        (cfg.get(f'{name}_dataloader') or {}).get('dataset', {}) for name in ('val', 'test')
    )
    if not by or not val:
        return None
    return dict(
        file=Path(val.get('ann_file') or val.get('type', '')).name,
        fold=val.get('fold', 'all'),
        by=by if isinstance(by, str) else list(by),
        reported=bool(test) and _overlap(val, test),
    )


def _overlap(a: Mapping, b: Mapping) -> bool:
    """Whether two data sets share products, as far as their configs tell."""
    folds = {a.get('fold', 'all'), b.get('fold', 'all')}
    return _file(a) == _file(b) and folds != {'fit', 'select'}


def _file(dataset: Mapping) -> tuple:
    path = Path(dataset.get('data_root') or '') / (dataset.get('ann_file') or '')
    if dataset.get('ann_file'):
        return dataset.get('type'), path.resolve()
    ignored = ('pipeline', 'views', 'fold', 'tokenizer', 'test_mode')
    return tuple(sorted((k, repr(v)) for k, v in dataset.items() if k not in ignored))
