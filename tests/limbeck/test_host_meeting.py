"""How the hosts of a training come together: who is let in, and what is said when nobody comes."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from limbeck.assignment import Assignment
from limbeck.config import DistillConfig
from limbeck.errors import Interrupted, Unavailable
from limbeck.hosts import HostsPlace, Invitation, Lobby
from limbeck.launching import _Launcher, distill_in_ranks
from limbeck.network import greet, interface_of
from tests.limbeck.hosts import TWO_HOSTS, Inviting, Told


def joined_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


@pytest.mark.parametrize(("secrets", "meet"), [(("s", "s"), True), (("s", "other"), False)])
def test_only_who_knows_the_secret_is_heard(secrets: tuple[str, str], meet: bool) -> None:
    """Guards against a stranger on the port, whose bytes would be unpickled."""
    one, other = joined_pair()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(greet(one, secrets[0], listens=False)))
    thread.start()
    here = greet(other, secrets[1], listens=True)
    thread.join(10)
    (there,) = found
    assert (here is not None, there is not None) == (meet, meet)
    if here is not None and there is not None:
        there.send({"a": 1})
        assert here.recv() == {"a": 1}
        here.close()
        there.close()


def test_what_is_no_greeting_is_refused() -> None:
    one, other = joined_pair()
    with one:
        one.sendall(b"GET / HTTP/1.1\r\n\r\n")
        one.shutdown(socket.SHUT_WR)
        assert greet(other, "s", listens=True) is None


def test_an_address_has_an_interface() -> None:
    assert interface_of("127.0.0.1") == "lo"
    for address in ("203.0.113.254", "0.0.0.0", "127.0.0.2"):  # 127.0.0.2 is reached, but is no interface's first
        with pytest.raises(Unavailable, match=r"LIMBECK_RANKS_HOST"):
            interface_of(address)


def test_guests_are_told_and_strangers_turned_away() -> None:
    """Guards against a stranger that takes a host's place, or stops the others from coming."""
    inviting, told = Inviting(["a guess", None]), Told()
    with Lobby(inviting.place, wanted=1, devices=2) as lobby:
        lobby.gather(told)
        lobby.gather(told)  # nobody is missing: nobody is asked
        assert [host.name for host in lobby.hosts] == ["guest 1"]
    for thread in inviting.threads:
        thread.join(10)
    assert [(one.places, one.devices) for one in inviting.invited] == [(1, 2)]
    assert inviting.settled == [["guest 1"]]
    assert told.events == [
        ("hosts.wanted", "Waits up to 30 s for 1 more host."),
        ("host.joined", "Worker guest 1 lends 2 devices: host 2 of 2."),
    ]
    assert len(inviting.refused) == 1


def test_a_lobby_where_nobody_comes_says_so() -> None:
    inviting, told = Inviting(seconds=0.1), Told()
    with Lobby(inviting.place, wanted=2, devices=2) as lobby:
        lobby.gather(told)
    message = "1 of 3 hosts is here after 0.1 s: the training goes on with 2 of 6 ranks."
    assert told.events == [("hosts.wanted", "Waits up to 0.1 s for 2 more hosts."), ("hosts.missing", message)]
    assert inviting.settled == [[]]


def test_a_lobby_is_left_when_the_run_is_to_stop() -> None:
    inviting, told = Inviting(), Told()
    told.stop = True
    with Lobby(inviting.place, wanted=1, devices=1) as lobby, pytest.raises(Interrupted):
        lobby.gather(told)
    assert inviting.settled == [[]]


@pytest.mark.parametrize("address", ["203.0.113.254", "0.0.0.0", "127.0.0.2"])
def test_an_address_that_is_not_this_machines_is_named(address: str) -> None:
    """Guards against a setting that is wrong and shows as a fault of Limbeck's own, or as ranks that wait for each
    other on another interface."""
    place = HostsPlace(address, 1, lambda invitation: None, lambda workers: None)
    with pytest.raises(Unavailable, match=rf"{re.escape(address)}\b.*LIMBECK_RANKS_HOST"):
        Lobby(place, wanted=1, devices=1)


