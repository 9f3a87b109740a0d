"""A student with early exits that many ask: who leaves is answered at once, who stays goes on with others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from api.inference import Batcher
from api.inference.batcher import _Line
from api.inference.layered import Layered
from limbeck.errors import Busy, InvalidModel, TooSlow
from limbeck.runtime import Predictor
from limbeck.runtime.encoding import Encoder
from limbeck.runtime.exits import ExitSession, found_graphs
from limbeck.runtime.layers import Text
from limbeck.runtime.student import StudentFacts
from tests.api.test_batcher import Slow, batcher, question, run, until
from tests.exported import texts

WORDS = "Return a list of the names of all open sockets."
#: As long as the others, so that it shares their calls.
BROKEN = f"{WORDS} 9"
#: Layers of the student.
LAYERS = 3


class Watched(ExitSession):
    """The real layers, and a gate in front of each: what is computed with what, in which order, and when."""

    def __init__(self, files: Sequence[Path], speed: float, log: list[Any] | None = None) -> None:
        super().__init__(files, speed, pad_id=0, threads=1)
        self.calls: list[Any] = [] if log is None else log
        self.gates = [threading.Event() for _ in files]
        self.reached = [threading.Event() for _ in files]
        self.broken: int | None = None
        for gate in self.gates:
            gate.set()

    def run(self, texts: Sequence[Text]) -> tuple[list[Text], list[Text]]:
        number = texts[0].layers
        self.calls.append((number, [one.owner[0].waiting.question.texts[one.owner[1]] for one in texts]))
        self.reached[number].set()
        assert self.gates[number].wait(10)
        if number == self.broken and any(BROKEN in one for one in self.calls[-1][1]):
            raise InvalidModel("this layer cannot be computed")
        return super().run(texts)


@pytest.fixture
def layers(exported_exits_student: Path) -> Watched:
    return Watched(found_graphs(exported_exits_student), 0.9)


@pytest.fixture
def student(exported_exits_student: Path, layers: Watched) -> Predictor:
    facts = StudentFacts.read(exported_exits_student)
    return Predictor(facts, Encoder.load(exported_exits_student, facts), layers, "onnx")


@pytest.fixture(scope="module")
def alone(exported_exits_student: Path) -> Predictor:
    """The same student, asked by nobody else."""
    return Predictor.load(exported_exits_student, threads=1)


def ask(made: Batcher, student: Predictor, inputs: Any, speed: float) -> asyncio.Future[Any]:
    """Speed 1 leaves behind the first layer, speed 0 behind the last."""
    return asyncio.ensure_future(made.ask(student, student.question(inputs, speed=speed)))


async def in_one_window(made: Batcher, student: Predictor, *asked: tuple[Any, float]) -> list[asyncio.Future[Any]]:
    with made._turn:  # so that no thread takes anything until all have come
        started = [ask(made, student, inputs, speed) for inputs, speed in asked]
        await asyncio.sleep(0)
    return started


def same(found: Any, expected: Any) -> None:
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_who_leaves_early_is_answered_while_the_other_one_still_runs(
    student: Predictor, layers: Watched, alone: Predictor
) -> None:
    """Guards an answer that waits for its whole window."""
    layers.gates[1].clear()

    async def script(made: Batcher) -> None:
        early, late = await in_one_window(made, student, (WORDS, 1), (WORDS, 0))
        same(await early, alone.predict(WORDS, speed=1))
        await until(layers.reached[1].is_set)
        assert not late.done()
        layers.gates[1].set()
        same(await late, alone.predict(WORDS, speed=0))

    with batcher() as made:
        run(script(made))
        assert made.waiting == 0
    assert layers.calls == [(0, [WORDS, WORDS]), (1, [WORDS]), (2, [WORDS])]


def test_rows_of_two_windows_go_on_together(student: Predictor, layers: Watched, alone: Predictor) -> None:
    """Guards batches that only shrink: whoever comes while another is under way catches up with it."""
    layers.gates[0].clear()
    first, second, third = f"{WORDS} 1", f"{WORDS} 2", f"{WORDS} 3"

    async def script(made: Batcher) -> None:
        one = ask(made, student, first, 0)
        await until(layers.reached[0].is_set)
        two, three = ask(made, student, second, 0), ask(made, student, third, 1)
        await until(lambda: made.waiting == 3)
        layers.gates[0].set()
        for found, words, speed in ((one, first, 0), (two, second, 0), (three, third, 1)):
            same(await found, alone.predict(words, speed=speed))

    with batcher() as made:
        run(script(made))
    assert layers.calls == [(0, [first]), (0, [second, third]), (1, [first, second]), (2, [first, second])]


def test_questions_that_came_too_late_take_no_other_with_them(
    student: Predictor, layers: Watched, alone: Predictor
) -> None:
    """Guards a question that would never be answered: a thread had taken a line in which all had expired, and at its
    end took the student's next line, by then under way, off the list."""
    layers.gates[1].clear()

    async def script(made: Batcher) -> None:
        one = ask(made, student, WORDS, 0)
        await until(layers.reached[1].is_set)
        expired = Layered(student)
        made._bring_on(_Line(student, expired, made.tallies.of(student)), expired, [])
        other = ask(made, student, WORDS, 0)
        await until(lambda: made.waiting == 2)
        layers.gates[1].set()
        for found in (one, other):
            same(await found, alone.predict(WORDS, speed=0))

    with batcher() as made:
        run(script(made))


