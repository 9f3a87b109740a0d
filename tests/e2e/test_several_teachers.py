"""A job with two teachers over HTTP, against the real stack."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from limbeck.client import Client
from tests.e2e.test_one_job import _as_csv, _created
from tests.tiny import write_tiny_bert, write_tiny_dataset


def _archive(folder: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    return out.getvalue()


@pytest.mark.services
def test_a_student_of_two_teachers_over_http(stack: Any, http: httpx.Client, tmp_path: Path) -> None:
    """Guards the second teacher on its whole way: upload, fetching, training, scorecard, lineage, and what is refused
    while a job needs it."""
    data = write_tiny_dataset(tmp_path / "data")
    folders = [write_tiny_bert(tmp_path / "one"), write_tiny_bert(tmp_path / "two", layers=2, hidden=48, seed=1)]
    uploads = [_created(http.post("/v1/models", files={"file": ("t.tar.gz", _archive(one))})) for one in folders]
    files = {name: (f"{name}.csv", _as_csv(data / f"{name}.parquet")) for name in ("train", "test")}
    dataset = _created(http.post("/v1/datasets", files=files))
    tune = {"epochs": 6, "learning_rate": 5e-3}
    first, second = ({"source": f"model:{one['id']}", "finetune": tune} for one in uploads)
    body = {
        "teacher": {**first, "more": [second], "combine": "confidence"},
        "dataset": f"dataset:{dataset['id']}",
        "student": {"layers": 2},
        "method": "kd",
        "training": {"epochs": 3, "learning_rate": 5e-3, "max_length": 48},
        "export": ["onnx"],
    }
    assert _created(http.post("/v1/jobs:validate", json=body), 200)["valid"]
    job = _created(http.post("/v1/jobs", json=body), 202)
    with Client(stack.url) as client:
        ended = client.wait(job["id"], timeout=300)
        card = client.scorecard(job["id"])
    assert ended.status == "succeeded", http.get(f"/v1/jobs/{job['id']}/logs").text
    assert [one.name for one in card.teachers] == [first["source"], second["source"]]
    assert card.teacher.parameters == sum(one.parameters for one in card.teachers)
    events = http.get(f"/v1/jobs/{job['id']}/events").json()["data"]
    assert "teachers.combined" in [one["kind"] for one in events]
    model = http.get(f"/v1/models/{ended.student_id}").json()
    assert model["teacher"] == f"{first['source']} + {second['source']}"
    answer = http.post(f"/v1/models/{ended.student_id}/predict", json={"inputs": "Open a window with a button."})
    assert answer.json()[0]["label"] in {"gui", "networking"}
    gone = http.delete(f"/v1/models/{uploads[1]['id']}")
    assert gone.status_code == 204, gone.text
    refused = http.post("/v1/jobs", json=body)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/teacher/more/0/source")
