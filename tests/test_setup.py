"""The environment: versions, bridges, scripts, and that no document names a path in vain."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import eiclip_mm
from eiclip_mm import _compat

ROOT = Path(__file__).resolve().parents[1]
SETUP = runpy.run_path(str(ROOT / 'setup.py'), run_name='setup')
RANGES = {d.name: d.versions for d in _compat.DEPENDENCIES}


def pins() -> dict[str, Version]:
    requirements = map(Requirement, SETUP['requirements']('lock'))
    return {canonicalize_name(r.name): Version(str(r.specifier)[2:]) for r in requirements}


# ---------------------------------------------------------------------------- requirements


def test_setup_and_compat_state_the_same_ranges():
    metadata = SETUP['METADATA']
    stated = {
        r.name: r.specifier for r in map(Requirement, metadata['install_requires']) if r.specifier
    }
    required = {d.name for d in _compat.DEPENDENCIES if not d.optional}
    assert set(stated) == required
    stated |= {r.name: r.specifier for r in map(Requirement, metadata['extras_require']['hf'])}
    for name, versions in RANGES.items():
        assert stated[name] == Requirement(name + versions).specifier, name


def test_lock_pins_exactly_and_within_every_range():
    assert all(re.fullmatch(r'[\w.-]+==[\d.]+', line) for line in SETUP['requirements']('lock')), (
        'the lock holds plain pins: no local versions, no index'
    )
    wanted = [*SETUP['METADATA']['install_requires'], *SETUP['METADATA']['extras_require']['dev']]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_lock_keeps_pkg_resources():
    # mmengine 0.10 imports it for `_base_ = ['mmpretrain::...']`; setuptools 82 dropped it
    assert pins()['setuptools'] < Version('82')


def test_top_requirements_name_what_setup_installs():
    lines = (ROOT / 'requirements.txt').read_text().split('\n')
    parts = [line.removeprefix('-r requirements/').removesuffix('.txt') for line in lines if line]
    found = [r for part in parts for r in SETUP['requirements'](part)]
    assert found == SETUP['METADATA']['install_requires']


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == SETUP['METADATA']['version'] == eiclip_mm.__version__


def test_model_index_names_what_exists():
    models = []
    for part in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']:
        models += yaml.safe_load((ROOT / part).read_text())['Models']
    assert len(models) == 3
    assert [m['Config'] for m in models if not (ROOT / m['Config']).is_file()] == []


# ---------------------------------------------------------------------------- the check


TESTED = {
    'packaging': '26.3',
    'torch': '2.13.0+cpu',
    'torchvision': '0.28.0',
    'numpy': '2.4.6',
    'mmengine': '0.10.7',
    'mmcv-lite': '2.1.0',
    'mmpretrain': '1.2.0',
    'open_clip_torch': '3.3.0',
    'h5py': '3.16.0',
    'pycocotools': '2.0.11',
}


def check(**changes: str | None):
    """Check an environment that differs from the tested one; None uninstalls, _ stands for -."""
    changes = {n if n in RANGES else n.replace('_', '-'): v for n, v in changes.items()}
    installed = TESTED | changes

    def version_of(name):
        if installed.get(name) is None:
            raise PackageNotFoundError(name)
        return installed[name]

    _compat.check_dependencies(version_of, lambda name: ['numpy', 'torch (==2.13.0)'])


def refusal(**changes: str | None) -> str:
    with pytest.raises(ImportError) as caught:
        check(**changes)
    return str(caught.value)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'mmcv_lite': None, 'mmcv': '2.3.0'},
        {'mmcv': '2.1.0'},
        {'mmengine': None, 'onedl_mmengine': '0.10.12'},
        {'transformers': '4.51.3'},
        {'torch': '2.13.0'},
    ],
    ids=str,
)
def test_environments_that_serve(changes):
    check(**changes)


@pytest.mark.parametrize(
    ('changes', 'says', 'command'),
    [
        (
            {'torch': None},
            'lacks torch',
            '"torch>=2.6,<3"',
        ),
        (
            {'mmcv_lite': None},
            'lacks mmcv-lite',
            '"mmcv-lite>=2.0.0,<2.4"',
        ),
        (
            {'mmcv_lite': None, 'mmcv': '1.7.2'},
            'needs mmcv>=2.0.0,<2.4, but mmcv 1.7.2 is installed',
            '"mmcv>=2.0.0,<2.4"',
        ),
        (
            {'mmengine': '0.10.5', 'h5py': '2.10.0'},
            'needs mmengine>=0.10.6,<1, but mmengine 0.10.5 is installed and '
            'h5py>=3.10,<4, but h5py 2.10.0 is installed',
            '"mmengine>=0.10.6,<1" "h5py>=3.10,<4"',
        ),
        (
            {'transformers': '5.23.0'},
            'needs transformers>=4.28,<4.52, but transformers 5.23.0 is installed '
            '(mmpretrain 1.2 cannot be imported beside it; uninstalling it serves as well)',
            '"transformers>=4.28,<4.52"',
        ),
        (
            {'torch': '2.12.0+cpu'},
            'needs torch and torchvision of one release, but torchvision 0.28.0 goes with '
            'torch==2.13.0 and torch 2.12.0+cpu is installed',
            '"torchvision" "torch==2.12.0"',
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_environments_that_are_refused(changes, says, command):
    assert refusal(**changes) == (
        f'eiclip_mm {says}; run: {sys.executable} -m pip install {command}'
    )


def test_bare_environment_is_named_before_any_import():
    # not even packaging is there to compare versions with
    message = refusal(**dict.fromkeys(TESTED))
    assert message.startswith('eiclip_mm lacks packaging, torch, torchvision, numpy, ')
    assert '\n' not in message
    for name in TESTED:
        assert f'"{name}{RANGES[name]}"' in message


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_import_of_the_package_ends_in_that_sentence():
    done = run_python("""
