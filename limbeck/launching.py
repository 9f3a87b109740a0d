"""Starts the ranks of a training over several devices, passes on what rank 0 tells, and ends all when one has gone."""

from __future__ import annotations

import itertools
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from limbeck.assignment import Assignment
from limbeck.callbacks import Callbacks
from limbeck.errors import Interrupted, InvalidConfig, Problem, RankLost
from limbeck.hosts import Host, HostsPlace, LentRank, Lobby, Start, say_closed
from limbeck.rank_children import Meeting, Order, Rank, portable, started, threads_here
from limbeck.result import DistillResult

#: How often a run starts again after a rank has gone.
RESTARTS = 3
_TICK = 0.1
#: How long the others may say what went wrong once a rank has gone or failed.
_LAST_WORDS = 3.0
_MEETING = "meeting-"
#: How long the ranks of several hosts may take until all have found each other. What keeps them from it, a firewall or
#: another interface, does not pass.
_MEETING_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class AnswersPlace:
    """The folder in which jobs share teachers' answers, as ``limbeck.teacher_cache.TeacherCache`` has it."""

    folder: Path
    limit: int | None
    fetch: Callable[[str], None]
    used: Callable[[str], None]
    share_seconds: float | None = None


class _NeverMet(RankLost):
    """The ranks of several hosts did not find each other."""


class _HostLeaves(Exception):
    """A host would like to go, and the run's state is saved."""


