"""How the API answers while a job is training: ``python -m benchmarks.load [--goals]``.

Starts the real stack (``limbeck up``) in a temporary folder, submits a long job, and once that trains, measures

- the latency of ``POST /v1/jobs``, one submit after the other over one connection; the jobs wait in the queue and are
  cancelled afterwards;
- how many answers ``GET /v1/jobs/{id}`` gives a second to 100 clients that poll as fast as they can.

The load generator runs on the same cores as the server and the training, so it takes some of what it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.report import machine, markdown_table, write_json
from limbeck.cli.local_server import local_server
from limbeck.client import Client, Job
from limbeck.recipes import recipe

GOAL_SUBMIT_MS = 50.0
GOAL_ANSWERS_PER_SECOND = 300.0


@dataclass(frozen=True, slots=True)
class Submits:
    count: int
    median_ms: float
    p95_ms: float
    slowest_ms: float


@dataclass(frozen=True, slots=True)
class Polls:
    clients: int
    seconds: float
    answers: int
    errors: int
    answers_per_second: float
    median_ms: float
    p95_ms: float


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="limbeck-load-") as folder:
        data = Path(folder)
        with local_server(data / "server", data / "server.log") as url, Client(url) as client:
            print(f"server at {url}; waiting until a job trains …", flush=True)
            job = _training_job(client)
            submits = _measure_submits(client, options.submits)
            before = client.job(job.id)
            polls = asyncio.run(_measure_polls(url, job.id, clients=options.clients, seconds=options.seconds))
            after = client.job(job.id)
            client.cancel(job.id)
    report = {
        "command": " ".join(("python -m benchmarks.load", *sys.argv[1:])),
        "machine": machine() | {"load": os.getloadavg()[0]},
        "submit": asdict(submits),
        "poll": asdict(polls),
        "training": {"status": after.status, "steps_while_polled": _steps(after) - _steps(before)},
    }
    print(_table(report))
    print(f"written to {write_json('load', report)}")
    missed = _missed(submits, polls, before, after)
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed and options.goals else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--submits", type=int, default=100)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--goals", action="store_true", help="exit 1 where a goal is missed")
    return parser.parse_args()


def _training_job(client: Client) -> Job:
    """A job that trains, and will for longer than the measurement takes."""
    document = dict(recipe("demo").document)
    document["teacher"] = {"source": "builtin:minilm-l6", "finetune": {"epochs": 50}}
    job = client.submit(document, name="load")
    while not (job.status == "running" and job.progress and job.progress.examples_per_second):
        if job.ended:
            raise SystemExit(f"the job {job.status}: {job.error.message if job.error else ''}\n{client.logs(job.id)}")
        time.sleep(0.5)
        job = client.job(job.id)
    return job


def _measure_submits(client: Client, count: int) -> Submits:
    document, waiting, milliseconds = dict(recipe("demo").document), [], []
    with httpx.Client(base_url=client.base_url, timeout=30) as connection:
        for number in range(count + 1):
            began = time.perf_counter()
            answer = connection.post("/v1/jobs", json=document | {"name": f"load {number}"})
            took = (time.perf_counter() - began) * 1000
            assert answer.status_code == 202, answer.text
            waiting.append(answer.json()["id"])
            if number:  # the first one opens the connection
                milliseconds.append(took)
    for job_id in waiting:
        client.cancel(job_id)
    return Submits(count, statistics.median(milliseconds), _p95(milliseconds), max(milliseconds))


async def _measure_polls(url: str, job_id: str, *, clients: int, seconds: float) -> Polls:
    address = urlsplit(url)
    request = f"GET /v1/jobs/{job_id} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
    end = time.perf_counter() + seconds
    began = time.perf_counter()
    each = await asyncio.gather(
        *(_poll(str(address.hostname), int(address.port or 80), request, end) for _ in range(clients))
    )
    took = time.perf_counter() - began
    milliseconds = [one for times, _ in each for one in times]
    errors = sum(failed for _, failed in each)
    rate = len(milliseconds) / took
    return Polls(clients, took, len(milliseconds), errors, rate, statistics.median(milliseconds), _p95(milliseconds))


async def _poll(host: str, port: int, request: bytes, end: float) -> tuple[list[float], int]:
    """One client: milliseconds of each good answer, and how many were none. Bare HTTP leaves the cores to the rest."""
    reader, writer = await asyncio.open_connection(host, port)
    milliseconds, failed = list[float](), 0
    while (began := time.perf_counter()) < end:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        if head.startswith(b"HTTP/1.1 200"):
            milliseconds.append((time.perf_counter() - began) * 1000)
        else:
            failed += 1
    writer.close()
    await writer.wait_closed()
    return milliseconds, failed


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def _steps(job: Job) -> int:
    return job.progress.step if job.progress else 0


def _table(report: dict[str, Any]) -> str:
    submit, poll, here = report["submit"], report["poll"], report["machine"]
    rows = (
        (f"POST /v1/jobs, median of {submit['count']}", f"{submit['median_ms']:.1f} ms", f"< {GOAL_SUBMIT_MS:.0f} ms"),
        ("POST /v1/jobs, p95", f"{submit['p95_ms']:.1f} ms", ""),
        (
            f"GET /v1/jobs/{{id}}, {poll['clients']} clients",
            f"{poll['answers_per_second']:.0f} answers/s",
            f"≥ {GOAL_ANSWERS_PER_SECOND:.0f} answers/s",
        ),
        ("GET /v1/jobs/{id}, median and p95", f"{poll['median_ms']:.0f} and {poll['p95_ms']:.0f} ms", ""),
        ("answers that were no 200", str(poll["errors"]), "0"),
        (f"training steps in those {poll['seconds']:.0f} s", str(report["training"]["steps_while_polled"]), ""),
    )
    where = f"While a job trains; {here['cpu']}, {here['cores']} cores, the load generator on the same cores."
    return f"\n{where}\n\n{markdown_table(('measured', 'value', 'goal'), rows)}\n"


def _missed(submits: Submits, polls: Polls, before: Job, after: Job) -> list[str]:
    missed = []
    if submits.median_ms >= GOAL_SUBMIT_MS:
        missed.append(f"submit median {submits.median_ms:.1f} ms, goal < {GOAL_SUBMIT_MS:.0f} ms")
    if polls.answers_per_second < GOAL_ANSWERS_PER_SECOND:
        missed.append(f"{polls.answers_per_second:.0f} answers/s, goal ≥ {GOAL_ANSWERS_PER_SECOND:.0f}")
    if polls.errors:
        missed.append(f"{polls.errors} answers were no 200")
    if after.status != "running" or _steps(after) == _steps(before):
        went = f"from step {_steps(before)} to {_steps(after)}"
        missed.append(f"not measured under training: the job is {after.status} and went {went} meanwhile")
    return missed


if __name__ == "__main__":
    sys.exit(main())
