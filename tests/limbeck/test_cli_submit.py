"""``limbeck submit``: the document that it builds, and what it uploads of what is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli.submitting import set_field
from tests.limbeck.scripted_api import JOB, Api
from tests.limbeck.scripted_cli import run


def test_submit_builds_the_document_from_all_its_sources(api: Api, tmp_path: Path) -> None:
    """Guards against an option that silently loses what the file said beside it."""
    file = tmp_path / "config.toml"
    file.write_text('dataset = "org/data"\n[teacher]\nsource = "org/old"\nrevision = "abc"\n[training]\nepochs = 9\n')
    api.answer("POST /v1/jobs", JOB, status=202)
    options = ["--file", str(file), "--teacher", "org/new", "--method", "kd", "--student", "1,3,5", "--name", "mine"]
    settings = ["--set", "training.epochs=2", "--set", "method.temperature=3.5", "--set", "dataset.limit=100"]
    result = run(api, "submit", *options, *settings, "--metadata", "team=search")
    assert result.exit_code == 0, result.stderr
    assert "job_1" in result.stderr
    assert api.body("POST /v1/jobs") == {
        "teacher": {"source": "org/new", "revision": "abc"},
        "dataset": {"source": "org/data", "limit": 100},
        "training": {"epochs": 2},
        "student": [1, 3, 5],
        "method": {"type": "kd", "temperature": 3.5},
        "name": "mine",
        "metadata": {"team": "search"},
    }


def test_submit_uploads_what_is_here(api: Api, tmp_path: Path) -> None:
    """Guards against sending a path of this machine to a server that cannot see it."""
    data, teacher = tmp_path / "reviews.csv", tmp_path / "teacher"
    data.write_text("text,label\n")
    teacher.mkdir()
    (teacher / "config.json").write_text("{}")
    (teacher / "model.safetensors").write_bytes(b"x")
    row = {"name": "n", "created_at": "2026-01-01T00:00:00Z"}
    api.answer("POST /v1/datasets", row | {"id": "ds_1", "splits": {}}, status=201)
    api.answer("POST /v1/models", row | {"id": "mdl_1", "kind": "teacher"}, status=201)
    api.answer("POST /v1/jobs", JOB, status=202)
    columns = ("--set", "dataset.columns.text=review", "--set", "dataset.limit=100")
    result = run(api, "submit", "--teacher", str(teacher), "--dataset", str(data), *columns, "--json")
    assert json.loads(result.stdout)["id"] == "job_1"
    uploaded = next(body for asked, body in api.requests if asked == "POST /v1/datasets")
    assert b'name="text"\r\n\r\nreview\r\n' in uploaded
    dataset = {"source": "dataset:ds_1", "limit": 100}
    assert api.body("POST /v1/jobs") == {"teacher": "model:mdl_1", "dataset": dataset}


def test_submit_uploads_unlabelled_texts_as_texts_alone(api: Api, tmp_path: Path) -> None:
    """Guards texts without labels, which the server would ask for one, and their own column's name."""
    texts = tmp_path / "more.jsonl"
    texts.write_text('{"body": "a text"}\n')
    row = {"name": "n", "created_at": "2026-01-01T00:00:00Z"}
    api.answer("POST /v1/datasets", row | {"id": "ds_7", "splits": {}}, status=201)
    api.answer("POST /v1/jobs", JOB, status=202)
    extra = {"type": "unlabelled", "source": str(texts), "columns": {"text": "body"}}
    named = ("--teacher", "org/name", "--dataset", "org/data")
    run(api, "submit", *named, "--set", f"training.augmentation={json.dumps(extra)}", "--json")
    uploaded = next(body for asked, body in api.requests if asked == "POST /v1/datasets")
    assert b'name="task"\r\n\r\nmasked_lm\r\n' in uploaded
    assert b'name="text"\r\n\r\nbody\r\n' in uploaded
    sent = api.body("POST /v1/jobs")["training"]["augmentation"]
    assert sent == {"type": "unlabelled", "source": "dataset:ds_7"}


