"""Ranks on other hosts: what is said of those that end or never meet, and what becomes of their hosts."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from limbeck.assignment import Assignment
from limbeck.config import DistillConfig
from limbeck.errors import Interrupted, RankLost
from limbeck.hosts import Host, LentRank, Lobby, Start
from limbeck.launching import _Crew, _HostLeaves, _Launcher, _NeverMet
from limbeck.lending import _Loan
from limbeck.rank_children import Rank, portable
from limbeck.result import DistillResult
from tests.limbeck.hosts import TWO_HOSTS, Inviting, Told


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
