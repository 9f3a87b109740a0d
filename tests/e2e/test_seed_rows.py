"""Every system that Limbeck descends from runs as a job, by its name, over HTTP against the real stack."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.e2e.test_one_job import _as_csv, _created, _teacher_archive
from tests.tiny import write_tiny_dataset

#: The rows of the table: what of the request makes a job that system.
ROWS: dict[str, dict[str, Any]] = {
    # Our soft loss carries T² itself, so that equal shares are the loss weights 1 : T².
    "vanilla KD": {"method": {"type": "kd", "temperature": 3.0, "alpha": 0.5}},
    "self-KD": {"method": "self"},
    "noise-label control": {"method": "noise"},
    "module replacing": {"method": "theseus"},
    "additive replacing": {"method": {"type": "theseus", "replacing": "additive"}},
    "sample-adaptive early exit": {"method": "fastbert"},
    "hard-sample weighting": {"method": "kd", "training": {"sample_weighting": "focal"}},
    "vocabulary trimming": {"method": "kd", "student": {"layers": 2, "vocabulary": "trimmed"}},
    "sentence-shuffle augmentation": {"method": "kd", "training": {"augmentation": "sentence_shuffle"}},
    "the default": {},
}
_OWN_SIZE = ("self", "fastbert")
#: Rows whose students are asked as well; an export takes longer than such a training.
_ASKED = ("vanilla KD", "sample-adaptive early exit", "vocabulary trimming")


@pytest.fixture(scope="module")
def sources(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    data = write_tiny_dataset(folder / "data")
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        teacher = _created(http.post("/v1/models", files={"file": ("tiny.tar.gz", _teacher_archive(folder))}))
        files = {name: (f"{name}.csv", _as_csv(data / f"{name}.parquet")) for name in ("train", "test")}
        dataset = _created(http.post("/v1/datasets", files=files))
    return f"model:{teacher['id']}", f"dataset:{dataset['id']}"


def _submitted(http: httpx.Client, name: str, change: dict[str, Any], sources: tuple[str, str]) -> str:
    method = change.get("method", "auto")
    kind = method if isinstance(method, str) else method["type"]
    body = {
        "name": name,
        "teacher": {"source": sources[0], "finetune": {"epochs": 6, "learning_rate": 5e-3}},
        "dataset": sources[1],
        **({} if kind in _OWN_SIZE else {"student": {"layers": 2}}),
        "evaluation": {"baseline": False},
        "export": ["onnx"] if name in _ASKED else [],
        **change,
        "training": {"epochs": 2, "learning_rate": 5e-3, "max_length": 48, **change.get("training", {})},
    }
    return str(_created(http.post("/v1/jobs", json=body), 202)["id"])


@pytest.mark.services
def test_every_row_of_the_seeds_table_runs_by_name(stack: Any, sources: tuple[str, str]) -> None:
    """Guards each method from the request to a student that answers; what it is worth stands in docs/results.md."""
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        jobs = {name: _submitted(http, name, change, sources) for name, change in ROWS.items()}
        deadline = time.monotonic() + 400
        ended: dict[str, dict[str, Any]] = {}
        while len(ended) < len(jobs) and time.monotonic() < deadline:
            for name, job_id in jobs.items():
                if name not in ended:
                    job = http.get(f"/v1/jobs/{job_id}").json()
                    if job["status"] in ("succeeded", "failed", "cancelled"):
                        ended[name] = job
            time.sleep(0.3)
        assert {name: job["status"] for name, job in ended.items()} == dict.fromkeys(ROWS, "succeeded"), {
            name: job["error"] for name, job in ended.items() if job["error"]
        }
        for name, job in ended.items():
            model = job["result"]["model_id"]
            assert "safetensors" in http.get(f"/v1/models/{model}").json()["formats"], name
            if name not in _ASKED:
                continue
            answer = http.post(f"/v1/models/{model}/predict", json={"inputs": "Open a window with a button."})
            assert answer.status_code == 200, f"{name}: {answer.text}"
            assert answer.json()[0]["label"] in {"gui", "networking"}
        early = http.post(
            f"/v1/models/{ended['sample-adaptive early exit']['result']['model_id']}/predict",
            json={"inputs": "Open a window.", "parameters": {"speed": 0.5}},
        )
        assert early.status_code == 200, early.text
        trimmed = http.get(f"/v1/models/{ended['vocabulary trimming']['result']['model_id']}").json()
        whole = http.get(f"/v1/models/{ended['vanilla KD']['result']['model_id']}").json()
        assert trimmed["parameters"] < whole["parameters"]
