"""A student over more texts than fit into memory: answers come in the order of the inputs, as fast as the cores are."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

from limbeck.errors import InvalidInput, Problem
from limbeck.faults import Fault, ask_the_rest, first_fault
from limbeck.runtime.inputs import TopK
from limbeck.runtime.picture_inputs import MOST_IMAGES
from limbeck.runtime.predictor import Predictor

#: Inputs that one thread answers in one go; sorted by length among themselves, so that little is padded.
WINDOW = 256


def stream(
    student: Predictor,
    inputs: Iterable[Any],
    *,
    top_k: TopK = None,
    speed: float | None = None,
    workers: int | None = None,
    skip: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """Each input with its answer.

    At most ``workers`` + 1 windows are held at a time: one for each thread, and one that is read ahead.

    Args:
        student: loaded with ``threads=1``: a thread for each window keeps the cores busier than several for each
            multiplication.
        inputs: as the elements of a list that :meth:`Predictor.predict` takes.
        top_k, speed: as for :meth:`Predictor.predict`.
        workers: threads; default: one for each core that this process may use.
        skip: go on behind an input that cannot be read; its answer is then a :class:`limbeck.faults.Refused`. One that
            stands among the inputs is its own answer.

    Raises:
        InvalidInput: unless it is skipped, an input cannot be read; its pointer counts from the first of all inputs,
            and what came in front of it has been answered.
        Exception: that ``inputs`` raises, behind the answers to all that it gave.
    """
    workers = workers or cores()
    size = MOST_IMAGES if student.task == "image_classification" else WINDOW
    left, done = iter(inputs), 0

    def ask(window: Sequence[Any]) -> Any:
        return student.predict(window, top_k=top_k, speed=speed)

    answering = partial(ask_the_rest, ask) if skip else ask
    broken: Exception | None = None
    waiting: deque[tuple[list[Any], Future[Any]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="limbeck-stream") as pool:
        try:
            while True:
                while len(waiting) <= workers and broken is None:
                    window, broken = _read(left, size)
                    if not window:
                        break
                    waiting.append((window, pool.submit(answering, window)))
                if not waiting:
                    if broken is not None:
                        raise broken
                    return
                window, answers = waiting.popleft()
                yield from _answered(window, answers, ask, done)
                done += len(window)
        finally:
            for _, answers in waiting:
                answers.cancel()


def _answered(
    window: Sequence[Any], answers: Future[Any], ask: Callable[[Sequence[Any]], Any], done: int
) -> Iterator[tuple[Any, Any]]:
    """A window's inputs with their answers; where one cannot be read, those in front of it, and then its error."""
    try:
        found = answers.result()
    except InvalidInput as error:
        fault = first_fault(error)
        if fault is None:
            raise
        if before := window[: fault.place]:
            yield from zip(before, ask(before), strict=True)
        raise _placed(fault, done) from error
    yield from zip(window, found, strict=True)


def _placed(fault: Fault, done: int) -> InvalidInput:
    """The error that tells of it, behind so many inputs."""
    problems = [Problem(f"/inputs/{done + fault.place}{one.pointer}", one.detail) for one in fault.problems]
    shown = "; ".join(f"{one.pointer}: {one.detail}" for one in problems)
    return InvalidInput(f"An input cannot be read: {shown}", problems)


def _read(left: Iterator[Any], size: int) -> tuple[list[Any], Exception | None]:
    """As many inputs, or those in front of what was raised, and that."""
    window: list[Any] = []
    try:
        for one in islice(left, size):
            window.append(one)
    except Exception as error:  # whatever it is: it is raised again, in its place among the answers
        return window, error
    return window, None


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
