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
import time
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.cli.watching import Bar
from limbeck.client import Event, Job
from tests.limbeck.scripted_api import EVENTS, FAILED, JOB, RUNNING, SUCCEEDED, Api
from tests.limbeck.scripted_cli import run


def test_no_server_is_one_line_and_no_traceback() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's port
        result = CliRunner().invoke(app, ["jobs", "--url", f"http://127.0.0.1:{taken.getsockname()[1]}"])
    assert result.exit_code == 1
    assert re.fullmatch(
        r"No Limbeck server answers at http://127.0.0.1:\d+. Start one with `limbeck up`.\n", result.stderr
    )


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"limbeck {limbeck.__version__}\n"


def test_what_an_error_says_it_says_once(api: Api) -> None:
    result = run(api, "submit", "--teacher", "org/name", "--dataset", "org/data", "--student", "three")
    assert result.stderr.count("found 'three'") == 1


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


def test_a_job_that_no_worker_can_serve_says_what_it_waits_for(api: Api) -> None:
    """Guards against "starts in 3 to 9 min" for a job that waits for a GPU which nobody has."""
    missing = "a worker with 1 GPU; the only one that is connected has no GPU"
    waiting = JOB | {"queue_position": 1, "waits_for": missing}
    api.job(waiting, waiting, SUCCEEDED)
    assert run(api, "job", "job_1").stdout.endswith(f"queued, place 1, waits for {missing}\n")
    assert f"queued, place 1, waits for {missing}" in run(api, "watch", "job_1").stderr
    api.answer("POST /v1/jobs", waiting)
    submitted = run(api, "submit", "--teacher", "org/name", "--dataset", "org/data", "--method", "kd")
    assert f"It waits for {missing}." in submitted.stderr


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
