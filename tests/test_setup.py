"""The environment: requirements, metadata and scripts."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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
        (['test', 'PYTHON=py'], ['py -m pytest -n 2 --dist worksteal']),
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
