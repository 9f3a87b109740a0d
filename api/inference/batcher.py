"""Questions of many requests, answered together by a few threads.

A thread that is free takes whatever waits for one student, as many texts as a window holds, and never waits for more
to come. Students take turns, so that one that everybody asks does not starve the others; within a student it is first
come, first served. What waits is bounded: beyond that, and behind its deadline, a question is refused at once rather
than answered too late.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.errors import Busy, TooSlow
from limbeck.runtime import Predictor, Question

#: Texts that are answered in one go. More would gain nothing on a CPU, and who comes behind waits for all of it.
WINDOW = 32
#: Seconds over which the rate for Retry-After is judged.
_MEMORY = 10.0
_THREAD_NAMES = itertools.count()


@dataclass(eq=False, slots=True)
class _Waiting:
    """A question, or a window's worth of one."""

    question: Question
    deadline: float  #: on the monotonic clock
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


@dataclass(slots=True)
class _Line:
    """What waits for one student."""

    student: Predictor
    waiting: deque[_Waiting] = field(default_factory=deque)


class Batcher:
    """The threads that answer, and what waits for them.

    Args:
        threads: that answer at the same time; each of them calls the runtime.
        limit: texts that may wait.
        seconds: that a question may wait.
    """

    def __init__(self, *, threads: int, limit: int, seconds: float) -> None:
        self._limit, self._seconds = limit, seconds
        self._turn = threading.Condition()
        self._lines: OrderedDict[int, _Line] = OrderedDict()
        self._texts = 0  # that wait
        self._closed = False
        self._waking: asyncio.AbstractEventLoop | None = None  # that will wake a thread in its next turn
        self._finished: deque[tuple[float, int]] = deque(maxlen=1000)  # (when, texts) of the last windows
        self._threads = [
            threading.Thread(target=self._work, name=f"limbeck-answers-{next(_THREAD_NAMES)}", daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def ask(self, student: Predictor, question: Question) -> Any:
        """The answer, in the shape of :meth:`Predictor.predict`.

        Raises:
            Busy: too many texts wait already; ``retry_after`` is an estimate from the rate of late.
            TooSlow: it waited longer than it may.
        """
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + self._seconds
        parts = [_Waiting(part, deadline, loop.create_future(), loop) for part in question.parts(WINDOW)]
        self._enter(student, parts, len(question))
        try:
            answers = [await part.answer for part in parts]
        finally:
            for part in parts:  # of a caller who went away, or whose first part failed, the rest need not be answered
                part.answer.cancel()
        return answers[0] if len(answers) == 1 else [one for answer in answers for one in answer]

    def close(self) -> None:
        """Let the threads end; what waits is refused."""
        with self._turn:
            self._closed = True
            left = [one for line in self._lines.values() for one in line.waiting]
            self._lines.clear()
            self._texts = 0
            self._turn.notify_all()
        self._deliver([(one, Busy("The server is going down.", retry_after=5)) for one in left])
        for thread in self._threads:
            thread.join()

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        return self._texts

    def _enter(self, student: Predictor, parts: Sequence[_Waiting], texts: int) -> None:
        with self._turn:
            # One that is larger than all the room there is gets in when nothing else waits.
            if self._closed or (self._texts and self._texts + texts > self._limit):
                raise Busy(
                    f"{self._texts:,} texts wait for an answer already; this server lets {self._limit:,} wait.",
                    retry_after=self._retry_after(),
                )
            line = self._lines.get(id(student))
            if line is None:
                line = self._lines[id(student)] = _Line(student)
            line.waiting.extend(parts)
            self._texts += texts
        loop = parts[0].loop
        if self._waking is not loop:
            self._waking = loop
            loop.call_soon(self._wake)

    def _wake(self) -> None:
        """Once for all questions of one turn of the loop: woken by the first, a thread would take that one alone."""
        self._waking = None
        with self._turn:
            self._turn.notify()

    def _retry_after(self) -> int:
        now = time.monotonic()
        while self._finished and self._finished[0][0] < now - _MEMORY:
            self._finished.popleft()
        done = sum(texts for _, texts in self._finished)
        return max(1, min(60, math.ceil(self._texts * _MEMORY / done))) if done else 1

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            student, window, late = taken
            self._deliver([(one, TooSlow(f"No answer within {self._seconds:g} s: too much waits.")) for one in late])
            if window:
                self._deliver(list(zip(window, _answers(student, window), strict=True)))

    def _take(self) -> tuple[Predictor, list[_Waiting], list[_Waiting]] | None:
        """The next student with as many of its questions as go into a window, and those that came too late; waits for
        some. None when all is over."""
        with self._turn:
            while not self._lines:
                if self._closed:
                    return None
                self._turn.wait()
            key, line = self._lines.popitem(last=False)
            window, late = self._window(line.waiting)
            if line.waiting:
                self._lines[key] = line  # behind the others
            if self._lines:
                self._turn.notify()
            self._finished.append((time.monotonic(), sum(len(one.question) for one in window)))
            return line.student, window, late

    def _window(self, waiting: deque[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
        window: list[_Waiting] = []
        late: list[_Waiting] = []
        room, now = WINDOW, time.monotonic()
        while waiting and len(waiting[0].question) <= room:
            one = waiting.popleft()
            self._texts -= len(one.question)
            if one.answer.cancelled():
                continue
            if now > one.deadline:
                late.append(one)
                continue
            room -= len(one.question)
            window.append(one)
        return window, late

    @staticmethod
    def _deliver(answers: Sequence[tuple[_Waiting, Any]]) -> None:
        """Hand answers over to their loops, with one call for each loop."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[_Waiting, Any]]] = {}
        for one, answer in answers:
            loops.setdefault(one.loop, []).append((one, answer))
        for loop, ready in loops.items():
            try:
                loop.call_soon_threadsafe(_set, ready)
            except RuntimeError:  # the loop has ended, and everybody who waited with it
                pass


def _set(ready: Sequence[tuple[_Waiting, Any]]) -> None:
    for one, answer in ready:
        if one.answer.done():
            continue
        if isinstance(answer, BaseException):
            one.answer.set_exception(answer)
        else:
            one.answer.set_result(answer)


def _answers(student: Predictor, window: Sequence[_Waiting]) -> list[Any]:
    """An answer or an error for each; a question that breaks the window fails alone."""
    try:
        return student.answers([one.question for one in window])
    except Exception as error:  # whatever the runtime raises belongs to who asked, not to this thread
        if len(window) == 1:
            return [error]
        return [answer for one in window for answer in _answers(student, [one])]
