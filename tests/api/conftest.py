"""An application over a migrated SQLite database and a folder, and ways to put into it what workers would."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from api.app import create_app
from api.deps import Services
from models.base import new_id
from models.job import Job, JobStatus
from models.model import ModelKind
from models.repository import catalogue, crew, telemetry
from models.repository.catalogue import StoredFile
from models.settings import Settings

SMALLEST: Mapping[str, Any] = {
    "teacher": "builtin:minilm-l6",
    "dataset": "builtin:stdlib-docstrings",
    "method": "kd",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", max_upload_bytes=2_000_000, max_unpacked_bytes=5_000_000)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), follow_redirects=False) as client:
        yield client


@pytest.fixture
def house(client: TestClient) -> Services:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    return services


@pytest.fixture
def submit(client: TestClient) -> Callable[..., dict[str, Any]]:
    """Submit over HTTP; keywords are added to the smallest request."""

    def run(**changes: Any) -> dict[str, Any]:
        answer = client.post("/v1/jobs", json={**SMALLEST, **changes})
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    return run


def become(house: Services, job_id: str, status: JobStatus, **values: Any) -> None:
    """What a worker would write: the row, and an event of the same name, in one transaction."""
    with house.database.session() as session:
        session.execute(update(Job).where(Job.id == job_id).values(status=status, version=Job.version + 1, **values))
        telemetry.append_event(session, job_id, f"job.{status.value}", f"The job is {status.value}.", {})


def connect(house: Services, worker: str = "worker:1", *, gpus: int = 0) -> None:
    """What a worker says with every heartbeat."""
    with house.database.session() as session:
        crew.say_present(session, worker, gpus, 600)


def add_model(
    house: Services,
    files: Mapping[str, bytes],
    *,
    kind: ModelKind = ModelKind.STUDENT,
    job_id: str | None = None,
    **facts: Any,
) -> str:
    """Store files and record them as a model, as a worker does at a job's end."""
    model_id = new_id("mdl")
    stored = []
    house.scratch.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        aside = house.scratch / "aside"
        aside.write_bytes(content)
        done = house.storage.put_file(aside, f"models/{model_id}/{path}", move=True)
        stored.append(StoredFile(path, done.key, done.bytes, done.sha256))
    with house.database.session() as session:
        catalogue.add_model(session, kind=kind, name="a model", files=stored, model_id=model_id, job_id=job_id, **facts)
    return model_id


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
