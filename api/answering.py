"""Asking a student by name: what the API and ``limbeck serve`` have in common."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from starlette.types import Receive

from api.hanging_up import WhileWanted
from api.inference import Batcher, Students
from api.inference.batcher import WINDOW
from api.inference.tallies import Counted
from api.inference.turns import Turns
from api.shelves import Shelf
from limbeck.errors import Busy, TooSlow
from limbeck.runtime import Predictor, Question
from limbeck.runtime.inputs import TopK
from models.settings import Settings
from models.storage import Storage

_Found = TypeVar("_Found")

#: Names that one process looks up, or loads, at a time; and those that were found before and are looked up again, which
#: no student that is being loaded holds up.
LOOKING = 40
RENEWING = 20
#: Names that may wait for it, of those that were not found before.
_NAMES = 1000
#: A longer list, or more tokens in lists, are read in a thread, or the event loop would stand still for them.
_READ_HERE = 1000
_TOKENS_HERE = 10_000
#: Characters that a token of a list counts as.
_TOKEN = 8
#: Characters of inputs that hold as much room as a text while they are read, so that what waits for it is bounded in
#: bytes, too: with room for 4,096 texts in 512 MiB.
_CHARACTERS = 128 * 1024


@dataclass(frozen=True, slots=True)
class Answering:
    """The students of one process, and the threads that answer for them.

    Reading and looking up have threads of their own: neither fills the pool that ``/readyz`` is answered from, and no
    more images are in memory decoded than there are cores to decode them, and one. What is given up at its deadline
    goes on to its end in its thread, and gives back its room behind it.
    """

    shelf: Shelf
    students: Students
    batcher: Batcher
    _reading: Turns = field(default_factory=lambda: Turns(cores()))
    _looking: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(LOOKING))
    _renewing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(RENEWING))
    #: By name, and by the generation of what names mean.
    _lookups: dict[tuple[str, int], asyncio.Task[Predictor]] = field(default_factory=dict)

    def deadline(self) -> float:
        """Of a question that comes now, on the monotonic clock."""
        return time.monotonic() + self.batcher.seconds

    async def student(self, name: str, until: float = math.inf) -> Predictor:
        """The student of this id or alias, loaded where it is not yet; that goes on behind the deadline.

        Raises:
            NotFound, Conflict: there is no such model, or it has no exported form.
            Unavailable: neither the shelf nor this process knows it now.
            Busy: too many names are looked up.
            TooSlow: it is not there by the deadline.
        """
        student = self.students.at_hand(name)
        return student if student is not None else await self._in_time(self._looked_up(name), until)

    async def answer(
        self,
        receive: Receive,
        student: Predictor,
        inputs: Any,
        *,
        top_k: TopK = None,
        speed: float | None = None,
        until: float,
    ) -> Any:
        """What a student answers, in the shape of :meth:`Predictor.predict`; given up where the caller hangs up.

        Args:
            receive: of a request whose body is read.

        Raises:
            InvalidInput, Busy, TooSlow: as :meth:`read` and :meth:`Batcher.ask`.
            ClientDisconnect: nobody waits for it any more.
        """
        with WhileWanted(receive), Counted(self.batcher.tallies.of(student)):
            question = await self.read(student, inputs, top_k=top_k, speed=speed, until=until)
            return await self.batcher.ask(student, question, until=until)

    async def read(
        self,
        student: Predictor,
        inputs: Any,
        *,
        top_k: TopK = None,
        speed: float | None = None,
        until: float = math.inf,
    ) -> Question:
        """What a student is asked, checked; in a thread where that decodes images, or looks at tokens: for masks, or to
        cut contexts; and where the list is long.

        Raises:
            InvalidInput: with a pointer for each input that is wrong.
            Busy: too much waits already.
            TooSlow: it is not read by the deadline.
        """
        if (
            student.task not in ("image_classification", "question_answering")
            and student.mask is None
            and is_short(inputs)
        ):
            return student.question(inputs, top_k=top_k, speed=speed)
        texts = _texts(inputs)
        self.batcher.hold(student, texts)
        reading = self._reading.run(student, partial(student.question, inputs, top_k=top_k, speed=speed, until=until))
        reading.add_done_callback(lambda _: self.batcher.release(student, texts))
        return await self._in_time(reading, until)

    def close(self) -> None:
        """What still waits is refused, or not read."""
        self.batcher.close()
        self._reading.close()

    def _looked_up(self, name: str) -> asyncio.Task[Predictor]:
        """One look-up for all who ask for a name meanwhile, unless names have changed their meaning since it began."""
        generation = self.students.generation
        key = name, generation
        found = self._lookups.get(key)
        if found is None:
            known = self.students.knows(name)
            if not known and len(self._lookups) >= _NAMES:
                raise Busy(f"{len(self._lookups):,} other models are looked up or loaded already.")
            load = partial(self._load, name, generation)
            limiter = self._renewing if known else self._looking
            found = self._lookups[key] = asyncio.ensure_future(to_thread.run_sync(load, limiter=limiter))
            found.add_done_callback(lambda _: self._lookups.pop(key))
        return found

    def _load(self, name: str, generation: int) -> Predictor:
        model_id, files = self.shelf.find(name)
        student = self.students.get(model_id, files)
        self.students.know(name, model_id, student, generation)
        return student

    async def _in_time(self, begun: asyncio.Future[_Found], until: float) -> _Found:
        """What it gives; at the deadline it is left to itself."""
        left = None if until == math.inf else max(0.0, until - time.monotonic())
        begun.add_done_callback(_hear)
        done, _ = await asyncio.wait([begun], timeout=left)
        if done:
            return begun.result()
        late = "the student is not loaded yet, or too much is being read"
        raise TooSlow(f"No answer within {self.batcher.seconds:g} s: {late}.")


def is_short(inputs: Any) -> bool:
    """Whether inputs are read in less time than handing them to a thread takes others."""
    if isinstance(inputs, str):
        return True
    each = _each(inputs)
    if len(each) > _READ_HERE:
        return False
    listed = (one.get("tokens") for one in each if isinstance(one, Mapping))
    return sum(len(tokens) for tokens in listed if isinstance(tokens, list)) <= _TOKENS_HERE


def _texts(inputs: Any) -> int:
    """The room that inputs hold while they are read; a long list that of a window."""
    each = _each(inputs)
    texts = [text for one in each for text in (one.values() if isinstance(one, Mapping) else [one])]
    size = sum(len(text) for text in texts if isinstance(text, str | bytes))
    size += sum(_TOKEN * len(text) for text in texts if isinstance(text, list))
    return max(1, min(len(each), WINDOW), size // _CHARACTERS)


def _each(inputs: Any) -> list[Any]:
    """The texts, or objects that hold them."""
    if isinstance(inputs, Mapping) and isinstance(inputs.get("sentences"), list):
        return [inputs.get("source_sentence"), *inputs["sentences"]]
    return inputs if isinstance(inputs, list) else [inputs]


def _hear(begun: asyncio.Future[Any]) -> None:
    """Of what nobody may wait for by now: asyncio writes a traceback for an error that nobody has looked at."""
    if not begun.cancelled():
        begun.exception()


@contextmanager
def open_answering(settings: Settings, shelf: Shelf, storage: Storage) -> Iterator[Answering]:
    """The threads run inside; at the end what still waits is refused."""
    batcher = Batcher(
        threads=settings.predict_threads or cores(),
        limit=settings.predict_queue_texts,
        seconds=settings.predict_seconds,
    )
    asked = Answering(shelf, Students(storage, settings), batcher)
    try:
        yield asked
    finally:
        asked.close()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def _answering(request: Request) -> Answering:  # async: a plain function would be sent to the thread pool
    answering: Answering = request.app.state.answering
    return answering


Asked = Annotated[Answering, Depends(_answering)]
