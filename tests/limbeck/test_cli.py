"""The command line, run against a small server on a real socket that answers as the API does."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import limbeck
from limbeck.cli import app
from limbeck.cli.submitting import set_field
from limbeck.cli.watching import Bar
from limbeck.client import Event, Job
from tests.limbeck.scripted_api import EVENTS, FAILED, JOB, RUNNING, SUCCEEDED, Api, serving


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as api:
        yield api


def run(api: Api, *arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--url", api.url], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_no_server_is_one_line_and_no_traceback() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's port
        result = CliRunner().invoke(app, ["jobs", "--url", f"http://127.0.0.1:{taken.getsockname()[1]}"])
    assert result.exit_code == 1
    assert re.fullmatch(
        r"No Limbeck server answers at http://127.0.0.1:\d+. Start one with `limbeck up`.\n", result.stderr
    )


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


def test_submit_uploads_further_teachers_that_are_here(api: Api, tmp_path: Path) -> None:
    """Guards against sending the server a second teacher's path, which it refuses."""
    teacher = tmp_path / "second"
    teacher.mkdir()
    (teacher / "config.json").write_text("{}")
    (teacher / "model.safetensors").write_bytes(b"x")
    row = {"name": "n", "created_at": "2026-01-01T00:00:00Z"}
    api.answer("POST /v1/models", row | {"id": "mdl_2", "kind": "teacher"}, status=201)
    api.answer("POST /v1/jobs", JOB, status=202)
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
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    row = {"name": "n", "created_at": "2026-01-01T00:00:00Z"}
    api.answer("POST /v1/models", row | {"id": "mdl_2", "kind": "teacher"}, status=201)
    api.answer("POST /v1/jobs", JOB, status=202)
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


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"limbeck {limbeck.__version__}\n"


def test_what_an_error_says_it_says_once(api: Api) -> None:
    result = run(api, "submit", "--teacher", "org/name", "--dataset", "org/data", "--student", "three")
    assert result.stderr.count("found 'three'") == 1


def test_an_unknown_column_role_is_named(api: Api, tmp_path: Path) -> None:
    """Guards against a traceback of pydantic's for a mistyped option."""
    data = tmp_path / "reviews.csv"
    data.write_text("text,label\n")
    result = run(api, "submit", "--dataset", str(data), "--set", "dataset.columns.txt=review")
    assert result.exit_code == 2
    assert "/txt: there is no such field" in result.stderr


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


def test_watch_ends_with_the_scorecard(api: Api) -> None:
    api.job(RUNNING, SUCCEEDED)
    result = run(api, "watch", "job_1")
    assert result.exit_code == 0, result.stderr
    assert "The job waits." in result.stderr
    assert "distilling  step 30/100  100 examples/s  about 1:05 left" in result.stderr
    assert "retention     95.0% (93.0%–97.0%)" in result.stdout
    assert "mdl_9" in result.stderr


def test_the_bar_of_a_terminal_shows_stage_share_and_time_left() -> None:
    """Guards against a live line that breaks where nobody runs the tests: in a terminal."""
    console = Console(width=120, file=io.StringIO(), force_terminal=True, color_system=None)
    with Bar(console) as bar:
        bar.job(Job.model_validate(RUNNING))
        bar.event(Event.model_validate(EVENTS[0]))
        bar.note("The server is away.")
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for expected in ("distilling", "42 %", "step 30/100", "about 1:05 left", "The job waits.", "The server is away."):
        assert expected in shown


def test_watch_of_a_failed_job_exits_with_1_and_its_reason(api: Api) -> None:
    """Guards against a script that goes on as if it had a student."""
    api.job(FAILED)
    result = run(api, "watch", "job_1")
    assert result.exit_code == 1
    assert "diverged" in result.stderr
    assert "The loss became NaN at step 7." in result.stderr


def test_watch_for_machines_prints_events_and_then_the_job(api: Api) -> None:
    api.job(SUCCEEDED)
    result = run(api, "watch", "job_1", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("kind") for line in lines] == ["job.queued", "job.ended", None]
    assert lines[-1]["result"]["model_id"] == "mdl_9"