def distill_in_ranks(
    assignment: Assignment,
    callbacks: Callbacks,
    answers: AnswersPlace | None = None,
    hosts: HostsPlace | None = None,
) -> DistillResult:
    """``limbeck.engine.distill`` by as many processes as ``training.devices`` says, which end with this call.

    Args:
        hosts: how other hosts are found, where ``training.hosts`` asks for some.

    Raises:
        InvalidConfig: several hosts are asked for, and there is nobody to find them.
        RankLost: a rank has gone, and not for the first time; the run has started again :data:`RESTARTS` times.
    """
    training = assignment.config.training
    if training.hosts > 1 and hosts is None:
        detail = (
            f"found {training.hosts}; workers that lend their devices are found by the service alone, and this call "
            "has none: 1"
        )
        raise InvalidConfig(f"/training/hosts: {detail}", [Problem("/training/hosts", detail)])
    assignment.workdir.mkdir(parents=True, exist_ok=True)
    for left_behind in assignment.workdir.glob(f"{_MEETING}*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    with ExitStack() as stack:
        lobby = None
        if hosts is not None and training.hosts > 1:
            wanted, devices = training.hosts - 1, training.devices // training.hosts
            if hosts.address is None:
                say_closed(wanted, devices, callbacks)
            else:
                lobby = stack.enter_context(Lobby(hosts, wanted, devices))
        return _Launcher(portable(assignment), callbacks, answers, lobby).run()


class _Launcher:
    """Starts all ranks, again and again where some were lost."""

    def __init__(
        self, assignment: Assignment, callbacks: Callbacks, answers: AnswersPlace | None, lobby: Lobby | None
    ) -> None:
        self._assignment = assignment
        self._callbacks = callbacks
        self._answers = answers
        self._lobby = lobby

    def run(self) -> DistillResult:
        lost = 0
        for turn in itertools.count():
            if self._lobby is not None:
                self._lobby.gather(self._callbacks)
            try:
                return self._turn(turn)
            except _HostLeaves:
                continue
            except RankLost as loss:
                if self._callbacks.should_stop():
                    raise Interrupted("The run was asked to stop; it goes on from its last checkpoint.") from loss
                lost += 1
                if lost > RESTARTS:
                    raise
                if isinstance(loss, _NeverMet):
                    self._lobby = None
                again = f"All ranks start again, from the last checkpoint if there is one ({lost} of {RESTARTS})."
                facts = {"restart": lost, "at_most": RESTARTS}
                self._callbacks.on_event("rank.lost", f"{loss.message} {again}", facts)
        raise AssertionError("unreachable")

    def _turn(self, turn: int) -> DistillResult:
        """All ranks from their start to the result."""
        hosts = [] if self._lobby is None else self._lobby.hosts
        here = self._assignment.config.training.devices // self._assignment.config.training.hosts
        with tempfile.TemporaryDirectory(dir=self._assignment.workdir, prefix=_MEETING) as place, ExitStack() as stack:
            meeting = Meeting(Path(place).resolve(), here * (1 + len(hosts)), here)
            interface = None
            if self._lobby is not None and hosts:
                interface, meeting = self._lobby.interface, stack.enter_context(self._at_an_address(meeting))
            ranks: list[Rank | LentRank] = []
            ranks += stack.enter_context(started(self._order(meeting), interface))
            ranks += stack.enter_context(self._lent(turn, meeting, hosts))
            return _Crew(ranks, hosts, turn, self._callbacks, self._answers).watch()

    def _order(self, meeting: Meeting) -> Order:
        answers = self._answers
        shared = None if answers is None else (answers.folder, answers.limit, answers.share_seconds)
        return Order(self._assignment, meeting, threads_here(), shared)

    @contextmanager
    def _at_an_address(self, meeting: Meeting) -> Iterator[Meeting]:
        assert self._lobby is not None
        # Listening before any rank is there to be early.
        with socket.create_server((self._lobby.address, 0), backlog=128) as store:
            address = store.getsockname()[:2]
            yield Meeting(meeting.folder, meeting.count, meeting.here, 0, address, store.fileno())

    @contextmanager
    def _lent(self, turn: int, meeting: Meeting, hosts: Sequence[Host]) -> Iterator[list[LentRank]]:
        """The ranks on the other hosts, which have been told to begin; they are told to end afterwards."""
        ranks: list[LentRank] = []
        try:
            for place, host in enumerate(hosts, start=1):
                first = place * meeting.here
                assert meeting.address is not None
                host.tell("start", Start(turn, self._assignment, meeting.address, first, meeting.here, meeting.count))
                ranks += [LentRank(number, host) for number in range(first, first + meeting.here)]
            yield ranks
        finally:
            for host in hosts:
                if host.here:
                    host.tell("end")


class _Crew:
    """The ranks that run, and what they have said."""

    def __init__(
        self,
        ranks: Sequence[Rank | LentRank],
        hosts: Sequence[Host],
        turn: int,
        callbacks: Callbacks,
        answers: AnswersPlace | None,
    ) -> None:
        self._ranks = ranks
        self._here = [rank for rank in ranks if isinstance(rank, Rank)]
        self._hosts = hosts
        self._turn = turn
        self._callbacks = callbacks
        self._answers = answers
        self._result: DistillResult | None = None
        self._makes_room = False  #: rank 0 was told to stop since a host would like to go
        self._met = False  #: all ranks have found each other
        self._alone = False  #: the others are done, rank 0 goes on by itself

    def watch(self) -> DistillResult:
        """Until rank 0 has a result.

        Raises:
            Exception: what a rank said went wrong, rank 0's word before the others'.
            RankLost: one ended without a word, or is on another host and cannot go on; or they never met.
            Interrupted: the run is to stop, and has not begun.
            _HostLeaves: one would like to, and the state is saved, or nothing was begun.
        """
        stopping, decide_at = False, float("inf")
        meet_by = time.monotonic() + _MEETING_SECONDS if self._hosts else float("inf")
        while True:
            talking: dict[Any, Rank | Host] = {rank.connection: rank for rank in self._here if rank.talks}
            talking |= {host.connection: host for host in self._hosts if host.here}
            for connection in wait(list(talking), _TICK):
                one = talking[connection]
                if isinstance(one, Rank):
                    self._hear(one)
                elif one.here:
                    self._hear_host(one)
                if self._result is not None:
                    return self._result
            if any(rank.error or not rank.talks for rank in self._watched):
                decide_at = min(decide_at, time.monotonic() + _LAST_WORDS)
                if time.monotonic() >= decide_at or all(rank.error or not rank.talks for rank in self._watched):
                    raise self._verdict()
            if not self._met:  # nothing has been begun, and rank 0 hears nothing while it looks for the others
                self._let_go_unmet(time.monotonic() > meet_by)
            elif not stopping and (self._leaving or self._callbacks.should_stop()):
                stopping, self._makes_room = True, bool(self._leaving)
                with suppress(OSError):
                    self._here[0].connection.send(("stop",))

    @property
    def _watched(self) -> Sequence[Rank | LentRank]:
        return self._ranks[:1] if self._alone else self._ranks

    @property
    def _leaving(self) -> list[Host]:
        return [] if self._alone else [host for host in self._hosts if host.leaving]

    def _hear(self, rank: Rank) -> None:
        try:
            message = rank.connection.recv()
        except (EOFError, OSError):
            rank.talks = False
            return
        match message:
            case ("call", str(name), tuple(arguments)):
                self._met = self._met or arguments[:1] == ("ranks.met",)
                getattr(self._callbacks, name)(*arguments)
            case ("answers wanted", str(key)) if self._answers is not None:
                self._answers.fetch(key)
                with suppress(OSError):
                    rank.connection.send(("answers", key))
            case ("answers used", str(key)) if self._answers is not None:
                self._answers.used(key)
            case ("arrived", _):
                rank.arrived = True
            case ("parted",):
                self._go_on_alone()
            case ("result", DistillResult() as result):
                self._result = result
            case ("failed", Exception() as error):
                rank.error = error
                if rank.number == 0 and isinstance(error, Interrupted) and self._makes_room:
                    self._let_leave()
                if rank.number == 0 and not isinstance(error, RankLost):
                    raise error

    def _hear_host(self, host: Host) -> None:
        try:
            message = host.connection.recv()
        except (EOFError, OSError):
            host.let_go()
            for rank in self._lent_by(host).values():
                rank.talks, rank.how = False, rank.how or "has gone with it"
            return
        match message:
            case ("leaving",):
                host.leaving = True
            case ("rank", self._turn, int(number), said):
                self._hear_lent(self._lent_by(host)[number], said)

    def _hear_lent(self, rank: LentRank, message: Any) -> None:
        match message:
            case ("arrived", _):
                rank.arrived = True
            case ("ended", str(how)):
                rank.talks, rank.how = False, how
                if rank.error is None:
                    rank.host.crashed.add(self._turn)
                if len(rank.host.crashed) > 1:  # the host may be the reason: memory, a driver
                    rank.host.let_go()
            case ("failed", RankLost() as error):  # it misses another one
                rank.error = error
            case ("failed", Exception() as error):
                # Of its host, or of the way there: what is wrong with the training rank 0 says itself.
                rank.talks, rank.how = False, f"cannot go on: {error}"
                rank.host.let_go()

    def _lent_by(self, host: Host) -> dict[int, LentRank]:
        return {rank.number: rank for rank in self._ranks if isinstance(rank, LentRank) and rank.host is host}

    def _go_on_alone(self) -> None:
        """The others are done."""
        self._alone = True
        for rank in self._here[1:]:
            rank.process.kill()
        for host in self._hosts:
            host.let_go()

    def _let_leave(self) -> None:
        if self._callbacks.should_stop():  # meanwhile all of the run was
            return
        for host in self._leaving:
            what = f"Worker {host.name} takes its devices back; the others go on from where the training is."
            self._callbacks.on_event("host.left", what, {"worker": host.name})
            host.let_go()
        raise _HostLeaves

    def _let_go_unmet(self, late: bool) -> None:
        """While the ranks have not found each other."""
        if self._callbacks.should_stop():
            raise Interrupted("The run was asked to stop before its ranks had met; it goes on from where it was.")
        if self._leaving:
            self._let_leave()
        if late:
            raise self._never_met()

    def _never_met(self) -> RankLost:
        """Done without the hosts of which a rank has not even come; without all others, where that tells nothing."""
        silent = [host for host in self._hosts if not all(one.arrived for one in self._lent_by(host).values())]
        for host in silent or self._hosts:
            host.let_go()
        named = ", ".join(host.name for host in silent or self._hosts)
        late = (
            f"{len(self._ranks)} ranks on {len(self._hosts) + 1} hosts did not find each other within "
            f"{_MEETING_SECONDS:g} s"
        )
        reasons = "a firewall may keep them apart, or LIMBECK_RANKS_HOST is in another network"
        if not silent:
            return _NeverMet(f"{late}: {reasons}. The others are done without: {named}.")
        what = f"{late}: of {named} nothing came. A process may hang there, or {reasons}. It is done without."
        return RankLost(what) if len(silent) < len(self._hosts) else _NeverMet(what)

    def _verdict(self) -> Exception:
        said = [rank.error for rank in self._watched if rank.error is not None]
        for error in said:
            if not isinstance(error, RankLost):  # others only miss the rank that failed
                return error
        for rank in self._watched:
            if not rank.talks and rank.error is None:
                return RankLost(f"Rank {rank.number} of {len(self._ranks)}{rank.whose} {rank.how_it_ended()}.")
        return said[0]
