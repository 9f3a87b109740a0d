"""Every system that Limbeck descends from runs as a job, by its name, over HTTP against the real stack."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.data.digits import load_digits
from tests.e2e.test_one_job import _as_csv, _created, _teacher_archive
from tests.images import LABELS, write_digits
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


@pytest.mark.services
def test_hintons_own_setting_runs_by_name(stack: Any, tmp_path: Path) -> None:
    """Guards the row of images, CIFAR-10 in the seed, from an upload in its layout to labels over HTTP: as Limbeck, the
    Inference API, the Open Inference Protocol and the command line are asked."""
    folder = write_digits(tmp_path / "digits", 240)
    body = {
        "name": "Hinton's own setting",
        "teacher": {"source": "builtin:vit-digits", "finetune": {"epochs": 20, "learning_rate": 3e-3}},
        "method": {"type": "kd", "temperature": 3.0, "alpha": 0.5},
        "student": 2,
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3},
    }
    picture = (load_digits().test.images or [])[0]
    (tmp_path / "digit.bmp").write_bytes(picture)
    coded = base64.b64encode(picture).decode()
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        files = {name: (f"{name}.parquet", (folder / f"{name}.parquet").read_bytes()) for name in ("train", "test")}
        dataset = _created(http.post("/v1/datasets", files=files))
        assert (dataset["profile"]["task"], dataset["profile"]["columns"]["image"]) == ("image_classification", "img")
        shown = http.get(f"/v1/datasets/{dataset['id']}/preview", params={"rows": 1}).json()["rows"][0]
        assert (shown["image"]["width"], shown["label"] in LABELS) == (8, True)
        document = body | {"dataset": f"dataset:{dataset['id']}"}
        refused = http.post("/v1/jobs", json=document | {"method": "fastbert"})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/method")
        job_id = _created(http.post("/v1/jobs", json=document), 202)["id"]
        deadline = time.monotonic() + 200
        while (job := http.get(f"/v1/jobs/{job_id}").json())["status"] not in ("succeeded", "failed"):
            assert time.monotonic() < deadline, job
            time.sleep(0.3)
        assert job["status"] == "succeeded", job["error"]
        assert http.get(f"/v1/jobs/{job_id}/scorecard").json()["task"] == "image_classification"
        model = f"/v1/models/{job['result']['model_id']}"
        answer = http.post(f"{model}/predict", json={"inputs": coded})
        assert answer.status_code == 200, answer.text
        assert [one["score"] for one in answer.json()] == sorted((o["score"] for o in answer.json()), reverse=True)
        assert len(answer.json()) == 5
        assert http.post(f"{model}/inference", json={"inputs": coded}).json() == answer.json()
        best = http.post(f"{model}/predict", json={"inputs": [coded, coded], "parameters": {"top_k": 1}}).json()
        assert best == [answer.json()[:1]] * 2
        broken = http.post(f"{model}/predict", json={"inputs": [coded, "bm8gaW1hZ2U="]})
        assert (broken.status_code, broken.json()["errors"][0]["pointer"]) == (422, "/inputs/1")
        large = http.post(f"{model}/predict", json={"inputs": "A" * 15 * 1024**2})
        assert large.status_code == 413, large.text
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [coded]}
        inferred = http.post(f"/v2/models/{job['result']['model_id']}/infer", json={"inputs": [tensor]}).json()
        assert inferred["outputs"][0]["data"] == [answer.json()[0]["label"]]
    asked = CliRunner().invoke(app, ["predict", job_id, str(tmp_path / "digit.bmp"), "--url", stack.url, "--json"])
    assert json.loads(asked.stdout)["prediction"] == answer.json(), asked.output
