"""Callers who hang up before they are answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from api.answering import Answering
from api.inference.tallies import Outcome
from limbeck.runtime import Question
from tests.api.test_batcher import Slow, batcher, question, run, until


class Student(Slow):
    """One that reads plain texts."""

    task, mask = "sequence_classification", None

    def question(self, inputs: str, **_: Any) -> Question:
        return question(inputs)


class Caller:
    """What a server tells of a connection behind the request's body."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_a_question_whose_caller_hung_up_is_not_computed() -> None:
    """Guards a busy server against answering only those who have long asked again."""
    student = Student()

    async def script(asked: Answering) -> None:
        def ask(caller: Caller, text: str) -> asyncio.Task[Any]:
            answer = asked.answer(caller.receive, student, text, until=asked.deadline())  # type: ignore[arg-type]
            return asyncio.create_task(answer)

        stays, leaves = Caller(), Caller()
        first = ask(stays, "a")
        await until(student.begun.is_set)
        gone, last = ask(leaves, "b"), ask(stays, "c")
        leaves.gone.set()
        with pytest.raises(ClientDisconnect):
            await gone
        assert gone.cancelling() == 0  # what is done about it is not cancelled as well
        student.go.set()
        assert (await first, await last) == (["A"], ["C"])
        stays.gone.set()
        assert await ask(stays, "d") == ["D"]  # that a caller is gone is looked for where it takes long

    with batcher() as made:
        run(script(Answering(None, None, made)))  # type: ignore[arg-type]
    assert sum(size for _, size in student.log) == 3
    counted = made.tallies.of(student)  # type: ignore[arg-type]
    assert (counted.ended[Outcome.ANSWERED], counted.ended[Outcome.LEFT]) == (3, 1)


def test_being_cancelled_by_somebody_else_stays_that() -> None:
    """Guards a server that goes down, which cancels its requests, against a request that makes of it its caller's
    doing."""
    student = Student()

    async def script(asked: Answering) -> None:
        answer = asked.answer(Caller().receive, student, "a", until=asked.deadline())  # type: ignore[arg-type]
        asking = asyncio.create_task(answer)
        await until(student.begun.is_set)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        student.go.set()

    with batcher() as made:
        run(script(Answering(None, None, made)))  # type: ignore[arg-type]
