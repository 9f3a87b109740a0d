"""One job as a user has it, over sockets and against real processes: upload, submit, watch, download, predict."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet
import pytest

from tests.tiny import write_tiny_bert, write_tiny_dataset


def _teacher_archive(folder: Path) -> bytes:
    write_tiny_bert(folder / "teacher", layers=4)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder / "teacher", arcname="teacher")
    return packed.getvalue()


def _as_csv(parquet: Path) -> bytes:
    table = pyarrow.parquet.read_table(parquet)
    out = io.StringIO()
    writer = csv.DictWriter(out, table.column_names)
    writer.writeheader()
    writer.writerows(table.to_pylist())
    return out.getvalue().encode()


def _created(answer: httpx.Response, status: int = 201) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.fixture(scope="module")
def finished(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job that ran to its end, with everything that was seen on its way."""
    folder = tmp_path_factory.mktemp("upload")
    data = write_tiny_dataset(folder / "data")
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        teacher = _created(
            http.post("/v1/models", files={"file": ("tiny.tar.gz", _teacher_archive(folder))}, data={"name": "tiny"})
        )
        dataset = _created(
            http.post(
                "/v1/datasets",
                files={
                    "train": ("train.csv", _as_csv(data / "train.parquet")),
                    "test": ("test.csv", _as_csv(data / "test.parquet")),
                },
                data={"name": "areas"},
            )
        )
        body = {
            "name": "end to end",
            "teacher": {"source": f"model:{teacher['id']}", "finetune": {"epochs": 6, "learning_rate": 5e-3}},
            "dataset": f"dataset:{dataset['id']}",
            "student": {"layers": 2},
            "method": "kd",
            "training": {"epochs": 4, "learning_rate": 5e-3, "max_length": 64},
            "export": ["onnx", "onnx-int8"],
        }
        submitted = http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "e2e-1"})
        job = _created(submitted, 202)
        again = http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "e2e-1"})
        other = http.post("/v1/jobs", json={**body, "name": "another"}, headers={"Idempotency-Key": "e2e-1"})

        events = []
        with http.stream(
            "GET", f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}, timeout=240
        ) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            current: dict[str, str] = {}
            for line in stream.iter_lines():
                if line and not line.startswith(":"):
                    key, _, value = line.partition(": ")
                    current[key] = value
                elif current:
                    events.append(current)
                    current = {}
        ended = http.get(f"/v1/jobs/{job['id']}").json()
        log = http.get(f"/v1/jobs/{job['id']}/logs").text
    assert ended["status"] == "succeeded", f"{ended['error']}\n{log}\n{stack.log.read_text()}"
    return {
        "job": ended,
        "submitted": submitted,
        "again": again,
        "other": other,
        "events": events,
        "data": data,
        "folder": folder,
    }


def test_a_repeated_submit_answers_the_first_job_and_never_makes_a_second(
    finished: dict[str, Any], http: httpx.Client
) -> None:
    assert finished["submitted"].headers["location"].endswith(finished["job"]["id"])
    assert finished["again"].status_code == 202
    assert finished["again"].json()["id"] == finished["job"]["id"]
    assert finished["other"].status_code == 422
    assert len(http.get("/v1/jobs").json()["data"]) == 1


def test_the_event_stream_ends_by_itself_and_its_numbers_have_no_gap(finished: dict[str, Any]) -> None:
    numbered = [event for event in finished["events"] if "id" in event]
    assert [int(event["id"]) for event in numbered] == list(range(1, len(numbered) + 1))
    kinds = [event["event"] for event in numbered]
    assert kinds[0] == "job.queued"
    assert kinds[-1] == "job.succeeded"
    stages = [json.loads(event["data"])["data"]["stage"] for event in numbered if event["event"] == "job.stage"]
    assert stages == ["preparing", "teacher", "distilling", "evaluating", "exporting"]


def test_the_event_stream_goes_on_after_the_last_event_that_a_reader_has(
    finished: dict[str, Any], http: httpx.Client
) -> None:
    numbered = [event for event in finished["events"] if "id" in event]
    answer = http.get(
        f"/v1/jobs/{finished['job']['id']}/events",
        headers={"Accept": "text/event-stream", "Last-Event-ID": numbered[-3]["id"]},
    )
    seen = [line.removeprefix("id: ") for line in answer.text.splitlines() if line.startswith("id: ")]
    assert seen == [event["id"] for event in numbered[-2:]]


