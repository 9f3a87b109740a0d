"""A table as it was read, column by column, and the words in which its faults are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.errors import InvalidDataset, Problem


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length. Row 1 is the first record; a header is not counted."""

    columns: dict[str, list[Any]]
    rows: int
    #: Names of labels in their order, by column, where the file carries them (Parquet by ``datasets``, or by Limbeck).
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    task: str | None = None  #: that the file itself names (Parquet by Limbeck)
    notes: tuple[str, ...] = ()  #: how the file was read where it could be read otherwise, in sentences


@dataclass(frozen=True, slots=True)
class Foreign:
    """Stands in each row of a column whose type no task has; such columns are not decoded."""

    kind: str  #: e.g. ``fixed_size_list<element: float>``


def fault(where: str, detail: str) -> InvalidDataset:
    """``where`` is a split's name; it is also the upload's form field, so that the pointer leads to the file."""
    return InvalidDataset(f"{where}: {detail}", [Problem(f"/{where}", detail)])


def listed(values: Iterable[object], most: int = 8) -> str:
    """``'a', 'b' and 3 more``."""
    names = [repr(value) for value in values]
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
