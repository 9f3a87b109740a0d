"""What asking a student takes of the threads that everything else needs too."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from anyio import to_thread

from api.answering import LOOKING, Answering, cores, is_short, open_answering
from api.routes.open_inference import model_metadata, model_ready
from api.shelves import Found
from limbeck.errors import Busy, NotFound, TooSlow
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
def answering(shelf: Held, folder: Path, **settings: Any) -> Iterator[Answering]:
    with open_answering(Settings(data_dir=folder, **settings), shelf, LocalStorage(folder / "storage")) as found:
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
        names = map(str, itertools.count())
        answers = asyncio.run(crowd(held, lambda: asked.student(next(names)), LOOKING))
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


def test_what_waits_to_be_read_is_bounded_and_seen(tmp_path: Path) -> None:
    """Guards against bodies of images that wait in memory without number, and a gauge that says that nothing waits."""
    held = Held("question_answering")
    student = cast(Predictor, held)

    async def script(asked: Answering) -> list[Any]:
        reading = [asyncio.ensure_future(asked.read(student, "x")) for _ in range(20)]
        big = [asyncio.ensure_future(asked.read(student, ["x" * 1024**2])) for _ in range(2)]
        done, _ = await asyncio.wait(reading, timeout=0.2)
        waiting = asked.batcher.waiting
        held.go.set()
        found = await asyncio.gather(*reading, *big, return_exceptions=True)
        assert asked.batcher.waiting == 0
        return [waiting, len(done), *(type(one) for one in found)]

    with answering(held, tmp_path, predict_queue_texts=16) as asked:
        waiting, refused, *kinds = asyncio.run(script(asked))
    assert (waiting, refused) == (12, 8)
    assert kinds == [str] * 12 + [Busy] * 10


def test_no_student_has_all_the_threads_that_read(tmp_path: Path) -> None:
    """Guards a student of questions against another's images: some requests of large ones took every thread."""
    hot, cold = Held("image_classification"), Held("question_answering")
    cold.go.set()

    async def script(asked: Answering) -> None:
        reading = [asyncio.ensure_future(asked.read(cast(Predictor, hot), "x")) for _ in range(50)]
        for _ in range(cores()):
            assert await asyncio.get_running_loop().run_in_executor(None, hot.entered.acquire, True, 30)
        assert await asyncio.wait_for(asked.read(cast(Predictor, cold), "y"), 10) == "y"
        hot.go.set()
        assert await asyncio.gather(*reading) == ["x"] * 50

    with answering(hot, tmp_path) as asked:
        asyncio.run(script(asked))


def test_the_deadline_holds_for_what_is_read_and_for_what_is_loaded(tmp_path: Path) -> None:
    """Guards against a caller who waits as long as it takes, in front of the queue, where nobody looked at the time."""
    held = Held("question_answering")

    async def script(asked: Answering) -> list[Any]:
        until = asked.deadline()
        late = [asked.student("reviews", until), asked.read(cast(Predictor, held), "x", until=until)]
        found = await asyncio.gather(*late, return_exceptions=True)
        found.append(asked.batcher.waiting)  # its room is held while a thread has it
        held.go.set()
        with pytest.raises(NotFound):
            await asked.student("reviews")
        return found

    began = time.monotonic()
    with answering(held, tmp_path, predict_seconds=0.1) as asked:
        *late, waiting = asyncio.run(script(asked))
    assert [type(one) for one in late] == [TooSlow, TooSlow]
    assert waiting == 1
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("told", [model_metadata, model_ready])
def test_a_probe_is_answered_by_the_deadline(told: Callable[..., Awaitable[Any]], tmp_path: Path) -> None:
    """Guards a balancer that asks whether a model is ready against no answer at all while its files come slowly."""
    held = Held()

    async def script(asked: Answering) -> None:
        with pytest.raises(TooSlow):
            await asyncio.wait_for(told(asked, "reviews"), 30)
        held.go.set()

    with answering(held, tmp_path, predict_seconds=0.2) as asked:
        asyncio.run(script(asked))


def test_a_name_that_many_ask_for_is_looked_up_once(tmp_path: Path) -> None:
    """Guards against callers of one student that is being loaded who hold every thread that looks others up."""
    held = Held()

    async def script(asked: Answering) -> int:
        callers = [asyncio.ensure_future(asked.student("cold")) for _ in range(100)]
        assert await asyncio.get_running_loop().run_in_executor(None, held.entered.acquire, True, 30)
        asked.students.forget_name("cold")  # an alias that was switched: who comes from now on is told the new meaning
        again = asyncio.ensure_future(asked.student("cold"))
        assert await asyncio.get_running_loop().run_in_executor(None, held.entered.acquire, True, 30)
        held.go.set()
        found = await asyncio.gather(*callers, again, return_exceptions=True)
        return sum(isinstance(one, NotFound) for one in found)

    with answering(held, tmp_path) as asked:
        assert asyncio.run(script(asked)) == 101
    assert not held.entered.acquire(blocking=False)


def test_a_long_list_is_read_beside_the_loop(tmp_path: Path) -> None:
    """Guards against an event loop that stands still for everybody while it looks at a hundred thousand texts."""
    held = Held("sequence_classification")
    held.go.set()
    seen: list[int] = []
    held.question = lambda inputs, **_: seen.append(threading.get_ident())  # type: ignore[method-assign]

    async def script(asked: Answering) -> None:
        for length in (10, 100_000):
            await asked.read(cast(Predictor, held), ["a"] * length)

    with answering(held, tmp_path) as asked:
        asyncio.run(script(asked))
    assert [one == threading.get_ident() for one in seen] == [True, False]


def test_long_inputs_are_not_read_on_the_event_loop() -> None:
    """Guards everybody else's answers: a list of a quarter of a million tokens took 0.24 s."""
    tokens = ["a"] * 6_000
    assert all(map(is_short, ("a text", ["a"] * 1000, {"tokens": tokens}, {"text": "a", "text_pair": "b"}, None, [1])))
    assert not any(map(is_short, (["a"] * 1001, [{"tokens": tokens}] * 2, {"tokens": tokens * 2})))