def model_to_upload(api: Api, folder: Path) -> Path:
    """A model's folder that the server takes as ``mdl_2``, and then a job."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    row = {"name": "n", "created_at": "2026-01-01T00:00:00Z"}
    api.answer("POST /v1/models", row | {"id": "mdl_2", "kind": "teacher"}, status=201)
    api.answer("POST /v1/jobs", JOB, status=202)
    return folder


def test_submit_uploads_further_teachers_that_are_here(api: Api, tmp_path: Path) -> None:
    """Guards against sending the server a second teacher's path, which it refuses."""
    teacher = model_to_upload(api, tmp_path / "second")
    more = json.dumps(["org/hub", {"source": str(teacher), "finetune": True}])
    settings = ("--set", f"teacher.more={more}", "--set", "teacher.combine=confidence")
    result = run(api, "submit", "--teacher", "org/first", "--dataset", "org/data", *settings, "--json")
    assert result.exit_code == 0, result.stderr
    assert api.body("POST /v1/jobs")["teacher"] == {
        "source": "org/first",
        "more": ["org/hub", {"source": "model:mdl_2", "finetune": True}],
        "combine": "confidence",
    }


def test_submit_uploads_every_model_that_is_here(api: Api, tmp_path: Path) -> None:
    """Guards a further teacher that is not in a list, and another model as the student."""
    folder = model_to_upload(api, tmp_path / "small")
    settings = ("--set", f"teacher.more={folder}", "--set", f"student.source={folder}")
    result = run(api, "submit", "--teacher", "org/first", "--dataset", "org/data", *settings, "--json")
    assert result.exit_code == 0, result.stderr
    sent = api.body("POST /v1/jobs")
    assert sent["teacher"] == {"source": "org/first", "more": ["model:mdl_2"]}
    assert sent["student"] == {"source": "model:mdl_2"}


def test_submit_uploads_the_files_that_are_named_as_splits(api: Api, tmp_path: Path) -> None:
    """Guards files that stay at home in silence, and splits that the job then looks for in vain."""
    for name in ("train", "dev", "held_out"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},a\n")
    row = {"name": "n", "created_at": "2026-01-01T00:00:00Z"}
    api.answer("POST /v1/datasets", row | {"id": "ds_1", "splits": {}}, status=201)
    api.answer("POST /v1/jobs", JOB, status=202)
    named = ("--teacher", "org/name", "--dataset", str(tmp_path), "--json")
    result = run(api, "submit", *named)
    assert "held_out.csv" in result.stderr
    result = run(api, "submit", *named, "--set", "dataset.splits.test=held_out", "--set", "dataset.limit=20")
    assert "Not used" not in result.stderr
    first, second = (body for asked, body in api.requests if asked == "POST /v1/datasets")
    assert b'name="validation"; filename="dev.csv"' in first
    assert b"held_out" not in first
    assert b'name="test"; filename="held_out.csv"' in second
    assert b'name="validation"; filename="dev.csv"' in second
    jobs = [json.loads(body) for asked, body in api.requests if asked == "POST /v1/jobs"]
    assert jobs[1]["dataset"] == {"source": "dataset:ds_1", "limit": 20}
    result = run(api, "submit", *named, "--set", "dataset.splits.test=gone")
    assert result.exit_code == 2
    assert "found no split 'gone'" in result.stderr
    assert "allowed: dev, held_out, train" in result.stderr


def test_a_second_text_of_unlabelled_ones_is_not_dropped(api: Api, tmp_path: Path) -> None:
    """Guards pairs that arrive as single texts, which the job then refuses."""
    (tmp_path / "more.jsonl").write_text('{"a": "a text", "b": "another"}\n')
    extra = {"type": "unlabelled", "source": str(tmp_path / "more.jsonl"), "columns": {"text": "a", "text_pair": "b"}}
    named = ("--teacher", "org/name", "--dataset", "org/data")
    result = run(api, "submit", *named, "--set", f"training.augmentation={json.dumps(extra)}")
    assert result.exit_code == 2
    assert "without columns.text_pair" in result.stderr
    assert [asked for asked, _ in api.requests if asked.startswith("POST")] == []
    extra["columns"] = "a"
    assert run(api, "submit", *named, "--set", f"training.augmentation={json.dumps(extra)}").exit_code == 2