def test_a_free_thread_takes_what_there_is(student: Predictor, layers: Watched, alone: Predictor) -> None:
    """Guards a layer that runs from keeping all else of its student waiting."""
    layers.gates[1].clear()

    async def script(made: Batcher) -> None:
        late = ask(made, student, WORDS, 0)
        await until(layers.reached[1].is_set)
        same(await ask(made, student, "sockets", 1), alone.predict("sockets", speed=1))
        assert not late.done()
        layers.gates[1].set()
        await late

    with batcher(threads=2) as made:
        run(script(made))


def test_many_callers_get_what_they_would_get_alone(student: Predictor, layers: Watched, alone: Predictor) -> None:
    """Guards states, speeds and answers that go to the wrong caller, with lists that are longer than a window."""
    pool = texts(90)
    asked: list[Any] = [pool[:70], {"text": pool[70]}, *pool[71:]]
    speeds = [(0, 0.995, 1)[place % 3] for place in range(len(asked))]

    async def script(made: Batcher) -> list[Any]:
        return list(await asyncio.gather(*(ask(made, student, *one) for one in zip(asked, speeds, strict=True))))

    with batcher(threads=3) as made:
        found = run(script(made))
        assert made.waiting == 0
    for inputs, speed, answer in zip(asked, speeds, found, strict=True):
        expected = alone.predict(inputs, speed=speed)
        same(*([one] if isinstance(inputs, dict) else one for one in (answer, expected)))
    sizes = {(number, len(together)) for number, together in layers.calls}
    assert any(number and size > 1 for number, size in sizes)


def test_who_went_away_leaves_the_batch(student: Predictor, layers: Watched) -> None:
    layers.gates[0].clear()
    kept, dropped = f"{WORDS} 1", f"{WORDS} 2"

    async def script(made: Batcher) -> None:
        gone, stays = await in_one_window(made, student, ([dropped, dropped], 0), (kept, 0))
        await until(layers.reached[0].is_set)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        layers.gates[0].set()
        await stays

    with batcher() as made:
        run(script(made))
        assert made.waiting == 0
    assert layers.calls == [(0, [dropped, dropped, kept]), (1, [kept]), (2, [kept])]