def test_ctrl_c_leaves_the_job_and_exits_with_130(api: Api) -> None:
    """Guards against a watcher whose end is taken for the job's."""
    api.job(RUNNING)
    command = [sys.executable, "-c", "from limbeck.cli import app; app()", "watch", "job_1", "--url", api.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not api.requests and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert "limbeck cancel job_1" in stderr
    assert "Traceback" not in stderr
    assert not any("cancel" in asked for asked, _ in api.requests)


def test_jobs_shows_names_as_they_are(api: Api) -> None:
    """Guards against names that rich takes for markup."""
    api.answer("GET /v1/jobs?limit=20", {"data": [JOB, RUNNING], "has_more": True})
    result = run(api, "jobs")
    assert "a [bold] name" in result.stdout
    assert "running 4" in result.stdout
    assert json.loads(run(api, "jobs", "--json").stdout)["data"][0]["id"] == "job_1"


def test_jobs_in_a_pipe_have_their_whole_names(api: Api) -> None:
    """Guards against `limbeck jobs | grep NAME` that finds nothing, as there were 80 columns for a line."""
    name = "kd: minilm-l6 on customer-reviews-2026"
    api.answer("GET /v1/jobs?limit=20", {"data": [JOB | {"id": "job_" + 36 * "0", "name": name}], "has_more": False})
    without = {key: value for key, value in os.environ.items() if key != "COLUMNS"}  # which a run of the tests may set
    command = [sys.executable, "-m", "limbeck.cli", "jobs", "--url", api.url]
    assert name in subprocess.run(command, env=without, capture_output=True, text=True, timeout=60).stdout


def test_a_log_without_a_line_says_so(api: Api) -> None:
    """Guards against a command that seems to have done nothing."""
    api.answer("GET /v1/jobs/job_1/logs", b"")
    result = run(api, "logs", "job_1")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert "printed nothing" in result.stderr


def test_hard_samples_of_a_split_that_has_none_are_refused(api: Api) -> None:
    result = run(api, "hard-samples", "job_1", "--split", "test")
    assert (result.exit_code, api.requests) == (2, [])
    assert "'train'" in result.stderr


def test_job_and_its_changes(api: Api) -> None:
    api.answer("GET /v1/jobs/job_1", FAILED)
    assert "diverged" in run(api, "job", "job_1").stdout
    for verb in ("cancel", "pause", "resume", "rerun"):
        api.answer(f"POST /v1/jobs/job_1/{verb}", RUNNING)
        assert "distilling, 42 %" in run(api, verb, "job_1").stdout
    api.answer("GET /v1/jobs/job_1/logs", b"line 1\n[bold]line 2\n")
    assert run(api, "logs", "job_1").stdout == "line 1\n[bold]line 2\n"


def test_an_unknown_job_exits_with_2(api: Api) -> None:
    result = run(api, "job", "job_2")
    assert result.exit_code == 2
    assert result.stderr == "There is no /v1/jobs/job_2.\n"


def test_download_resolves_a_job_to_its_student(api: Api, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("config.json"))
    api.job(SUCCEEDED)
    api.answer("GET /v1/models/mdl_9/download?format=onnx", buffer.getvalue())
    target = tmp_path / "student"
    result = run(api, "download", "job_1", "--output", str(target), "--format", "onnx")
    assert result.exit_code == 0, result.stderr
    assert (target / "config.json").exists()
    again = run(api, "download", "job_1", "--output", str(target))
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_aliases_are_made_shown_and_removed(api: Api) -> None:
    made = {"name": "reviews", "model": "mdl_9", "version": 3, "updated_at": "2026-01-01T00:00:00Z"}
    api.answer("GET /v1/jobs/job_1", SUCCEEDED)
    api.answer("PUT /v1/aliases/reviews", made)
    assert run(api, "alias", "reviews", "job_1").stdout == "reviews\tmdl_9\tversion 3\n"
    assert json.loads(api.requests[-1][1]) == {"model": "mdl_9"}
    api.answer("GET /v1/aliases/reviews", made)
    assert json.loads(run(api, "alias", "reviews", "--json").stdout)["model"] == "mdl_9"
    api.answer("GET /v1/aliases", {"data": [made]})
    assert "mdl_9" in run(api, "aliases").stdout
    api.answer("GET /v1/aliases", {"data": []})
    assert "limbeck alias NAME MODEL" in run(api, "aliases").stderr
    api.answer("DELETE /v1/aliases/reviews", b"")
    assert "is gone" in run(api, "alias", "reviews", "--delete").stderr
    count = len(api.requests)
    assert (run(api, "alias", "reviews", "job_1", "--delete").exit_code, len(api.requests)) == (2, count)


def test_predict_prints_labels(api: Api) -> None:
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 0.91234}])
    assert run(api, "predict", "mdl_9", "some text").stdout == "good\t0.9123\n"
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": ["some text"]}


