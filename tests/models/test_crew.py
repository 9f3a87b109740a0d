"""Who is connected, and whom they serve."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import select

from models.db import Database
from models.job import Job
from models.repository import crew
from models.repository.crew import Crew
from tests.models.conftest import Submit, config


def test_what_is_told_and_what_is_claimed_agree(database: Database, submit: Submit) -> None:
    """Two expressions of one rule drift apart: a job would be said to wait for nothing, and not be claimed."""
    shapes: list[Any] = [(0, 1, 1), (1, 1, 1), (0, 2, 1), (2, 2, 1), (0, 2, 2), (1, 2, 2), (0, 8, 2), (4, 8, 2)]
    made = [
        submit(gpus=gpus, config={**config(), "training": {"devices": devices, "hosts": hosts}})
        for gpus, devices, hosts in shapes
    ]
    made.append(submit(config=config()))  # as rows were before there were several devices
    with database.reading() as session:
        for has in (0, 1, 2, 4):
            claimed = set(session.scalars(select(Job.id).where(*crew.served_by(has))))
            assert made[-1].id in claimed
            assert {job.id for job in made if Crew((has,)).lacks(job.gpus, job.config) is None} == claimed, has


def test_a_worker_that_says_nothing_any_more_counts_as_gone(database: Database) -> None:
    with database.session() as session:
        crew.say_present(session, "lasting", 1, 60)
        crew.say_present(session, "brief", 4, 0.05)
    time.sleep(0.1)
    with database.session() as session:
        assert crew.crew(session) == Crew((1,))
        crew.say_present(session, "lasting", 1, 60)
        crew.say_present(session, "brief", 4, 60)
    with database.session() as session:
        assert sorted(crew.crew(session).gpus) == [1, 4]
        crew.say_gone(session, "lasting")
        assert crew.crew(session) == Crew((4,))