def test_a_host_that_nobody_may_reach_trains_alone_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Guards against ports without a password that whoever submits a job would open."""
    document = TWO_HOSTS | {"training": {"devices": 4, "hosts": 2}}
    told, turns = Told(), []
    monkeypatch.setattr(socket, "create_server", None)
    monkeypatch.setattr(_Launcher, "run", lambda launcher: turns.append(launcher._lobby))
    place = HostsPlace(None, 1, lambda invitation: None, lambda workers: None)
    distill_in_ranks(Assignment(DistillConfig.parse(document), tmp_path), told, hosts=place)
    assert turns == [None]
    ((kind, message),) = told.events
    assert kind == "hosts.missing"
    assert "LIMBECK_RANKS_HOST is not set" in message
    assert message.endswith("The training goes on with 2 of 4 ranks.")


def test_strangers_who_say_nothing_keep_nobody_waiting() -> None:
    """Guards the hosts that come behind a scan of ports: they had to wait for longer than they themselves do, and their
    places were lost."""
    inviting, told = Inviting([None]), Told()
    with ExitStack() as stack:

        def come(invitation: Invitation) -> None:
            for _ in range(3):
                stack.enter_context(socket.create_connection((invitation.address, invitation.port)))
            inviting.invite(invitation)

        place = HostsPlace("127.0.0.1", 30, come, lambda workers: None)
        began = time.monotonic()
        with Lobby(place, wanted=1, devices=2) as lobby:
            lobby.gather(told)
            assert [host.name for host in lobby.hosts] == ["guest 0"]
        assert time.monotonic() - began < 4
    for thread in inviting.threads:
        thread.join(10)
    assert inviting.refused == []


def test_more_guests_than_places_are_let_go() -> None:
    """Guards against a host that waits for a training which has begun without it."""
    inviting, told = Inviting([None] * 4), Told()
    with Lobby(inviting.place, wanted=1, devices=2) as lobby:
        lobby.gather(told)
        assert len(lobby.hosts) == 1
        (kept,) = [thread for thread in inviting.threads if thread.name == lobby.hosts[0].name]
        for thread in inviting.threads:
            if thread is not kept:
                thread.join(10)
                assert not thread.is_alive()
        assert kept.is_alive()
    kept.join(10)
    assert [kind for kind, _ in told.events] == ["hosts.wanted", "host.joined"]


@pytest.mark.parametrize("slow", ["silent", "drips", "no name"])
def test_a_guest_who_does_not_get_on_is_turned_away(monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    """Guards against a connection, and a thread, that a stranger could hold for ever."""
    monkeypatch.setattr("limbeck.network._GREETING_SECONDS", 0.5)
    told, left, pool = Told(), threading.Event(), ThreadPoolExecutor(1)
    guests: list[Future[None]] = []

    def come(invitation: Invitation) -> None:
        with ExitStack() as stack:
            peer = stack.enter_context(socket.create_connection((invitation.address, invitation.port)))
            if slow == "no name":
                connection = greet(peer, invitation.secret, listens=False)
                assert connection is not None
                stack.enter_context(connection)
            with suppress(OSError):
                while not left.wait(0.1):
                    if slow == "drips":
                        peer.sendall(b"\0")

    place = HostsPlace("127.0.0.1", 0.7, lambda one: guests.append(pool.submit(come, one)), lambda names: None)
    with Lobby(place, wanted=1, devices=1) as lobby:
        began = time.monotonic()
        lobby.gather(told)
        assert time.monotonic() - began < 3
        assert lobby.hosts == []
    left.set()
    guests[0].result(10)


@pytest.mark.parametrize("leaves", [False, True], ids=["dies", "would like to go"])
def test_a_guest_who_has_gone_meanwhile_does_not_count(leaves: bool) -> None:
    """Guards against ranks for a host that is not there, which cost a restart."""
    told = Told()
    settled: list[Sequence[str]] = []
    guests: list[Connection[Any, Any]] = []

    def come(invitation: Invitation) -> None:
        peer = socket.create_connection((invitation.address, invitation.port))
        connection = greet(peer, invitation.secret, listens=False)
        assert connection is not None
        connection.send("guest")
        if leaves:
            connection.send(("leaving",))
            guests.append(connection)
        else:
            connection.close()

    place = HostsPlace("127.0.0.1", 1, lambda one: threading.Thread(target=come, args=(one,)).start(), settled.append)
    with Lobby(place, wanted=2, devices=1) as lobby:
        lobby.gather(told)
        assert lobby.hosts == []
    assert settled == [[]]
    assert told.events[-1] == (
        "hosts.missing",
        "1 of 3 hosts is here after 1 s: the training goes on with 1 of 3 ranks.",
    )
    for one in guests:
        with pytest.raises(EOFError):
            one.recv()
        one.close()
