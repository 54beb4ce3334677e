"""What the tools share: a config and its overrides, processes, a runner with a checkpoint."""

import argparse
import inspect
import os
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import FlexibleRunner, Runner

from eiclip_mm.utils import load_config
from eiclip_mm.utils.checkpoint_file import TRUST, CheckpointError
from eiclip_mm.utils.digest import file_sha256

SETTINGS = (
    *(name for name in inspect.signature(Runner.__init__).parameters if name != 'self'),
    'find_unused_parameters',
    'model_wrapper_cfg',
    'strategy',
)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of train.py, test.py and extract_features.py."""
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and tables')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=setting,
        action=DictAction,
        help='override settings: key.inner=value; a key the config lacks needs a + in front',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def setting(text: str) -> str:
    """One of ``--cfg-options``, of which mmengine's action reads the value."""
    if '=' not in text:
        raise argparse.ArgumentTypeError(f'{text!r} is no key=value, such as randomness.seed=1')
    return text


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Option of train.py and test.py."""
    parser.add_argument(
        '--trust',
        action='store_true',
        help='read checkpoints that hold more than data; they can run any code',
    )


def read_config(args: argparse.Namespace) -> Config:
    """The config with its overrides, work dir and launcher."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if getattr(args, 'trust', False):
        os.environ[TRUST] = '1'
    try:
        cfg = load_config(args.config)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    cfg.merge_from_dict(checked_options(cfg, args.cfg_options or {}))
    stretch_schedule(cfg, epochs)
    train = (cfg.get('train_dataloader') or {}).get('dataset', {})
    if 'views' in train:  # views and crops follow the run's seed
        train.setdefault('seed', (cfg.get('randomness') or {}).get('seed') or 0)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir', f'work_dirs/{Path(cfg.filename).stem}')
    check_tokenizers(cfg)
    for name in LOADERS:
        if cfg.get(name):
            cfg[name].persistent_workers = cfg[name].num_workers > 0
            cfg[name].setdefault('pin_memory', torch.cuda.is_available())
    return cfg


def checked_options(cfg: Config, options: dict) -> dict:
    """Options whose keys the config has, or that are written with a +.

    Raises:
        SystemExit: names the key, and the keys that stand where it was looked for.
    """
    checked = {}
    for key, value in everywhere(options).items():
        top = key.lstrip('+').split('.')[0]
        if top not in (*SETTINGS, 'tokenizer'):
            raise SystemExit(
                f'--cfg-options {key}: {top!r} is no setting of a run, it only helps to write the '
                f'config; override the value where it is used. Settings are {SETTINGS}.'
            )
        node, path = cfg, key.lstrip('+').split('.')
        for i, name in enumerate(path):
            if isinstance(node, (list, tuple)) and name.isdigit() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, (dict, Config)) and name in node:
                node = node[name]
            elif key.startswith('+'):
                break
            else:
                known = sorted(node) if isinstance(node, (dict, Config)) else repr(node)
                raise SystemExit(
                    f'--cfg-options {key}: the config has no {".".join(path[: i + 1])!r}; '
                    f'there it has {known}. To add a new key, write +{key}=…'
                )
        checked[key.lstrip('+')] = value
    return checked


def stretch_schedule(cfg: Config, epochs: int | None) -> None:
    """Let schedules that end with training end with it when the number of epochs is overridden."""
    for scheduler in cfg.get('param_scheduler') or () if epochs else ():
        if scheduler.get('by_epoch', True) and scheduler.get('end') == epochs:
            for key in {'end', 'T_max'} & {k for k, v in scheduler.items() if v == epochs}:
                scheduler[key] = cfg.train_cfg.max_epochs


def everywhere(options: dict) -> dict:
    """``tokenizer.…`` means the tokenizer of the model and of every data set."""
    spread = {}
    for key, value in options.items():
        spread[key] = value
        if key.lstrip('+').startswith('tokenizer.'):
            plus = '+' * key.startswith('+')
            for place in ('model', *(f'{loader}.dataset' for loader in LOADERS)):
                spread[f'{plus}{place}.{key.lstrip("+")}'] = value
    return spread


