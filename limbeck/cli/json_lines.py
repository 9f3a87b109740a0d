"""The lines of a file, each of which a student is asked: JSON Lines in, and which line it was where one is wrong."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from typing import Any, BinaryIO

from limbeck.cli.output import whole
from limbeck.errors import InvalidInput
from limbeck.faults import Refused, first_fault

#: Inputs in; each with its answer, in the shapes of Hugging Face pipelines, out.
Answering = Callable[[Iterable[Any]], Iterator[tuple[Any, Any]]]


def answered(answering: Answering, binary: BinaryIO, *, skip: bool) -> Iterator[tuple[Any, Any]]:
    """The inputs of a file of JSON Lines with their answers.

    Args:
        skip: in the place of a line that cannot be read, or asked, comes what can be read of it, and as its answer a
            :class:`Refused`.

    Raises:
        InvalidInput: unless it is skipped, such a line; those in front of it have been answered.
    """
    # What is no UTF-8 is told of where its line is looked at. Programs on Windows put a mark in front of a file.
    lines = TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape")
    numbers: deque[int] = deque()  # of the lines that were read and not answered yet
    try:
        for given, answer in answering(_read_inputs(lines, numbers, skip=skip)):
            number = numbers.popleft()
            if isinstance(given, Refused):
                given = given.given
            elif isinstance(answer, Refused):
                answer = Refused(f"Line {number} cannot be asked: {answer.message}")
            yield given, answer
    except InvalidInput as error:
        fault = first_fault(error)
        if fault is None:
            raise
        raise InvalidInput(f"Line {numbers[0]} cannot be asked: {fault}") from error
    finally:
        lines.detach()  # the file is closed by whoever opened it


def _read_inputs(lines: Iterable[str], numbers: deque[int], *, skip: bool) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            one = _read_input(line, number)
        except InvalidInput as error:
            if not skip:
                raise
            one = Refused(error.message, _readable(line))
        numbers.append(number)
        yield one


def _readable(line: str) -> Any:
    """The line's value, or its text where it has none."""
    text = line.rstrip("\n").encode(errors="surrogateescape").decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_input(line: str, number: int) -> Any:
    try:
        line.encode()
        value = json.loads(line)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"Line {number} is not UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"Line {number} is not JSON: {error}") from error
    if "\\u" in line and not whole(json.dumps(value, ensure_ascii=False)):
        raise InvalidInput(f"Line {number} holds half of a surrogate pair, which is no character.")
    if isinstance(value, dict) and isinstance(value.get("question"), str) and isinstance(value.get("context"), str):
        return {key: value[key] for key in ("question", "context")}
    of_text = isinstance(value, dict) and isinstance(value.get("text"), str)
    if isinstance(value, dict) and isinstance(value.get("tokens"), list) and not of_text:
        return {"tokens": value["tokens"]}
    if not isinstance(value, str) and not of_text:
        raise InvalidInput(
            f"Line {number} is neither a text nor an object with a text in `text`, nor one with `question` and "
            f"`context`, nor one with a list in `tokens`: {line.strip()[:80]}"
        )
    return value if isinstance(value, str) else _texts(value, number)


def _texts(value: dict[str, Any], number: int) -> dict[str, str]:
    """An object's texts; a second one that is null is none."""
    pair = value.get("text_pair")
    if pair is None:
        return {"text": value["text"]}
    if not isinstance(pair, str):
        raise InvalidInput(f"Line {number} has no text in `text_pair`: {json.dumps(pair, ensure_ascii=False)[:80]}")
    return {"text": value["text"], "text_pair": pair}
