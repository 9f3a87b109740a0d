"""Threads for what takes long before a question is one: images that are decoded, contexts that are cut."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

_Found = TypeVar("_Found")


class Turns:
    """Students take turns at them, and none has all of them. One loop's.

    Args:
        threads: of one student; there is one more for the others.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="limbeck-reads")
        self._busy: Counter[int] = Counter()
        self._lines: OrderedDict[int, deque[tuple[Callable[[], Any], asyncio.Future[Any]]]] = OrderedDict()
        self._closed = False

    def run(self, student: object, work: Callable[[], _Found]) -> asyncio.Future[_Found]:
        """What ``work`` gives, called in a thread when it is the student's turn."""
        key = id(student)
        if self._may(key):
            return self._begin(key, work)
        found: asyncio.Future[_Found] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, deque()).append((work, found))
        return found

    def close(self) -> None:
        """Let the threads end; what waits is not begun."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _may(self, key: int) -> bool:
        return self._busy.total() <= self._threads and self._busy[key] < self._threads

    def _begin(self, key: int, work: Callable[[], _Found]) -> asyncio.Future[_Found]:
        self._busy[key] += 1
        begun = asyncio.get_running_loop().run_in_executor(self._pool, work)
        begun.add_done_callback(partial(self._end, key))
        return begun

    def _end(self, key: int, _: asyncio.Future[Any]) -> None:
        """Of one's turn: the next one's begins."""
        self._busy[key] -= 1
        if not self._busy[key]:
            del self._busy[key]
        if self._closed:
            return
        for other, line in [*self._lines.items()]:
            if self._may(other):
                work, found = line.popleft()
                self._begin(other, work).add_done_callback(partial(_hand_over, found))
                self._lines.move_to_end(other)
            if not line:
                del self._lines[other]


def _hand_over(found: asyncio.Future[Any], begun: asyncio.Future[Any]) -> None:
    if found.done():
        return
    if begun.cancelled():
        found.cancel()
    elif (error := begun.exception()) is not None:
        found.set_exception(error)
    else:
        found.set_result(begun.result())
