"""Places of hosts as rows: who may take one, and when it is wanted no more. On both databases."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select, update

from limbeck.errors import LeaseLost
from limbeck.hosts import Invitation
from models.db import Database
from models.host_place import HostPlace
from models.repository import jobs, offered
from models.settings import Settings
from models.storage import Storage
from tests.worker.conftest import STAND_IN, claim_one, expire, steal, submit
from worker import claims, endings, places
from worker.invitations import own_address
from worker.lease import Claim, Holder
from worker.lender import Lender, _Loan
from worker.places import PlaceClaim
from worker.queue import Bell
from worker.runner import Shutdown
from worker.service import Worker
from worker.slots import Place, Slots

KIND = "a processor, torch 2"
ONE, OTHER = Holder("one", "one", 1), Holder("other", "other", 2)
WANTED = Invitation("127.0.0.1", 4711, "s" * 64, places=2, devices=3, threads=2)


def invited(database: Database, *, gpus: bool = False) -> Claim:
    """A job that runs and wants two hosts more."""
    submit(database)
    running = claim_one(database)
    assert running is not None
    with database.session() as session:
        places.invite(session, running.lease, WANTED, kind=KIND, gpus=gpus)
    return running


def take(database: Database, holder: Holder = ONE, **given: Any) -> PlaceClaim | None:
    wanted = {"kind": KIND, "gpus": None, "threads": 2, "lease_seconds": 60} | given
    with database.session() as session:
        return places.claim(session, holder, **wanted)


def taken(database: Database, holder: Holder = ONE) -> PlaceClaim:
    found = take(database, holder)
    assert found is not None
    return found


def keeps(database: Database, claimed: PlaceClaim) -> bool:
    with database.session() as session:
        kept = claims.keep(session, claimed, 60)
        assert claims.wanted(session, claimed) == kept
    return kept


def rows(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(HostPlace)) or 0


def test_each_place_is_taken_once_and_says_where_to_go(either: Database) -> None:
    """Guards against two hosts in one place, where one would wait for ever."""
    running = invited(either)
    found = [taken(either, holder) for holder in (ONE, OTHER)]
    assert len({claim.id for claim in found}) == 2
    assert {claim.job_id for claim in found} == {running.job.id}
    first = found[0].invitation
    assert (first.address, first.port, first.secret, first.devices) == ("127.0.0.1", 4711, "s" * 64, 3)
    assert first.threads == 2
    assert take(either, Holder("third", "third", 3)) is None
    assert all(keeps(either, claim) for claim in found)
    with either.reading() as session:
        assert offered.count(session, HostPlace) == {"free": 0, "held": 2}


def test_a_worker_lends_nothing_to_its_own_job(either: Database) -> None:
    """Guards against a second slot of the worker that leads, which is no other host."""
    running = invited(either)
    assert take(either, Holder(running.job.worker or "", "host", 1)) is None
    assert taken(either, OTHER)


@pytest.mark.parametrize(
    ("gpus", "given"),
    [
        (False, {"kind": "another processor"}),
        (False, {"gpus": 8}),
        (False, {"threads": 1}),
        (True, {"gpus": None}),
        (True, {"gpus": 2}),
        (True, {"gpus": 0}),
    ],
)
def test_a_host_of_another_kind_gets_no_place(database: Database, gpus: bool, given: dict[str, Any]) -> None:
    """Guards against ranks that round otherwise and drift apart, and against fewer GPUs than ranks."""
    invited(database, gpus=gpus)
    assert take(database, **given) is None
    assert take(database, gpus=3 if gpus else None) is not None


def test_a_job_that_could_not_be_helped_is_passed_over(database: Database) -> None:
    running = invited(database)
    assert take(database, without={running.job.id}) is None


def test_a_place_is_kept_while_the_job_saves_its_state(either: Database) -> None:
    """Guards the pause of a job: its ranks make the step that they are at together."""
    running = invited(either)
    mine = taken(either)
    with either.session() as session:
        jobs.request_pause(session, running.job.id)
    assert keeps(either, mine)
    assert take(either, OTHER) is None, "nobody comes to a job that pauses"
    with either.session() as session:
        endings.stop(session, running.lease)
    assert not keeps(either, mine)
    assert rows(either) == 0, "with the secret in them"


def test_places_end_with_the_attempt_that_offers_them(either: Database) -> None:
    """Guards against ranks for a leader that has lost its job."""
    running = invited(either)
    mine = taken(either)
    expire(either, running.job.id)
    assert not keeps(either, mine)
    assert take(either, OTHER) is None
    again = steal(either, running.job.id)
    assert not keeps(either, mine)
    with pytest.raises(LeaseLost), either.session() as session:
        places.invite(session, running.lease, WANTED, kind=KIND, gpus=False)
    with either.session() as session:
        places.invite(session, again.lease, WANTED, kind=KIND, gpus=False)
    assert rows(either) == 2


def test_a_place_is_not_taken_for_one_that_has_its_number_later(either: Database) -> None:
    """SQLite gives numbers of rows that are gone again: guards a training's host against one that was lent before, and
    gives its place back."""
    running = invited(either)
    late = [taken(either, holder) for holder in (ONE, OTHER)]
    again = steal(either, running.job.id)
    with either.session() as session:
        places.invite(session, again.lease, WANTED, kind=KIND, gpus=False)
    here = [taken(either, Holder(name, name, 3)) for name in ("third", "fourth")]
    for one in late:
        assert not keeps(either, one)
        with either.session() as session:
            claims.give_back(session, one)
            claims.finish(session, one)
    assert all(keeps(either, one) for one in here)


def test_only_those_who_came_keep_their_places(either: Database) -> None:
    """Guards against a worker that holds its slot for a training that has begun without it."""
    running = invited(either)
    here, late = taken(either, ONE), taken(either, OTHER)
    with either.session() as session:
        places.settle(session, running.lease, ["one"])
    assert (keeps(either, here), keeps(either, late), rows(either)) == (True, False, 1)
    with either.session() as session:
        places.settle(session, running.lease, [])
    assert rows(either) == 0


def test_a_place_that_was_given_back_is_free_and_one_that_was_filled_is_gone(either: Database) -> None:
    invited(either)
    mine = taken(either)
    with either.session() as session:
        claims.give_back(session, mine)
    again = taken(either, OTHER)
    assert (again.id, again.claims) == (mine.id, mine.claims + 1)
    with either.session() as session:
        claims.finish(session, mine)  # too late: it is another's
        claims.finish(session, again)
    assert rows(either) == 1


def test_the_place_of_a_dead_worker_is_taken_by_another(either: Database) -> None:
    invited(either)
    late = taken(either)
    with either.session() as session:
        past = datetime.fromtimestamp(1, UTC)
        session.execute(update(HostPlace).where(HostPlace.id == late.id).values(lease_expires_at=past))
    assert taken(either, OTHER).id == late.id
    assert not keeps(either, late)


def test_a_host_is_reached_as_it_reaches_the_database(settings: Settings) -> None:
    """Guards the address that is offered: with a database in a file all workers are on this machine. Guards against
    ports without a password on a network that nobody who runs the worker has named."""
    assert own_address(settings) == "127.0.0.1"
    there = {"database_url": "postgresql+psycopg://limbeck@127.0.0.1:5432/limbeck"}
    assert own_address(settings.model_copy(update=there)) == "127.0.0.1"
    assert own_address(settings.model_copy(update=there | {"ranks_host": "198.51.100.7"})) == "198.51.100.7"
    for elsewhere in ("198.51.100.1", "nowhere.invalid"):
        there = {"database_url": f"postgresql+psycopg://limbeck@{elsewhere}:5432/limbeck"}
        assert own_address(settings.model_copy(update=there)) is None


def test_a_worker_without_an_address_lends_nothing(database: Database, storage: Storage, settings: Settings) -> None:
    """Guards against ranks, and their ports, on a machine whose owner has named no network for them."""
    submit(database)
    running = claim_one(database)
    assert running is not None
    wanted = Invitation("127.0.0.1", 4711, "s" * 64, places=1, devices=1, threads=1)
    with database.session() as session:
        places.invite(session, running.lease, wanted, kind=places.kind_of_host(gpus=False), gpus=False)
    elsewhere = settings.model_copy(update={"database_url": "postgresql+psycopg://limbeck@198.51.100.1/limbeck"})
    for own, lends in ((elsewhere, False), (settings, True)):
        lender = Lender(own, database, storage, Shutdown(), OTHER)
        with database.session() as session:
            assert (lender.claim(session, None, 1) is not None) == lends


@pytest.mark.parametrize(("needs", "lends"), [(2, False), (3, True)], ids=["the next job's", "nobody's"])
def test_gpus_that_wait_for_others_are_not_lent(
    database: Database, storage: Storage, settings: Settings, needs: int, lends: bool
) -> None:
    """Guards the job that is next: its GPUs, freed one after the other, would be lent one after the other. A job that
    this worker could never serve holds nothing up."""
    submit(database)
    running = claim_one(database)
    assert running is not None
    wanted = Invitation("127.0.0.1", 4711, "s" * 64, places=1, devices=1, threads=1)
    with database.session() as session:
        places.invite(session, running.lease, wanted, kind=places.kind_of_host(gpus=True), gpus=True)
    submit(database, gpus=needs)
    worker = Worker(settings, database, storage, Bell(settings), Slots(2, gpus=["0", "1"]), command=STAND_IN)
    with database.session() as session:
        assert (worker._place(session, 1) is not None) == lends


@pytest.mark.parametrize("code", [None, "conflict"])
def test_a_host_that_was_turned_away_does_not_come_again(
    database: Database, storage: Storage, settings: Settings, code: str | None
) -> None:
    """Guards against a second loan of one worker, too late, that is tried again for as long as the training lasts."""
    running = invited(database)
    first, late = taken(database), taken(database)
    with database.session() as session:
        places.settle(session, running.lease, ["one"])
    assert keeps(database, first)
    loan = _Loan(Lender(settings, database, storage, Shutdown(), ONE), late, Place((), 1))
    if code is not None:
        loan._hear({"type": "error", "code": code, "message": "The training wants no more hosts, or others."})
    loan.let_go()
    assert not loan.failed, "it may come when it is wanted"
    assert (take(database) is None) == (code is not None)


@pytest.mark.parametrize("code", ["conflict", "unavailable", "storage_full"])
def test_a_host_whose_ranks_could_not_go_on_is_not_lent_again(
    database: Database, storage: Storage, settings: Settings, code: str
) -> None:
    """Guards the job's restarts: what a rank says once the host has joined is no word of the one who leads."""
    invited(database)
    loan = _Loan(Lender(settings, database, storage, Shutdown(), ONE), taken(database), Place((), 1))
    loan._hear({"type": "joined"})
    loan._hear({"type": "error", "code": code, "message": "The hub is away."})
    assert (loan.failed, loan.unreached) == (True, False)


