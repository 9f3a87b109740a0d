"""How the hosts of a training come together: who is let in, and what is said when nobody comes."""

from __future__ import annotations

import errno
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from limbeck.assignment import Assignment
from limbeck.callbacks import Callbacks
from limbeck.config import DistillConfig
from limbeck.errors import Conflict, Interrupted, RankLost, Unavailable
from limbeck.hosts import Host, HostsPlace, Invitation, LentRank, Lobby, Start
from limbeck.launching import _Crew, _HostLeaves, _Launcher, _NeverMet, distill_in_ranks
from limbeck.lending import _Loan, lend
from limbeck.network import greet, interface_of
from limbeck.rank_children import Rank, portable
from limbeck.result import DistillResult

TWO_HOSTS = {"teacher": "path:t", "dataset": "path:d", "student": 2, "training": {"devices": 2, "hosts": 2}}


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


class Told(Callbacks):
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.stop = False

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        self.events.append((kind, message))

    def should_stop(self) -> bool:
        return self.stop


class Inviting:
    """Whoever passes invitations on: does so to guests that know these secrets, or the right one."""

    def __init__(self, secrets: Sequence[str | None] = (), seconds: float = 30) -> None:
        self.place = HostsPlace("127.0.0.1", seconds, self.invite, lambda workers: self.settled.append([*workers]))
        self.invited: list[Invitation] = []
        self.settled: list[list[str]] = []
        self.refused: list[Exception] = []
        self._secrets = secrets
        self.threads: list[threading.Thread] = []

    def invite(self, invitation: Invitation) -> None:
        self.invited.append(invitation)
        self.threads = [
            threading.Thread(target=self._come, args=(invitation, secret, name := f"guest {number}"), name=name)
            for number, secret in enumerate(self._secrets)
        ]
        for thread in self.threads:
            thread.start()

    def _come(self, invitation: Invitation, secret: str | None, name: str) -> None:
        one = Invitation(invitation.address, invitation.port, secret or invitation.secret, 1, 2, 1)
        try:
            lend(one, name, Path("unused"), {}, lambda: False, lambda: None)
        except Conflict as error:
            self.refused.append(error)


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


def ended_process(code: str = "") -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code])
    process.wait()
    return process


class Crashing:
    """A rank that ends without a word, or after having said something."""

    def __init__(self, number: int, said: Exception | None = None) -> None:
        ours, theirs = Pipe()
        if said is not None:
            theirs.send(("failed", said))
        theirs.close()
        self.rank = Rank(number, ended_process("import os; os.kill(os.getpid(), 9)"), ours)


def start_of(turn: int, folder: Path) -> tuple[str, Start]:
    assignment = portable(Assignment(DistillConfig.parse(TWO_HOSTS), folder))
    return ("start", Start(turn, assignment, ("127.0.0.1", 1), 1, 1, 2))


def lending(monkeypatch: pytest.MonkeyPatch, folder: Path, ranks: Sequence[Rank | Exception]) -> tuple[Any, Any]:
    """The leader's end, and what a host whose ranks begin so raises when it has been let go."""
    coming = iter(ranks)

    @contextmanager
    def begun(*_: Any) -> Iterator[list[Rank]]:
        one = next(coming)
        if isinstance(one, Exception):
            raise one
        yield [one]

    monkeypatch.setattr("limbeck.lending.started", begun)
    ours, theirs = Pipe()

    def serve() -> Exception | None:
        try:
            with theirs, ExitStack() as running:
                _Loan(theirs, "guest", folder, {}, "lo", running).serve(lambda: False)
        except Exception as error:
            return error
        return None

    return ours, ThreadPoolExecutor(1).submit(serve)


def test_a_host_that_cannot_start_ranks_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards against a full disk that looks like a training which wants no more: the host would come again."""
    leader, ended = lending(monkeypatch, tmp_path, [OSError(errno.EAGAIN, "no more processes")])
    assert leader.recv() == "guest"
    leader.send(start_of(0, tmp_path))
    assert ended.result(10).errno == errno.EAGAIN
    with pytest.raises(EOFError):
        leader.recv()


@pytest.mark.parametrize(
    ("said", "fault"), [(None, True), (RankLost("Another rank has gone."), False)], ids=["a crash", "another's end"]
)
def test_a_host_whose_ranks_crash_again_is_not_lent_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Exception | None, fault: bool
) -> None:
    """Guards against a sick host that costs a job all of its restarts. What a rank says of others is not its fault."""
    leader, ended = lending(monkeypatch, tmp_path, [Crashing(1, said).rank for _ in range(2)])
    assert leader.recv() == "guest"
    host = Host("guest", leader)
    for turn in range(2):
        rank = LentRank(1, host)
        crew = _Crew([rank], [host], turn, Told(), None)
        leader.send(start_of(turn, tmp_path))
        while rank.talks:
            crew._hear_host(host)
        assert host.here == (turn == 0 or not fault)
    host.let_go()
    error = ended.result(10)
    assert (error is not None) == fault
    if fault:
        assert str(error) == "Rank 1 on this host was killed from outside (SIGKILL), as one did in an earlier start."


class OfALibraryHere(Exception):
    """Known to a module that the one who leads does not have."""


def test_an_error_that_only_this_host_knows_is_told_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards the one who leads, who would fail for not having the library: an error there is that host's loss alone."""
    leader, ended = lending(monkeypatch, tmp_path, [Crashing(1, OfALibraryHere("no such kernel")).rank])
    assert leader.recv() == "guest"
    host = Host("guest", leader)
    rank = LentRank(1, host)
    leader.send(start_of(0, tmp_path))
    assert leader.poll(10)
    monkeypatch.delattr(sys.modules[__name__], "OfALibraryHere")
    _Crew([rank], [host], 0, Told(), None)._hear_host(host)
    assert rank.how == "cannot go on: OfALibraryHere: no such kernel"
    assert not host.here
    assert type(ended.result(10)).__name__ == "OfALibraryHere"


