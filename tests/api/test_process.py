"""The real process: ``python -m api`` on an inherited socket, with real connections that break and end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from api.deps import Services
from api.listening import configured
from models.db import Database
from models.job import JobStatus
from models.settings import Settings
from tests.api.conftest import SMALLEST, add_model, become, sha256

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Served:
    """An API process, and another application over the same database and storage to play the worker."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    house: Services


class _Hub(BaseHTTPRequestHandler):
    """Stands in for the hub: a model, one that describes itself badly, one that never comes."""

    def do_GET(self) -> None:
        name = self.path.split("/resolve/")[0]
        if name == "/org/slow":
            time.sleep(8)
        config = {"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 32, "architectures": ["BertModel"]}
        known = {"/org/bert": config, "/org/odd": {"hidden": 1}}
        self.send_response(200 if name in known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(known.get(name)).encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def serve(folder: Path, environment: Mapping[str, str]) -> Iterator[Served]:
    settings = Settings(data_dir=folder)
    log = folder / "api.log"
    with TestClient(create_app(settings)) as client, socket.socket() as bound, log.open("wb") as out:
        bound.bind(("127.0.0.1", 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "api", "--fd", str(bound.fileno())],
            cwd=ROOT,
            env={**os.environ, "LIMBECK_DATA_DIR": str(folder), "OMP_NUM_THREADS": "1", **environment},
            pass_fds=[bound.fileno()],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            _wait(process, url, log)
            yield Served(process, url, log, client.app.state.services)  # type: ignore[attr-defined]
        finally:
            process.terminate()
            process.wait(20)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(400):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/healthz", timeout=1).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, hub: str) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served"), {"HF_ENDPOINT": hub}) as one:
        yield one


@pytest.fixture
def served_alone(tmp_path: Path) -> Iterator[Served]:
    """For a test that ends it."""
    with serve(tmp_path, {}) as one:
        yield one


def events_in(text: str) -> list[str]:
    return [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]


def test_the_process_never_loads_torch(served: Served) -> None:
    """It would cost every API process a gigabyte. A lazy import shows only in the memory of a process that worked."""
    with httpx.Client(base_url=served.url, timeout=60) as http:
        rows = "".join(f"{text},{label}\n" for label in ("a", "b") for text in map(str, range(40)))
        answer = http.post("/v1/datasets", files={"train": ("d.csv", f"text,label\n{rows}".encode())})
        assert answer.status_code == 201, answer.text
        body = {**SMALLEST, "dataset": f"dataset:{answer.json()['id']}"}
        assert http.post("/v1/jobs:validate", json=body).status_code == 200
        assert http.post("/v1/jobs", json=body).status_code == 202
    loaded = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert "sqlite" in loaded
    assert not [line for line in loaded.splitlines() if "/torch/" in line]


@pytest.mark.parametrize(
    ("teacher", "status", "said"),
    [
        ("org/bert", 200, '"layers":4'),
        ("org/none", 422, "/teacher/source"),
        ("org/odd", 422, "/teacher/source"),
        ("org/slow", 200, "The hub could not be asked"),
    ],
)
def test_validate_asks_the_hub_and_does_not_wait_for_it(served: Served, teacher: str, status: int, said: str) -> None:
    began = time.monotonic()
    answer = httpx.post(f"{served.url}/v1/jobs:validate", json={**SMALLEST, "teacher": teacher}, timeout=30)
    assert answer.status_code == status, answer.text
    assert said in answer.text
    assert time.monotonic() - began < 10
    deeper = {**SMALLEST, "teacher": "org/bert", "student": {"layers": 5}}
    assert httpx.post(f"{served.url}/v1/jobs:validate", json=deeper, timeout=30).status_code == 422


def test_a_submitted_job_is_streamed_until_it_ends(served: Served) -> None:
    with httpx.Client(base_url=served.url, timeout=20) as http:
        job = http.post("/v1/jobs", json=dict(SMALLEST)).json()["id"]
        with http.stream("GET", f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "id: 1"
            become(
                served.house,
                job,
                JobStatus.RUNNING,
                progress={"stage": "teacher", "step": 1, "total_steps": 2, "percent": 1},
            )
            seen = [line for line in iter(lambda: next(lines), "event: job.running")]
            become(served.house, job, JobStatus.SUCCEEDED)
            seen += list(lines)
        assert "event: progress" in seen
        assert events_in("\n".join(seen))[-1] == "job.succeeded"


def test_a_download_is_continued_after_the_connection_broke(served: Served) -> None:
    model = add_model(served.house, {"config.json": b"{}", "model.safetensors": os.urandom(5_000_000)})
    with httpx.Client(base_url=served.url, timeout=20) as http:
        path = f"/v1/models/{model}/download"
        with http.stream("GET", path) as broken:
            etag = broken.headers["etag"]
            part = next(broken.iter_raw(100_000))
        rest = http.get(path, headers={"Range": f"bytes={len(part)}-", "If-Range": etag})
        assert rest.status_code == 206
        assert f'"{sha256(part + rest.content)}"' == etag


def test_a_large_upload_is_never_whole_in_memory(served: Served) -> None:
    process = psutil.Process(served.process.pid)
    head = b'--b\r\nContent-Disposition: form-data; name="validation"; filename="d.csv"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(1_500):
            yield b"x" * 65_536
        yield b"\r\n--b--\r\n"

    before = process.memory_info().rss
    peak = before
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{served.url}/v1/datasets", content=body(), headers=headers, timeout=60)
    done.set()
    watcher.join()
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/train")
    assert peak - before < 40_000_000


def test_an_upload_that_breaks_off_leaves_nothing(served: Served) -> None:
    port = int(served.url.rsplit(":", 1)[1])
    head = b'--b\r\nContent-Disposition: form-data; name="train"; filename="d.csv"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", port)) as connection:
        request = b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
        connection.sendall(request + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + head + b"x" * 50_000)
        time.sleep(0.3)
        assert any(path.is_file() for path in served.house.scratch.glob("upload-*/*.upload"))
    for _ in range(100):
        if not any(served.house.scratch.glob("upload-*")):
            return
        time.sleep(0.05)
    pytest.fail("the scratch folder still has the upload")


def test_being_told_to_end_ends_open_streams_at_once_and_is_no_failure(served_alone: Served) -> None:
    """A server that waits for streams to end by themselves waits for jobs, and is killed in the end."""
    with httpx.Client(base_url=served_alone.url, timeout=20) as http:
        job = http.post("/v1/jobs", json=dict(SMALLEST)).json()["id"]
        with http.stream("GET", f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "id: 1"
            began = time.monotonic()
            served_alone.process.send_signal(signal.SIGTERM)
            assert "event: job.succeeded" not in list(lines)
    assert served_alone.process.wait(10) == 0
    assert time.monotonic() - began < 5


def test_a_thousand_streams_fit_under_the_usual_limit_of_open_files(tmp_path: Path) -> None:
    """Guards against an API that stops to accept connections at 1,024, as most systems start it."""
    command = ["sh", "-c", 'ulimit -Sn 1024 && exec "$0" -m api --port 0', sys.executable]
    environment = {**os.environ, "LIMBECK_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while "running on" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        limits = Path(f"/proc/{process.pid}/limits").read_text()
    finally:
        process.terminate()
        process.wait(20)
    soft = next(line.split()[3] for line in limits.splitlines() if line.startswith("Max open files"))
    assert int(soft) > 1_100


def test_logs_are_one_short_line_a_request_and_carry_no_bodies(served: Served) -> None:
    body = {**SMALLEST, "metadata": {"token": "s3cr3t"}}
    answer = httpx.post(f"{served.url}/v1/jobs", json=body, headers={"X-Request-Id": "find-me"})
    asked = httpx.get(f"{served.url}/v1/jobs?label=s3cr3t%3Dx&x=s3cr3t", headers={"X-Request-Id": "find-me-too"})
    assert (answer.status_code, asked.status_code) == (202, 422)
    deadline = time.monotonic() + 10  # the lines are written once the answers are out
    while len(lines := [line for line in served.log.read_text().splitlines() if "find-me" in line]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(lines) == 2
    assert "POST /v1/jobs 202" in lines[0]
    assert "GET /v1/jobs 422" in lines[1]
    assert "s3cr3t" not in served.log.read_text()


_COUNTED = """
import gc, runpy, sys, uvicorn
def run(self, sockets=None): print("lasting and others:", gc.get_freeze_count(), len(gc.get_objects()))
uvicorn.Server.run = run
sys.argv = ["-"]
runpy.run_module(MODULE, run_name="__main__")
"""


@pytest.mark.parametrize("module", ["api", "api.serve"])
def test_lasting_objects_are_left_to_no_collection(tmp_path: Path, module: str) -> None:
    """Guards the slowest answers under load: a full collection that goes through everything that was imported holds up
    all threads at once, for 100 ms."""
    database = Database(Settings(data_dir=tmp_path))
    database.migrate()
    database.dispose()
    done = subprocess.run(
        [sys.executable, "-c", _COUNTED.replace("MODULE", repr(module))],
        cwd=ROOT,
        env={**os.environ, "LIMBECK_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"lasting and others: (\d+) (\d+)", done.stdout)
    assert found is not None, done.stderr
    lasting, others = int(found[1]), int(found[2])
    assert lasting > 100_000
    assert others < lasting / 20


def test_an_idle_connection_is_kept_for_longer_than_a_load_balancer_keeps_it() -> None:
    """Guards against requests that meet the end of their connection: each is a 502 that no log here tells of."""
    assert configured(FastAPI(), host="127.0.0.1", port=0, grace=1).timeout_keep_alive > 60
