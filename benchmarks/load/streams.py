"""Many open streams of events, and how the API does beside them."""

from __future__ import annotations

import argparse
import asyncio
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil

from benchmarks.load.asking import Polls, Submits, measure_polls, measure_submits
from limbeck.client import Client
from limbeck.recipes import recipe

#: That the streams are of, the training one among them.
_JOBS = 100
#: Opened at a time; more would overflow the queue of connections that are not accepted yet.
_AT_ONCE = 50
#: For a stream's first and last events.
_PATIENCE = 60.0
_LAST = {"job.cancelled", "job.failed", "job.succeeded"}


@dataclass(frozen=True, slots=True)
class Streamed:
    """What it took to keep so many streams open."""

    count: int
    jobs: int
    idle_mb: float  #: PSS of the API process before
    memory_mb: float  #: and with all streams open, after submits and polls
    broken: int  #: streams that ended too early, or not, or had a gap in their events
    submit: Submits
    poll: Polls


@dataclass(slots=True)
class _Stream:
    """What one reader has seen."""

    numbers: list[int] = field(default_factory=list)
    last: str = ""

    @property
    def whole(self) -> bool:
        return self.last in _LAST and self.numbers == list(range(1, len(self.numbers) + 1))


def measure_streams(client: Client, training: str, options: argparse.Namespace) -> Streamed:
    """Open the streams, submit and poll beside them, weigh the API, and let all jobs end.

    Args:
        options: ``streams``, ``submits``, ``clients`` and ``seconds``.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    document = dict(recipe("demo").document)
    jobs = [training, *(client.submit(document, name=f"watched {number}").id for number in range(_JOBS - 1))]
    return asyncio.run(_measure(client, jobs, options))


async def _measure(client: Client, jobs: Sequence[str], options: argparse.Namespace) -> Streamed:
    api = _api_process()
    idle = api.memory_full_info().pss / 1024**2
    gate, opened = asyncio.Semaphore(_AT_ONCE), asyncio.Event()
    streams = [_Stream() for _ in range(options.streams)]
    left = len(streams)

    def one_more() -> None:
        nonlocal left
        left -= 1
        if not left:
            opened.set()

    readers = [
        asyncio.create_task(_read(client.base_url, jobs[place % len(jobs)], stream, gate, one_more))
        for place, stream in enumerate(streams)
    ]
    await asyncio.wait_for(opened.wait(), _PATIENCE)
    submit = await asyncio.to_thread(measure_submits, client, options.submits)
    poll = await measure_polls(client.base_url, jobs[0], clients=options.clients, seconds=options.seconds)
    memory = api.memory_full_info().pss / 1024**2
    early = sum(reader.done() for reader in readers)
    for job in jobs:
        await asyncio.to_thread(client.cancel, job)
    await asyncio.wait(readers, timeout=_PATIENCE)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    broken = early + sum(not stream.whole for stream in streams)
    return Streamed(len(streams), len(jobs), idle, memory, min(broken, len(streams)), submit, poll)


async def _read(url: str, job: str, stream: _Stream, gate: asyncio.Semaphore, opened: Callable[[], None]) -> None:
    address = urlsplit(url)
    async with gate:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        request = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: text/event-stream\r\n\r\n"
        writer.write(request.encode())
        while not stream.numbers and (line := await reader.readline()):
            _note(stream, line)
    opened()
    try:
        while stream.last not in _LAST and (line := await reader.readline()):
            _note(stream, line)
    finally:
        writer.close()


def _note(stream: _Stream, line: bytes) -> None:
    if line.startswith(b"id: "):
        stream.numbers.append(int(line[4:]))
    elif line.startswith(b"event: "):
        stream.last = line[7:].decode().strip()


def _api_process() -> psutil.Process:
    """The API among what `limbeck up` started below this process."""
    found = [one for one in psutil.Process().children(recursive=True) if "api" in one.cmdline()]
    assert len(found) == 1, found
    return found[0]
