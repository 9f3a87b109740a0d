"""Questions of many requests, answered together: who waits for whom, what is refused, and that answers stay equal."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from api.inference import Batcher
from api.inference.batcher import WINDOW
from limbeck.errors import Busy, InvalidModel, TooSlow
from limbeck.runtime import Predictor, Question
from tests.exported import texts


class Slow:
    """A student whose answers take until it is told: what lies between the batcher and the runtime, nothing else."""

    exits = None

    def __init__(self, log: list[tuple[str, int]] | None = None, name: str = "slow") -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.log = [] if log is None else log
        self.name = name

    def answers(self, questions: list[Question]) -> list[Any]:
        self.begun.set()
        assert self.go.wait(10)
        self.log.append((self.name, sum(len(one) for one in questions)))
        if any("broken" in text for one in questions for text in one.texts):
            raise InvalidModel("this text cannot be answered")
        return [[text.upper() for text in one.texts] for one in questions]


def question(*given: str) -> Question:
    return Question(list(given), None, "list")


@contextmanager
def batcher(*, threads: int = 1, limit: int = 1000, seconds: float = 30) -> Iterator[Batcher]:
    made = Batcher(threads=threads, limit=limit, seconds=seconds)
    try:
        yield made
    finally:
        made.close()


def run(script: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(script, 30))


async def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it never came to that")


def test_answers_are_those_that_each_question_gets_alone(exported_student: Path) -> None:
    """Guards against answers that go to the wrong caller, and against a window that changes them."""
    student = Predictor.load(exported_student, format="onnx")
    asked: list[Any] = [texts(40), texts(3)[2], {"text": texts(5)[4]}, *texts(30)]

    async def ask_all(made: Batcher) -> list[Any]:
        return list(await asyncio.gather(*(made.ask(student, student.question(one, top_k=2)) for one in asked)))

    with batcher(threads=2) as made:
        answers = run(ask_all(made))
    for one, answer in zip(asked, answers, strict=True):
        alone = student.predict(one, top_k=2)
        flat = [list(chain(*found)) if isinstance(one, list) else found for found in (answer, alone)]
        assert [label["label"] for label in flat[0]] == [label["label"] for label in flat[1]]
        assert [label["score"] for label in flat[0]] == pytest.approx([label["score"] for label in flat[1]], abs=1e-5)


def test_what_waits_meanwhile_is_answered_in_one_go() -> None:
    student = Slow()

    async def script(made: Batcher) -> None:
        first = asyncio.ensure_future(made.ask(student, question("a")))  # type: ignore[arg-type]
        await until(student.begun.is_set)
        rest = [asyncio.ensure_future(made.ask(student, question(f"{i}"))) for i in range(WINDOW + 3)]  # type: ignore[arg-type]
        await until(lambda: made.waiting == WINDOW + 3)
        student.go.set()
        assert await first == ["A"]
        assert [answer for [answer] in await asyncio.gather(*rest)] == [str(i) for i in range(WINDOW + 3)]

    with batcher() as made:
        run(script(made))
    assert [size for _, size in student.log] == [1, WINDOW, 3]


@pytest.mark.parametrize(("threads", "windows"), [(1, [5]), (2, [3, 2]), (4, [2, 1, 1, 1])])
def test_questions_that_come_together_are_shared_out_among_free_threads(threads: int, windows: list[int]) -> None:
    """Guards against one thread that runs off with the first question, and against one that takes them all while the
    cores of the others stand idle."""
    student = Slow()

    async def script(made: Batcher) -> None:
        await until(lambda: made._idle == threads)
        asked = asyncio.gather(*(made.ask(student, question(f"{i}")) for i in range(5)))  # type: ignore[arg-type]
        await until(lambda: student.begun.is_set() and made.waiting == 0)
        student.go.set()
        await asked

    with batcher(threads=threads) as made:
        run(script(made))
    assert sorted((size for _, size in student.log), reverse=True) == windows


def test_a_busy_thread_gets_no_share() -> None:
    """Guards against windows that stay small where nobody is free to take the rest."""
    student = Slow()

    async def script(made: Batcher) -> None:
        first = asyncio.ensure_future(made.ask(student, question("a")))  # type: ignore[arg-type]
        await until(student.begun.is_set)
        second = asyncio.ensure_future(made.ask(student, question("b")))  # type: ignore[arg-type]
        await until(lambda: made._idle == 0 and made.waiting == 0)
        rest = [asyncio.ensure_future(made.ask(student, question(f"{i}"))) for i in range(6)]  # type: ignore[arg-type]
        await until(lambda: made.waiting == 6)
        student.go.set()
        await asyncio.gather(first, second, *rest)

    with batcher(threads=2) as made:
        run(script(made))
    assert sorted(size for _, size in student.log) in ([1, 1, 6], [1, 1, 3, 3])  # the second came free in between


def test_a_long_list_is_shared_out_as_well() -> None:
    """Guards a lone caller's list: of one window only one thread would have something to do."""
    student = Slow()
    student.go.set()

    async def script(made: Batcher) -> None:
        await until(lambda: made._idle == 2)
        assert await made.ask(student, question(*map(str, range(20)))) == [str(i) for i in range(20)]  # type: ignore[arg-type]
        assert await made.ask(student, question(*map(str, range(7)))) == [str(i) for i in range(7)]  # type: ignore[arg-type]

    with batcher(threads=2) as made:
        run(script(made))
    assert sorted(size for _, size in student.log) == [7, 10, 10]


