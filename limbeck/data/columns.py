"""Which column of a table holds what: as the user says, else by the names that data sets usually give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.config import Columns
from limbeck.data.table import Table, listed
from limbeck.errors import InvalidDataset, Problem

_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
)
#: The first of each is what Limbeck itself calls the column: it wins over the others, which are guesses.
_TEXTS = ("text", "sentence", "content", "review", "comment", "document", "body", "utterance", "question", "title")
_LABELS = (
    "label", "labels", "category", "class", "intent", "sentiment", "target", "topic", "coarse_label", "fine_label"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chosen:
    """The columns that are used."""

    text: str
    text_pair: str | None
    label: str

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(name for name in (self.text, self.text_pair, self.label) if name is not None)


def choose_columns(table: Table, wanted: Columns, where: str, *, at: str = "/dataset/columns") -> Chosen:
    """The columns that ``wanted`` names; the others by their usual names, in upper or lower case.

    Args:
        where: the split, for messages.
        at: the JSON pointer of ``wanted`` in what the user sent.

    Raises:
        InvalidDataset: a named column is not there, none can be guessed, or several can.
    """
    for field in ("text", "text_pair", "label"):
        name = getattr(wanted, field)
        if name is not None and name not in table.columns:
            raise _fault(at, field, f"found no column {name!r} in {where}; it has {listed(table.columns)}")
    text, pair = wanted.text, wanted.text_pair
    if text is None:
        text, pair = _guess_texts(table, pair, where, at)
    label = wanted.label or _guess("label", _LABELS, table, where, at, taken=(text, pair))
    chosen = Chosen(text, pair, label)
    if len(set(chosen.all)) < len(chosen.all):
        detail = "text, text_pair and label have to be different columns"
        raise InvalidDataset(detail, [Problem(at, detail)])
    return chosen


def choose_texts(
    table: Table, text: str | None, text_pair: str | None, where: str, *, at: str
) -> tuple[str, str | None]:
    """The column of the texts, and of the second texts where they are pairs; no label is looked for.

    Raises:
        InvalidDataset: a named column is not there, none can be guessed, or several can.
    """
    for field, name in (("text", text), ("text_pair", text_pair)):
        if name is not None and name not in table.columns:
            raise _fault(at, field, f"found no column {name!r} in {where}; it has {listed(table.columns)}")
    return _guess_texts(table, text_pair, where, at) if text is None else (text, text_pair)


def _guess_texts(table: Table, pair: str | None, where: str, at: str) -> tuple[str, str | None]:
    """The one text, or the two of a pair. Where only the second is named, the first is the one it usually goes with."""
    lowered = {name.lower(): name for name in table.columns}
    pairs = [(lowered[one], lowered[two]) for one, two in _PAIRS if one in lowered and two in lowered]
    fitting = [both for both in pairs if pair in (None, both[1])]
    if len(fitting) > 1:
        several = " or ".join(f"{one!r} and {two!r}" for one, two in fitting)
        raise _fault(at, "text", f"the texts in {where} could be {several}; name text and text_pair")
    if fitting:
        return fitting[0]
    return _guess("text", _TEXTS, table, where, at, taken=(pair,)), pair


def _guess(field: str, usual: Sequence[str], table: Table, where: str, at: str, *, taken: Sequence[str | None]) -> str:
    lowered = {name.lower(): name for name in table.columns if name not in taken}
    found = [lowered[name] for name in usual if name in lowered]
    if not found:
        has = listed(table.columns)
        raise _fault(at, field, f"no {field} column in {where}: it has {has}; name one, or call it {usual[0]!r}")
    if len(found) > 1 and found[0].lower() != usual[0]:
        raise _fault(at, field, f"the {field} column in {where} could be {listed(found)}; name the one that is meant")
    return found[0]


def _fault(at: str, field: str, detail: str) -> InvalidDataset:
    return InvalidDataset(f"{field}: {detail}", [Problem(f"{at}/{field}", detail)])