def check_tokenizers(cfg: Config) -> None:
    """The model and every data set must read a product in the same way.

    Only ``tags`` may differ: "tags given" and "tags from text" are two ways to evaluate.
    """

    def plain(tokenizer) -> dict:
        return {k: v for k, v in dict(tokenizer).items() if k != 'tags'}

    model = cfg.model.get('tokenizer')
    towers = cfg.model.get('towers', {}).get('model')
    if model is not None and towers is not None and model['model'] != towers:
        raise SystemExit(
            f'model.tokenizer.model is {model["model"]} but model.towers.model is {towers}; '
            'texts must be cut into the sub-words of the towers.'
        )
    for name in LOADERS:
        dataset = (cfg.get(name) or {}).get('dataset', {})
        if model is None or dataset.get('tokenizer') is None:
            continue
        ours, theirs = plain(model), plain(dataset['tokenizer'])
        differ = [k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)]
        if differ:
            raise SystemExit(
                f'model.tokenizer and {name}.dataset.tokenizer differ in {sorted(differ)}; '
                'they must be equal but for tags.'
            )


def start_processes(cfg: Config) -> None:
    """Join the other processes over gloo where there is no accelerator.

    mmengine's own start asks for a GPU whatever the backend, and its wrapper for device ids.
    """
    starter = dict(none=None, pytorch='RANK', slurm='SLURM_PROCID')[cfg.launcher]
    if starter and starter not in os.environ:
        raise SystemExit(
            f'--launcher {cfg.launcher} is for processes that tools/dist_*.sh or tools/slurm_*.sh '
            'started; for one process leave it out.'
        )
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        return
    seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    timeout = timedelta(seconds=seconds) if seconds else None
    torch.distributed.init_process_group('gloo', timeout=timeout)
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """mmengine's runner, or the one that has strategies where the config names one.

    Raises:
        SystemExit: the strategy is asked for what it cannot do.
    """
    if not cfg.get('strategy'):
        return Runner.from_cfg(cfg)
    if cfg.launcher == 'none':
        raise SystemExit(
            f'{cfg.strategy.type} splits a model over several processes, here is one; '
            'start them with tools/dist_train.sh or tools/slurm_train.sh, or leave it out.'
        )
    optim = cfg.get('optim_wrapper') or {}
    kind = str(optim.get('type')).rpartition('.')[2]
    if kind == 'AmpOptimWrapper' and not optim.get('use_fsdp'):
        raise SystemExit(
            'Under a strategy each process would scale the float16 loss by a number of its own: '
            'train with --amp-dtype bfloat16, or set optim_wrapper.use_fsdp=True.'
        )
    hooks = [hook['type'].rpartition('.')[2] for hook in cfg.get('custom_hooks', ())]
    if 'CausalEffectHook' in hooks:
        raise SystemExit(
            'CausalEffectHook runs the model on one process, which under a strategy holds a '
            "part of it alone: take another selector, such as dict(type='KeepAll'), or train "
            'without the strategy.'
        )
    pipelines = [(cfg.get(name) or {}).get('dataset', {}).get('pipeline') for name in LOADERS]
    first = [p[0]['type'].rpartition('.')[2] for p in pipelines if p]
    if 'TextFeatureCache' in hooks or 'LoadImageFeature' in first:
        raise SystemExit(
            'Features are cached by running a trunk on each process alone, which under a strategy '
            "holds a part of it: leave dict(type='TextFeatureCache') out of custom_hooks and load "
            'pixels with LoadProductImage, or train without the strategy, which frozen towers do '
            'not need.'
        )
    return FlexibleRunner.from_cfg(cfg)


def checkpoint_path(cfg: Config, checkpoint: str) -> Path | None:
    """Where the weights are, ``None`` for "none"; the config then asks for no other weights."""
    if checkpoint.lower() == 'none':
        return None
    path = Path(checkpoint)
    if not path.is_file():
        raise SystemExit(f'checkpoint {path} does not exist.')
    # Its weights are the averaged ones already; the hook would look for those it trained.
    hooks = cfg.get('custom_hooks') or ()
    cfg.custom_hooks = [h for h in hooks if h['type'].rpartition('.')[2] != 'EMAHook']
    if 'towers' in cfg.model:
        # The checkpoint holds all weights: where they came from need not exist any more.
        cfg.model.towers.pretrained = cfg.model.towers.image_weights = None
    return path


def load_checkpoint(runner: Runner, config: str, path: Path | None) -> dict:
    """Load the weights; returns what a protocol card says of them, as plain JSON."""
    if path is None:
        return dict(config=Path(config).stem, checkpoint=None, chosen_on=None)
    # Not cfg.load_from, which only logs weights that are missing or do not fit.
    try:
        meta = runner.load_checkpoint(str(path), strict=True).get('meta', {})
    except CheckpointError as error:
        raise SystemExit(str(error)) from error
    card = dict(config=Path(config).stem, checkpoint=path.name)
    card['checkpoint_sha256'] = file_sha256(path)
    return card | {key: meta[key] for key in ('seed', 'epoch', 'chosen_on') if key in meta}