@pytest.mark.parametrize("text", ["How do I convert a picture to .png", "a word " * 100 + ".gif", "~nobody-here/x.png"])
def test_predict_takes_a_text_that_ends_as_a_picture_does(api: Api, text: str) -> None:
    """Guards against a student of texts that cannot be asked about files."""
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 0.91234}])
    assert run(api, "predict", "mdl_9", text).stdout == "good\t0.9123\n"
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": [text]}


def test_predict_passes_the_speed_on(api: Api, exported_exits_student: Path) -> None:
    """Guards an option that is read and dropped, also where no server is asked."""
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 0.91234}])
    assert run(api, "predict", "mdl_9", "some text", "--speed", "0").exit_code == 0
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": ["some text"], "parameters": {"speed": 0}}
    local = ("predict", "--local", str(exported_exits_student), "some text")
    assert run(api, *local, "--speed", "0").stdout != run(api, *local, "--speed", "1").stdout


def test_predict_streams_jsonl_in_its_order(api: Api) -> None:
    """Guards against answers that stand beside the wrong input, also across batches."""

    def label(body: bytes) -> tuple[int, Any]:
        inputs = json.loads(body)["inputs"]
        return 200, [{"label": one["text"] if isinstance(one, dict) else one, "score": 1.0} for one in inputs]

    api.routes["POST /v1/models/mdl_9/predict"] = label
    given = [f"text {number}" if number % 2 else {"text": f"text {number}", "id": number} for number in range(70)]
    result = run(api, "predict", "mdl_9", "--file", "-", stdin="\n".join(map(json.dumps, given)))
    answers = [json.loads(line)["prediction"]["label"] for line in result.stdout.splitlines()]
    assert answers == [f"text {number}" for number in range(70)]
    assert len(api.requests) == 3


def test_predict_sends_no_more_than_a_request_may_have(api: Api, tmp_path: Path) -> None:
    """Guards photos, and long texts, of which 32 are more than the server takes: each is small enough alone."""
    sent: list[int] = []

    def label(body: bytes) -> tuple[int, Any]:
        sent.append(len(body))
        return 200, [{"label": one[:2], "score": 1.0} for one in json.loads(body)["inputs"]]

    api.routes["POST /v1/models/mdl_9/predict"] = label
    given = [f"{number:02}" + "ä" * size for number, size in enumerate([40_000] * 32 + [1_500_000, 10])]
    result = run(api, "predict", "mdl_9", "--file", "-", stdin="\n".join(map(json.dumps, given)))
    answers = [json.loads(line)["prediction"]["label"] for line in result.stdout.splitlines()]
    assert answers == [f"{number:02}" for number in range(34)]
    *several, large, last = sent
    assert max(several) < 1024**2
    assert (large > 1024**2, last < 100) == (True, True)


@pytest.mark.parametrize("masks", [1, 2])
def test_predict_prints_masked_tokens(api: Api, masks: int) -> None:
    """Guards the shapes of fill-mask: a list for a text, and a list of lists for one with several masks."""
    tokens = [{"score": 0.5, "token": 7, "token_str": word, "sequence": f"a {word}"} for word in ("socket", "file")]
    api.answer("POST /v1/models/mdl_9/predict", [tokens if masks == 1 else [tokens] * masks])
    assert run(api, "predict", "mdl_9", "a [MASK]").stdout == "socket\t0.5000\nfile\t0.5000\n" * masks


def test_an_empty_text_of_jsonl_is_asked_as_it_stands(api: Api) -> None:
    """Guards against an empty object, or a pair that loses its second text, which the server then refuses."""
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 1.0}] * 3)
    given = [{"text": ""}, {"text": "a", "text_pair": ""}, {"text": "a", "text_pair": None}]
    result = run(api, "predict", "mdl_9", "--file", "-", stdin="\n".join(map(json.dumps, given)))
    assert result.exit_code == 0
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": [*given[:2], {"text": "a"}]}