def test_a_layer_that_fails_fails_alone(student: Predictor, layers: Watched, alone: Predictor) -> None:
    """Guards the thread, those who share the call, and a list of which one text fails: it gets one error."""
    layers.broken = 1

    async def script(made: Batcher) -> None:
        bad, good, early = await in_one_window(
            made, student, ([BROKEN, f"{WORDS} 1"], 0), (f"{WORDS} 2", 0), (BROKEN, 1)
        )
        same(await early, alone.predict(BROKEN, speed=1))
        with pytest.raises(InvalidModel, match="this layer"):
            await bad
        same(await good, alone.predict(f"{WORDS} 2", speed=0))
        same(await ask(made, student, WORDS, 0), alone.predict(WORDS, speed=0))

    with batcher() as made:
        run(script(made))
        assert made.waiting == 0
    assert (1, [BROKEN, f"{WORDS} 1", f"{WORDS} 2"]) in layers.calls


def test_behind_its_deadline_a_text_goes_no_further(student: Predictor, layers: Watched) -> None:
    layers.gates[0].clear()

    async def script(made: Batcher) -> None:
        late = ask(made, student, WORDS, 0)
        await until(layers.reached[0].is_set)
        behind = time.monotonic() + 0.05
        await until(lambda: time.monotonic() > behind)
        layers.gates[0].set()
        with pytest.raises(TooSlow, match=r"0\.05 s"):
            await late
        await until(lambda: made.waiting == 0)

    with batcher(seconds=0.05) as made:
        run(script(made))
    assert layers.calls == [(0, [WORDS])]


def test_at_its_deadline_a_text_is_refused_while_its_layer_runs(student: Predictor, layers: Watched) -> None:
    """Guards against a deadline that is looked at between two layers alone."""
    layers.gates[1].clear()

    async def script(made: Batcher) -> None:
        with pytest.raises(TooSlow, match=r"0\.2 s"):
            await ask(made, student, [WORDS, WORDS], 0)
        assert not layers.gates[1].is_set()
        layers.gates[1].set()
        await until(lambda: made.waiting == 0)

    with batcher(seconds=0.2) as made:
        run(script(made))
    assert layers.calls == [(0, [WORDS, WORDS]), (1, [WORDS, WORDS])]


def test_what_is_between_two_layers_counts_as_waiting(student: Predictor, layers: Watched) -> None:
    """Guards memory: texts that have begun hold states, and as many as like may not begin."""
    layers.gates[0].clear()

    async def script(made: Batcher) -> None:
        begun = ask(made, student, [WORDS, WORDS], 0)
        await until(layers.reached[0].is_set)
        with pytest.raises(Busy, match="2 texts wait"):
            await ask(made, student, WORDS, 1)
        layers.gates[0].set()
        await begun
        await ask(made, student, WORDS, 1)

    with batcher(limit=2) as made:
        run(script(made))


def test_closing_refuses_what_is_between_two_layers(student: Predictor, layers: Watched) -> None:
    layers.gates[0].clear()
    made = Batcher(threads=2, limit=10, seconds=30)

    async def script() -> None:
        begun = ask(made, student, WORDS, 0)
        await until(layers.reached[0].is_set)
        closing = asyncio.ensure_future(asyncio.to_thread(made.close))
        with pytest.raises(Busy, match="going down"):
            await begun
        layers.gates[0].set()
        await closing

    run(script())
    assert layers.calls == [(0, [WORDS])]
    assert not any(thread.is_alive() for thread in made._threads)


def test_students_take_turns_with_one_that_goes_layer_by_layer(
    exported_exits_student: Path, student: Predictor, layers: Watched
) -> None:
    """Guards both ways: a student of many calls must not keep others waiting, nor be kept waiting after each call."""
    layers.gates[0].clear()
    plain = Slow(layers.calls, "plain")
    plain.go.set()

    async def script(made: Batcher) -> None:
        many = ask(made, student, [" ".join([WORDS] * (1 + place % 4)) for place in range(64)], 0)
        await until(layers.reached[0].is_set)
        one = asyncio.ensure_future(made.ask(plain, question("x")))  # type: ignore[arg-type]
        await until(lambda: made.waiting == 65)
        layers.gates[0].set()
        await asyncio.gather(many, one)

    with batcher() as made:
        run(script(made))
    assert layers.calls.index(("plain", 1)) == LAYERS
