"""Faults of one rank, for rank_faults.py: a hook and a transform that configs name."""

import os
import signal
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from eiclip_mm.registry import HOOKS, TRANSFORMS

SIGN = 'the fault begins'


def say() -> None:
    """For rank_faults.py, which takes the time."""
    os.write(2, f'{SIGN}\n'.encode())


@HOOKS.register_module()
class FaultHook(Hook):
    """At one step of one rank do what a broken machine does.

    Args:
        kind: ``'kill'`` (SIGKILL), ``'exit'`` (``os._exit(3)``) or ``'hang'`` (SIGSTOP).
        rank: whose.
        step: counted from 0.
    """

    def __init__(self, kind: str, rank: int = 1, step: int = 3):
        self.kind, self.rank, self.step = kind, rank, step

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """See the class."""
        if (get_rank(), runner.iter) != (self.rank, self.step):
            return
        say()
        if self.kind == 'exit':
            os._exit(3)
        os.kill(os.getpid(), dict(kill=signal.SIGKILL, hang=signal.SIGSTOP)[self.kind])


@TRANSFORMS.register_module()
class FaultyRow:
    """Refuse the products of one rank, in its loader workers; stands first in a pipeline."""

    def __init__(self, rank: int = 1):
        self.rank = rank

    def __call__(self, results: dict) -> dict:
        """The product as it is, or an error."""
        if int(os.environ.get('RANK', 0)) == self.rank:
            say()
            raise ValueError(f'product {results["product_id"]} is damaged')
        return results
