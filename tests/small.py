"""Small data for runs of the tools, and processes that run one, all inside the test's own."""

import importlib
import os
import socket
import sys
import warnings
from pathlib import Path

import torch
import torch.multiprocessing as mp
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from eiclip_mm.datasets import FashionGen
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.structures import EntityVocab

TOOLS = str(Path(__file__).resolve().parents[1] / 'tools')
TYPES = ('composition', 'subcategory', 'brand', 'season')


def write_data(folder: Path, train: int = 80, validation: int = 24) -> Path:
    """A mini Fashion-Gen and the vocabulary of its entities."""
    write_mini_fashiongen(folder, train, validation, 2, seed=0, progress=False)
    products = FashionGen(FILES['train'], TYPES, data_root=str(folder)).records()
    EntityVocab.build((p['entities'] for p in products), TYPES).save(folder / 'entities.json')
    return folder


def forget_runs() -> None:
    """Clear mmengine's globals, by names that two Runners of one second share."""
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    visualizers = (Visualizer, *Visualizer.__subclasses__())
    for manager in (MMLogger, MessageHub, DefaultScope, *visualizers):
        manager._instance_dict.clear()


def run_tool(name: str, *arguments) -> None:
    """``python tools/NAME.py ARGUMENTS`` in this process, which meets none of an earlier one."""
    forget_runs()
    sys.path.insert(0, TOOLS)
    try:
        importlib.import_module(name).main([*map(str, arguments)])
    finally:
        sys.path.remove(TOOLS)


def run_in_processes(world: int, name: str, *arguments) -> None:
    """The same in several processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    given = (world, port, name, *arguments, '--launcher', 'pytorch')
    mp.start_processes(_process, given, nprocs=world, start_method='fork')


def _process(rank: int, world: int, port: int, name: str, *arguments) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    warnings.simplefilter('ignore')  # mmengine's about processes; the tests' own stay errors
    os.environ |= dict(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    run_tool(name, *arguments)