import importlib.metadata, sys
real = importlib.metadata.version
importlib.metadata.version = lambda name: '4.57.6' if name == 'transformers' else real(name)
try:
    import eiclip_mm
finally:
    print(sorted({'torch', 'mmengine', 'mmpretrain'} & set(sys.modules)))
""")
    assert done.stderr.splitlines()[-1].startswith('ImportError: eiclip_mm needs transformers>=4')
    assert 'During handling' not in done.stderr
    assert done.stdout.strip() == '[]'


# ---------------------------------------------------------------------------- bridges


def test_everything_imports_after_the_package_and_not_by_it():
    done = run_python("""
import sys
import eiclip_mm
assert not {'torchvision', 'open_clip', 'mmpretrain.models'} & set(sys.modules)
import torchvision.transforms, open_clip, mmpretrain.models, mmpretrain.datasets
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ('version', 'mixed'),
    [('0.28.0+cu130', True), ('0.28.0+cpu', False), ('0.28.0', False), (None, False)],
)
def test_torchvision_build_is_read_without_importing_it(tmp_path, monkeypatch, version, mixed):
    if version:
        (tmp_path / 'version.py').write_text(f"__version__ = '{version}'\ngit_version = 'abc'\n")
    spec = spec_from_file_location('torchvision', tmp_path / '__init__.py')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: spec)
    assert _compat._torchvision_is_built_for_cuda() is mixed


def test_torchvision_schemas_are_declared_for_the_mixed_pair_only(monkeypatch):
    cpu_torch = not (torch.version.cuda or torch.version.hip)
    mixed = cpu_torch and _compat._torchvision_is_built_for_cuda()
    assert bool(_compat._LIBRARIES) is mixed
    assert _compat.torchvision_on_cpu_torch() is False, 'never twice'
    monkeypatch.setattr(_compat, '_LIBRARIES', [])
    monkeypatch.setattr(_compat, '_torchvision_is_built_for_cuda', lambda: False)
    assert _compat.torchvision_on_cpu_torch() is False


def test_mmengine_reads_what_it_writes(tmp_path):
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.runner import CheckpointLoader, load_checkpoint

    path = tmp_path / 'epoch_1.pth'
    model = torch.nn.Linear(3, 2)
    history = HistoryBuffer([1.5, 0.5], [1, 1])
    torch.save(
        dict(
            state_dict=model.state_dict(),
            message_hub=dict(log_scalars={'train/loss': history}, best=np.float64(0.25)),
        ),
        path,
    )
    with pytest.raises(Exception, match='Weights only load failed'):
        torch.load(path)

    loaded = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert loaded['message_hub']['log_scalars']['train/loss'].mean(2) == 1.0
    assert loaded['message_hub']['best'] == 0.25
    other = torch.nn.Linear(3, 2)
    load_checkpoint(other, str(path))
    assert torch.equal(other.weight, model.weight)


def test_missing_checkpoint_is_named(tmp_path):
    from mmengine.runner import CheckpointLoader

    with pytest.raises(FileNotFoundError, match=r'checkpoint .*none\.pth does not exist'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'none.pth'))


def test_local_loader_retires_with_mmengine_0_11(monkeypatch):
    monkeypatch.setattr('mmengine.__version__', '0.11.0')
    assert _compat.mmengine_local_checkpoints() is False


# ---------------------------------------------------------------------------- scripts


SCRIPTS = sorted([ROOT / '.ci/run', *(ROOT / 'tools').rglob('*.sh')])


