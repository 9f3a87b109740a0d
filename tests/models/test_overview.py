"""What is told of all jobs and workers at once, to whoever watches the service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert, update

from models.attempt import OUTCOMES, Attempt
from models.db import Database
from models.event import Event
from models.job import JobStatus
from models.repository import crew, jobs, overview
from tests.models.conftest import Submit, set_status


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def came(database: Database, job_id: str, seconds: float) -> None:
    """Let a job be in the queue for so long."""
    with database.session() as session:
        session.execute(update(Event).where(Event.job_id == job_id).values(at=ago(seconds)))


def waited(database: Database) -> float:
    with database.reading() as session:
        return overview.longest_wait(session)


def test_the_longest_wait_is_since_a_job_could_have_begun(database: Database, submit: Submit) -> None:
    """Guards an alarm on a queue that nobody serves against jobs that were paused for a week, or wait for a retry."""
    assert waited(database) == 0
    running, first, second = (submit().id for _ in range(3))
    for job_id, seconds in ((running, 5000), (first, 900), (second, 100)):
        came(database, job_id, seconds)
    set_status(database, running, JobStatus.RUNNING, lease_expires_at=ago(-60))
    assert 899 < waited(database) < 960
    set_status(database, first, JobStatus.QUEUED, lease_expires_at=ago(30))
    assert 99 < waited(database) < 160, "of a job that is to be tried again the time since it may be"
    set_status(database, second, JobStatus.QUEUED, lease_expires_at=ago(-600))
    assert 29 < waited(database) < 90
    with database.session() as session:
        jobs.request_pause(session, first)
    assert waited(database) == 0, "what may not begin yet waits for nobody"
    with database.session() as session:
        jobs.resume(session, first)
    assert waited(database) < 29


def test_workers_are_told_with_what_they_hold(database: Database, submit: Submit) -> None:
    with database.session() as session:
        for worker in ("busy", "idle"):
            crew.say_present(session, worker, 0, 60)
    for worker, lease, status in (
        ("busy", -60, JobStatus.RUNNING),
        ("busy", -60, JobStatus.PAUSING),
        ("dead", 5, JobStatus.RUNNING),
        ("idle", 5, JobStatus.SUCCEEDED),
    ):
        set_status(database, submit().id, status, worker=worker, lease_expires_at=ago(lease))
    with database.reading() as session:
        assert overview.count_by_worker(session) == {"busy": 2, "idle": 0}
        assert overview.count_overdue(session) == 1


def test_attempts_are_told_by_how_they_ended_of_late(database: Database, submit: Submit) -> None:
    """Guards an alarm on lost attempts against those of last year, and against counts that fall when jobs are
    deleted."""
    job = submit().id
    ended = [(outcome, ago(10)) for outcome in (*OUTCOMES, "lost")] + [("lost", ago(4000)), (None, None)]
    with database.session() as session:
        for fence, (outcome, at) in enumerate(ended):
            facts = {
                "job_id": job,
                "fence": fence,
                "number": fence,
                "worker": "w",
                "host": "h",
                "started_at": ago(9000),
            }
            session.execute(insert(Attempt).values(**facts, ended_at=at, outcome=outcome))
    with database.reading() as session:
        assert overview.count_ended_attempts(session) == dict.fromkeys(OUTCOMES, 1) | {"lost": 2}
