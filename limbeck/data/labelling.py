"""From a table to texts and labels: whether every cell can be used, and what order the labels have."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.data.columns import Chosen
from limbeck.data.corpus import Split
from limbeck.data.table import Foreign, Table, fault, listed

_DIGITS = re.compile(r"(\d+)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
#: A label column with more different values than this share of its rows names things; it does not class them.
_TOO_MANY_CLASSES = 0.5
_NO_REGRESSION = "regression is not supported yet, labels are names or whole numbers"


@dataclass(frozen=True, slots=True)
class Named:
    """A split whose labels are still names."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def with_labels(self, order: Mapping[str, int]) -> Split:
        """The split over an ordered list of labels."""
        return Split(self.texts, self.pairs, [order[name] for name in self.labels])


def named_split(table: Table, chosen: Chosen, where: str) -> Named:
    """Read the chosen columns.

    Raises:
        InvalidDataset: a text is empty or no text; a label is missing, a list or a fraction.
    """
    texts = [_text(value, row, chosen.text, where) for row, value in enumerate(table.columns[chosen.text], start=1)]
    pairs = None
    if chosen.text_pair is not None:
        column = table.columns[chosen.text_pair]
        pairs = [_text(value, row, chosen.text_pair, where) for row, value in enumerate(column, start=1)]
    names = table.names.get(chosen.label)
    column = table.columns[chosen.label]
    labels = [_label(value, row, chosen.label, where, names) for row, value in enumerate(column, start=1)]
    if names is None:
        labels = _whole_numbers(labels, chosen.label, where)
    return Named(texts, pairs, labels)


def _text(value: Any, row: int, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise fault(where, f"row {row}, column {column!r}: expected text, found {_kind(value)}")
    if not value.strip():
        raise fault(where, f"row {row}, column {column!r}: the text is empty")
    _require_whole(value, row, column, where)
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return value.kind if isinstance(value, Foreign) else f"{type(value).__name__} {reprlib.repr(value)}"


def _require_whole(value: str, row: int, column: str, where: str) -> None:
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


def _label(value: Any, row: int, column: str, where: str, names: tuple[str, ...] | None) -> str:
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
        raise fault(where, f"{place}: found {value}; {_NO_REGRESSION}")
    if not isinstance(value, str):
        raise fault(where, f"{place}: found {_kind(value)}; one label for each text is expected")
    label = value.strip()
    if not label:
        raise fault(where, f"{place}: the label is missing")
    if "\x00" in label:
        raise fault(where, f"{place}: the label {reprlib.repr(label)} holds a NUL character")
    _require_whole(label, row, column, where)
    return label


def _whole_numbers(labels: list[str], column: str, where: str) -> list[str]:
    """Text files have no types: where every label is a number and some have a point, 1.0 is 1 and 1.5 is no class."""
    distinct = set(labels)
    if not all(_NUMBER.fullmatch(label) for label in distinct) or all(
        label.lstrip("+-").isdigit() for label in distinct
    ):
        return labels
    broken = {label for label in distinct if not float(label).is_integer()}
    if broken:
        row, label = next((row, label) for row, label in enumerate(labels, start=1) if label in broken)
        raise fault(where, f"row {row}, column {column!r}: found {label}; {_NO_REGRESSION}")
    return [str(int(float(label))) for label in labels]


def unlabelled(table: Table, chosen: Chosen) -> bool:
    """Whether a split's answers are kept back, as in the hub's GLUE test splits: every label is -1 or nothing."""
    return all(value in (None, -1, "-1", "") for value in table.columns.get(chosen.label, []))


def label_order(train: Named, names: tuple[str, ...] | None, where: str = "train") -> tuple[str, ...]:
    """The labels in their fixed order: as the data set's own features have them, else sorted, numbers by value.

    Raises:
        InvalidDataset: fewer than two classes, or so many that the column cannot be a class.
    """
    counts = Counter(train.labels)
    if len(counts) < 2:
        raise fault(where, f"every row has the label {train.labels[0]!r}; at least two different labels are needed")
    if len(train) >= 40 and len(counts) > _TOO_MANY_CLASSES * len(train):
        raise fault(
            where,
            f"{len(counts):,} different labels in {len(train):,} rows: this column does not look like a class; "
            f"it begins with {listed(list(counts)[:3])}",
        )
    return names if names and counts.keys() <= set(names) else tuple(sorted(counts, key=_natural))


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    if re.fullmatch(r"[+-]?\d+", name):
        return ((0, int(name), name),)
    parts = _DIGITS.split(name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def require_known_labels(split: Named, known: Sequence[str], where: str) -> None:
    """
    Raises:
        InvalidDataset: the split has a label that train has not; its first row is named.
    """
    allowed = set(known)
    strangers = {name: row for row, name in reversed(list(enumerate(split.labels, start=1))) if name not in allowed}
    if strangers:
        row = min(strangers.values())
        name = split.labels[row - 1]
        more = f" ({len(strangers)} such labels: {listed(sorted(strangers))})" if len(strangers) > 1 else ""
        raise fault(where, f"row {row}: the label {name!r} does not stand in train{more}; train has {listed(known)}")
