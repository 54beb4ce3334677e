"""On which products a checkpoint was chosen."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from eiclip_mm.engine import CheckpointChoiceHook, chosen_on

ROOT = Path(__file__).resolve().parents[1]
TRAIN = dict(type='FashionGen', data_root='data/', ann_file='train.h5', pipeline=[1])
TEST = dict(TRAIN, ann_file='test.h5', pipeline=[2])


def config(val, test=TEST, save_best='full/first-image/SumR', **more) -> Config:
    return Config(
        dict(
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best=save_best)),
            val_dataloader=dict(dataset=val) if val else None,
            test_dataloader=dict(dataset=test) if test else None,
            **more,
        )
    )


class FakeRunner:  # the hook reads nothing else of a Runner
    def __init__(self, cfg):
        self.cfg = cfg


@pytest.mark.parametrize(
    ('val', 'test', 'reported'),
    [
        (dict(TRAIN, fold='select'), TEST, False),
        (TEST, TEST, True),
        (dict(TEST, views='first', tokenizer=1), TEST, True),
        (dict(TEST, data_root='./data'), TEST, True),
        (dict(TEST, data_root='', ann_file='data/test.h5'), TEST, True),
        (dict(TEST, data_root='other'), TEST, False),
        (dict(TEST, fold='select'), TEST, True),  # the slice is part of what is reported
        (dict(TEST, fold='select'), dict(TEST, fold='fit'), False),
        (dict(TEST, fold='select'), dict(TEST, fold='select'), True),
        (dict(type='CIFAR100', split='test'), dict(type='CIFAR100', split='test'), True),
        (dict(type='CIFAR100', split='train'), dict(type='CIFAR100', split='test'), False),
        (TEST, None, False),
    ],
)
def test_what_is_reported(val, test, reported):
    cfg = config(val, test)
    choice = chosen_on(cfg)
    assert choice['reported'] is reported
    assert choice['by'] == 'full/first-image/SumR'
    hook, runner = CheckpointChoiceHook(), FakeRunner(cfg)
    if reported:
        with pytest.raises(ValueError, match=r'chosen by full/first-image/SumR on .*, the split'):
            hook.before_train(runner)
    else:
        hook.before_train(runner)
    allowed = FakeRunner(config(val, test, choose_on_reported_split=True))
    hook.before_train(allowed)
    checkpoint = dict(meta={})
    hook.before_save_checkpoint(allowed, checkpoint)
    assert checkpoint['meta']['chosen_on'] == choice


def test_nothing_is_chosen():
    assert chosen_on(config(TEST, save_best=None)) is None
    assert chosen_on(config(None)) is None
    assert chosen_on({}) is None
    assert chosen_on(config(TEST, save_best=['a', 'b']))['by'] == ['a', 'b']


def test_our_configs_choose_on_a_slice_of_train():
    files = [f for f in ROOT.glob('configs/**/*.py') if '_base_' not in f.parts]
    chosen = 0
    for file in files:
        cfg = Config.fromfile(file)
        choice = chosen_on(cfg)
        allowed = cfg.get('choose_on_reported_split', False)
        assert allowed == (file.name in ('clip_general_mini.py', 'clip_neutral_mini.py'))
        assert not choice or choice['reported'] == allowed, file
        assert {'CheckpointChoiceHook'} & {hook['type'] for hook in cfg.custom_hooks}, file
        chosen += bool(choice) and choice['fold'] == 'select'
    assert chosen >= 12


def test_a_run_on_the_reported_split_stops_before_its_first_step(tmp_path):
    """The real Runner; everything else of the config is whole."""
    from eiclip_mm.datasets.synthetic import write_mini_fashiongen

    write_mini_fashiongen(tmp_path, 24, 10, 4, seed=0, progress=False)
    cfg = Config.fromfile(ROOT / 'configs/baselines/clip_fashiongen_mini.py')
    cfg = Config.fromstring(cfg.pretty_text.replace(cfg.data_root, f'{tmp_path}/'), '.py')
    cfg.work_dir = str(tmp_path / 'work')
    cfg.model.towers.pretrained = None
    for part in (cfg.model, *(cfg[f'{n}_dataloader'].dataset for n in ('train', 'val', 'test'))):
        part.tokenizer.vocab = None
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].update(num_workers=0, persistent_workers=False, batch_size=4)
    cfg.val_dataloader.dataset.update(ann_file=cfg.test_dataloader.dataset.ann_file, fold='all')
    with pytest.raises(ValueError, match='choose_on_reported_split = True'):
        Runner.from_cfg(cfg).train()
    assert not list((tmp_path / 'work').glob('*.pth'))
