"""FSDP through tools/train.py: the losses of DDP, and a checkpoint that one process reads."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from small import run_in_processes, run_tool, write_data
from test_tools import EI, ROOT, losses, write_config

from eiclip_mm.engine.sharded import FullySharded

SELECTOR = dict(type='KeepAll')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Work dirs of two processes under DDP and under FSDP, which is then killed and goes on."""
    folder = tmp_path_factory.mktemp('sharded')
    DefaultScope.get_instance('sharded', scope_name='eiclip_mm')
    config = Config.fromfile(write_config(EI, write_data(folder), folder, batch_size=8))
    config.model.selector = SELECTOR
    config.custom_hooks = [h for h in config.custom_hooks if h.type != 'CausalEffectHook']
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].num_workers = 0
    config.default_hooks.checkpoint.max_keep_ckpts = 2
    config.optim_wrapper.optimizer.weight_decay = 1000.0  # in warm-up, where rates are tiny
    config.dump(folder / 'ddp.py')
    config.merge_from_dict(Config.fromfile(ROOT / 'configs/_base_/sharded.py').to_dict())
    config.dump(folder / 'fsdp.py')
    for name in ('ddp', 'fsdp'):
        run_in_processes(2, 'train', folder / f'{name}.py', '--work-dir', folder / name)
    return folder


def test_losses_are_those_of_ddp(runs):
    plain, sharded = losses(runs / 'ddp'), losses(runs / 'fsdp')
    assert len(plain) == 6
    assert plain[6] < plain[1]
    assert sharded == pytest.approx(plain, rel=1e-5)


def test_what_decays_is_what_decays_under_ddp(runs):
    """FSDP's pieces of a matrix are flat, so no number of axes tells them from a bias."""
    counts = []
    for name in ('ddp', 'fsdp'):
        groups = torch.load(runs / name / 'epoch_2.pth')['optimizer']['param_groups']
        counts.append([(g['weight_decay'], g['initial_lr'], len(g['params'])) for g in groups])
    assert sorted(counts[0]) == sorted(counts[1])
    assert {decay for decay, *_ in counts[0]} == {0, 1000}


def test_checkpoint_is_that_of_ddp_and_loads_into_one_process(runs):
    plain, sharded = (
        torch.load(runs / name / 'epoch_2.pth', weights_only=True)['state_dict']
        for name in ('ddp', 'fsdp')
    )
    start = torch.load(runs / 'ddp/epoch_1.pth', weights_only=True)['state_dict']
    assert plain.keys() == sharded.keys()
    moved = 0
    for name, expected in plain.items():
        # Adam divides by the root of tiny squares: what rounding leaves of them decides
        torch.testing.assert_close(sharded[name], expected, rtol=1e-3, atol=5e-5)
        moved += bool((expected != start[name]).any())
    assert moved > 30
    config = Config.fromfile(runs / 'fsdp.py', import_custom_modules=False)
    config.work_dir = str(runs / 'one')
    runner = Runner.from_cfg(config)
    runner.load_checkpoint(str(runs / 'fsdp/epoch_2.pth'), strict=True)


def test_a_run_goes_on_from_its_checkpoint(runs):
    checkpoint = runs / 'fsdp/epoch_1.pth'
    run_in_processes(
        2, 'train', runs / 'fsdp.py', '--work-dir', runs / 'resumed', '--resume', checkpoint
    )
    found, unbroken = losses(runs / 'resumed'), losses(runs / 'fsdp')
    assert sorted(found) == [4, 5, 6]
    assert found == pytest.approx({step: unbroken[step] for step in found}, rel=1e-5)


def test_what_a_strategy_cannot_do_is_said_first(runs, tmp_path):
    config = Config.fromfile(runs / 'fsdp.py', import_custom_modules=False)
    with pytest.raises(SystemExit, match='ShardedStrategy splits a model over several processes'):
        run_tool('train', runs / 'fsdp.py', '--work-dir', tmp_path)
    config.launcher = 'pytorch'
    from _cli import build_runner

    plain = config.optim_wrapper.get('type')
    for scaled in ('AmpOptimWrapper', 'mmengine.AmpOptimWrapper'):
        config.optim_wrapper.type = scaled
        with pytest.raises(SystemExit, match=r'bfloat16, or set optim_wrapper\.use_fsdp=True'):
            build_runner(config)
    config.optim_wrapper.type = plain
    config.custom_hooks.append(dict(type='CausalEffectHook', begin=1))
    with pytest.raises(SystemExit, match='CausalEffectHook runs the model on one process'):
        build_runner(config)
    config.custom_hooks[-1] = dict(type='TextFeatureCache')
    with pytest.raises(SystemExit, match='Features are cached by running a trunk on each process'):
        build_runner(config)
    config.custom_hooks.pop()
    config.val_dataloader.dataset.pipeline[0] = dict(type='LoadImageFeature', pipeline=[])
    with pytest.raises(SystemExit, match='Features are cached by running a trunk on each process'):
        build_runner(config)


def test_blocks_that_the_model_lacks():
    with pytest.raises(ValueError, match=r"no module of the classes \('Block',\); it has \['Lin"):
        FullySharded(torch.nn.Linear(2, 2), blocks=('Block',))