def lender(settings: Settings, database: Database, storage: Storage, *program: str) -> Lender:
    """Of :data:`OTHER`; its process is ``python -c PROGRAM …``."""
    given = {"command": (sys.executable, "-c", *program)} if program else {}
    return Lender(settings, database, storage, Shutdown(), OTHER, **given)


def lent_once(lender: Lender, database: Database) -> bool:
    """Whether there was a place for it; it has come back from there."""
    with database.session() as session:
        claimed = lender.claim(session, None, 1)
    if claimed is not None:
        lender.run(claimed, Place((), 1))
    return claimed is not None


def invited_here(database: Database) -> None:
    """A training by which nobody listens wants a host of this kind."""
    submit(database)
    running = claim_one(database)
    assert running is not None
    wanted = Invitation("127.0.0.1", 1, "s" * 64, places=1, devices=1, threads=1)
    with database.session() as session:
        places.invite(session, running.lease, wanted, kind=places.kind_of_host(gpus=False), gpus=False)


def taken_by_a_third(database: Database) -> bool:
    here = {"kind": places.kind_of_host(gpus=False), "threads": 1}
    return take(database, Holder("third", "third", 3), **here) is not None


def test_a_place_that_one_worker_cannot_reach_is_left_to_the_others(
    database: Database, storage: Storage, settings: Settings
) -> None:
    """Guards against one worker behind a firewall that uses up the places which others could fill."""
    invited_here(database)
    cut_off = lender(settings, database, storage)
    assert [lent_once(cut_off, database) for _ in range(2)] == [True, False]
    assert taken_by_a_third(database)
    invited_here(database)
    with database.session() as session:
        session.execute(update(HostPlace).values(secret="t" * 64, worker=None))
    assert lent_once(cut_off, database), "from another training it may be reached"


def test_a_worker_whose_process_crashes_again_leaves_the_place_to_others(
    database: Database, storage: Storage, settings: Settings
) -> None:
    """Guards against a broken installation that fetches the models on and on and holds the place meanwhile."""
    invited_here(database)
    broken = lender(settings, database, storage, "raise SystemExit(7)")
    assert [lent_once(broken, database) for _ in range(3)] == [True, True, False]
    assert taken_by_a_third(database)
