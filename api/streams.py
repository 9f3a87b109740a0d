"""Live events for many watchers at the cost of one: a single poller asks the database for every job being watched.

A watcher reads what has been from the database itself and is then woken when its job changes. Events are numbered
without gaps, so a watcher that falls behind sees the gap and reads again; nothing is queued per watcher.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from api.job_schemas import EventView
from api.setbacks import Setbacks
from models.db import Database
from models.repository import overview, telemetry
from models.repository.overview import JobState

POLL_SECONDS = 0.25
COMMENT_SECONDS = 15.0
_PAGE = 500
_RECENT = 200


@dataclass(slots=True)
class _Watched:
    """A job that somebody watches, as the poller saw it last."""

    state: JobState | None = None
    gone: bool = False
    recent: list[EventView] = field(default_factory=list)  #: the newest events that the poller has read
    watchers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Streams:
    """All open streams of events of one process.

    Args:
        database: where the jobs are.
        poll_seconds: how long a change may go unseen.
        comment_seconds: how long a stream may be silent; proxies cut silent connections.
    """

    def __init__(
        self, database: Database, *, poll_seconds: float = POLL_SECONDS, comment_seconds: float = COMMENT_SECONDS
    ) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._comment_seconds = comment_seconds
        self._watched: dict[str, _Watched] = {}
        self._somebody = asyncio.Event()
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Streams]:
        """The poller runs inside; at the end all streams end."""
        poller = asyncio.create_task(self._poll(), name="event streams")
        try:
            yield self
        finally:
            self.close()
            poller.cancel()
            with suppress(asyncio.CancelledError):
                await poller

    def close(self) -> None:
        """End every stream; a watcher comes back with its Last-Event-ID. Called before connections are waited for."""
        self._closed = True
        for job in self._watched.values():
            job.wake()

    @property
    def open(self) -> int:
        return sum(job.watchers for job in self._watched.values())

    async def watch(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        """The stream of one watcher in the ``text/event-stream`` format.

        Every event behind number ``after`` comes once and in order. ``progress`` has no id and tells only how things
        stand: steps in between may be left out. The stream ends behind the last event of a job that has ended.
        """
        job = self._enter(job_id)
        sent, shown = after, None
        try:
            while not self._closed:
                changed = job.changed
                news = await self._news(job_id, job, sent)
                for event in news:
                    yield _message(event.kind, event.model_dump_json(), event.sequence)
                    sent = event.sequence
                state = job.state
                if len(news) == _PAGE:
                    continue
                if job.gone or (state is not None and state.status.terminal and sent >= state.last_event):
                    return
                if state is not None and (now := _progress(state)) != shown:
                    shown = now
                    yield _message("progress", json.dumps(now))
                if not changed.is_set():
                    try:
                        await asyncio.wait_for(changed.wait(), self._comment_seconds)
                    except TimeoutError:
                        yield b": still there\n\n"
        finally:
            self._leave(job_id, job)

    def _enter(self, job_id: str) -> _Watched:
        job = self._watched.setdefault(job_id, _Watched())
        job.watchers += 1
        self._somebody.set()
        return job

    def _leave(self, job_id: str, job: _Watched) -> None:
        job.watchers -= 1
        if job.watchers == 0 and self._watched.get(job_id) is job:
            del self._watched[job_id]
        if not self._watched:
            self._somebody.clear()

    async def _news(self, job_id: str, job: _Watched, sent: int) -> list[EventView]:
        """Events behind ``sent``: as the poller remembers them where that reaches back far enough, else as stored."""
        if job.state is not None and job.state.last_event <= sent:
            return []
        if job.recent and job.recent[0].sequence <= sent + 1:
            return [event for event in job.recent if event.sequence > sent]
        return await asyncio.to_thread(self._read, job_id, sent)

    def _read(self, job_id: str, after: int) -> list[EventView]:
        with self._database.reading() as session:
            return [EventView.of(event) for event in telemetry.events_after(session, job_id, after, _PAGE)]

    async def _poll(self) -> None:
        setbacks = Setbacks("the database cannot be read for event streams", self._poll_seconds)
        while True:
            await self._somebody.wait()
            known = {job_id: job.state for job_id, job in self._watched.items()}
            try:
                states, events = await asyncio.to_thread(self._look, known)
            except Exception as error:  # the boundary: the watchers stay, and so does the poller
                pause = setbacks.met(error)
            else:
                pause = setbacks.over()
                self._publish(known, states, events)
            await asyncio.sleep(pause)

    def _look(self, known: dict[str, JobState | None]) -> tuple[dict[str, JobState], dict[str, list[EventView]]]:
        """The watched jobs as they are now, and the new events of those that have some."""
        events = {}
        with self._database.reading() as session:
            states = {state.id: state for state in overview.job_states(session, list(known))}
            for job_id, state in states.items():
                before = known[job_id]
                if before is not None and state.last_event > before.last_event:
                    found = telemetry.events_after(session, job_id, before.last_event, _PAGE)
                    events[job_id] = [EventView.of(one) for one in found if one.sequence <= state.last_event]
        return states, events

    def _publish(
        self,
        known: dict[str, JobState | None],
        states: dict[str, JobState],
        events: dict[str, list[EventView]],
    ) -> None:
        for job_id in known:
            job = self._watched.get(job_id)
            if job is None:
                continue
            state = states.get(job_id)
            if state == job.state and state is not None:
                continue
            job.gone, job.state = state is None, state
            job.recent = _contiguous(job.recent, events.get(job_id, []), state)
            job.wake()


def _contiguous(recent: list[EventView], new: list[EventView], state: JobState | None) -> list[EventView]:
    """The newest events up to the job's last one without a gap; nothing where there would be one."""
    joined = recent + new
    whole = state is not None and bool(joined) and joined[-1].sequence == state.last_event
    whole = whole and joined[-1].sequence - joined[0].sequence == len(joined) - 1
    return joined[-_RECENT:] if whole else []


def _progress(state: JobState) -> dict[str, Any]:
    return {
        "status": state.status.value,
        "stage": state.stage,
        "attempt": state.attempt,
        "progress": state.progress,
    }


def _message(kind: str, data: str, sequence: int | None = None) -> bytes:
    """JSON has no bare line breaks, so the data is always one line."""
    number = f"id: {sequence}\n" if sequence is not None else ""
    return f"{number}event: {kind}\ndata: {data}\n\n".encode()
