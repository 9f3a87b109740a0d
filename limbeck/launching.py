"""Starts the ranks of a training over several devices, passes on what rank 0 tells, and ends all when one has gone.

torchrun does as much and no more that is wanted here: it closes the descriptors that a rank would talk through, leaves
ranks alive when it is killed itself, and brings a rendezvous over the network for what is one machine.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from limbeck.assignment import Assignment
from limbeck.callbacks import Callbacks
from limbeck.errors import Interrupted, RankLost
from limbeck.result import DistillResult

#: How often a run starts again after a rank has gone.
RESTARTS = 3
_TICK = 0.1
#: How long the others may say what went wrong once a rank has gone or failed.
_LAST_WORDS = 3.0
_MEETING = "meeting-"
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class AnswersPlace:
    """The folder in which jobs share teachers' answers, as ``limbeck.teacher_cache.TeacherCache`` has it."""

    folder: Path
    limit: int | None
    fetch: Callable[[str], None]
    used: Callable[[str], None]
    share_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What every rank is told first."""

    assignment: Assignment
    meeting: Path  #: a file that does not exist yet; the ranks find each other by it
    threads: int  #: of all ranks together
    #: The folder of teachers' answers, the bytes that it may take, and how long a pass has to be to be offered.
    answers: tuple[Path, int | None, float | None] | None = None


@dataclass(slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    talks: bool = True
    error: Exception | None = None  #: what it said went wrong

    def how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.poll()
        if code is None or code >= 0:
            return f"ended with exit code {code} and gave no reason; the log may have one"
        try:
            name = signal.Signals(-code)
        except ValueError:
            return f"was ended by signal {-code}"
        return f"was killed from outside ({name.name})" if name in _FROM_OUTSIDE else f"crashed ({name.name})"


def distill_in_ranks(
    assignment: Assignment, callbacks: Callbacks, answers: AnswersPlace | None = None
) -> DistillResult:
    """``limbeck.engine.distill`` by as many processes as ``training.devices`` says, which end with this call.

    Raises:
        RankLost: a rank has gone, and not for the first time; the run has started again :data:`RESTARTS` times.
    """
    count, workdir = assignment.config.training.devices, assignment.workdir
    # As plain dictionaries: a read-only view of one cannot be sent.
    sent = replace(
        assignment,
        sources=dict(assignment.sources),
        expected=dict(assignment.expected),
        micro_batches=dict(assignment.micro_batches),
    )
    workdir.mkdir(parents=True, exist_ok=True)
    for left_behind in workdir.glob(f"{_MEETING}*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    for restart in itertools.count(1):
        with tempfile.TemporaryDirectory(dir=workdir, prefix=_MEETING) as place:
            order = Order(
                assignment=sent,
                meeting=Path(place).resolve() / "ranks",
                threads=_threads(),
                answers=None if answers is None else (answers.folder, answers.limit, answers.share_seconds),
            )
            try:
                with _started(order, count) as ranks:
                    return _Crew(ranks, callbacks, answers).watch()
            except RankLost as loss:
                if callbacks.should_stop():
                    raise Interrupted("The run was asked to stop; it goes on from its last checkpoint.") from loss
                if restart > RESTARTS:
                    raise
                again = f"All ranks start again, from the last checkpoint if there is one ({restart} of {RESTARTS})."
                callbacks.on_event("rank.lost", f"{loss.message} {again}", {"restart": restart, "at_most": RESTARTS})
    raise AssertionError("unreachable")


class _Crew:
    """The ranks that run, and what they have said."""

    def __init__(self, ranks: list[_Rank], callbacks: Callbacks, answers: AnswersPlace | None) -> None:
        self._ranks = ranks
        self._callbacks = callbacks
        self._answers = answers
        self._result: DistillResult | None = None
        self._alone = False  #: the others are done, rank 0 goes on by itself

    def watch(self) -> DistillResult:
        """Until rank 0 has a result.

        Raises:
            Exception: what a rank said went wrong, rank 0's word before the others'.
            RankLost: one ended without a word.
        """
        stopping, decide_at = False, float("inf")
        while True:
            talking = {rank.connection: rank for rank in self._ranks if rank.talks}
            for connection in wait(list(talking), _TICK):
                self._hear(talking[connection])  # type: ignore[index]
                if self._result is not None:
                    return self._result
            if any(rank.error or not rank.talks for rank in self._watched):
                decide_at = min(decide_at, time.monotonic() + _LAST_WORDS)
                if time.monotonic() >= decide_at or all(rank.error or not rank.talks for rank in self._watched):
                    raise self._verdict()
            if not stopping and self._callbacks.should_stop():
                stopping = True
                with suppress(OSError):
                    self._ranks[0].connection.send(("stop",))

    @property
    def _watched(self) -> list[_Rank]:
        return self._ranks[:1] if self._alone else self._ranks

    def _hear(self, rank: _Rank) -> None:
        try:
            message = rank.connection.recv()
        except (EOFError, OSError):
            rank.talks = False
            return
        match message:
            case ("call", str(name), tuple(arguments)):
                getattr(self._callbacks, name)(*arguments)
            case ("answers wanted", str(key)) if self._answers is not None:
                self._answers.fetch(key)
                with suppress(OSError):
                    rank.connection.send(("answers", key))
            case ("answers used", str(key)) if self._answers is not None:
                self._answers.used(key)
            case ("parted",):
                self._alone = True
                for one in self._ranks[1:]:
                    one.process.kill()
            case ("result", DistillResult() as result):
                self._result = result
            case ("failed", Exception() as error):
                rank.error = error
                if rank.number == 0 and not isinstance(error, RankLost):
                    raise error

    def _verdict(self) -> Exception:
        said = [rank.error for rank in self._watched if rank.error is not None]
        for error in said:
            if not isinstance(error, RankLost):  # others only miss the rank that failed
                return error
        for rank in self._watched:
            if not rank.talks and rank.error is None:
                return RankLost(f"Rank {rank.number} of {len(self._ranks)} {rank.how_it_ended()}.")
        return said[0]


@contextmanager
def _started(order: Order, count: int) -> Iterator[list[_Rank]]:
    """The ranks, running; none of them does afterwards."""
    ranks: list[_Rank] = []
    try:
        for number in range(count):
            ranks.append(_start(number, count, order))
        yield ranks
    finally:
        for rank in ranks:
            rank.process.kill()
        for rank in ranks:
            rank.process.wait()
            rank.connection.close()


def _start(number: int, count: int, order: Order) -> _Rank:
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "limbeck.rank_process", str(number), str(count), str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(
            [*command, str(os.getpid())],
            env=_environment(max(1, order.threads // count), order.meeting.parent),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    with suppress(OSError):  # it has gone already, which is noticed soon
        ours.send(order)
    return _Rank(number, process, ours)


def _environment(threads: int, temporary: Path) -> dict[str, str]:
    """A rank's: its share of the threads, gloo on the interface that every machine has, and a folder for temporary
    files that goes with the ranks: they are killed, and nothing that runs at exit does then."""
    home = str(Path(__file__).resolve().parents[1])
    found_anyway = home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    ours = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    ours |= os.environ
    ours |= {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    ours["TMPDIR"] = str(temporary)
    if not found_anyway:
        ours["PYTHONPATH"] = os.pathsep.join(part for part in (home, ours.get("PYTHONPATH")) if part)
    return ours


def _threads() -> int:
    """Of this process, as torch would count them."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdigit():
        return max(1, int(given))
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