def test_a_list_of_several_windows_keeps_all_threads_busy() -> None:
    """Guards against a thread that is left asleep, as one call wakes one thread alone."""
    student = Slow()

    async def script(made: Batcher) -> None:
        asked = asyncio.ensure_future(made.ask(student, question(*map(str, range(3 * WINDOW)))))  # type: ignore[arg-type]
        await until(lambda: made.waiting == 0)  # three threads have a window each, and none of them has answered
        assert not student.log
        student.go.set()
        assert await asked == [str(i) for i in range(3 * WINDOW)]

    with batcher(threads=3) as made:
        run(script(made))


def test_each_loop_wakes_the_threads_for_itself() -> None:
    """Guards against questions that wait for ever because another loop stands still before it has woken anybody."""
    student = Slow()
    student.go.set()
    still = asyncio.new_event_loop()
    with batcher() as made:
        first = still.create_task(made.ask(student, question("a")))  # type: ignore[arg-type]
        still.call_soon(still.stop)
        still.run_forever()
        assert made.waiting == 1
        assert run(made.ask(student, question("b"))) == ["B"]  # type: ignore[arg-type]
        assert still.run_until_complete(first) == ["A"]
    still.close()


def test_students_take_turns() -> None:
    """Guards a student that is asked once while another is asked all the time: it answers after one window of that."""
    log: list[tuple[str, int]] = []
    hot, cold = Slow(log, "hot"), Slow(log, "cold")
    cold.go.set()

    async def script(made: Batcher) -> None:
        many = asyncio.ensure_future(made.ask(hot, question(*map(str, range(5 * WINDOW)))))  # type: ignore[arg-type]
        await until(hot.begun.is_set)
        one = asyncio.ensure_future(made.ask(cold, question("x")))  # type: ignore[arg-type]
        await until(lambda: made.waiting == WINDOW + 1)
        hot.go.set()
        assert await one == ["X"]
        assert await many == [str(i) for i in range(5 * WINDOW)]

    with batcher() as made:
        run(script(made))
    assert log.index(("cold", 1)) <= 2


def test_more_than_may_wait_is_refused_with_a_time_to_come_back() -> None:
    student = Slow()

    async def script(made: Batcher) -> None:
        first = asyncio.ensure_future(made.ask(student, question("a")))  # type: ignore[arg-type]
        await until(student.begun.is_set)
        second = asyncio.ensure_future(made.ask(student, question("b", "c")))  # type: ignore[arg-type]
        await until(lambda: made.waiting == 2)
        with pytest.raises(Busy, match="2 texts wait") as refused:
            await made.ask(student, question("d"))  # type: ignore[arg-type]
        assert 1 <= refused.value.retry_after <= 60
        student.go.set()
        assert await first == ["A"]
        assert await second == ["B", "C"]

    with batcher(limit=2) as made:
        run(script(made))


def test_the_time_to_come_back_is_that_of_what_waits_at_the_rate_of_late() -> None:
    """Guards Retry-After, which clients obey: a rate of all time, or of the windows instead of their texts, sends them
    away for a minute, or back at once."""
    with batcher(limit=1) as made:
        assert made._retry_after(100) == 1, "nothing is known yet"
        now = time.monotonic()
        made._finished.extend([(now - 60, 100_000), (now - 2, 15), (now - 1, 5)])  # 20 in the last ten seconds
        assert made._retry_after(20) == 10
        assert made._retry_after(1) == 1
        assert made._retry_after(10_000) == 60
        made._finished.extend([(time.monotonic() - 2, 1)] * 1_000)  # as many as are kept, in two seconds
        assert 2 * 3 <= made._retry_after(3_000) <= 2 * 3 + 3


