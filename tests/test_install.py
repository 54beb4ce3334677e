"""Installed as users do: what travels, and that it works with no checkout in sight."""

import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MIM = 'eiclip_mm/.mim/'
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def run(*command, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def build(kind: str, tree: Path) -> Path:
    """What ``python -m build`` and pip make, without their isolated environment."""
    out = tree.parent / f'{tree.name}-{kind}'
    out.mkdir()
    # An editable build says that it is one by a warning.
    strict = ('-W', 'error', '-W', 'ignore:Editable installation')
    return out / run(*strict, '-c', BUILD, f'build_{kind}', out, cwd=tree).split()[-1]


def listed(*options: str) -> set[str]:
    """Files of the work tree that git names."""
    if not (ROOT / '.git').exists() or not shutil.which('git'):
        pytest.skip('compares with the git tree, and this is no clone')
    done = subprocess.run(
        ['git', 'ls-files', '-z', *options], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in done.stdout.split('\0') if name and (ROOT / name).is_file()}


@pytest.fixture(scope='module')
def tree(tmp_path_factory) -> Path:
    """A copy of the work tree after an editable install, with what lies about in one."""
    folder = tmp_path_factory.mktemp('install') / 'tree'
    junk = {
        'configs/__pycache__/a.cpython-311.pyc',
        'tools/search/__pycache__/a.cpython-311.pyc',
        'eiclip_mm/__pycache__/a.cpython-311.pyc',
        'data/photos.h5',
        'work_dirs/run/best.pth',
    }
    for name in listed('--cached', '--others', '--exclude-standard') | junk:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name in junk:
            (folder / name).write_text('junk')
        else:
            shutil.copy2(ROOT / name, folder / name)
    build('editable', folder)
    return folder


@pytest.fixture(scope='module')
def sdist(tree) -> Path:
    return build('sdist', tree)


@pytest.fixture(scope='module')
def wheel(tree, sdist) -> Path:
    return build('wheel', tree)


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory) -> Path:
    """The wheel installed into a folder of its own, as pip does it."""
    pytest.importorskip('pip', reason='installs the wheel with pip, which this environment lacks')
    folder = tmp_path_factory.mktemp('site')
    options = ('--no-deps', '--no-index', '--no-compile', '--disable-pip-version-check')
    run('-m', 'pip', 'install', *options, '--target', folder, wheel, cwd=folder)
    return folder


def content(wheel: Path) -> dict[str, int]:
    """Checksum of each file in it."""
    with zipfile.ZipFile(wheel) as file:
        return {entry.filename: entry.CRC for entry in file.infolist()}


def test_source_distribution_is_the_git_tree(sdist):
    with tarfile.open(sdist) as file:
        names = {m.name.partition('/')[2] for m in file.getmembers() if m.isfile()}
    assert not listed('--cached') - names, 'add them to MANIFEST.in'
    made = {name for name in names if name in ('PKG-INFO', 'setup.cfg') or '.egg-info/' in name}
    assert not names - made - listed('--cached', '--others', '--exclude-standard')


def test_wheel_holds_the_package_and_its_mim_folder(tree, wheel):
    known = listed('--cached', '--others', '--exclude-standard')
    package = {name for name in known if name.startswith('eiclip_mm/')}
    mim = {n for n in known if n.startswith(('configs/', 'tools/')) or n == 'model-index.yml'}
    mim -= {n for n in mim if n.startswith(('tools/dev/', 'tools/quickstart.py'))}
    assert len(mim) > 100
    assert {Path(name).suffix for name in mim} >= {'.py', '.sh', '.yml'}
    inside = {name for name in content(wheel) if '.dist-info/' not in name}
    assert inside == package | {MIM + name for name in mim}
    with zipfile.ZipFile(wheel) as file:
        for name in inside:
            assert file.read(name) == (tree / name.removeprefix(MIM)).read_bytes(), name


