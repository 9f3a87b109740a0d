"""Questions of many requests, answered together by a few threads.

A thread that is free takes whatever waits for one student, as many texts as a window holds, or its share of them while
others are free as well, and never waits for more to come. Students take turns, so that one that everybody asks does not
starve the others; within a student it is first come, first served. What waits is bounded, in all and for each student:
beyond that a question is refused at once. Of a long list a few windows wait at a time, and it takes the room of these.
At its deadline a question is refused as well, whether it waits or is computed; the window that a thread has of it is
computed to its end. Of a student with early exits a thread takes one layer's worth at a time, see
``api/inference/layered.py``.
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

from api.inference.layered import Layered
from api.inference.room import Room
from api.inference.tallies import Tallies, Tally
from limbeck.errors import Busy, TooSlow
from limbeck.runtime import Predictor, Question
from limbeck.runtime.parts import joined, parts

#: Texts, or windows of contexts, that are answered in one go. More would gain nothing on a CPU, and who comes behind
#: waits for all of it.
WINDOW = 32
#: Texts of one question that are too few to be shared out among threads.
_LEAST = 8
#: Windows of one question that wait at a time, for each thread: one is computed, and the next is there.
_AHEAD = 2
#: Seconds over which the rate for Retry-After is judged.
_MEMORY = 10.0
_GOING_DOWN = "The server is going down."
_THREAD_NAMES = itertools.count()


@dataclass(eq=False, slots=True)
class Waiting:
    """A question, or a window's worth of one."""

    question: Question
    deadline: float  #: on the monotonic clock
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop

    def expired(self, now: float) -> bool:
        """Whether nobody waits for it any more; behind the deadline the loop of who asked refuses it."""
        return now > self.deadline or self.answer.done()


@dataclass(slots=True)
class _Line:
    """What waits for one student."""

    student: Predictor
    layered: Layered | None  #: of a student with early exits: what is under way
    tally: Tally
    waiting: deque[Waiting] = field(default_factory=deque)
    calls: int = 0  #: of its turn

    @property
    def ready(self) -> bool:
        """Whether there is something for a thread."""
        return bool(self.waiting) or (self.layered is not None and self.layered.ready)

    @property
    def turn(self) -> int:
        """Calls until the next student's turn."""
        return self.layered.turn if self.layered is not None else 1