def test_submit_names_each_problem_and_exits_with_2(api: Api) -> None:
    found = [{"pointer": "/method/temperature", "detail": "found -1; has to be over 0"}]
    api.answer("POST /v1/jobs", {"code": "invalid_config", "detail": "Not valid.", "errors": found}, status=422)
    result = run(api, "submit", "--recipe", "demo", "--set", "method.temperature=-1")
    assert result.exit_code == 2
    assert "/method/temperature  found -1; has to be over 0" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "./gone.csv"], "no file or folder ./gone.csv"),
        (["--student", "three"], "a count such as 3"),
        (["--set", "epochs"], "NAME=VALUE"),
        (["--recipe", "nothing"], "no recipe 'nothing'; allowed: demo"),
        (["--file", "gone.json"], "cannot be read"),
    ],
)
def test_wrong_options_are_told_before_anything_is_sent(api: Api, options: list[str], message: str) -> None:
    result = run(api, "submit", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert api.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "training.epoch=2"], "/training/epoch: there is no such field; is 'epochs' meant?"),
        (["--method", "kdd"], "/method: found 'kdd'"),
    ],
)
def test_a_typo_is_told_before_anything_is_uploaded(api: Api, tmp_path: Path, options: list[str], message: str) -> None:
    """Guards against gigabytes that go up for a job that is refused, and stay there."""
    data = tmp_path / "reviews.csv"
    data.write_text("text,label\n")
    result = run(api, "submit", "--teacher", "builtin:minilm-l6", "--dataset", str(data), *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert api.requests == []


def test_an_unknown_column_role_is_named(api: Api, tmp_path: Path) -> None:
    """Guards against a traceback of pydantic's for a mistyped option."""
    data = tmp_path / "reviews.csv"
    data.write_text("text,label\n")
    result = run(api, "submit", "--dataset", str(data), "--set", "dataset.columns.txt=review")
    assert result.exit_code == 2
    assert "/dataset/columns/txt: there is no such field" in result.stderr


@pytest.mark.parametrize(
    ("settings", "built"),
    [
        (["training.loss=jsd", "training.loss.beta=0.3"], {"training": {"loss": {"type": "jsd", "beta": 0.3}}}),
        (["training.loss.beta=0.3", "training.loss=jsd"], {"training": {"loss": {"type": "jsd", "beta": 0.3}}}),
        (["task=embeddings", "task.pooling=cls"], {"task": {"type": "embeddings", "pooling": "cls"}}),
        (["student.prune=0.25", "student.prune.heads=0.5"], {"student": {"prune": {"neurons": 0.25, "heads": 0.5}}}),
        (["student.vocabulary=trimmed", "student=3"], {"student": {"vocabulary": "trimmed", "layers": 3}}),
        (["student.vocabulary=trimmed", "student=[0,2]"], {"student": {"vocabulary": "trimmed", "layers": [0, 2]}}),
        (["method=kd", "method.alpha=0.5", "method=theseus"], {"method": "theseus"}),
    ],
)
def test_set_loses_nothing_that_was_set_before(settings: list[str], built: dict[str, Any]) -> None:
    """Guards options that go in silence where a field is given in short and its parts beside it."""
    document: dict[str, Any] = {}
    for setting in settings:
        set_field(document, *setting.split("=", 1))
    assert document == built


def test_set_reads_json_and_text_and_expands_shorthand() -> None:
    document: dict[str, Any] = {"teacher": "org/name"}
    set_field(document, "teacher.finetune.epochs", "2")
    set_field(document, "export", '["onnx"]')
    set_field(document, "training.precision", "float32")
    assert document == {
        "teacher": {"source": "org/name", "finetune": {"epochs": 2}},
        "export": ["onnx"],
        "training": {"precision": "float32"},
    }