def test_rows_of_a_data_set_are_asked_by_their_tokens(api: Api) -> None:
    """Guards tags and ids, which a student is not asked about, and texts that have their tokens beside them."""
    api.answer("POST /v1/models/mdl_9/predict", [[], []])
    rows = [{"id": "7", "tokens": ["John", "lives"], "tags": ["B-PER", "O"]}, {"text": "a b", "tokens": ["a", "b"]}]
    result = run(api, "predict", "mdl_9", "--file", "-", stdin="\n".join(map(json.dumps, rows)))
    assert result.exit_code == 0
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": [{"tokens": ["John", "lives"]}, {"text": "a b"}]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "Line 2 is not JSON"),
        ('{"txt": "a"}', "Line 2 is neither"),
        ('{"text": "a", "text_pair": 7}', "Line 2 has no text in `text_pair`: 7"),
        ('"caf\udce9"', "Line 2 is not UTF-8"),
        ("[" * 100_000, "Line 2 is not JSON"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(api: Api, tmp_path: Path, line: str, message: str) -> None:
    """And those in front of it are answered."""
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 1.0}])
    file = tmp_path / "in.jsonl"
    file.write_text(f'\ufeff"fine"\n{line}\n', encoding="utf-8", errors="surrogateescape")
    result = run(api, "predict", "mdl_9", "--file", str(file))
    assert result.exit_code == 2
    assert message in result.stderr
    assert [json.loads(one)["input"] for one in result.stdout.splitlines()] == ["fine"]


def test_a_line_that_the_student_refuses_is_named(api: Api, exported_student: Path, tmp_path: Path) -> None:
    """Guards against a place in a batch that nobody finds in a file; and those in front of it are answered."""

    def label(body: bytes) -> tuple[int, Any]:
        inputs = json.loads(body)["inputs"]
        errors = [
            {"pointer": f"/inputs/{place}/text_pair", "detail": "leave text_pair out"}
            for place, one in enumerate(inputs)
            if "text_pair" in one
        ]
        if errors:
            return 422, {"code": "invalid_input", "detail": "The inputs cannot be read", "errors": errors}
        return 200, [{"label": "good", "score": 1.0} for _ in inputs]

    api.routes["POST /v1/models/mdl_9/predict"] = label
    bad = [{"text": "a", "text_pair": "b"}] * 2
    given = [*(f"text {number}" for number in range(300)), *bad, "text"]
    file = tmp_path / "in.jsonl"
    file.write_text("\n\n".join(map(json.dumps, given)))  # with a blank line between them
    for asked in (("mdl_9",), ("--local", str(exported_student))):
        result = run(api, "predict", *asked, "--file", str(file))
        assert result.exit_code == 2
        assert "Line 601 cannot be asked: /text_pair: " in result.stderr
        assert "leave text_pair out" in result.stderr
        assert [json.loads(one)["input"] for one in result.stdout.splitlines()] == given[:300]


TABLE = """split,row,text,label,teacher_p,student_p,loss,teacher_loss,entropy,disagreement,teacher_right,student_right
train,9,"a, b",gui,0.9,0.1,2.3,0.1,0.2,1.5,true,false
validation,3,"a [bold] text
of two lines",net,0.8,0.2,1.61,0.22,0.3,0.9,true,false
validation,1,plain,gui,0.9,0.9,0.105,0.1,0.2,0.0,true,true
"""


def test_hard_samples_are_shown_or_saved(api: Api, tmp_path: Path) -> None:
    """Guards texts with commas, line breaks and brackets, which a table or a console may take for its own."""
    api.job(SUCCEEDED)
    api.answer("GET /v1/models/mdl_9/files/hard_samples.csv", TABLE.encode())
    shown = json.loads(run(api, "hard-samples", "job_1", "--json").stdout)
    assert [(row["row"], row["student_right"]) for row in shown] == [("3", "false"), ("1", "true")]
    assert shown[0]["text"] == "a [bold] text\nof two lines"
    table = run(api, "hard-samples", "job_1", "--limit", "1").stdout
    assert "a [bold] text of two lines" in table
    assert "1.61" in table
    assert "plain" not in table
    assert "a, b" in run(api, "hard-samples", "job_1", "--split", "train").stdout
    saved = run(api, "hard-samples", "job_1", "--output", str(tmp_path / "hard.csv"))
    assert saved.exit_code == 0, saved.stderr
    assert (tmp_path / "hard.csv").read_text() == TABLE
    wrong = run(api, "hard-samples", "job_1", "--output", str(tmp_path / "hard.xlsx"))
    assert wrong.exit_code == 2
    assert ".parquet or .csv" in wrong.stderr
