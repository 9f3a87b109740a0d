"""The ranks of a training on this machine: child processes, each with a socket pair to talk through. Imports no torch.

torchrun does as much and no more that is wanted here: it closes the descriptors that a rank would talk through, leaves
ranks alive when it is killed itself, and brings a rendezvous over the network for what is mostly one machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from limbeck.assignment import Assignment

_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of a training find each other."""

    folder: Path  #: of this host's ranks: takes the file by which they meet if there is one host, and temporary files
    count: int  #: of ranks
    here: int  #: of them on each host
    first: int = 0  #: number of the first one on this host
    address: tuple[str, int] | None = None  #: of rank 0's store; None where there is one host
    listening: int | None = None  #: the descriptor that listens there, on rank 0's host

    @property
    def hosts(self) -> int:
        return self.count // self.here


@dataclass(frozen=True, slots=True)
class Order:
    """What every rank is told first."""

    assignment: Assignment
    meeting: Meeting
    threads: int  #: of all ranks on this host together
    #: The folder of teachers' answers, the bytes that it may take, and how long a pass has to be to be offered.
    answers: tuple[Path, int | None, float | None] | None = None


@dataclass(slots=True)
class Rank:
    """One rank as whoever started it sees it."""

    number: int
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    talks: bool = True
    error: Exception | None = None  #: what it said went wrong
    arrived: bool = False  #: where the ranks meet

    #: Behind its number, in what a person reads.
    whose = ""

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


@contextmanager
def started(order: Order, interface: str | None = None) -> Iterator[list[Rank]]:
    """The ranks of this host, running; none of them does afterwards.

    Args:
        interface: of the network by which they reach those on other hosts.
    """
    meeting = order.meeting
    ranks: list[Rank] = []
    try:
        for number in range(meeting.first, meeting.first + meeting.here):
            ranks.append(_start(number, order, interface))
        yield ranks
    finally:
        for rank in ranks:
            rank.process.kill()
        for rank in ranks:
            rank.process.wait()
            rank.connection.close()


def portable(assignment: Assignment) -> Assignment:
    """The same with plain dictionaries: a read-only view of one cannot be sent."""
    return replace(
        assignment,
        sources=dict(assignment.sources),
        expected=dict(assignment.expected),
        micro_batches=dict(assignment.micro_batches),
    )


def threads_here() -> int:
    """Of this process, as torch would count them."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdigit():
        return max(1, int(given))
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _start(number: int, order: Order, interface: str | None) -> Rank:
    ours, theirs = Pipe()
    meeting = order.meeting
    command = [sys.executable, "-m", "limbeck.rank_process", str(number), str(theirs.fileno())]
    passed = [theirs.fileno()]
    if number == 0 and meeting.listening is not None:
        passed.append(meeting.listening)
    with theirs:
        process = subprocess.Popen(
            [*command, str(os.getpid())],
            env=_environment(max(1, order.threads // meeting.here), meeting.folder, interface),
            stdin=subprocess.DEVNULL,
            pass_fds=passed,
        )
    with suppress(OSError):  # it has gone already, which is noticed soon
        ours.send(order)
    return Rank(number, process, ours)


def _environment(threads: int, temporary: Path, interface: str | None) -> dict[str, str]:
    """A rank's: its share of the threads, gloo and NCCL on the interface by which it reaches the others (of one machine
    the one that every machine has), and a folder for temporary files that goes with the ranks: they are killed, and
    nothing that runs at exit does then."""
    home = str(Path(__file__).resolve().parents[1])
    found_anyway = home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    ours = {"GLOO_SOCKET_IFNAME": interface or "lo"} if sys.platform == "linux" else {}
    if interface is not None:
        ours["NCCL_SOCKET_IFNAME"] = interface
    ours |= os.environ
    ours |= {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    ours["TMPDIR"] = str(temporary)
    if not found_anyway:
        ours["PYTHONPATH"] = os.pathsep.join(part for part in (home, ours.get("PYTHONPATH")) if part)
    return ours
