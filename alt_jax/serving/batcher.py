"""A queue that puts the rows of requests together, so that one program scores many of them."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np


class Full(Exception):  # noqa: N818 - not an error: too much is asked for at this moment
    """The queue has no room for the rows."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    rows: Sequence[Any]
    since: float
    scores: asyncio.Future[list[float]]


class Batcher:
    """Scores rows in batches, in one thread, so that the event loop goes on meanwhile.

    A batch begins when the thread is free, and the oldest request has waited for `max_wait` or `max_batch` rows are
    there. Requests stay whole; one that is larger is a batch by itself.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Any]], np.ndarray],
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        """Makes an empty queue.

        Args:
          score: Gives the scores of rows; called in a thread.
          max_batch: Rows.
          max_wait: Seconds.
          max_queue: Rows that may wait.
          observe: Hears of every batch: its rows, and the seconds that it took.
        """
        self._score, self._observe = score, observe
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self.rows = 0  # that wait

    async def submit(self, rows: Sequence[Any], timeout: float) -> list[float]:
        """The scores of a request's rows.

        Raises:
          Full: There is no room.
          TimeoutError: They have not come in `timeout` seconds.
        """
        if self.rows + len(rows) > self._max_queue:
            raise Full
        loop = asyncio.get_running_loop()
        waiting = _Waiting(rows, loop.time(), loop.create_future())
        self._queue.append(waiting)
        self.rows += len(rows)
        self._changed.set()
        try:
            async with asyncio.timeout(timeout):
                return await waiting.scores
        except (TimeoutError, asyncio.CancelledError):
            with contextlib.suppress(ValueError):  # it is being scored
                self._queue.remove(waiting)
                self.rows -= len(rows)
            raise

    async def in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Does something else in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def run(self) -> None:
        """Scores what is submitted, until `close`."""
        loop = asyncio.get_running_loop()
        while self._queue or not self._closing:
            if not self._queue:
                await self._change()
                continue
            began = self._queue[0].since + self._max_wait
            while self.rows < self._max_batch and not self._closing and (left := began - loop.time()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._change()
            await self._do(self._take())
        self._thread.shutdown()

    def close(self) -> None:
        """Has `run` end when all that waits is scored."""
        self._closing = True
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        rows = 0
        while self._queue and (not batch or rows + len(self._queue[0].rows) <= self._max_batch):
            waiting = self._queue.popleft()
            self.rows -= len(waiting.rows)
            if not waiting.scores.done():  # nobody waits for it any more
                batch.append(waiting)
                rows += len(waiting.rows)
        return batch

    async def _do(self, batch: list[_Waiting]) -> None:
        rows = [row for waiting in batch for row in waiting.rows]
        if not rows:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        work = asyncio.ensure_future(self.in_thread(self._score, rows))
        await asyncio.wait([work])
        self._observe(len(rows), loop.time() - began)
        error = work.exception()
        first = 0
        for waiting in batch:
            last = first + len(waiting.rows)
            if waiting.scores.done():
                pass
            elif error is not None:
                waiting.scores.set_exception(error)
            else:
                waiting.scores.set_result(work.result()[first:last].tolist())
            first = last
