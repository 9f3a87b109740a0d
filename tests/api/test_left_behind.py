"""Jobs whose worker died, while no worker is there at all: whoever is asked of them settles what was wanted."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert, text

from api.deps import Services
from models.attempt import Attempt
from models.job import JobStatus
from models.settings import Settings
from tests.api.conftest import become

Submit = Callable[..., dict[str, Any]]

CHECKPOINT = {"step": 7, "files": {}}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The API looks again and again for what dead workers left."""
    return Settings(data_dir=tmp_path / "data", reconcile_min_seconds=0.1)


def hold(house: Services, job_id: str, status: JobStatus, seconds: float, *, attempt: int = 1) -> None:
    """What a worker has written that lives, or would have lived, for so long from now on."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    held = {"worker": "gone:1", "lease_expires_at": until, "attempt": attempt, "fence": 1, "checkpoint": CHECKPOINT}
    become(house, job_id, status, **held)
    row = {"job_id": job_id, "fence": 1, "number": 1, "worker": "gone:1", "host": "gone", "started_at": until}
    with house.database.session() as session:
        session.execute(insert(Attempt).values(**row))


@pytest.mark.parametrize(("verb", "expected"), [("cancel", "cancelled"), ("pause", "paused")])
def test_what_is_asked_of_a_job_whose_worker_is_dead_is_done_at_once(
    client: TestClient, house: Services, submit: Submit, verb: str, expected: str
) -> None:
    """Guards against a job that nobody has any more and that is "cancelling" until a worker is started again."""
    job = submit()["id"]
    hold(house, job, JobStatus.RUNNING, -1)
    answer = client.post(f"/v1/jobs/{job}/{verb}")
    assert (answer.status_code, answer.json()["status"]) == (200, expected)
    (attempt,) = client.get(f"/v1/jobs/{job}/attempts").json()["data"]
    assert (attempt["outcome"], attempt["reason"]) == ("lost", "worker_lost")
    kinds = [event["kind"] for event in client.get(f"/v1/jobs/{job}/events").json()["data"]]
    assert kinds[-1] == f"job.{expected}"


def test_what_a_job_waited_for_when_its_worker_died_does_not_keep_it_from_going_on(
    client: TestClient, house: Services, submit: Submit
) -> None:
    """Guards against a 409 for the resume of a job that is "pausing" for nobody, or whose attempts are used up."""
    pausing, lost = submit()["id"], submit()["id"]
    hold(house, pausing, JobStatus.PAUSING, -1)
    hold(house, lost, JobStatus.RUNNING, -1, attempt=3)
    for job in (pausing, lost):
        answer = client.post(f"/v1/jobs/{job}/resume")
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")


@pytest.mark.parametrize(
    ("held", "attempt", "expected"),
    [("cancelling", 1, "cancelled"), ("pausing", 1, "paused"), ("running", 3, "failed")],
)
def test_a_job_whose_worker_dies_later_does_not_keep_its_watchers_waiting(
    client: TestClient, house: Services, submit: Submit, held: str, attempt: int, expected: str
) -> None:
    """Guards against a watcher who waits for ever, where the lease ran out after everything was asked."""
    job = submit()["id"]
    hold(house, job, JobStatus(held), 1.5, attempt=attempt)  # long enough to be asked before it is over
    assert client.get(f"/v1/jobs/{job}").json()["status"] == held
    deadline = time.monotonic() + 10
    while (status := client.get(f"/v1/jobs/{job}").json()["status"]) == held and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status == expected


def test_what_one_look_cannot_read_does_not_end_the_looking(
    client: TestClient, house: Services, submit: Submit
) -> None:
    """Guards against an API that looks for such jobs no more, and says nothing of it, until it is started again."""
    job = submit()["id"]
    hold(house, job, JobStatus.RUNNING, -1, attempt=3)
    with house.database.session() as session:
        session.execute(text("UPDATE jobs SET status = 'cancelling', provenance = 'no JSON'"))
    time.sleep(0.4)
    with house.database.session() as session:
        session.execute(text("UPDATE jobs SET provenance = '{}'"))
    deadline = time.monotonic() + 10
    while client.get(f"/v1/jobs/{job}").json()["status"] == "cancelling" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.get(f"/v1/jobs/{job}").json()["status"] == "cancelled"


def test_a_job_that_others_may_take_or_that_is_held_is_left_as_it_is(
    client: TestClient, house: Services, submit: Submit
) -> None:
    """Guards against an API that ends what the next worker would go on with, or what a living one has."""
    due, held = submit()["id"], submit()["id"]
    hold(house, due, JobStatus.RUNNING, -1)
    hold(house, held, JobStatus.CANCELLING, 60)
    time.sleep(0.4)
    assert client.get(f"/v1/jobs/{due}").json()["status"] == "running"
    assert client.post(f"/v1/jobs/{held}/cancel").json()["status"] == "cancelling"
