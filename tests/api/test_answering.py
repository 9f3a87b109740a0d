"""What asking a student takes of the threads that everything else needs too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from anyio import to_thread

from api.answering import LOOKING, Answering, cores, open_answering
from api.shelves import Found
from limbeck.errors import NotFound
from limbeck.runtime import Predictor
from models.settings import Settings
from models.storage.local import LocalStorage


class Held:
    """A shelf, and a student, that take their time: until they are let go."""

    def __init__(self, task: str = "", mask: str | None = None) -> None:
        self.task, self.mask = task, mask
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()

    def find(self, name: str) -> Found:
        self._wait()
        raise NotFound(name)

    def ping(self) -> None: ...

    def question(self, inputs: Any, **parameters: Any) -> Any:
        self._wait()
        return inputs

    def _wait(self) -> None:
        self.entered.release()
        assert self.go.wait(60)


@contextmanager
def answering(shelf: Held, folder: Path) -> Iterator[Answering]:
    with open_answering(Settings(data_dir=folder), shelf, LocalStorage(folder / "storage")) as found:
        yield found


async def crowd(held: Held, ask: Callable[[], Awaitable[Any]], threads: int) -> list[Any]:
    """Three times as many callers as anyio has threads: ``threads`` of them get one, and so does somebody else."""
    callers = [asyncio.ensure_future(ask()) for _ in range(120)]
    try:
        for _ in range(threads):
            assert await asyncio.get_running_loop().run_in_executor(None, held.entered.acquire, True, 30)
        assert await asyncio.wait_for(to_thread.run_sync(threading.get_ident), 10)
        assert not held.entered.acquire(blocking=False)
    finally:
        held.go.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
    return answers


def test_waiting_for_a_student_leaves_threads_for_everything_else(tmp_path: Path) -> None:
    """Guards ``/readyz``, and the students that are loaded, against a database or a student that takes seconds."""
    held = Held()
    with answering(held, tmp_path) as asked:
        answers = asyncio.run(crowd(held, lambda: asked.student("reviews"), LOOKING))
    assert [type(one) for one in answers] == [NotFound] * 120


@pytest.mark.parametrize(("task", "mask"), [("image_classification", None), ("masked_lm", "[MASK]")])
def test_what_takes_long_to_read_is_read_by_as_many_threads_as_there_are_cores(
    task: str, mask: str | None, tmp_path: Path
) -> None:
    """Guards against forty images in memory at once, and an event loop that stands still while masks are counted."""
    held = Held(task, mask)
    student = cast(Predictor, held)
    with answering(held, tmp_path) as asked:
        answers = asyncio.run(crowd(held, lambda: asked.read(student, "x"), cores()))
    assert answers == ["x"] * 120
