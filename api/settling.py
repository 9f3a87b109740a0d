"""Looks again and again for jobs that dead workers left behind, as no worker may be there to do it: what was asked of
them would never be done, and whoever watches them would wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from api.setbacks import Setbacks
from models.db import Database
from models.repository import settling

log = structlog.get_logger("limbeck.api")


@asynccontextmanager
async def settles(database: Database, pause_seconds: float) -> AsyncIterator[None]:
    """While this is open, jobs that were left behind are settled, so long after the last look at the latest."""
    looking = asyncio.create_task(_again_and_again(database, pause_seconds), name="settling")
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


async def _again_and_again(database: Database, pause_seconds: float) -> None:
    setbacks = Setbacks("jobs that were left behind cannot be looked for", pause_seconds)
    pause = pause_seconds
    while True:
        await asyncio.sleep(pause)
        try:
            await asyncio.to_thread(_settle, database)
        except Exception as error:  # the boundary: whatever one look met, the next one has to come
            pause = setbacks.met(error)
        else:
            pause = setbacks.over()


def _settle(database: Database) -> None:
    with database.reading() as session:  # waits for no writer, as long as there is nothing to do
        if not settling.some_left_behind(session):
            return
    with database.session() as session:
        settled = settling.settle_left_behind(session)
    for job in settled:
        log.warning("a job was left behind by its worker", job=job.id, status=job.status.value)
