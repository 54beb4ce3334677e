"""What every test gets: bridges first, one thread or two, and mmengine's globals fresh."""

import eiclip_mm  # noqa: F401, I001  before anything imports torchvision

import gc
import importlib
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from docs_shell import Shell
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

WARM = (
    'matplotlib.pyplot', 'mmengine.runner', 'mmengine.utils.dl_utils', 'open_clip', 'transformers',
    'eiclip_mm.apis', 'eiclip_mm.datasets', 'eiclip_mm.engine', 'eiclip_mm.evaluation',
    'eiclip_mm.models', 'eiclip_mm.visualization',
)  # fmt: skip

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
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    visualizers = (Visualizer, *Visualizer.__subclasses__())
    for manager in (MMLogger, MessageHub, DefaultScope, *visualizers):
        manager._instance_dict.clear()


@pytest.fixture(scope='module')
def quick_collection():
    """mmengine collects garbage for each data set; what is imported here makes that slow."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope='session')
def shell(tmp_path_factory) -> Iterator[Shell]:
    """Runs tools without their imports, which take as long as a small tool's work."""
    for name in WARM:
        with suppress(ImportError):  # of an extra
            importlib.import_module(name)
    gc.freeze()
    opened = Shell(tmp_path_factory.mktemp('shell') / 'bin')
    gc.unfreeze()
    yield opened
    opened.close()


@pytest.fixture(scope='session')
def shared_products() -> Path:
    """Folder of the real product catalogue; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / 'shared/data/fashion_products'
    if not folder.is_dir():
        pytest.skip(f'no product catalogue in {folder}')
    return folder
