"""Threads for what takes long before a question is one: images that are decoded, contexts that are cut."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

_Found = TypeVar("_Found")


class Turns:
    """Students take turns at them, and none has all of them. One loop's.

    Args:
        threads: of one student; there is one more for the others.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._limiter = CapacityLimiter(threads + 1)
        self._busy: Counter[int] = Counter()
        self._lines: OrderedDict[int, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, student: object, work: Callable[[], _Found]) -> _Found:
        """What ``work`` gives, called in a thread when it is the student's turn."""
        key = id(student)
        if self._may(key):
            self._busy[key] += 1
        else:
            await self._wait(key)
        try:
            return await to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._end(key)

    def _may(self, key: int) -> bool:
        return self._busy.total() <= self._threads and self._busy[key] < self._threads

    async def _wait(self, key: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given in the same moment
                self._end(key)
            raise

    def _end(self, key: int) -> None:
        """Of one's turn: the next one's begins."""
        self._busy[key] -= 1
        if not self._busy[key]:
            del self._busy[key]
        for other, line in [*self._lines.items()]:
            while line and line[0].done():
                line.popleft()  # who went away
            if line and self._may(other):
                self._busy[other] += 1
                line.popleft().set_result(None)
                self._lines.move_to_end(other)
            if not line:
                del self._lines[other]
