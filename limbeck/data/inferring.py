"""Which task a table is for, where nobody names it and only the cells of its label column can tell."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from limbeck.data.cells import AS_JSON, NUMBER, is_foreign_list, is_list
from limbeck.data.columns import Chosen
from limbeck.data.forms import Number, OneLabel, SeveralLabels
from limbeck.data.table import Table, fault


def with_task(table: Table, chosen: Chosen) -> Chosen:
    """The same with its task; where only the label column can tell, by its cells.

    Lists of names are several labels, fractions among nothing but numbers are regression, names between ``|`` that
    recur in other combinations are several labels as well; everything else is one label for each text.
    """
    if chosen.task is not None:
        return chosen
    if table.task is not None and table.task in (OneLabel.task, SeveralLabels.task, Number.task):
        return replace(chosen, task=table.task)
    cells = [cell for cell in table.columns[chosen.label] if cell not in (None, "")]
    lists = any(isinstance(cell, list) or (isinstance(cell, str) and is_list(cell)) for cell in cells)
    if cells and all(isinstance(cell, str) and is_foreign_list(cell) for cell in cells):
        raise fault(
            "train",
            f"column {chosen.label!r} begins with {reprlib.repr(cells[0])}, {AS_JSON}; for names that look like "
            "that, name the task",
        )
    if lists or (chosen.label not in table.names and _are_barred(cells)):
        return replace(chosen, task=SeveralLabels.task)
    if cells and all(_is_number(cell) for cell in cells) and not all(float(cell).is_integer() for cell in cells):
        return replace(chosen, task=Number.task)
    return replace(chosen, task=OneLabel.task)


def unlabelled(table: Table, chosen: Chosen) -> bool:
    """Whether a split's answers are kept back, as in the hub's GLUE test splits: every label is -1 or nothing."""
    return bool(chosen.label) and all(value in (None, -1, "-1", "") for value in table.columns.get(chosen.label, []))


def _is_number(cell: Any) -> bool:
    if isinstance(cell, str):
        return NUMBER.fullmatch(cell.strip()) is not None and float(cell) < 1e30
    return isinstance(cell, int | float) and not isinstance(cell, bool) and -1e30 < cell < 1e30


def _are_barred(cells: Sequence[Any]) -> bool:
    """``"red|round"`` alone may be one odd name; where ``"red"`` also stands elsewhere, it is two."""
    distinct = {cell: {part.strip() for part in cell.split("|")} for cell in cells if isinstance(cell, str)}
    users = Counter(part for parts in distinct.values() for part in parts)
    return any(
        "|" in cell and "" not in parts and any(users[part] > 1 for part in parts) for cell, parts in distinct.items()
    )
