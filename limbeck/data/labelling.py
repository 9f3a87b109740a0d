"""The names of labels: whether a cell is one, and what order they have."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from limbeck.data.cells import NUMBER, kind, require_whole
from limbeck.data.table import fault, listed

_DIGITS = re.compile(r"(\d+)")
#: Of a number in a name; Python itself reads no more than 4,300.
_MOST_DIGITS = 4_000
#: A label column with more different values than this share of its rows names things; it does not class them.
_TOO_MANY_CLASSES = 0.5
_NO_NUMBERS = "; for numbers that are no classes, name the task: regression"
_NO_CLASS = "labels are names or whole numbers; for regression every label has to be a number"


def label_cell(value: Any, row: int, column: str, where: str, names: tuple[str, ...] | None) -> str:
    """The name of one label.

    Raises:
        InvalidDataset: it is missing, a list or a fraction.
    """
    place = f"row {row}, column {column!r}"
    if value is None or value == "" or value != value:  # a float that is not itself is NaN: pandas' missing value
        raise fault(where, f"{place}: the label is missing")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        if names is None:
            return str(value)
        if not 0 <= value < len(names):
            raise fault(where, f"{place}: found label {value}; allowed: 0 to {len(names) - 1}")
        return names[value]
    if isinstance(value, float):
        if value.is_integer():
            return str(int(value))
        raise fault(where, f"{place}: found {value}; {_NO_CLASS}")
    if not isinstance(value, str):
        raise fault(where, f"{place}: found {kind(value)}; one label for each text is expected")
    label = value.strip()
    if not label:
        raise fault(where, f"{place}: the label is missing")
    if "\x00" in label:
        raise fault(where, f"{place}: the label {reprlib.repr(label)} holds a NUL character")
    require_whole(label, row, column, where)
    return label


def whole_numbers(labels: list[str], column: str, where: str) -> list[str]:
    """Text files have no types: where every label is a number and some have a point, 1.0 is 1 and 1.5 is no class."""
    distinct = set(labels)
    if not all(NUMBER.fullmatch(label) for label in distinct) or all(
        label.lstrip("+-").isdigit() for label in distinct
    ):
        return labels
    broken = {label for label in distinct if not float(label).is_integer()}
    if broken:
        row, label = next((row, label) for row, label in enumerate(labels, start=1) if label in broken)
        raise fault(where, f"row {row}, column {column!r}: found {label}; {_NO_CLASS}")
    return [str(int(float(label))) for label in labels]


def label_order(
    found: Sequence[str], rows: int, names: tuple[str, ...] | None, where: str = "train"
) -> tuple[str, ...]:
    """The labels in their fixed order: as the data set's own features have them, else sorted, numbers by value.

    Args:
        found: the labels of all rows, as often as they occur.

    Raises:
        InvalidDataset: fewer than two, or so many that the column cannot be a class.
    """
    counts = Counter(found)
    if len(counts) < 2:
        has = f"every row has the label {found[0]!r}" if counts else "no row has a label"
        raise fault(where, f"{has}; at least two different labels are needed")
    if rows >= 40 and len(counts) > _TOO_MANY_CLASSES * rows:
        raise fault(
            where,
            f"{len(counts):,} different labels in {rows:,} rows: this column does not look like a class; "
            f"it begins with {listed(list(counts)[:3])}" + _NO_NUMBERS * all(map(NUMBER.fullmatch, counts)),
        )
    return names if names and counts.keys() <= set(names) else tuple(sorted(counts, key=natural))


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts numbers by value, within names as well."""
    if re.fullmatch(r"[+-]?\d+", name):
        return ((0, int(name[:_MOST_DIGITS]), name),)
    parts = _DIGITS.split(name)
    return tuple((0, int(part[:_MOST_DIGITS]), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def require_known_labels(rows: Sequence[Iterable[str]], known: Sequence[str], where: str) -> None:
    """
    Raises:
        InvalidDataset: a row has a label that train has not; the first such row is named.
    """
    allowed = set(known)
    strangers: dict[str, int] = {}
    for row, names in enumerate(rows, start=1):
        for name in names:
            if name not in allowed:
                strangers.setdefault(name, row)
    if strangers:
        name, row = min(strangers.items(), key=lambda one: one[1])
        more = f" ({len(strangers)} such labels: {listed(sorted(strangers))})" if len(strangers) > 1 else ""
        raise fault(
            where,
            f"row {row}: the label {name!r} does not stand in train{more}; train has {listed(known)}"
            + _NO_NUMBERS * all(map(NUMBER.fullmatch, (*known, *strangers))),
        )
