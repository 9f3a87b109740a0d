"""Jobs that no connected worker can serve: they say so, promise no start, and begin when such a worker comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.deps import Services
from models.attempt import Attempt
from models.job import JobStatus
from models.repository import crew
from tests.api.conftest import SMALLEST, become, connect

Submit = Callable[..., dict[str, Any]]
TWO = {"devices": 2, "batch_size": 32}


@pytest.fixture
def paced(house: Services, submit: Submit) -> None:
    """Enough jobs have succeeded for an estimate."""
    for _ in range(3):
        job, begun = submit()["id"], datetime(2026, 11, 24, 2, tzinfo=UTC)
        become(house, job, JobStatus.SUCCEEDED)
        with house.database.session() as session:
            facts = {"job_id": job, "fence": 1, "number": 1, "worker": "w", "host": "h"}
            session.add(Attempt(**facts, started_at=begun, ended_at=begun + timedelta(seconds=90)))


def kinds(client: TestClient, job: str) -> dict[str, str]:
    return {one["kind"]: one["message"] for one in client.get(f"/v1/jobs/{job}/events").json()["data"]}


@pytest.mark.usefixtures("paced")
def test_a_job_that_asks_for_a_gpu_nobody_has_says_so_until_one_comes(
    client: TestClient, house: Services, submit: Submit
) -> None:
    """Guards against a job that waits for ever, with an estimate of minutes."""
    connect(house)
    job = submit(resources={"gpus": 1})
    what = "a worker with 1 GPU; the only one that is connected has no GPU"
    assert (job["status"], job["waits_for"], job["starts_in_seconds"]) == ("queued", what, None)
    assert kinds(client, job["id"])["job.waiting"] == f"The job waits for {what}."
    answer = client.get(f"/v1/jobs/{job['id']}")
    assert answer.json()["waits_for"] == what
    connect(house, "worker:2", gpus=1)
    deadline = time.monotonic() + 10  # what is told of the queue may be a moment old
    known = {"If-None-Match": answer.headers["etag"]}
    while (answer := client.get(f"/v1/jobs/{job['id']}", headers=known)).status_code == 304:
        assert time.monotonic() < deadline, "the ETag hides that there is such a worker"
        time.sleep(0.05)
    assert answer.json()["waits_for"] is None
    assert answer.json()["starts_in_seconds"] is not None


@pytest.mark.usefixtures("paced")
def test_no_start_is_promised_while_nobody_is_connected(client: TestClient, house: Services, submit: Submit) -> None:
    """Guards an estimate of minutes where all workers are gone; the events keep silent, one may be about to start."""
    job = submit()
    assert (job["waits_for"], job["starts_in_seconds"]) == ("a worker; none is connected", None)
    assert "job.waiting" not in kinds(client, job["id"])
    connect(house)
    assert submit()["starts_in_seconds"] is not None
    with house.database.session() as session:
        crew.say_gone(session, "worker:1")
    assert submit()["starts_in_seconds"] is None


@pytest.mark.parametrize(
    ("gpus", "wanted", "told"),
    [
        ((0, 1), {"resources": {"gpus": 2}, "training": TWO}, "a worker with 2 GPUs; of the 2 that are connected none"),
        ((0, 0), {"resources": {"gpus": 1}}, "a worker with 1 GPU; of the 2 that are connected none has a GPU"),
        ((1, 1), {"training": TWO}, "a worker with 2 GPUs, one for each device, or with none at all; of the 2"),
        ((1, 1), {"resources": {"gpus": 1}, "training": TWO | {"hosts": 2}}, None),
        ((0, 1), {"training": TWO}, None),
        ((0, 2), {"resources": {"gpus": 2}, "training": TWO}, None),
        ((1, 1), {}, None),
    ],
)
def test_what_is_missing_is_told_with_what_the_workers_have(
    client: TestClient, house: Services, submit: Submit, gpus: tuple[int, ...], wanted: dict[str, Any], told: str | None
) -> None:
    for number, count in enumerate(gpus):
        connect(house, f"worker:{number}", gpus=count)
    job = submit(**wanted)
    notes = client.post("/v1/jobs:validate", json={**SMALLEST, **wanted}).json()["notes"]
    if told is None:
        assert job["waits_for"] is None
        assert not any("would wait" in note for note in notes)
    else:
        assert job["waits_for"].startswith(told)
        assert f"The job would wait for {job['waits_for']}." in notes
