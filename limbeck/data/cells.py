"""Cells of a table as texts, lists and numbers, each fault told by its row and column."""

from __future__ import annotations

import json
import re
import reprlib
from typing import Any

from limbeck.data.table import Foreign, fault

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


#: Names, or their numbers.
_LIST = re.compile(r'\s*\[\s*(".*|(\d+\s*(,\s*\d+\s*)*)?\]\s*)', re.DOTALL)


#: What is said of a list as :func:`is_foreign_list` finds it.
AS_JSON = "a list that is no JSON; json.dumps writes one as such, and JSON Lines and Parquet need none of this"


def is_list(cell: str) -> bool:
    """Whether a text is the JSON of a list of names or of their numbers, or begins like one."""
    return _LIST.fullmatch(cell) is not None


def is_foreign_list(cell: str) -> bool:
    """Whether it is a list as Python or numpy write it, ``['a', 'b']`` or ``[0 2]``, which is no JSON."""
    bare = cell.strip()
    return bare.startswith("[") and bare.endswith("]") and not is_list(bare)


def text_cell(value: Any, row: int, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise fault(where, f"row {row}, column {column!r}: expected text, found {kind(value)}")
    if not value.strip():
        raise fault(where, f"row {row}, column {column!r}: the text is empty")
    require_whole(value, row, column, where)
    return value


def kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bytes):
        return f"binary of {len(value):,} bytes"
    return value.kind if isinstance(value, Foreign) else f"{type(value).__name__} {reprlib.repr(value)}"


def require_whole(value: str, row: int, column: str, where: str) -> None:
    """JSON can escape half a character (``"\\ud83d"``), which no file and no tokenizer takes."""
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise fault(
            where,
            f"row {row}, column {column!r}: {half} at character {error.start + 1} is half a character "
            "(a surrogate without its mate)",
        ) from None


def list_cell(value: Any, row: int, column: str, where: str, expected: str) -> list[Any]:
    """A list, or the JSON of one, which is how text files write it down."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json(value, row, column, where)
    if not isinstance(value, list):
        raise fault(where, f"row {row}, column {column!r}: found {kind(value)}; expected {expected}")
    return value


def object_cell(value: Any, row: int, column: str, where: str) -> Any:
    """An object or a list of objects, or the JSON of one."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        return _json(value, row, column, where)
    return value


def number_cell(value: Any, row: int, column: str, where: str) -> float:
    """A finite number, or its text."""
    found = value.strip() if isinstance(value, str) else value
    if found is None or found == "" or found != found:
        raise fault(where, f"row {row}, column {column!r}: the number is missing")
    if isinstance(found, str) and NUMBER.fullmatch(found):
        found = float(found)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise fault(where, f"row {row}, column {column!r}: found {kind(value)}; expected a number")
    if not -1e30 < found < 1e30:
        raise fault(where, f"row {row}, column {column!r}: found {found}; expected a number within ±1e30")
    return float(found)


def _json(value: str, row: int, column: str, where: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        python = "; this is how Python writes it: json.dumps writes JSON" if value.lstrip()[1:2] == "'" else ""
        raise fault(where, f"row {row}, column {column!r}: this looks like JSON and is none: {error}{python}") from None