class Batcher:
    """The threads that answer, and what waits for them.

    Args:
        threads: that answer at the same time; each of them calls the runtime.
        limit: texts that may wait, or are being read; a context counts as its windows, a long list as those that wait.
        seconds: in which a question is answered, or refused, from when it came.
    """

    def __init__(self, *, threads: int, limit: int, seconds: float) -> None:
        self.seconds = seconds
        self.tallies = Tallies()
        self._ahead = _AHEAD * threads
        self._turn = threading.Condition()
        self._lines: OrderedDict[int, _Line] = OrderedDict()
        self._under_way: dict[int, _Line] = {}  # those of students with early exits that have texts between layers
        self._room = Room(limit)  # what waits has of it, except for those, and what is being read
        self._idle = 0  # threads that wait for something to do
        self._closed = False
        self._waking: asyncio.AbstractEventLoop | None = None  # that will wake a thread in its next turn
        self._finished: deque[tuple[float, int]] = deque(maxlen=1000)  # (when, texts) of the last windows
        self._threads = [
            threading.Thread(target=self._work, name=f"limbeck-answers-{next(_THREAD_NAMES)}", daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def ask(self, student: Predictor, question: Question, *, until: float | None = None) -> Any:
        """The answer, in the shape of :meth:`Predictor.predict`.

        Args:
            until: its deadline on the monotonic clock; default: ``seconds`` from now.

        Raises:
            Busy: too many texts wait already; ``retry_after`` is an estimate from the rate of late.
            TooSlow: there is no answer in time.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        deadline = now + self.seconds if until is None else until
        # Of a long list, or context, each thread can have its share, too.
        size = min(WINDOW, max(_LEAST, math.ceil(question.rows / len(self._threads))))
        asked = parts(question, size)
        waiting = [Waiting(part, deadline, loop.create_future(), loop) for part in asked[: self._ahead]]
        whole = len(waiting) == len(asked)
        self._enter(student, waiting, question.rows if whole else sum(one.question.rows for one in waiting))
        late = loop.call_later(deadline - now, self._refuse, waiting)
        answers = []
        try:
            for one in waiting:  # to which more come
                answers.append(await one.answer)
                if len(waiting) < len(asked):
                    self._go_on(student, waiting, asked[len(waiting)])
        finally:
            late.cancel()
            for one in waiting:  # of a caller who went away, or whose first part failed, the rest need not be answered
                one.answer.cancel()
        return joined(asked, answers)

    def hold(self, student: Predictor, texts: int) -> None:
        """Room for what is being read, before it is a question; until :meth:`release`.

        Raises:
            Busy: as :meth:`ask`.
        """
        with self._turn:
            self._admit(student, texts)

    def release(self, student: Predictor, texts: int) -> None:
        with self._turn:
            self._room.leave(student, texts)

    def close(self) -> None:
        """Let the threads end; what waits is refused."""
        with self._turn:
            self._closed = True
            left = [one for line in self._lines.values() for one in line.waiting]
            left += [one for line in self._under_way.values() if line.layered for one in line.layered.refuse()]
            for line in self._lines.values():
                self._room.leave(line.student, sum(one.question.rows for one in line.waiting))
                line.waiting.clear()
            self._lines.clear()
            self._turn.notify_all()
        self._deliver([(one, Busy(_GOING_DOWN, retry_after=5)) for one in left])
        for thread in self._threads:
            thread.join()

    @property
    def waiting(self) -> int:
        """Texts that wait, to be read, for a thread, or between two layers."""
        texts = self._room.texts
        if self._under_way:
            texts += sum(line.layered.texts for line in [*self._under_way.values()] if line.layered is not None)
        return texts

    def _enter(self, student: Predictor, parts: Sequence[Waiting], texts: int) -> None:
        with self._turn:
            self._admit(student, texts)
            self._put(student, parts)

    def _go_on(self, student: Predictor, waiting: list[Waiting], part: Question) -> None:
        """Let the next part of a question in that was let in before: in place of one that was answered."""
        first = waiting[0]
        if time.monotonic() > first.deadline:
            raise self._too_slow()
        one = Waiting(part, first.deadline, first.loop.create_future(), first.loop)
        with self._turn:
            self._require_open()
            self._room.hold(student, part.rows)
            self._put(student, [one])
        waiting.append(one)

    def _put(self, student: Predictor, parts: Sequence[Waiting]) -> None:
        line = self._lines.get(id(student), self._under_way.get(id(student)))
        if line is None:
            layered = Layered(student) if student.exits is not None else None
            line = _Line(student, layered, self.tallies.of(student))
        line.waiting.extend(parts)
        self._line_up(line)
        loop = parts[0].loop
        if self._waking is not loop:
            self._waking = loop
            loop.call_soon(self._wake)

    def _admit(self, student: Predictor, texts: int) -> None:
        """Hold room for so many of a student, if there is room."""
        self._require_open()
        waiting = self.waiting
        line = self._under_way.get(id(student))
        own = self._room.of(student) + (line.layered.texts if line is not None and line.layered is not None else 0)
        if not self._room.allows(texts, own=own, waiting=waiting):
            raise Busy(
                f"{waiting:,} texts wait for an answer already, {own:,} of them for this student; this server lets "
                f"{self._room.limit:,} wait, and leaves some room to other students.",
                retry_after=self._retry_after(waiting),
            )
        self._room.hold(student, texts)

    def _require_open(self) -> None:
        if self._closed:
            raise Busy(_GOING_DOWN, retry_after=5)

    def _wake(self) -> None:
        """Once for all questions of one turn of the loop: woken by the first, a thread would take that one alone."""
        self._waking = None
        with self._turn:
            self._turn.notify()

    def _retry_after(self, waiting: int) -> int:
        now = time.monotonic()
        while self._finished and self._finished[0][0] < now - _MEMORY:
            self._finished.popleft()
        done = sum(texts for _, texts in self._finished)
        full = len(self._finished) == self._finished.maxlen  # what was before is forgotten
        seconds = now - self._finished[0][0] if full else _MEMORY
        return max(1, min(60, math.ceil(waiting * seconds / done))) if done else 1

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            line, window = taken
            if line.layered is not None:
                self._bring_on(line, line.layered, window)
            elif window:
                self._deliver(list(zip(window, _answers(line.student, window), strict=True)))

    def _take(self) -> tuple[_Line, list[Waiting]] | None:
        """The next student with as many of its questions as go into a window; waits for some. None when all is
        over."""
        with self._turn:
            while not self._lines:
                if self._closed:
                    return None
                self._idle += 1
                self._turn.wait()
                self._idle -= 1
            _, line = self._lines.popitem(last=False)
            line.calls += 1
            window = self._window(line, self._share(line))
            if line.layered is None:
                texts = sum(one.question.rows for one in window)
                self._finished.append((time.monotonic(), texts))
                line.tally.computed(texts)
            elif window:
                line.layered.begin(window)
                self._under_way[id(line.student)] = line
            if line.layered is None or window:
                self._hand_on(line)
            return line, window

    def _bring_on(self, line: _Line, layered: Layered, window: Sequence[Waiting]) -> None:
        """Let a window in, and bring the texts that are next through their layer."""
        coded = layered.coded(window)
        with self._turn:
            unreadable = layered.enter(coded)
            texts = layered.take(time.monotonic())
            self._hand_on(line)
        found = layered.run(texts)
        with self._turn:
            complete, failed = layered.put(found)
            line.tally.computed(len(texts))
            if found.left:
                self._finished.append((time.monotonic(), len(found.left)))
            # Another line of the student may be there by now, where all questions of this one had expired.
            if not layered.texts and self._under_way.get(id(line.student)) is line:
                del self._under_way[id(line.student)]
            self._line_up(line)
        self._deliver([*unreadable, *failed, *layered.shaped(complete)])

    def _hand_on(self, line: _Line) -> None:
        """Leave what this thread does not take of a student to others."""
        self._line_up(line)
        if self._lines:
            self._turn.notify()

    def _line_up(self, line: _Line) -> None:
        """Put a student for whom there is something to do among the others: in front of them while its turn lasts."""
        if not line.ready or id(line.student) in self._lines:
            return
        self._lines[id(line.student)] = line
        if 0 < line.calls < line.turn:
            self._lines.move_to_end(id(line.student), last=False)
        else:
            line.calls = 0

    def _share(self, line: _Line) -> int:
        """Texts that a thread takes of a student: its share of what waits while others have nothing to do."""
        if not self._idle or line.layered is not None or not line.waiting:
            return WINDOW
        share = math.ceil(sum(one.question.rows for one in line.waiting) / (1 + self._idle))
        return min(WINDOW, max(share, line.waiting[0].question.rows))

    def _window(self, line: _Line, room: int) -> list[Waiting]:
        window: list[Waiting] = []
        waiting, taken = line.waiting, 0
        now = time.monotonic()
        while waiting and (rows := waiting[0].question.rows) <= room:
            one = waiting.popleft()
            taken += rows
            if one.expired(now):
                continue
            room -= rows
            window.append(one)
        if taken:
            self._room.leave(line.student, taken)
        return window

    def _refuse(self, parts: Sequence[Waiting]) -> None:
        """Called by the loop of who asks, at the deadline: the first part without an answer is what :meth:`ask` waits
        for, and it gives up the others."""
        for part in parts:
            if not part.answer.done():
                part.answer.set_exception(self._too_slow())
                return

    def _too_slow(self) -> TooSlow:
        return TooSlow(f"No answer within {self.seconds:g} s: too much is asked.")

    @staticmethod
    def _deliver(answers: Sequence[tuple[Waiting, Any]]) -> None:
        """Hand answers over to their loops, with one call for each loop."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Waiting, Any]]] = {}
        for one, answer in answers:
            loops.setdefault(one.loop, []).append((one, answer))
        for loop, ready in loops.items():
            try:
                loop.call_soon_threadsafe(_set, ready)
            except RuntimeError:  # the loop has ended, and everybody who waited with it
                pass


def _set(ready: Sequence[tuple[Waiting, Any]]) -> None:
    for one, answer in ready:
        if one.answer.done():
            continue
        if isinstance(answer, BaseException):
            one.answer.set_exception(answer)
        else:
            one.answer.set_result(answer)


def _answers(student: Predictor, window: Sequence[Waiting]) -> list[Any]:
    """An answer or an error for each; a question that breaks the window fails alone."""
    try:
        return student.answers([one.question for one in window])
    except Exception as error:  # whatever the runtime raises belongs to who asked, not to this thread
        if len(window) == 1:
            return [error]
        return [answer for one in window for answer in _answers(student, [one])]
