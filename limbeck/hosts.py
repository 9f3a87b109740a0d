"""The other hosts of a training, as the one that leads it sees them. Imports no torch.

Whoever leads listens (:class:`Lobby`), and has whoever started it pass an :class:`Invitation` on. A host that comes
(``limbeck/lending.py``) proves the invitation's secret, and is then told through its connection, as tuples:
``("start", Start)``, ``("end",)``; it tells ``("rank", turn, number, message)`` for each of its ranks, whose message is
the rank's own, or ``("ended", how)``; and ``("leaving",)`` when it would like to go. A connection that ends is a host
that has gone, or that is not wanted any more.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from limbeck.assignment import Assignment
from limbeck.callbacks import Callbacks
from limbeck.errors import Interrupted, Unavailable
from limbeck.network import interface_of
from limbeck.rank_children import threads_here
from limbeck.reception import Reception


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a host has to know to lend its devices."""

    address: str
    port: int
    secret: str
    places: int  #: hosts that are wanted
    devices: int  #: of each
    threads: int  #: that the ranks of a host share, where they are on its cores: others would sum in another order


@dataclass(frozen=True, slots=True)
class HostsPlace:
    """What a run over several hosts gets from whoever started it."""

    address: str | None  #: by which other hosts reach this one; None: they may not
    seconds: float  #: how long hosts that are missing are waited for
    invite: Callable[[Invitation], None]
    settle: Callable[[Sequence[str]], None]  #: these are here, and no others are wanted


@dataclass(frozen=True, slots=True)
class Start:
    """What a host is told that its ranks have to do; ``sources`` and ``workdir`` of the assignment are its own."""

    turn: int
    assignment: Assignment
    address: tuple[str, int]
    first: int
    here: int
    count: int


@dataclass(slots=True, eq=False)
class Host:
    """One that has come."""

    name: str  #: of the worker that lends it
    connection: Connection[Any, Any]
    here: bool = True
    leaving: bool = False
    crashed: set[int] = field(default_factory=set)  #: turns in which a rank there ended without a word

    def tell(self, *message: Any) -> None:
        with suppress(OSError):
            self.connection.send(message)

    def stays(self) -> bool:
        """Whether it is there and has not asked to go. What it said of an earlier turn's ranks concerns nobody now."""
        try:
            while self.here and not self.leaving and self.connection.poll(0):
                self.leaving = self.connection.recv() == ("leaving",)
        except (EOFError, OSError):
            self.leaving = True
        if self.leaving:
            self.let_go()
        return self.here

    def let_go(self) -> None:
        """It is not wanted any more."""
        self.here = False
        self.connection.close()


@dataclass(slots=True)
class LentRank:
    """One rank on another host, as ``limbeck.rank_children.Rank`` is one on this."""

    number: int
    host: Host
    talks: bool = True
    error: Exception | None = None
    how: str = ""
    arrived: bool = False  #: where the ranks meet

    @property
    def whose(self) -> str:
        """Behind its number, in what a person reads."""
        return f", lent by worker {self.host.name},"

    def how_it_ended(self) -> str:
        return self.how


@dataclass(slots=True)
class Lobby:
    """Where hosts come to lend their devices; open while the run lasts.

    Args:
        wanted: hosts beside this one.
        devices: of each host.
    """

    place: HostsPlace
    wanted: int
    devices: int
    hosts: list[Host] = field(default_factory=list)
    address: str = field(init=False)
    interface: str = field(init=False)
    _secret: str = field(init=False, default_factory=lambda: secrets.token_hex(32))
    _listener: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        assert self.place.address is not None
        self.address = self.place.address
        try:
            self._listener = socket.create_server((self.address, 0))
        except OSError as error:
            where = f"{self.address} (LIMBECK_RANKS_HOST)"
            raise Unavailable(f"This machine cannot be reached by other hosts at {where}: {error}") from error
        try:
            self.interface = interface_of(self.address)
        except Unavailable:
            self._listener.close()
            raise

    def __enter__(self) -> Lobby:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.let_go()
        self._listener.close()

    def gather(self, callbacks: Callbacks) -> None:
        """Wait for the hosts that are missing, for a bounded time.

        Raises:
            Interrupted: the run is to stop.
        """
        self.hosts = [host for host in self.hosts if host.stays()]
        missing = self.wanted - len(self.hosts)
        if missing == 0:
            return
        what = f"Waits up to {self.place.seconds:g} s for {missing} more host{'s' * (missing > 1)}."
        callbacks.on_event("hosts.wanted", what, {"hosts": missing, "devices": self.devices})
        address, port = self._listener.getsockname()[:2]
        self.place.invite(Invitation(address, port, self._secret, missing, self.devices, threads_here()))
        began = time.monotonic()
        end = began + self.place.seconds
        try:
            with Reception(self._listener, self._secret) as reception:
                while len(self.hosts) < self.wanted and time.monotonic() < end:
                    callbacks.on_alive()
                    if callbacks.should_stop():
                        raise Interrupted("The run was asked to stop while it waited for hosts.")
                    for name, connection in reception.guests():
                        self._take_in(name, connection, callbacks)
        finally:
            self.hosts = [host for host in self.hosts if host.stays()]
            self.place.settle([host.name for host in self.hosts])
        if len(self.hosts) < self.wanted:
            self._say_missing(callbacks, min(self.place.seconds, round(time.monotonic() - began, 1)))

    def _take_in(self, name: str, connection: Connection[Any, Any], callbacks: Callbacks) -> None:
        if len(self.hosts) == self.wanted:  # it came together with the last one
            connection.close()
            return
        self.hosts.append(Host(name, connection))
        devices = f"{self.devices} device{'s' * (self.devices > 1)}"
        what = f"Worker {name} lends {devices}: host {len(self.hosts) + 1} of {self.wanted + 1}."
        callbacks.on_event("host.joined", what, {"worker": name, "devices": self.devices})

    def _say_missing(self, callbacks: Callbacks, seconds: float) -> None:
        found, ranks = len(self.hosts) + 1, (len(self.hosts) + 1) * self.devices
        callbacks.on_event(
            "hosts.missing",
            f"{found} of {self.wanted + 1} hosts {'is' if found == 1 else 'are'} here after {seconds:g} s: "
            f"the training goes on with {ranks} of {(self.wanted + 1) * self.devices} ranks.",
            {"hosts": found, "wanted": self.wanted + 1, "ranks": ranks},
        )


def say_closed(wanted: int, devices: int, callbacks: Callbacks) -> None:
    """No host can come, since nobody said where; ``wanted`` beside this one, with so many devices each."""
    hosts, ranks = wanted + 1, (wanted + 1) * devices
    callbacks.on_event(
        "hosts.missing",
        f"1 of {hosts} hosts is here, and no other can come: LIMBECK_RANKS_HOST is not set on this worker. "
        f"The training goes on with {devices} of {ranks} ranks.",
        {"hosts": 1, "wanted": hosts, "ranks": devices},
    )