def test_the_scorecard_has_teacher_student_and_baseline_on_the_same_examples(
    finished: dict[str, Any], http: httpx.Client
) -> None:
    card = http.get(f"/v1/jobs/{finished['job']['id']}/scorecard").json()
    assert card["dataset"]["test"] == 50
    for row in ("teacher", "student", "baseline"):
        accuracy = card[row]["metrics"]["accuracy"]
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert card["teacher"]["layers"] == 4
    assert card["student"]["layers"] == card["baseline"]["layers"] == 2
    assert {form["format"] for form in card["exports"]} == {"onnx", "onnx-int8"}
    assert finished["job"]["result"]["baseline_id"] != finished["job"]["result"]["model_id"]


def test_the_downloaded_student_loads_with_plain_transformers_and_answers_as_the_api_does(
    finished: dict[str, Any], http: httpx.Client, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = finished["job"]["result"]["model_id"]
    answer = http.get(f"/v1/models/{model}/download?format=safetensors")
    assert answer.status_code == 200
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = next(tmp_path.rglob("config.json")).parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    student = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    texts = pyarrow.parquet.read_table(finished["data"] / "test.parquet")["text"].to_pylist()[:8]
    with torch.inference_mode():
        encoded = tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
        probabilities = student(**encoded).logits.softmax(-1)
    predicted = http.post(f"/v1/models/{model}/predict", json={"inputs": texts})
    assert predicted.status_code == 200, predicted.text
    for row, one in zip(probabilities, predicted.json(), strict=True):
        best = one[0] if isinstance(one, list) else one
        assert student.config.id2label[int(row.argmax())] == best["label"]
        assert float(row.max()) == pytest.approx(best["score"], abs=1e-4)


def test_a_download_that_broke_off_goes_on_where_it_stopped(finished: dict[str, Any], http: httpx.Client) -> None:
    url = f"/v1/models/{finished['job']['result']['model_id']}/download?format=onnx"
    whole = http.get(url)
    first = http.get(url, headers={"Range": "bytes=0-999"})
    rest = http.get(url, headers={"Range": "bytes=1000-", "If-Range": whole.headers["etag"]})
    assert (first.status_code, rest.status_code) == (206, 206)
    assert first.content + rest.content == whole.content
    assert http.get(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    assert http.get(url, headers={"Range": f"bytes={len(whole.content)}-"}).status_code == 416


def test_the_attempts_ledger_has_one_attempt_that_succeeded(finished: dict[str, Any], http: httpx.Client) -> None:
    attempts = http.get(f"/v1/jobs/{finished['job']['id']}/attempts").json()["data"]
    assert [(one["number"], one["outcome"]) for one in attempts] == [(1, "succeeded")]


def test_metrics_have_the_loss_of_every_phase(finished: dict[str, Any], http: httpx.Client) -> None:
    series = http.get(f"/v1/jobs/{finished['job']['id']}/metrics").json()["series"]
    assert {"teacher/loss", "distilling/loss", "baseline/loss"} <= set(series)


def test_a_job_that_runs_is_cancelled_within_seconds(finished: dict[str, Any], http: httpx.Client) -> None:
    import time

    body = {
        "teacher": finished["job"]["config"]["teacher"],
        "dataset": finished["job"]["config"]["dataset"]["source"],
        "method": "kd",
        "training": {"epochs": 200, "learning_rate": 1e-4},
    }
    job = _created(http.post("/v1/jobs", json=body), 202)
    deadline = time.monotonic() + 60
    while http.get(f"/v1/jobs/{job['id']}").json()["stage"] not in ("teacher", "distilling"):
        assert time.monotonic() < deadline, "the job did not begin within a minute"
        time.sleep(0.2)
    began = time.monotonic()
    assert http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202
    while http.get(f"/v1/jobs/{job['id']}").json()["status"] != "cancelled":
        assert time.monotonic() - began < 15, "cancelling took longer than 15 s"
        time.sleep(0.1)
    assert http.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert http.get(f"/v1/jobs/{job['id']}").status_code == 404
