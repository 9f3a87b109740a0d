"""The queue: how long it takes, and how many fit in."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete

from limbeck.errors import QueueFull
from models.attempt import Attempt
from models.db import Database
from models.job import Job, JobStatus
from models.repository import jobs
from models.repository.overview import count_by_status
from models.repository.queue import pace, require_room
from tests.models.conftest import Submit, request, set_status

S = JobStatus


def test_the_time_until_a_job_starts_is_measured_on_those_that_ended(database: Database, submit: Submit) -> None:
    """An ETA from nothing would be a guess; the slowest and the quickest job must not decide it alone."""
    with database.reading() as session:
        assert pace(session) is None
    for minutes in (1, 10, 10, 20, 20, 30, 30, 900):
        job_id = submit().id
        set_status(database, job_id, S.SUCCEEDED)
        begun = datetime(2026, 11, 24, 2, tzinfo=UTC)
        with database.session() as session:  # two attempts, with a week's pause between them
            for fence, start in enumerate((begun, begun + timedelta(days=7))):
                end = start + timedelta(minutes=minutes) / 2
                facts = {"job_id": job_id, "fence": fence, "number": fence, "worker": "w", "host": "h"}
                session.add(Attempt(**facts, started_at=start, ended_at=end))
    for _ in range(2):
        set_status(database, submit().id, S.RUNNING)
    with database.reading() as session:
        found = pace(session)
    assert found is not None
    assert (found.quick, found.slow, found.side_by_side) == (600, 1800, 2)
    assert found.starts_in(1) == (0, 1800)
    assert found.starts_in(5) == (1200, 5400)


def test_the_time_until_a_job_starts_is_never_less_than_nothing(database: Database, submit: Submit) -> None:
    """The database's clock may be set back while a job runs."""
    begun = datetime(2026, 11, 24, 2, tzinfo=UTC)
    for _ in range(3):
        job_id = submit().id
        set_status(database, job_id, S.SUCCEEDED)
        facts = {"job_id": job_id, "fence": 1, "number": 1, "worker": "w", "host": "h"}
        with database.session() as session:
            session.add(Attempt(**facts, started_at=begun, ended_at=begun - timedelta(hours=1)))
    with database.reading() as session:
        found = pace(session)
    assert found is not None
    assert found.starts_in(5) == (0, 0)


def test_of_many_who_submit_at_once_no_more_get_in_than_there_is_room_for(migrated_postgres: Database) -> None:
    """PostgreSQL's transactions do not see what others have not committed yet. SQLite's write one at a time."""
    with migrated_postgres.session() as session:
        session.execute(delete(Job))
    gate = threading.Barrier(6)

    def put(_: int) -> bool:
        try:
            with migrated_postgres.session() as session:
                jobs.submit(session, **request())
                gate.wait(20)
                require_room(session, 4)
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(put, range(6))) == 4
    with migrated_postgres.reading() as session:
        assert count_by_status(session)[S.QUEUED] == 4
