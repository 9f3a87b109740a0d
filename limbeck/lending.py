"""Lends this machine's devices to a training that another host leads (``limbeck/hosts.py``). Imports no torch."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from limbeck.errors import Conflict, LimbeckError, RankLost, Unavailable
from limbeck.hosts import Invitation, Start
from limbeck.network import greet, in_time, interface_of
from limbeck.rank_children import Meeting, Order, Rank, started, threads_here

_TICK = 0.2
_CONNECT_SECONDS = 10


def lend(
    invitation: Invitation,
    worker: str,
    workdir: Path,
    sources: Mapping[str, Path],
    should_stop: Callable[[], bool],
    joined: Callable[[], None],
) -> None:
    """Run the ranks that the leading host asks for, until it wants none any more.

    Args:
        worker: a name for people.
        workdir: takes the state that is sent here.
        sources: local folders of ``model:…`` references.
        should_stop: whether this host would like to go; the other one then saves the run's state first.
        joined: called when the other one has this host.

    Raises:
        Unavailable: there is no way to the one who invited, or it begins at an address that gloo would not take.
        Conflict: the one who invited wants no more, or knows another secret.
        Exception: why a rank here could not go on, and this host was let go.
    """
    try:
        peer = socket.create_connection((invitation.address, invitation.port), _CONNECT_SECONDS)
    except OSError as error:
        where = f"{invitation.address}:{invitation.port}"
        raise Unavailable(f"The training that wants hosts cannot be reached at {where}: {error}") from error
    with ExitStack() as undo:
        undo.enter_context(peer)
        interface = interface_of(peer.getsockname()[0])
        undo.pop_all()
    with in_time(peer):
        connection = greet(peer, invitation.secret, listens=False)
    if connection is None:
        raise Conflict("The training wants no more hosts, or others.")
    with connection, ExitStack() as running:
        joined()
        _Loan(connection, worker, workdir, sources, interface, running).serve(should_stop)


class _Gone(Exception):
    """The other end has, or wants this host no more."""


class _Loan:
    def __init__(
        self,
        connection: Connection[Any, Any],
        worker: str,
        workdir: Path,
        sources: Mapping[str, Path],
        interface: str,
        running: ExitStack,
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._workdir, self._sources = workdir, dict(sources)
        self._interface = interface
        self._running = running
        self._ranks: list[Rank] = []
        self._turn = 0
        self._fault: Exception | None = None
        self._crashed: set[int] = set()  #: turns in which a rank ended without a word

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Until the other end goes, or lets this one go.

        Raises:
            Exception: why this host could not go on; also where its ranks could not be started.
        """
        leaving = False
        try:
            self._say(self._worker)
            while True:
                talking: dict[Any, Rank] = {rank.connection: rank for rank in self._ranks if rank.talks}
                for one in wait([self._connection, *talking], _TICK):
                    if one is self._connection:
                        self._obey(self._told())
                        break  # the ranks may be others now
                    self._pass_on(talking[one])
                if should_stop() and not leaving:
                    leaving = True
                    self._say(("leaving",))
        except _Gone:
            if self._fault is not None:
                raise self._fault from None

    def _say(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise _Gone from error

    def _told(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise _Gone from error

    def _obey(self, message: Any) -> None:
        match message:
            case ("start", Start() as start):
                self._end()
                self._start(start)
            case ("end",):
                self._end()

    def _start(self, start: Start) -> None:
        self._turn = start.turn
        folder = Path(tempfile.mkdtemp(dir=self._workdir))
        self._running.callback(shutil.rmtree, folder, ignore_errors=True)
        assignment = replace(start.assignment, workdir=self._workdir, sources=self._sources)
        meeting = Meeting(folder, start.count, start.here, start.first, start.address)
        order = Order(assignment, meeting, threads_here())
        self._ranks = self._running.enter_context(started(order, self._interface))

    def _end(self) -> None:
        self._ranks = []
        self._running.close()

    def _pass_on(self, rank: Rank) -> None:
        message: Any
        try:
            message = rank.connection.recv()
        except (EOFError, OSError):
            rank.talks = False
            message = ("ended", rank.how_it_ended())
            if rank.error is None:
                self._crashed.add(self._turn)
            if len(self._crashed) > 1:
                again = "as one did in an earlier start"
                self._fault = self._fault or RankLost(f"Rank {rank.number} on this host {message[1]}, {again}.")
        if isinstance(message[1], Exception):
            rank.error = message[1]
            if not isinstance(rank.error, RankLost):  # it misses another one
                self._fault = rank.error
            if not isinstance(rank.error, LimbeckError):  # the one that leads may not have the library that it is of
                message = ("failed", RuntimeError(f"{type(rank.error).__name__}: {rank.error}"))
        self._say(("rank", self._turn, rank.number, message))