def test_wheel_of_the_source_distribution_is_the_same(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter='data')
    (unpacked,) = tmp_path.iterdir()
    assert content(build('wheel', unpacked)) == content(wheel)


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = (n for n in file.namelist() if n.endswith('.dist-info/METADATA'))
        metadata = email.message_from_bytes(file.read(name))
    assert metadata['Name'] == 'eiclip_mm'
    assert metadata['License-Expression'] == 'Apache-2.0'
    assert metadata['License'] is None, 'superseded by the expression'
    assert metadata['Description-Content-Type'] == 'text/markdown'
    assert (
        metadata.get_payload(decode=True).decode().strip()
        == (ROOT / 'README.md').read_text().strip()
    )
    extras = {path.stem for path in (ROOT / 'requirements').glob('*.txt')}
    assert set(metadata.get_all('Provides-Extra')) == extras - {'lock', 'mminstall', 'runtime'}


def test_editable_install_links_the_mim_folder(tree):
    for name in ('configs', 'tools', 'model-index.yml'):
        link = tree / MIM / name
        assert link.is_symlink()
        assert not os.path.isabs(os.readlink(link)), 'a checkout may move'
        assert link.resolve() == tree / name
    listed()  # skips where there is no git
    made = f'{MIM}configs\neiclip_mm.egg-info/PKG-INFO\nbuild/lib\ndist/a.whl\n'
    ask = ['git', 'check-ignore', '--stdin']
    done = subprocess.run(ask, input=made, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == made


def test_metafile_states_the_results_of_the_documents():
    tasks = {'Image-To-Text Retrieval': 'i2t', 'Text-To-Image Retrieval': 't2i'}
    sources = {'eiclip_fashiongen_mini': ('mini', 'full/first-image')}
    sources['eiclip_products'] = ('products', 'full/product')
    models = yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())['Models']
    stated = {model['Name']: model['Results'] for model in models if 'Results' in model}
    assert set(stated) == set(sources)
    for name, results in stated.items():
        data, protocol = sources[name]
        tables = json.loads((ROOT / f'docs/results/{data}.json').read_text())['tables']
        measured = tables[protocol]['rows'][name]['measures']
        assert {result['Task'] for result in results} == set(tasks)
        for result in results:
            assert result['Metrics'] == {
                f'Recall@{k}': round(measured[f'{tasks[result["Task"]]}/R@{k}']['mean'], 2)
                for k in (1, 5, 10)
            }


USE = """
from pathlib import Path

import eiclip_mm

site = Path(eiclip_mm.__file__).parents[1]
print(site)

import mmengine.hub
from mmengine.config import Config

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.datasets.synthetic import write_mini_fashiongen

mim = site / 'eiclip_mm/.mim'
shipped = Config.fromfile(mim / 'configs/eiclip_fashiongen_mini.py')
named = Config.fromfile('eiclip_mm::eiclip_fashiongen_mini.py')
assert Path(named.filename) == mim / 'configs/eiclip_fashiongen_mini.py'
hub = mmengine.hub.get_config('eiclip_mm::eiclip_fashiongen_mini.py')
mine = Config.fromfile('mine.py')
assert mine.train_dataloader.pop('batch_size') == 8
assert shipped.train_dataloader.pop('batch_size') == 64
for other in (named, hub):
    other.train_dataloader.pop('batch_size')
assert shipped.to_dict() == named.to_dict() == hub.to_dict() == mine.to_dict()
write_mini_fashiongen('data/mini_fashiongen', num_train=40, num_validation=10, num_general=10)
"""


def test_installed_package_needs_no_checkout(site, tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'eiclip_mm::eiclip_fashiongen_mini.py'\ntrain_dataloader = dict(batch_size=8)\n"
    )
    printed = run('-c', USE, cwd=tmp_path, PYTHONPATH=str(site))
    assert printed.splitlines()[0] == str(site)

    tool = site / MIM / 'tools/dataset_converters/build_entities.py'
    config = site / MIM / 'configs/eiclip_fashiongen_mini.py'
    run(tool, config, cwd=tmp_path, PYTHONPATH=str(site))
    assert (tmp_path / 'data/mini_fashiongen/entities.json').is_file()
