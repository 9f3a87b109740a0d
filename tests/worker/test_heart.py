"""The thread that keeps a lease: it goes on whatever a look at the row meets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from models.db import Database
from models.settings import Settings
from tests.worker.conftest import claim_one, submit
from tests.worker.processes import until
from worker.heart import Heart
from worker.telemetry import Telemetry


@contextmanager
def without_jobs(database: Database) -> Iterator[None]:
    """The statements of a heart fail as if they were wrong: not in a way that means that the database is away."""
    for old, new in (("jobs", "gone"), ("gone", "jobs")):
        with database.session() as session:
            session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
        if new == "gone":
            yield


def test_an_error_that_nobody_thought_of_does_not_end_the_heart(
    either: Database, on_both: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a lease that nobody renews from then on: a second's fault would cost the attempt."""
    submit(either)
    held = claim_one(either)
    assert held is not None
    heart = Heart(either, held.lease, Telemetry({}, 0), on_both, time.monotonic())
    heart.start()
    try:
        with without_jobs(either):
            until(lambda: "a look at its row failed" in caplog.text)
        met = heart.deadline
        until(lambda: heart.deadline > met)
        assert caplog.text.count("a look at its row failed") == 1
        assert heart.holds
    finally:
        heart.stop()