def test_a_hot_student_leaves_room_for_others() -> None:
    """Guards against one student whose callers take every place in which a question could wait: fair turns are of no
    use to a student whose questions are all refused."""
    hot, warm, cold = (Slow(name=name) for name in ("hot", "warm", "cold"))

    async def asked(made: Batcher, student: Slow, times: int) -> list[asyncio.Future[Any]]:
        asking = [asyncio.ensure_future(made.ask(student, question("a"))) for _ in range(times)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return [one for one in asking if not one.done() or one.exception() is None]

    async def script(made: Batcher) -> None:
        first = await asked(made, hot, 1)
        await until(hot.begun.is_set)
        waiting = [await asked(made, student, 64) for student in (hot, warm, cold)]
        assert [len(one) for one in waiting] == [12, 3, 1]
        for student in (hot, warm, cold):
            student.go.set()
        await asyncio.gather(*first, *(one for each in waiting for one in each))
        assert made.waiting == 0
        waiting = [await asked(made, hot, 64)]
        assert len(waiting[0]) >= 12, "the room comes back"
        await asyncio.gather(*waiting[0])

    with batcher(limit=16) as made:
        run(script(made))


def test_a_long_list_takes_the_room_of_a_few_windows() -> None:
    """Guards against one request, of a single caller, for which everybody else is refused until it is through; and it
    is answered itself, however little may wait."""
    long, short = Slow(name="long"), Slow(name="short")
    short.go.set()
    texts = [str(i) for i in range(20 * WINDOW + 7)]

    async def script(made: Batcher) -> None:
        list_ = asyncio.ensure_future(made.ask(long, question(*texts)))  # type: ignore[arg-type]
        await until(long.begun.is_set)
        assert made.waiting <= 2 * WINDOW
        one = asyncio.ensure_future(made.ask(short, question("a")))  # type: ignore[arg-type]
        long.go.set()
        assert await one == ["A"]
        assert not list_.done()
        assert await list_ == texts
        assert made.waiting == 0

    with batcher(limit=3 * WINDOW) as made:
        run(script(made))


def test_a_long_list_that_is_not_through_at_its_deadline_is_refused() -> None:
    """Guards against a caller who waits for ever: for a window that was to come in behind the deadline."""

    class Steady(Slow):
        def answers(self, questions: list[Question]) -> list[Any]:
            time.sleep(0.02)
            return super().answers(questions)

    student = Steady()
    student.go.set()

    async def script(made: Batcher) -> None:
        with pytest.raises(TooSlow, match=r"0\.15 s"):
            await made.ask(student, question(*map(str, range(50 * WINDOW))))  # type: ignore[arg-type]
        await until(lambda: made.waiting == 0)

    with batcher(seconds=0.15) as made:
        run(script(made))


def test_a_deadline_counts_from_when_the_question_came() -> None:
    student = Slow()

    async def script(made: Batcher) -> None:
        began = time.monotonic()
        with pytest.raises(TooSlow):
            await made.ask(student, question("a"), until=began + 0.05)  # type: ignore[arg-type]
        assert time.monotonic() - began < 5
        student.go.set()

    with batcher() as made:
        run(script(made))


def test_at_its_deadline_a_question_is_refused_while_every_thread_computes() -> None:
    """Guards against a deadline that is looked at when a thread becomes free: with calls of 3 s after up to 3 s more.
    The list is refused whole, though its first window is being computed."""
    student = Slow()

    async def script(made: Batcher) -> None:
        asked = [question(*map(str, range(WINDOW + 1))), question("b")]
        late = [asyncio.ensure_future(made.ask(student, one)) for one in asked]  # type: ignore[arg-type]
        found = await asyncio.gather(*late, return_exceptions=True)
        assert [type(one) for one in found] == [TooSlow, TooSlow]
        assert not student.log, "no call has come to its end"
        student.go.set()
        await until(lambda: made.waiting == 0)

    with batcher(seconds=0.05) as made:
        run(script(made))
    assert student.log == [("slow", WINDOW)], "what nobody waits for is not computed"


def test_a_question_that_fails_takes_nobody_with_it() -> None:
    student = Slow()

    async def script(made: Batcher) -> None:
        first = asyncio.ensure_future(made.ask(student, question("a")))  # type: ignore[arg-type]
        await until(student.begun.is_set)
        asked = [asyncio.ensure_future(made.ask(student, question(one))) for one in ("b", "broken", "c")]  # type: ignore[arg-type]
        await until(lambda: made.waiting == 3)
        student.go.set()
        await first
        good, bad, better = await asyncio.gather(*asked, return_exceptions=True)
        assert (good, better) == (["B"], ["C"])
        assert isinstance(bad, InvalidModel)

    with batcher() as made:
        run(script(made))


def test_who_went_away_is_not_answered() -> None:
    student = Slow()

    async def script(made: Batcher) -> None:
        first = asyncio.ensure_future(made.ask(student, question("a")))  # type: ignore[arg-type]
        await until(student.begun.is_set)
        gone = asyncio.ensure_future(made.ask(student, question("b")))  # type: ignore[arg-type]
        await until(lambda: made.waiting == 1)
        gone.cancel()
        last = asyncio.ensure_future(made.ask(student, question("c")))  # type: ignore[arg-type]
        await until(lambda: made.waiting == 2)
        student.go.set()
        assert (await first, await last) == (["A"], ["C"])

    with batcher() as made:
        run(script(made))
    assert sum(size for _, size in student.log) == 2


def test_closing_refuses_what_waits_and_leaves_no_thread() -> None:
    student = Slow()
    made = Batcher(threads=2, limit=10, seconds=30)
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("limbeck-answers")}
    assert len(names) >= 2

    async def script() -> None:
        asked = [asyncio.ensure_future(made.ask(student, question(f"{i}"))) for i in range(4)]  # type: ignore[arg-type]
        await until(student.begun.is_set)
        student.go.set()
        await asyncio.to_thread(made.close)
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, list | Busy) for one in done)
        with pytest.raises(Busy):
            await made.ask(student, question("late"))  # type: ignore[arg-type]

    run(script())
    assert not any(thread.name in names and thread.is_alive() for thread in made._threads)
