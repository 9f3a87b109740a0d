"""How the API answers while a job is training: ``python -m benchmarks.load [--goals]``.

All that it finds goes to docs/results.md; ``--page`` puts the last run there and measures nothing. It starts the real
stack (``limbeck up``) in a temporary folder, submits a long job, and once that trains, measures

- the latency of ``POST /v1/jobs``, one submit after the other over one connection; the jobs wait in the queue and are
  cancelled afterwards;
- how many answers ``GET /v1/jobs/{id}`` gives a second to 100 clients that poll as fast as they can;
- both once more while 1,000 streams of events are open, of 100 jobs, and what the API process holds then.

The load generator runs on the same cores as the server and the training, so it takes some of what it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.load.asking import Polls, Submits, measure_polls, measure_submits
from benchmarks.load.streams import Streamed, measure_streams
from benchmarks.report import RESULTS, ROOT, machine, markdown_table, replace_part, write_json
from limbeck.cli.local_server import local_server
from limbeck.client import Client, Job
from limbeck.recipes import recipe

GOAL_SUBMIT_MS = 50.0
GOAL_ANSWERS_PER_SECOND = 300.0
GOAL_STREAMS_MB = 300.0
PAGE = ROOT / "docs" / "results.md"
_NO_STREAMS = (("the API process with open streams of events (PSS)", "not measured", f"< {GOAL_STREAMS_MB:.0f} MB"),)


def main() -> int:
    options = _options()
    if options.page:
        replace_part(PAGE, "load", page_part(json.loads((RESULTS / "load.json").read_text())))
        return 0
    with tempfile.TemporaryDirectory(prefix="limbeck-load-") as folder:
        data = Path(folder)
        with local_server(data / "server", data / "server.log") as url, Client(url) as client:
            print(f"server at {url}; waiting until a job trains …", flush=True)
            job = _training_job(client)
            submits = measure_submits(client, options.submits)
            before = client.job(job.id)
            polls = asyncio.run(measure_polls(url, job.id, clients=options.clients, seconds=options.seconds))
            after = client.job(job.id)
            streamed = measure_streams(client, job.id, options) if options.streams else None
            client.cancel(job.id)
    report = {
        "command": " ".join(("python -m benchmarks.load", *sys.argv[1:])),
        "machine": machine() | {"load": os.getloadavg()[0]},
        "submit": asdict(submits),
        "poll": asdict(polls),
        "streams": streamed and asdict(streamed),
        "training": {"status": after.status, "steps_while_polled": _steps(after) - _steps(before)},
    }
    print(page_part(report))
    print(f"written to {write_json('load', report)}")
    replace_part(PAGE, "load", page_part(report))
    missed = _missed(submits, polls, before, after) + _streams_missed(streamed)
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed and options.goals else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--submits", type=int, default=100)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--streams", type=int, default=1000, help="open at a time; 0 leaves that part out")
    parser.add_argument("--goals", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--page", action="store_true", help="measure nothing; put the last run into docs/results.md")
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


def _steps(job: Job) -> int:
    return job.progress.step if job.progress else 0


def page_part(report: dict[str, Any]) -> str:
    """A run as the page has it; the streams too where it left them out."""
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
    # Runs of before the streams were measured have no such part.
    rows += _stream_rows(report["streams"]) if report.get("streams") else _NO_STREAMS
    where = f"{here['date']}, {here['cores']} cores of {here['cpu']}, the load generator on the same cores."
    return f"`{report['command']}`, {where}\n\n{markdown_table(('measured', 'value', 'goal'), rows)}"


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


def _stream_rows(streams: dict[str, Any]) -> tuple[tuple[str, str, str], ...]:
    submit, poll = streams["submit"], streams["poll"]
    return (
        (
            f"the API process with {streams['count']} open streams of events (PSS)",
            f"{streams['memory_mb']:.0f} MB, without them {streams['idle_mb']:.0f} MB",
            f"< {GOAL_STREAMS_MB:.0f} MB",
        ),
        ("streams that broke, or missed an event of their job", str(streams["broken"]), "0"),
        (
            "POST /v1/jobs then, median and p95",
            f"{submit['median_ms']:.1f} and {submit['p95_ms']:.1f} ms",
            f"< {GOAL_SUBMIT_MS:.0f} ms",
        ),
        (
            f"GET /v1/jobs/{{id}} then, {poll['clients']} clients",
            f"{poll['answers_per_second']:.0f} answers/s",
            f"≥ {GOAL_ANSWERS_PER_SECOND:.0f} answers/s",
        ),
    )


def _streams_missed(streams: Streamed | None) -> list[str]:
    if streams is None:
        return []
    missed = []
    if streams.memory_mb >= GOAL_STREAMS_MB:
        missed.append(f"{streams.memory_mb:.0f} MB with {streams.count} streams, goal < {GOAL_STREAMS_MB:.0f} MB")
    if streams.broken:
        missed.append(f"{streams.broken} of {streams.count} streams broke, or missed an event")
    if streams.submit.median_ms >= GOAL_SUBMIT_MS:
        missed.append(f"submit median with streams {streams.submit.median_ms:.1f} ms, goal < {GOAL_SUBMIT_MS:.0f} ms")
    if streams.poll.answers_per_second < GOAL_ANSWERS_PER_SECOND:
        found = f"{streams.poll.answers_per_second:.0f}"
        missed.append(f"{found} answers/s with streams, goal ≥ {GOAL_ANSWERS_PER_SECOND:.0f}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
