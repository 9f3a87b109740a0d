"""A small server on a real socket that answers as the API does, in the order that a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JOB: dict[str, Any] = {
    "id": "job_1",
    "name": "a [bold] name",
    "status": "queued",
    "created_at": "2026-01-01T00:00:00Z",
    "config": {
        "teacher": {"source": "builtin:minilm-l6"},
        "dataset": {"source": "builtin:stdlib-docstrings"},
        "method": {"type": "kd"},
    },
}
RUNNING = JOB | {
    "status": "running",
    "stage": "distilling",
    "progress": {
        "stage": "distilling",
        "step": 30,
        "total_steps": 100,
        "percent": 41.5,
        "examples_per_second": 99.6,
        "eta_seconds": 64.2,
    },
}
SUCCEEDED = JOB | {"status": "succeeded", "result": {"model_id": "mdl_9"}}
FAILED = JOB | {"status": "failed", "error": {"code": "diverged", "message": "The loss became NaN at step 7."}}
EVENTS = [
    {"sequence": 1, "kind": "job.queued", "message": "The job waits."},
    {"sequence": 2, "kind": "job.ended", "message": "The job ended."},
]


def _model(name: str, accuracy: float, layers: int) -> dict[str, Any]:
    latency = [
        {"batch_size": size, "p50_ms": 1.5 * layers * size, "p95_ms": 2.0 * size, "examples_per_second": 10}
        for size in (1, 32)
    ]
    return {
        "name": name,
        "layers": layers,
        "hidden_size": 384,
        "parameters": 22_700_000,
        "bytes": 90_900_000,
        "metrics": {"accuracy": {"value": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01}},
        "validation": {"accuracy": accuracy},
        "latency": latency,
    }


SCORECARD: dict[str, Any] = {
    "task": "sequence_classification",
    "method": "kd",
    "main_metric": "accuracy",
    "seed": 42,
    "dataset": {
        "source": "builtin:stdlib-docstrings",
        "sha256": "0" * 64,
        "train": 10,
        "validation": 5,
        "test": 871,
        "labels": ["a", "b"],
        "majority": 0.21,
    },
    "hardware": {
        "cpu": "A CPU",
        "threads": 2,
        "device": "cpu",
        "precision": "float32",
        "torch": "2",
        "transformers": "5",
        "onnxruntime": "1",
    },
    "teacher": _model("teacher", 0.80, 6),
    "student": _model("student", 0.76, 3),
    "baseline": _model("baseline", 0.70, 3),
    "retention": {"value": 0.95, "low": 0.93, "high": 0.97},
    "gap_recovery": {"value": 0.6, "low": 0.4, "high": 0.8},
    "gap_recovery_note": None,
    "speedup": {"1": 1.9, "32": 2.0},
    "compression": 1.5,
    "exports": [],
    "minutes": {"teacher": 1.0},
    "verdict": {"passed": False, "reasons": ["retention 95.0 % is below 97.0 %"]},
}

Route = Callable[[bytes], tuple[int, Any]]


class Api:
    """Routes by ``METHOD /path``; what was asked is kept in ``requests``."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.requests: list[tuple[str, bytes]] = []
        self.url = ""

    def answer(self, key: str, *bodies: Any, status: int = 200) -> None:
        """The bodies in turn, the last one for ever."""
        left = list(bodies)
        self.routes[key] = lambda request: (status, left.pop(0) if len(left) > 1 else left[0])

    def job(self, *states: dict[str, Any]) -> None:
        self.answer("GET /v1/jobs/job_1", *states)
        self.answer("GET /v1/jobs/job_1/events?after=0", {"data": EVENTS})
        self.answer("GET /v1/jobs/job_1/events?after=2", {"data": []})
        self.answer("GET /v1/jobs/job_1/scorecard", SCORECARD)

    def body(self, key: str) -> Any:
        """What was sent to ``key``, as JSON."""
        return json.loads(next(body for asked, body in self.requests if asked == key))


class _Handler(BaseHTTPRequestHandler):
    api: Api

    def do_GET(self) -> None:
        key = f"{self.command} {self.path}"
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.api.requests.append((key, body))
        route = self.api.routes.get(key)
        status, answer = route(body) if route else (404, {"code": "not_found", "detail": f"There is no {self.path}."})
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def serving() -> Iterator[Api]:
    api = Api()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
