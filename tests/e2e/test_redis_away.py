"""The API and a worker while the broker between them is down."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from models.settings import Settings
from tests.api.conftest import SMALLEST
from tests.services import Redis
from tests.worker.processes import until, worker_process

pytestmark = pytest.mark.services


def _status(client: TestClient, job_id: str) -> str:
    status: str = client.get(f"/v1/jobs/{job_id}").json()["status"]
    return status


def _succeeded(client: TestClient, job_id: str) -> bool:
    return _status(client, job_id) == "succeeded"


def test_a_submit_is_taken_while_redis_is_down_and_runs_when_it_is_back(tmp_path: Path, own_redis: Redis) -> None:
    """Guards the promise of a 202: by the bell alone, since the worker's own look at the rows is minutes away."""
    rarely = {"reconcile_min_seconds": 300, "reconcile_max_seconds": 300}
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "broker_url": own_redis.url, **rarely})
    with TestClient(create_app(settings)) as client, worker_process(settings):
        first = client.post("/v1/jobs", json=SMALLEST).json()["id"]
        until(partial(_succeeded, client, first), 30)
        time.sleep(2)  # a worker that has ended a job looks at once whether there is another

        own_redis.kill()
        answer = client.post("/v1/jobs", json=SMALLEST)
        assert answer.status_code == 202, answer.text
        assert _status(client, answer.json()["id"]) == "queued"
        own_redis.start()
        until(partial(_succeeded, client, answer.json()["id"]), 30)
