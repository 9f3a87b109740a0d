"""Threads that read for students: how many of them one has, who is next, and what becomes of an error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from api.inference.turns import Turns

HOT, COLD = object(), object()


class Works:
    """What is begun, in order; each ends when it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._go: dict[str, threading.Event] = {}

    def named(self, name: str) -> Callable[[], str]:
        gone = self._go[name] = threading.Event()

        def work() -> str:
            self.begun.append(name)
            assert gone.wait(20)
            return name.upper()

        return work

    def go(self, *names: str) -> None:
        for name in names or tuple(self._go):
            self._go[name].set()

    async def have_begun(self, count: int) -> list[str]:
        for _ in range(2_000):
            if len(self.begun) >= count:
                break
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)  # whoever should not begin has the time to
        return self.begun


def run(script: Callable[[Turns, Works], Coroutine[Any, Any, None]], threads: int) -> None:
    async def whole() -> None:
        turns, works = Turns(threads), Works()
        try:
            await script(turns, works)
        finally:
            works.go()
            turns.close()

    asyncio.run(whole())


def test_one_student_leaves_a_thread_to_the_others() -> None:
    """Guards against a student whose callers send large contexts, for which everybody else's wait."""

    async def script(turns: Turns, works: Works) -> None:
        hot = [turns.run(HOT, works.named(name)) for name in "abc"]
        assert await works.have_begun(2) == ["a", "b"]
        cold = turns.run(COLD, works.named("x"))
        assert await works.have_begun(3) == ["a", "b", "x"]
        works.go("x")
        assert await cold == "X"
        assert await works.have_begun(3) == ["a", "b", "x"], "the last thread is not for who has all the others"
        works.go("a")
        assert await works.have_begun(4) == ["a", "b", "x", "c"]
        works.go()
        assert await asyncio.gather(*hot) == ["A", "B", "C"]

    run(script, 2)


def test_students_take_turns_and_within_one_it_is_first_come_first_served() -> None:
    """Guards against a line that is emptied before the next one begins: who asks for much would be served alone."""
    third = object()

    async def script(turns: Turns, works: Works) -> None:
        asked = [(HOT, "a"), (COLD, "x"), (HOT, "b"), (HOT, "c"), (third, "t")]
        each = [turns.run(student, works.named(name)) for student, name in asked]
        assert await works.have_begun(2) == ["a", "x"]
        works.go("a")
        assert await works.have_begun(3) == ["a", "x", "b"]
        works.go("b")
        assert await works.have_begun(4) == ["a", "x", "b", "t"]
        works.go("x")
        assert await works.have_begun(5) == ["a", "x", "b", "t", "c"]
        works.go()
        assert await asyncio.gather(*each) == ["A", "X", "B", "C", "T"]

    run(script, 1)


def test_an_error_is_that_of_who_asked_and_the_next_one_begins() -> None:
    """Guards against a caller who waits for ever, and against a thread that is lost with an image that is none."""

    def broken() -> str:
        raise ValueError("no image")

    async def script(turns: Turns, works: Works) -> None:
        first, waits = turns.run(HOT, works.named("a")), turns.run(HOT, broken)
        gone, last = turns.run(HOT, works.named("b")), turns.run(HOT, works.named("c"))
        gone.cancel()  # its caller went away
        works.go()
        assert await first == "A"
        with pytest.raises(ValueError, match="no image"):
            await waits
        assert await last == "C"

    run(script, 1)


def test_what_waits_is_not_begun_once_the_server_goes_down() -> None:
    async def script(turns: Turns, works: Works) -> None:
        first, waits = turns.run(HOT, works.named("a")), turns.run(HOT, works.named("b"))
        assert await works.have_begun(1) == ["a"]
        turns.close()
        works.go()
        assert await first == "A"
        assert await works.have_begun(1) == ["a"]
        assert not waits.done()

    run(script, 1)
