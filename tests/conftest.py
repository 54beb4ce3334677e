"""What every test gets: bridges first, one thread or two, and mmengine's globals fresh."""

import eiclip_mm  # noqa: F401, I001  before anything imports torchvision

import gc
import importlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from docs_shell import Shell
from mmengine.registry import DefaultScope
from small import forget_runs

WARM = (
    'matplotlib.pyplot', 'mmengine.runner', 'mmengine.utils.dl_utils', 'open_clip', 'transformers',
    'eiclip_mm.apis', 'eiclip_mm.datasets', 'eiclip_mm.engine', 'eiclip_mm.evaluation',
    'eiclip_mm.models', 'eiclip_mm.visualization',
)  # fmt: skip
HOLD = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from _lock import alone_in

with alone_in(Path(sys.argv[2]), 'other'):
    print('in', flush=True)
    input()
"""

if 'OMP_NUM_THREADS' not in os.environ:  # torch has obeyed it already
    torch.set_num_threads(1 if 'PYTEST_XDIST_WORKER' in os.environ else 2)


@pytest.fixture(autouse=True)
def eiclip_scope():
    """Short names resolve in scope ``eiclip_mm``, and no Runner sees what an earlier one left.

    mmengine keeps scope, logger, message hub and visualizer in global tables, by a name that two
    Runners of one second share.
    """
    DefaultScope.get_instance(f'test-{uuid.uuid4()}', scope_name='eiclip_mm')
    yield
    forget_runs()


@pytest.fixture(scope='module', autouse=True)
def quick_collection():
    """mmengine collects garbage for each data set; what is here already would make that slow."""
    gc.freeze()


@pytest.fixture
def in_folder():
    """Another process at work in a folder, as ``tools/_lock.py`` sees it."""

    @contextmanager
    def hold(folder: str | Path) -> Iterator[subprocess.Popen]:
        command = [sys.executable, '-c', HOLD, str(Path(__file__).parents[1] / 'tools'), folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b'in\n'
            yield process
            process.communicate(b'\n')

    return hold


@pytest.fixture(scope='session')
def shell(tmp_path_factory) -> Iterator[Shell]:
    """Runs tools without their imports, which take as long as a small tool's work."""
    for name in WARM:
        with suppress(ImportError):  # of an extra
            importlib.import_module(name)
    gc.freeze()
    opened = Shell(tmp_path_factory.mktemp('shell') / 'bin')
    yield opened
    opened.close()


@pytest.fixture(scope='session')
def shared_products() -> Path:
    """Folder of the real product catalogue; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / 'shared/data/fashion_products'
    if not folder.is_dir():
        pytest.skip(f'no product catalogue in {folder}')
    return folder
