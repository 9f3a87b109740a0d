"""Text and JSON that every database takes: PostgreSQL has no U+0000, and none has half a surrogate pair, or NaN."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from limbeck.errors import InvalidInput, Problem
from limbeck.findings import json_pointer

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """The text with U+FFFD for every character that cannot be stored."""
    return _UNSTORABLE.sub("\ufffd", text)


def to_json(value: Any) -> str:
    """JSON of ``value``; what cannot be stored becomes U+FFFD, and NaN and infinity become null."""
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_cleaned(value), separators=(",", ":"))
    if "\\u0000" in text or "\\ud" in text:
        return json.dumps(_cleaned(value), separators=(",", ":"))
    return text


def refuse_unstorable(document: Mapping[str, Any]) -> None:
    """Check what a user wrote, keys too.

    Raises:
        InvalidInput: with one problem for each text that cannot be stored as it is.
    """
    problems = [Problem(json_pointer(path), _detail(text)) for path, text in _texts(document, ())]
    problems = [problem for problem in problems if problem.detail]
    if problems:
        lines = "; ".join(f"{storable(problem.pointer)}: {problem.detail}" for problem in problems)
        raise InvalidInput(f"Some text cannot be stored: {lines}", problems)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {storable(str(key)): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value


def _detail(text: str) -> str:
    found = _UNSTORABLE.search(text)
    return f"found the character U+{ord(found[0]):04X}, which cannot be stored" if found else ""


def _texts(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield path, str(key)
            yield from _texts(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))
