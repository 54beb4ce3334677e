"""Requests that come at the same time, computed together."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple


class Busy(Exception):
    """The queue is full; ask again later."""


class _Waiting(NamedTuple):
    item: Any
    answer: asyncio.Future


class Batcher:
    """Items of many requests, joined into calls of one function on a thread of its own.

    Used in one event loop, between :meth:`start` and :meth:`stop`.

    Args:
        run: takes a list of at most ``max_batch`` items, returns their results in order. Where it
            raises, each item is run again alone, so that one item spoils no other request.
        prepare: applied to each item before it is queued, on a thread of ``pool``; an error is
            that request's own.
        pool: threads for ``prepare``.
        max_batch: items at a time.
        max_wait_ms: how long a batch that is not full waits for more, in milliseconds.
        max_queue: items that are accepted and not yet answered.
        observe: told the size of every batch.

    Attributes:
        taken: items accepted and not yet answered.
    """

    def __init__(
        self,
        run: Callable[[list], Iterable],
        prepare: Callable[[Any], Any] | None = None,
        pool: Executor | None = None,
        max_batch: int = 16,
        max_wait_ms: float = 5,
        max_queue: int = 512,
        observe: Callable[[int], object] = lambda size: None,
    ):
        self.run, self.prepare, self.pool, self.observe = run, prepare, pool, observe
        self.max_batch, self.max_wait_s, self.max_queue = max_batch, max_wait_ms / 1000, max_queue
        self.taken = 0

    def start(self) -> None:
        """Begin to work; inside the event loop."""
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End; nobody may be waiting any more."""
        self._worker.cancel()
        with suppress(asyncio.CancelledError):
            await self._worker
        self._thread.shutdown()

    async def __call__(self, items: Sequence) -> list:
        """Results of items, in order.

        Raises:
            Busy: there is no room for all of them.
            Exception: what ``prepare`` or ``run`` raised at one of them.
        """
        if self.taken + len(items) > self.max_queue:
            raise Busy(f'{self.taken} of {self.max_queue} places are taken')
        self.taken += len(items)
        try:
            answers = await _all(self._answer(item) for item in items)
        finally:
            self.taken -= len(items)
        return answers

    async def _answer(self, item: Any) -> Any:
        loop = asyncio.get_running_loop()
        if self.prepare is not None:
            item = await loop.run_in_executor(self.pool, self.prepare, item)
        waiting = _Waiting(item, loop.create_future())
        self._queue.put_nowait(waiting)
        return await waiting.answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [each for each in await self._batch() if not each.answer.done()]
            if not batch:  # all were given up meanwhile
                continue
            self.observe(len(batch))
            items = [each.item for each in batch]
            results = await loop.run_in_executor(self._thread, self._results, items)
            for each, result in zip(batch, results, strict=True):
                if each.answer.done():
                    continue
                if isinstance(result, Exception):
                    each.answer.set_exception(result)
                else:
                    each.answer.set_result(result)

    async def _batch(self) -> list[_Waiting]:
        """The next items: all there are, and those that come within ``max_wait_s``."""
        batch = [await self._queue.get()]
        end = asyncio.get_running_loop().time() + self.max_wait_s
        while len(batch) < self.max_batch:
            try:
                async with asyncio.timeout_at(end):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch

    def _results(self, items: list) -> list:
        """On the thread: a result of each item, or what was raised."""
        try:
            return [result for _, result in zip(items, self.run(items), strict=True)]
        except BaseException as error:  # compiled code may panic; the thread must live
            if len(items) > 1:
                return [result for item in items for result in self._results([item])]
            return [error if isinstance(error, Exception) else RuntimeError(repr(error))]


async def _all(coroutines: Iterable[Awaitable]) -> list:
    """Like ``gather``, but where one fails the others are given up."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