def test_hosts_whose_ranks_do_not_find_each_other_are_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Guards against a firewall, behind which gloo would wait until the worker gives the whole attempt up."""
    monkeypatch.setattr("limbeck.launching._MEETING_SECONDS", 0.3)
    (here, _rank), (there, lent) = Pipe(), Pipe()
    host, told, lobbies = Host("guest", there), Told(), []
    rank = Rank(0, ended_process(), here)

    def turn(launcher: _Launcher, number: int) -> DistillResult | None:
        lobbies.append(launcher._lobby)
        return None if number else _Crew([rank, LentRank(1, host)], [host], 0, told, None).watch()

    monkeypatch.setattr(_Launcher, "_turn", turn)
    assignment = portable(Assignment(DistillConfig.parse(TWO_HOSTS), tmp_path))
    with Lobby(Inviting(seconds=0.1).place, wanted=1, devices=1) as lobby:
        _Launcher(assignment, told, None, lobby).run()
        assert lobbies == [lobby, None]
    assert not host.here
    with pytest.raises(EOFError):
        lent.recv()
    (lost,) = [message for kind, message in told.events if kind == "rank.lost"]
    assert lost.startswith("2 ranks on 2 hosts did not find each other within 0.3 s: of guest nothing came.")


def crew_of(told: Told, hosts: Sequence[Host]) -> tuple[_Crew, Connection[Any, Any]]:
    """A rank here, which has arrived, and one on each host; and rank 0's end."""
    here, zero = Pipe()
    zero.send(("arrived", 0))
    lent = [LentRank(number, host) for number, host in enumerate(hosts, start=1)]
    return _Crew([Rank(0, ended_process(), here), *lent], hosts, 0, told, None), zero


@pytest.mark.parametrize("arrive", [[], ["a"], ["a", "b"]], ids=["nobody", "one", "all"])
def test_a_meeting_that_fails_names_the_hosts_of_which_nothing_came(
    monkeypatch: pytest.MonkeyPatch, arrive: list[str]
) -> None:
    """Guards against one host that hangs, for which the others were let go, and which nobody could find out."""
    monkeypatch.setattr("limbeck.launching._MEETING_SECONDS", 0.5)
    ends = {name: Pipe() for name in ("a", "b")}
    hosts = [Host(name, ours) for name, (ours, _) in ends.items()]
    for number, (name, (_, theirs)) in enumerate(ends.items(), start=1):
        if name in arrive:
            theirs.send(("rank", 0, number, ("arrived", number)))
    crew, _zero = crew_of(Told(), hosts)
    with pytest.raises(RankLost) as caught:
        crew.watch()
    alone = isinstance(caught.value, _NeverMet)
    told = {(): "of a, b nothing came", ("a",): "of b nothing came", ("a", "b"): "The others are done without: a, b."}
    assert told[tuple(arrive)] in caught.value.message
    assert (alone, [host.name for host in hosts if host.here]) == (arrive != ["a"], ["a"] if arrive == ["a"] else [])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stop", [True, False], ids=["the run", "a host"])
def test_a_stop_is_heard_before_the_ranks_have_met(stop: bool) -> None:
    """Guards against three minutes until a cancel, or a worker that shuts down, is heard: rank 0 looks for the others
    just then."""
    ours, _theirs = Pipe()
    host, told = Host("guest", ours, leaving=not stop), Told()
    told.stop = stop
    crew, zero = crew_of(told, [host])
    with pytest.raises(Interrupted if stop else _HostLeaves):
        crew.watch()
    assert not zero.poll(0)
    assert host.here == stop
    assert [kind for kind, _ in told.events] == ([] if stop else ["host.left"])


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


@pytest.mark.parametrize("stop", [False, True], ids=["the host alone", "the run too"])
def test_a_host_that_leaves_as_the_others_are_done_ends_no_run(stop: bool) -> None:
    """Guards against "the run was asked to stop" where a host only left as rank 0 went on alone."""
    (here, zero), (there, _lent) = Pipe(), Pipe()
    host, told = Host("guest", there, leaving=True), Told()
    crew = _Crew([Rank(0, ended_process(), here), LentRank(1, host)], [host], 0, told, None)

    def rank() -> None:
        zero.send(("call", "on_event", ("ranks.met", "2 ranks.", {})))
        assert zero.recv() == ("stop",)
        told.stop = stop
        zero.send(("parted",))
        zero.send(("failed", Interrupted("The run was asked to stop.")))

    thread = threading.Thread(target=rank)
    thread.start()
    with pytest.raises(Interrupted if stop else _HostLeaves):
        crew.watch()
    thread.join()
    assert not host.here
