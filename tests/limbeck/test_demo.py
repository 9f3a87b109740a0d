"""The demo's own part, with a small server in the place of ``worker.up``: how it ends, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import limbeck
from tests.limbeck.scripted_api import EVENTS, FAILED, JOB, RUNNING, SCORECARD, SUCCEEDED

SUPERVISOR = """
import argparse, io, json, os, pathlib, sys, tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
for name in ("--host", "--data-dir"):
    parser.add_argument(name, required=True)
for name in ("--port", "--slots"):
    parser.add_argument(name, type=int, required=True)
options = parser.parse_args()
script = json.loads(pathlib.Path(__file__).with_name("script.json").read_text())
pathlib.Path(script["pid"]).write_text(str(os.getpid()))
if script.get("dies"):
    sys.exit(script["dies"])
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    archive.addfile(tarfile.TarInfo("student/config.json"))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.partition("?")[0]
        answers = {
            "/readyz": {}, "/v1/jobs": script["job"], "/v1/jobs/job_1": script["state"],
            "/v1/jobs/job_1/events": {"data": [] if "after=2" in self.path else script["events"]},
            "/v1/jobs/job_1/scorecard": script["scorecard"], "/v1/jobs/job_1/logs": "the last line",
        }
        if path.endswith("/download"):
            content = packed.getvalue()
        elif path.endswith("/predict"):
            content = json.dumps([{"label": "net", "score": 0.5} for _ in json.loads(body)["inputs"]]).encode()
        else:
            content = json.dumps(answers[path]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *args):
        pass


ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
"""


class Demo:
    """A demo in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid_file = folder / "pid"
        shutil.copytree(Path(limbeck.__file__).parent, folder / "limbeck")
        (folder / "worker").mkdir()
        (folder / "worker" / "__init__.py").touch()
        (folder / "worker" / "up.py").write_text(SUPERVISOR)
        self.process: subprocess.Popen[str] | None = None

    def start(self, state: dict[str, Any], **more: Any) -> subprocess.Popen[str]:
        script = {
            "pid": str(self.pid_file),
            "job": JOB,
            "state": state,
            "events": EVENTS,
            "scorecard": SCORECARD,
        } | more
        (self.folder / "worker" / "script.json").write_text(json.dumps(script))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "limbeck.demo"],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.process

    def server_lives(self) -> bool:
        try:
            os.kill(int(self.pid_file.read_text()), 0)
        except ProcessLookupError:
            return False
        return True


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    if demo.process is not None:
        demo.process.kill()
        demo.process.communicate()
    if demo.pid_file.exists() and demo.server_lives():
        os.kill(int(demo.pid_file.read_text()), signal.SIGKILL)


def line_with(text: str, process: subprocess.Popen[str]) -> str:
    """The first line of the output that has ``text``; none where the output ends without it."""
    assert process.stdout is not None
    return next((line for line in process.stdout if text in line), "")


def test_a_demo_that_comes_to_its_end(demo: Demo) -> None:
    """Guards against a server that goes on after the demo."""
    process = demo.start(SUCCEEDED)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    for expected in ("retention     95.0%", "Downloaded the student", "net", "50.0%", "Open a TCP connection", "Done."):
        assert expected in output
    assert (demo.folder / ".demo" / "student" / "config.json").exists()
    assert not demo.server_lives()


def test_a_job_that_fails_ends_the_demo_with_1_its_error_and_its_log(demo: Demo) -> None:
    process = demo.start(FAILED)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "diverged" in output
    assert "the last line" in output
    assert not demo.server_lives()


def test_a_server_that_does_not_start_is_told_with_its_output(demo: Demo) -> None:
    process = demo.start(SUCCEEDED, dies="no room for the data")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ended with exit code 1" in output
    assert "no room for the data" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_the_middle_leaves_nothing(demo: Demo, number: signal.Signals) -> None:
    """Guards against orphans that train on after Ctrl-C."""
    process = demo.start(RUNNING)
    assert "42 %  distilling" in line_with("about 1:05 left", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Nothing is left running" in output
    assert not demo.server_lives()


def test_a_second_demo_in_the_same_folder_is_refused(demo: Demo) -> None:
    """Guards against a demo that removes the data of one that runs."""
    first = demo.start(RUNNING)
    assert line_with("answers at", first)
    environment = {**os.environ, "PYTHONPATH": str(demo.folder)}
    second = subprocess.run(first.args, cwd=demo.folder, env=environment, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert "Another demo is running" in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert not demo.server_lives()
