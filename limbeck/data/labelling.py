"""From a table to texts and labels: which column is what, and whether every cell can be used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.config import Columns
from limbeck.data.corpus import Split
from limbeck.data.table import Table, fault, listed
from limbeck.errors import InvalidDataset, Problem

_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
)
_TEXTS = ("text", "sentence", "content", "review", "comment", "document", "body", "utterance", "question", "title")
_LABELS = ("label", "labels", "category", "class", "intent", "sentiment", "target", "topic", "coarse_label")
_DIGITS = re.compile(r"(\d+)")
#: A label column with more different values than this share of its rows names things; it does not class them.
_TOO_MANY_CLASSES = 0.5


@dataclass(frozen=True, slots=True)
class Chosen:
    """The columns that are used."""

    text: str
    text_pair: str | None
    label: str


def choose_columns(table: Table, wanted: Columns, where: str) -> Chosen:
    """The columns that ``wanted`` names; the rest by the names that data sets usually give them.

    Raises:
        InvalidDataset: a named column is not there, or none can be guessed.
    """
    present = list(table.columns)
    for field in ("text", "text_pair", "label"):
        name = getattr(wanted, field)
        if name is not None and name not in table.columns:
            detail = f"found no column {name!r} in {where}; it has {listed(present)}"
            raise InvalidDataset(f"columns.{field}: {detail}", [Problem(f"/dataset/columns/{field}", detail)])
    text, pair = wanted.text, wanted.text_pair
    if text is None:
        guess = next((both for both in _PAIRS if pair is None and all(one in table.columns for one in both)), None)
        text, pair = guess or (_guess(_TEXTS, table, pair), pair)
    label = wanted.label or _guess(_LABELS, table)
    for field, name, usual in (("text", text, _TEXTS), ("label", label, _LABELS)):
        if name is None:
            detail = f"no {field} column in {where}: it has {listed(present)}; name one, or call it {usual[0]!r}"
            raise InvalidDataset(detail, [Problem(f"/dataset/columns/{field}", detail)])
    assert text is not None
    assert label is not None
    used = [name for name in (text, pair, label) if name is not None]
    if len(set(used)) < len(used):
        detail = "text, text_pair and label have to be different columns"
        raise InvalidDataset(detail, [Problem("/dataset/columns", detail)])
    return Chosen(text, pair, label)


def _guess(usual: Sequence[str], table: Table, taken: str | None = None) -> str | None:
    lowered = {name.lower(): name for name in table.columns if name != taken}
    return next((lowered[name] for name in usual if name in lowered), None)


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
    return Named(texts, pairs, labels)


def _text(value: Any, row: int, column: str, where: str) -> str:
    if not isinstance(value, str):
        found = "nothing" if value is None else f"{type(value).__name__} {value!r}"
        raise fault(where, f"row {row}, column {column!r}: expected text, found {found}")
    if not value.strip():
        raise fault(where, f"row {row}, column {column!r}: the text is empty")
    return value


def _label(value: Any, row: int, column: str, where: str, names: tuple[str, ...] | None) -> str:
    place = f"row {row}, column {column!r}"
    if value is None or value == "":
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
        raise fault(
            where, f"{place}: found {value}; regression is not supported yet, labels are names or whole numbers"
        )
    if not isinstance(value, str):
        raise fault(where, f"{place}: found {type(value).__name__}; one label for each text is expected")
    return value.strip() or _blank(place, where)


def _blank(place: str, where: str) -> str:
    raise fault(where, f"{place}: the label is missing")


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
