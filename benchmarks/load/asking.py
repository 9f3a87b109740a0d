"""Submits one after the other, and clients that poll as fast as they can."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from limbeck.client import Client
from limbeck.recipes import recipe


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


def measure_submits(client: Client, count: int) -> Submits:
    """Milliseconds of ``POST /v1/jobs`` over one connection; the jobs are cancelled afterwards."""
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
    return Submits(count, statistics.median(milliseconds), p95(milliseconds), max(milliseconds))


async def measure_polls(url: str, job_id: str, *, clients: int, seconds: float) -> Polls:
    """Answers of ``GET /v1/jobs/{id}`` to clients that ask again at once."""
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
    return Polls(clients, took, len(milliseconds), errors, rate, statistics.median(milliseconds), p95(milliseconds))


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


def p95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]
