"""Asking a student by name: what the API and ``limbeck serve`` have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from api.inference import Batcher, Students
from api.shelves import Shelf
from limbeck.runtime import Predictor
from models.settings import Settings
from models.storage import Storage


@dataclass(frozen=True, slots=True)
class Answering:
    """The students of one process, and the threads that answer for them."""

    shelf: Shelf
    students: Students
    batcher: Batcher

    async def student(self, name: str) -> Predictor:
        """The student of this id or alias, loaded where it is not yet.

        Raises:
            NotFound, Conflict: there is no such model, or it has no exported form.
            Unavailable: neither the shelf nor this process knows it now.
        """
        student = self.students.at_hand(name)
        return student if student is not None else await run_in_threadpool(self._load, name)

    def _load(self, name: str) -> Predictor:
        model_id, files = self.shelf.find(name)
        student = self.students.get(model_id, files)
        self.students.know(name, model_id, student)
        return student


@contextmanager
def open_answering(settings: Settings, shelf: Shelf, storage: Storage) -> Iterator[Answering]:
    """The threads run inside; at the end what still waits is refused."""
    batcher = Batcher(
        threads=settings.predict_threads or cores(),
        limit=settings.predict_queue_texts,
        seconds=settings.predict_seconds,
    )
    try:
        yield Answering(shelf, Students(storage, settings), batcher)
    finally:
        batcher.close()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def _answering(request: Request) -> Answering:  # async: a plain function would be sent to the thread pool
    answering: Answering = request.app.state.answering
    return answering


Asked = Annotated[Answering, Depends(_answering)]
