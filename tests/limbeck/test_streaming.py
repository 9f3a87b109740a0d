"""A student over a stream: the answers of a list, in its order, and never more than a few windows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import InvalidInput
from limbeck.faults import Refused
from limbeck.runtime import Predictor, stream
from limbeck.runtime.streaming import WINDOW
from tests.exported import texts


@pytest.fixture(scope="module")
def student(exported_student: Path) -> Predictor:
    return Predictor.load(exported_student, threads=1)


def many(count: int) -> list[str]:
    pool = texts(90)
    return [f"{pool[i % 90]} {i}" for i in range(count)]


def test_it_answers_as_a_list_is_answered(student: Predictor) -> None:
    """Guards against answers in the order in which threads end, or in that of the texts' lengths."""
    given = many(3 * WINDOW + 7)
    found = list(stream(student, iter(given), top_k=2, workers=2))
    assert [one for one, _ in found] == given
    expected = student.predict(given, top_k=2)
    assert [[label["label"] for label in answer] for _, answer in found] == [
        [label["label"] for label in answer] for answer in expected
    ]
    assert [answer[0]["score"] for _, answer in found] == pytest.approx(
        [answer[0]["score"] for answer in expected], abs=1e-5
    )
    assert list(stream(student, [])) == []


def test_it_reads_only_a_few_windows_ahead(student: Predictor) -> None:
    """Guards against a file of a million rows that is read into memory before its first answer."""
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "a text"

    answered = stream(student, endless(), workers=2)
    list(islice(answered, 2 * WINDOW))
    assert read <= 5 * WINDOW
    answered.close()  # type: ignore[attr-defined]


def test_what_came_before_a_bad_input_is_answered(student: Predictor) -> None:
    """Guards against an hour's answers lost to one line."""
    given: list[Any] = [*many(WINDOW + 3), 7, "a", 8]
    answered = stream(student, given, workers=1)
    assert [one for one, _ in islice(answered, WINDOW + 3)] == given[: WINDOW + 3]
    with pytest.raises(InvalidInput, match="/inputs/259: found a number") as caught:
        next(answered)
    assert [one.pointer for one in caught.value.problems] == ["/inputs/259"]


def test_bad_inputs_are_skipped_where_that_is_wanted(student: Predictor) -> None:
    """Guards against answers that move up into the places of inputs that were left out."""
    given: list[Any] = [7, *many(WINDOW + 3), {"text": "a", "text_pair": "b"}, Refused("no JSON", "{"), "a"]
    found = list(stream(student, given, workers=2, skip=True))
    assert [one for one, _ in found] == given
    refused = {place: answer.message for place, (_, answer) in enumerate(found) if isinstance(answer, Refused)}
    assert list(refused) == [0, WINDOW + 4, WINDOW + 5]
    assert refused[WINDOW + 5] == "no JSON"
    good = [place for place in range(len(given)) if place not in refused]
    expected = student.predict([given[place] for place in good])
    assert [found[place][1]["label"] for place in good] == [one["label"] for one in expected]
    with pytest.raises(InvalidInput, match="top_k"):
        list(stream(student, given, skip=True, top_k=-1))


@pytest.mark.parametrize("workers", [1, 4])
def test_what_came_before_inputs_that_break_off_is_answered(student: Predictor, workers: int) -> None:
    """Guards the windows that are under way when a line of a file cannot be read, and those in front of it in its
    own."""
    given = many(2 * WINDOW + 5)

    def lines() -> Iterator[str]:
        yield from given
        raise InvalidInput("Line 518 is not JSON")

    answered = stream(student, lines(), workers=workers)
    assert [one for one, _ in islice(answered, len(given))] == given
    with pytest.raises(InvalidInput, match="Line 518"):
        next(answered)
