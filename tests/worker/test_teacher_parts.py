"""Offered parts of a teacher's pass as rows: who may take one, and when help is over. On both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from limbeck.errors import LeaseLost
from limbeck.offer import Part
from models.db import Database
from models.job import Job
from models.part import TeacherPart
from models.repository import jobs
from models.repository import offered as still_offered
from models.repository.settling import Fault
from tests.worker.conftest import LIKE, OFFER, claim_one, offered, steal, submit
from worker import claims, endings, parts
from worker.lease import Claim, Holder
from worker.parts import PartClaim

ONE, OTHER = Holder("one", "one", 1), Holder("other", "other", 2)


def take(database: Database, holder: Holder = ONE, **given: Any) -> PartClaim | None:
    wanted = {"likeness": LIKE, "threads": 2, "lease_seconds": 60} | given
    with database.session() as session:
        return parts.claim(session, holder, **wanted)


def taken(database: Database, holder: Holder = ONE, **given: Any) -> PartClaim:
    found = take(database, holder, **given)
    assert found is not None
    return found


def keeps(database: Database, claimed: PartClaim) -> bool:
    with database.session() as session:
        kept = claims.keep(session, claimed, 60)
        assert claims.wanted(session, claimed) == kept
    return kept


def rows(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(TeacherPart)) or 0


def test_each_part_is_taken_once_and_the_last_one_first(either: Database) -> None:
    """Guards against two helpers at one part, and against help where the job itself will be in a moment."""
    offered(either)
    found = [taken(either, holder) for holder in (ONE, OTHER, ONE, OTHER)]
    assert [claim.part.first for claim in found] == [3, 2, 1, 0]
    assert take(either) is None
    assert all(keeps(either, claim) for claim in found)
    with either.reading() as session:
        assert still_offered.count(session, TeacherPart) == {"free": 0, "held": 4}


def test_a_part_whose_helper_died_is_taken_by_another(either: Database) -> None:
    """Guards against a part that stays a dead helper's, and against a late one that takes it back."""
    offered(either)
    late = taken(either)
    with either.session() as session:
        session.execute(
            update(TeacherPart).where(TeacherPart.id == late.id).values(lease_expires_at=datetime.fromtimestamp(1, UTC))
        )
    again = taken(either, OTHER)
    assert (again.part, again.claims) == (late.part, late.claims + 1)
    assert not keeps(either, late)
    with either.session() as session:
        claims.give_back(session, late)
        claims.finish(session, late)
    assert keeps(either, again)


@pytest.mark.parametrize(
    "given", [{"likeness": "another processor"}, {"threads": 1}, {"threads": 0}, {"without": {OFFER.key}}]
)
def test_a_worker_that_would_round_otherwise_gets_none(database: Database, given: dict[str, Any]) -> None:
    """Guards the same bits: another processor or version, fewer threads, a pass that has been tried in vain."""
    offered(database)
    assert take(database, **given) is None
    assert taken(database, threads=8).threads == 2


def test_help_stays_with_its_pass(database: Database) -> None:
    first, second = offered(database), offered(database, replace(OFFER, key="b" * 64))
    mine = taken(database)
    assert mine.job_id == first.job.id
    others = [taken(database, of=mine) for _ in range(3)]
    assert {claim.job_id for claim in others} == {first.job.id}
    assert take(database, of=mine) is None
    assert taken(database).job_id == second.job.id


def pause(session: Session, running: Claim) -> None:
    jobs.request_pause(session, running.job.id)


def cancel(session: Session, running: Claim) -> None:
    jobs.request_cancel(session, running.job.id)


def let_expire(session: Session, running: Claim) -> None:
    long_ago = datetime.fromtimestamp(1, UTC)
    session.execute(update(Job).where(Job.id == running.job.id).values(lease_expires_at=long_ago))


@pytest.mark.parametrize("happens", [pause, cancel, let_expire])
def test_help_ends_with_what_it_is_for(either: Database, happens: Callable[[Session, Claim], None]) -> None:
    """Guards against workers that compute for a job that is cancelled, paused or lost."""
    running = offered(either)
    mine = taken(either)
    with either.session() as session:
        happens(session, running)
    assert not keeps(either, mine)
    assert take(either) is None


def test_the_next_attempt_offers_anew(either: Database) -> None:
    """Guards against rows of an attempt that is over."""
    running = offered(either)
    mine = taken(either)
    successor = steal(either, running.job.id)
    assert not keeps(either, mine)
    with either.session() as session, pytest.raises(LeaseLost):
        parts.offer(session, running.lease, OFFER)
    with either.session() as session:
        assert parts.offer(session, successor.lease, OFFER)
    assert [taken(either).part.first for _ in range(4)] == [3, 2, 1, 0]


@pytest.mark.parametrize("retryable", [True, False])
def test_an_attempt_that_ends_leaves_no_rows(either: Database, retryable: bool) -> None:
    running = offered(either)
    with either.session() as session:
        endings.fail(session, running.lease, Fault("killed", "It was killed.", retryable), retry_seconds=0)
    assert rows(either) == 0


def test_nothing_is_offered_before_the_checkpoint_has_the_teacher(database: Database) -> None:
    """Guards against helpers that fetch a state in which there is nothing to compute with."""
    submit(database)
    running = claim_one(database)
    assert running is not None
    with database.session() as session:
        assert not parts.offer(session, running.lease, OFFER)
    assert rows(database) == 0


def test_what_is_done_is_offered_no_more_and_what_somebody_is_at_stays_his(either: Database) -> None:
    """Guards a helper's work against the job that arrives at the same part."""
    running = offered(either)
    mine = taken(either)
    now = replace(OFFER, left=OFFER.left[1:], own=mine.part)
    with either.session() as session:
        parts.narrow(session, running.lease, now)
    assert (rows(either), keeps(either, mine)) == (3, True)
    with either.session() as session:
        assert parts.held(session, running.lease) == [3]
        parts.narrow(session, running.lease, replace(now, own=Part(1, 2)))
    assert (rows(either), taken(either).part.first) == (2, 2)
    with either.session() as session:
        parts.narrow(session, running.lease, replace(now, left=OFFER.left[1:3]))
    assert not keeps(either, mine), "it has been handed in"


def test_a_job_that_waits_is_seen_and_one_that_needs_a_gpu_is_not_waited_for(either: Database) -> None:
    offered(either)
    with either.reading() as session:
        assert not parts.job_waits(session)
        assert still_offered.count(session, TeacherPart) == {"free": 4, "held": 0}
    submit(either, gpus=1)
    with either.reading() as session:
        assert not parts.job_waits(session)
    submit(either)
    with either.reading() as session:
        assert parts.job_waits(session)