def test_every_script_is_looked_at():
    names = {path.name for path in SCRIPTS}
    assert names >= {'run', 'dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'}


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_on_errors(path):
    subprocess.run(['bash', '-n', path], check=True)
    assert 'set -euo pipefail' in path.read_text()


def test_ci_entry_is_executable():
    assert os.access(ROOT / '.ci/run', os.X_OK)


@pytest.mark.parametrize('path', sorted((ROOT / 'tools').glob('*.sh')), ids=lambda path: path.name)
def test_scripts_without_arguments_say_how_to_use_them(path):
    done = subprocess.run(['bash', path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f'Usage: bash tools/{path.name} ' in done.stderr
    assert 'set -e' not in done.stderr


@pytest.fixture
def tools(tmp_path) -> Path:
    """A copy of the scripts, with a train.py and a test.py that print what they were given."""
    folder = tmp_path / 'my tools'
    folder.mkdir()
    for path in (ROOT / 'tools').glob('*.sh'):
        shutil.copy(path, folder)
    for name in ('train', 'test'):
        (folder / f'{name}.py').write_text(
            'import sys\n'
            'from os import environ\n'
            f"given = ['{name}', environ['RANK'], environ['WORLD_SIZE'], *sys.argv[1:]]\n"
            "sys.stdout.write(repr(given) + '\\n')\n"
        )
    return folder


@pytest.mark.parametrize(
    ('script', 'given', 'expected'),
    [
        ('dist_train.sh', ['c.py', '2'], ['train', 'c.py']),
        ('dist_test.sh', ['c.py', 'best model.pth', '2'], ['test', 'c.py', 'best model.pth']),
    ],
)
def test_launcher_starts_each_rank_with_the_arguments_as_given(tools, script, given, expected):
    options = ['--cfg-options', 'text=a b']
    environment = {k: v for k, v in os.environ.items() if k not in ('PORT', 'NNODES')}
    done = subprocess.run(
        ['bash', tools / script, *given, *options],
        env=environment | {'PYTHON': sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tool, *arguments = expected
    assert sorted(done.stdout.splitlines()) == [
        repr([tool, rank, '2', *arguments, *options, '--launcher', 'pytorch']) for rank in '01'
    ]


def test_slurm_scripts_hand_srun_the_arguments_as_given(tools, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    done = subprocess.run(
        ['bash', tools / 'slurm_test.sh', 'gpu', 'my job', 'c.py', 'a b.pth', '--out', 'd.pt'],
        env=os.environ
        | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '2', 'SRUN_ARGS': '--qos=x -v'},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert {'--job-name=my job', '--ntasks=2', '--gres=gpu:2', '--qos=x', '-v'} <= set(lines)
    tail = lines[lines.index('-u') + 1 :]
    assert tail == [
        f'{tools}/test.py',
        *('c.py', 'a b.pth', '--out', 'd.pt', '--launcher', 'slurm'),
    ]


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
@pytest.mark.parametrize(
    ('arguments', 'commands'),
    [
        (['test', 'PYTHON=py'], ['py -m pytest -n 2']),
        (['train', 'PYTHON=py'], ['py tools/train.py configs/eiclip_fashiongen.py']),
        (
            ['train', 'PYTHON=py', 'GPUS=2', 'CONFIG=c.py', 'ARGS=--amp'],
            ['PYTHON=py bash tools/dist_train.sh c.py 2 --amp'],
        ),
        (['quickstart', 'PYTHON=py'], ['py tools/quickstart.py']),
    ],
    ids=lambda value: value[0],
)
def test_make_with_an_environment_of_ones_own_installs_nothing(arguments, commands):
    # a make around this one hands its variables down
    names = ('MAKEFLAGS', 'MAKELEVEL', 'PYTHON', 'CONFIG', 'GPUS', 'ARGS', 'JOBS', 'VENV')
    environment = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        ['make', '-n', *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert [line.strip() for line in done.stdout.splitlines()] == commands, done.stderr


# ---------------------------------------------------------------------------- documents


@pytest.mark.parametrize(
    'document', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'configs/README.md', 'docs/*.md']
)
def test_paths_named_in_documents_exist(document):
    documents = sorted(ROOT.glob(document))
    if not documents:
        pytest.skip(f'no {document}')
    for path in documents:
        text = path.read_text(encoding='utf-8')
        named = re.findall(r'\b((?:configs|tools|eiclip_mm|docs|tests)/[\w./*-]*)', text)
        lost = sorted({n for n in named if not any(ROOT.glob(n.rstrip('./')))})
        assert not lost, f'{path.relative_to(ROOT)} names {lost}'
