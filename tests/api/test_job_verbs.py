"""What is done with a job over HTTP, and which state allows it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.deps import Services
from models.job import JobStatus
from tests.api.conftest import add_model, become

Submit = Callable[..., dict[str, Any]]


def test_a_resume_keeps_to_the_queues_bound_and_loses_nothing(
    client: TestClient, house: Services, submit: Submit
) -> None:
    """Guards against a queue without an end, by jobs that are paused while others are submitted."""
    object.__setattr__(house, "settings", house.settings.model_copy(update={"max_queued_jobs": 1}))
    job = submit()["id"]
    client.post(f"/v1/jobs/{job}/pause")
    other = submit()["id"]
    answer = client.post(f"/v1/jobs/{job}/resume")
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0
    assert client.get(f"/v1/jobs/{job}").json()["status"] == "paused"
    client.post(f"/v1/jobs/{other}/cancel")
    for _ in range(2):
        assert client.post(f"/v1/jobs/{job}/resume").status_code == 202


def test_cancel_pause_and_resume_answer_by_the_state_they_lead_to(
    client: TestClient, house: Services, submit: Submit
) -> None:
    def post(job_id: str, verb: str) -> tuple[int, str]:
        answer = client.post(f"/v1/jobs/{job_id}/{verb}")
        return answer.status_code, answer.json()["status"]

    job = submit()["id"]
    assert post(job, "pause") == (200, "paused")
    assert post(job, "pause") == (200, "paused")
    assert post(job, "resume") == (202, "queued")
    become(house, job, JobStatus.RUNNING)
    assert post(job, "pause") == (202, "pausing")
    assert post(job, "cancel") == (202, "cancelling")
    assert post(job, "cancel") == (202, "cancelling")
    become(house, job, JobStatus.CANCELLED)
    assert post(job, "cancel") == (200, "cancelled")
    waiting = submit()["id"]
    assert post(waiting, "cancel") == (200, "cancelled")
    failed = submit()["id"]
    error = {"code": "storage_full", "message": "The disk took no more bytes.", "retryable": True}
    become(house, failed, JobStatus.FAILED, error=error, checkpoint={"step": 3, "files": {}})
    assert post(failed, "resume") == (202, "queued")
    assert client.get(f"/v1/jobs/{failed}").json()["error"] is None


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
def test_a_wrong_state_is_named(client: TestClient, house: Services, submit: Submit, verb: str) -> None:
    job = submit()["id"]
    become(house, job, JobStatus.SUCCEEDED)
    answer = client.post(f"/v1/jobs/{job}/{verb}")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "succeeded" in answer.json()["detail"]


def test_rerun_makes_a_new_job_and_says_where_it_is(client: TestClient, house: Services, submit: Submit) -> None:
    job = submit(training={"seed": 7})
    assert client.post(f"/v1/jobs/{job['id']}/rerun").status_code == 409
    become(house, job["id"], JobStatus.FAILED)
    answer = client.post(f"/v1/jobs/{job['id']}/rerun")
    again = answer.json()
    assert answer.status_code == 202
    assert again["id"] != job["id"]
    assert answer.headers["location"] == f"/v1/jobs/{again['id']}"
    assert again["config"]["training"]["seed"] == 7


def test_a_rerun_keeps_to_the_queues_bound_and_to_its_key(client: TestClient, house: Services, submit: Submit) -> None:
    """Guards against a queue that reruns fill without end, and against a second one after an answer that was lost."""
    object.__setattr__(house, "settings", house.settings.model_copy(update={"max_queued_jobs": 1}))
    job = submit()["id"]
    become(house, job, JobStatus.FAILED)
    first, again = (client.post(f"/v1/jobs/{job}/rerun", headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    answer = client.post(f"/v1/jobs/{job}/rerun")
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert len(client.get("/v1/jobs").json()["data"]) == 2


def test_deleting_a_job_takes_its_models_and_their_files_along(
    client: TestClient, house: Services, submit: Submit
) -> None:
    job = submit()["id"]
    assert client.delete(f"/v1/jobs/{job}").status_code == 409
    become(house, job, JobStatus.SUCCEEDED, finished_at=datetime.now(UTC))
    model = add_model(house, {"config.json": b"{}"}, job_id=job)
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    assert client.get(f"/v1/jobs/{job}").status_code == 404
    assert client.get(f"/v1/models/{model}").status_code == 404
    assert list(house.storage.list("models")) == []


def test_models_outlive_their_job_where_that_is_asked_for(client: TestClient, house: Services, submit: Submit) -> None:
    job = submit()["id"]
    become(house, job, JobStatus.SUCCEEDED)
    model = add_model(house, {"config.json": b"{}"}, job_id=job)
    assert client.delete(f"/v1/jobs/{job}?keep_models=true").status_code == 204
    kept = client.get(f"/v1/models/{model}").json()
    assert kept["job_id"] is None
    assert client.get(f"/v1/models/{model}/files/config.json").content == b"{}"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_job_that_is_not_there_is_404(client: TestClient, method: str) -> None:
    answer = client.request(method, "/v1/jobs/job_none")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
