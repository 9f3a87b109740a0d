"""Asking a student by name: what the API and ``limbeck serve`` have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request

from api.inference import Batcher, Students
from api.shelves import Shelf
from limbeck.runtime import Predictor, Question
from limbeck.runtime.inputs import TopK
from models.settings import Settings
from models.storage import Storage

#: Requests of one process that look their student up, or wait until it is loaded, at a time.
LOOKING = 40


@dataclass(frozen=True, slots=True)
class Answering:
    """The students of one process, and the threads that answer for them.

    Reading and looking up have limits of their own: neither fills the pool of threads that ``/readyz`` is answered
    from, and no more images are in memory decoded than there are cores to decode them.
    """

    shelf: Shelf
    students: Students
    batcher: Batcher
    _reading: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(cores()))
    _looking: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(LOOKING))

    async def student(self, name: str) -> Predictor:
        """The student of this id or alias, loaded where it is not yet.

        Raises:
            NotFound, Conflict: there is no such model, or it has no exported form.
            Unavailable: neither the shelf nor this process knows it now.
        """
        student = self.students.at_hand(name)
        return student if student is not None else await to_thread.run_sync(self._load, name, limiter=self._looking)

    async def read(
        self, student: Predictor, inputs: Any, *, top_k: TopK = None, speed: float | None = None
    ) -> Question:
        """What a student is asked, checked; in a thread where that decodes images, or looks at tokens: for masks, or to
        cut contexts.

        Raises:
            InvalidInput: with a pointer for each input that is wrong.
        """
        if student.task not in ("image_classification", "question_answering") and student.mask is None:
            return student.question(inputs, top_k=top_k, speed=speed)
        question = partial(student.question, inputs, top_k=top_k, speed=speed)
        return await to_thread.run_sync(question, limiter=self._reading)

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
