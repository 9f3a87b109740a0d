"""The forms that examples and their labels have: one class for each task."""

from __future__ import annotations

import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from limbeck.data.cells import (
    AS_JSON,
    is_foreign_list,
    is_list,
    kind,
    list_cell,
    number_cell,
    object_cell,
    require_whole,
    text_cell,
)
from limbeck.data.columns import Chosen
from limbeck.data.corpus import IMAGES, ONE_LABEL, PLAIN, Split
from limbeck.data.image_cells import image_cell
from limbeck.data.labelling import label_cell, label_order, natural, require_known_labels, whole_numbers
from limbeck.data.table import Table, fault

_TAG = re.compile(r"O|[BIES]-.+")
#: Share of the numbers' spread that the steps between a model's answers may have: what an export may be off by.
_COARSE = 0.01
_ANSWERS = 'an object such as {"text": ["…"], "answer_start": [17]}'


@dataclass(frozen=True, slots=True)
class Named:
    """A split whose labels are still names."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]
    tokens: list[tuple[str, ...]] | None = None
    images: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self.texts)


class Form(ABC):
    """What is particular to the data of one task."""

    task: ClassVar[str]
    #: Whether a split that is cut gets its share of each label.
    stratified: ClassVar[bool] = False

    def read(self, table: Table, chosen: Chosen, where: str) -> Named:
        """Read the chosen columns.

        Raises:
            InvalidDataset: a cell cannot be used; split, row and column are named.
        """
        texts = _texts(table, chosen.text, where)
        pairs = None if chosen.text_pair is None else _texts(table, chosen.text_pair, where)
        return Named(texts, pairs, self.labels(table, chosen, where))

    @abstractmethod
    def labels(self, table: Table, chosen: Chosen, where: str) -> list[Any]:
        """The label column."""

    def order(self, named: Mapping[str, Named], known: tuple[str, ...] | None) -> tuple[str, ...]:
        """The names of the labels, in order; ``known`` are those that the file itself names.

        Raises:
            InvalidDataset: they cannot be learned, or a split has one that train has not.
        """
        return ()

    def coded(self, split: Named, labels: tuple[str, ...]) -> Split:
        """The split over the ordered names."""
        return Split(split.texts, split.pairs, split.labels, split.tokens)

    def stored(self, split: Split, labels: tuple[str, ...]) -> dict[str, list[Any]]:
        """The columns of a stored split; its label column reads back as the same."""
        columns: dict[str, list[Any]] = {"text": split.texts}
        if split.pairs is not None:
            columns["text_pair"] = split.pairs
        return columns | {"label": split.labels}

    def groups(self, split: Split) -> list[Any]:
        """For each example what may not stand on both sides of a cut."""
        return split.keys()


class OneLabel(Form):
    task = ONE_LABEL
    stratified = True

    def labels(self, table: Table, chosen: Chosen, where: str) -> list[Any]:
        names = table.names.get(chosen.label)
        column = table.columns[chosen.label]
        labels = [label_cell(value, row, chosen.label, where, names) for row, value in enumerate(column, start=1)]
        return labels if names is not None else whole_numbers(labels, chosen.label, where)

    def order(self, named: Mapping[str, Named], known: tuple[str, ...] | None) -> tuple[str, ...]:
        train = named["train"].labels
        order = label_order(train, len(train), known)
        present = set(train)
        for where, split in named.items():
            require_known_labels([[one] for one in split.labels], [one for one in order if one in present], where)
        return order

    def coded(self, split: Named, labels: tuple[str, ...]) -> Split:
        place = {name: index for index, name in enumerate(labels)}
        return Split(split.texts, split.pairs, [place[name] for name in split.labels])

    def stored(self, split: Split, labels: tuple[str, ...]) -> dict[str, list[Any]]:
        return super().stored(split, labels) | {"label": [labels[label] for label in split.labels]}


class LabelledImages(OneLabel):
    """Encoded images, each checked as a whole: what a job cannot decode is refused before there is one."""

    task = IMAGES

    def read(self, table: Table, chosen: Chosen, where: str) -> Named:
        cells = enumerate(table.columns[chosen.text], start=1)
        found = [image_cell(cell, row, chosen.text, where) for row, cell in cells]
        names = [name for _, name in found]
        return Named(names, None, self.labels(table, chosen, where), images=[data for data, _ in found])

    def coded(self, split: Named, labels: tuple[str, ...]) -> Split:
        return replace(super().coded(split, labels), images=split.images)

    def stored(self, split: Split, labels: tuple[str, ...]) -> dict[str, list[Any]]:
        images = [{"bytes": data, "path": name} for data, name in zip(split.images or (), split.texts, strict=True)]
        return {"image": images, "label": [labels[label] for label in split.labels]}


class SeveralLabels(Form):
    """Lists of names; in text files their JSON, or the names with ``|`` between them."""

    task = "multi_label"

    def labels(self, table: Table, chosen: Chosen, where: str) -> list[Any]:
        names, column = table.names.get(chosen.label), chosen.label
        found = []
        for row, cell in enumerate(table.columns[column], start=1):
            labels = (label_cell(one, row, column, where, names) for one in _several(cell, row, chosen, where))
            found.append(tuple(dict.fromkeys(labels)))
        return found

    def order(self, named: Mapping[str, Named], known: tuple[str, ...] | None) -> tuple[str, ...]:
        """A label that train lacks stays: it cannot be learned, but what is tested on is what was given."""
        train = named["train"].labels
        label_order([one for row in train for one in row], len(train), known)
        everywhere = [one for split in named.values() for row in split.labels for one in row]
        return label_order(everywhere, sum(map(len, named.values())), known)

    def coded(self, split: Named, labels: tuple[str, ...]) -> Split:
        place = {name: index for index, name in enumerate(labels)}
        rows = [tuple(sorted(place[name] for name in row)) for row in split.labels]
        return Split(split.texts, split.pairs, rows)

    def stored(self, split: Split, labels: tuple[str, ...]) -> dict[str, list[Any]]:
        return super().stored(split, labels) | {"label": [[labels[one] for one in row] for row in split.labels]}


class Number(Form):
    task = "regression"

    def labels(self, table: Table, chosen: Chosen, where: str) -> list[Any]:
        column = table.columns[chosen.label]
        names = table.names.get(chosen.label)
        found = []
        for row, value in enumerate(column, start=1):
            named = names is not None and isinstance(
                value, int
            )  # the name is the number: stars from 1 to 5 count from 0
            cell = label_cell(value, row, chosen.label, where, names) if named else value
            found.append(number_cell(cell, row, chosen.label, where))
        return found

    def order(self, named: Mapping[str, Named], known: tuple[str, ...] | None) -> tuple[str, ...]:
        if len(set(named["train"].labels)) < 2:
            only = named["train"].labels[0]
            raise fault("train", f"every row has the number {only}; at least two different numbers are needed")
        _require_steps(named["train"].labels)
        return ()


class Tags(Form):
    """A list of tokens and a list of as many tags."""

    task = "token_classification"

    def read(self, table: Table, chosen: Chosen, where: str) -> Named:
        tokens = [
            _tokens(cell, row, chosen.text, where) for row, cell in enumerate(table.columns[chosen.text], start=1)
        ]
        tags = self.labels(table, chosen, where)
        for row, (words, names) in enumerate(zip(tokens, tags, strict=True), start=1):
            if len(words) != len(names):
                raise fault(
                    where,
                    f"row {row}, column {chosen.label!r}: found {len(names)} tags for the {len(words)} tokens in "
                    f"{chosen.text!r}; each token has one",
                )
        return Named([" ".join(words) for words in tokens], None, tags, tokens)

    def labels(self, table: Table, chosen: Chosen, where: str) -> list[Any]:
        names, column = table.names.get(chosen.label), chosen.label
        cells = [
            list_cell(cell, row, column, where, "a list of tags")
            for row, cell in enumerate(table.columns[column], start=1)
        ]
        return [tuple(_tag(one, row, column, where, names) for one in cell) for row, cell in enumerate(cells, start=1)]

    def order(self, named: Mapping[str, Named], known: tuple[str, ...] | None) -> tuple[str, ...]:
        """``O`` first. A tag that train lacks stays: it cannot be learned, but what is tested on is what was given."""
        found = {tag for split in named.values() for row in split.labels for tag in row}
        if not {tag for row in named["train"].labels for tag in row} - {"O"}:
            raise fault("train", "every tag is 'O'; there is no entity to learn from")
        if known and "O" in known and found <= set(known):
            return known
        return ("O", *sorted(found - {"O"}, key=natural))

    def coded(self, split: Named, labels: tuple[str, ...]) -> Split:
        place = {name: index for index, name in enumerate(labels)}
        return Split(split.texts, None, [tuple(place[tag] for tag in row) for row in split.labels], split.tokens)

    def stored(self, split: Split, labels: tuple[str, ...]) -> dict[str, list[Any]]:
        assert split.tokens is not None
        tags = [[labels[tag] for tag in row] for row in split.labels]
        return {"tokens": [list(words) for words in split.tokens], "tags": tags}

    def groups(self, split: Split) -> list[Any]:
        return list(split.tokens or ())


class Answers(Form):
    """Questions whose answers are spans of a context, as SQuAD has them."""

    task = "question_answering"

    def labels(self, table: Table, chosen: Chosen, where: str) -> list[Any]:
        contexts = table.columns[chosen.text_pair or ""]
        cells = zip(table.columns[chosen.label], contexts, strict=True)
        return [_answers(cell, context, row, chosen, where) for row, (cell, context) in enumerate(cells, start=1)]

    def stored(self, split: Split, labels: tuple[str, ...]) -> dict[str, list[Any]]:
        answers = [
            {"text": [text for text, _ in row], "answer_start": [start for _, start in row]} for row in split.labels
        ]
        return {"question": split.texts, "context": list(split.pairs or ()), "answers": answers}

    def groups(self, split: Split) -> list[Any]:
        """A context goes whole: who has read it for one question knows more for the next."""
        return list(split.pairs or ())


class Alike(Number):
    """Texts, or pairs of texts with a number that says how alike they are."""

    task = "embeddings"

    def labels(self, table: Table, chosen: Chosen, where: str) -> list[Any]:
        return super().labels(table, chosen, where) if chosen.label else [None] * len(table.columns[chosen.text])

    def order(self, named: Mapping[str, Named], known: tuple[str, ...] | None) -> tuple[str, ...]:
        return () if named["train"].pairs is None else super().order(named, known)

    def stored(self, split: Split, labels: tuple[str, ...]) -> dict[str, list[Any]]:
        return {"text": split.texts} if split.pairs is None else super().stored(split, labels)


class Plain(Form):
    """Texts alone; rows without one are passed over, as many a collection has empty lines."""

    task = PLAIN

    def read(self, table: Table, chosen: Chosen, where: str) -> Named:
        column = table.columns[chosen.text]
        texts = [
            text_cell(cell, row, chosen.text, where)
            for row, cell in enumerate(column, start=1)
            if cell is not None and not (isinstance(cell, str) and not cell.strip())
        ]
        if not texts:
            raise fault(where, f"column {chosen.text!r} has no text")
        return Named(texts, None, [None] * len(texts))

    def labels(self, table: Table, chosen: Chosen, where: str) -> list[Any]:
        return [None] * table.rows

    def stored(self, split: Split, labels: tuple[str, ...]) -> dict[str, list[Any]]:
        return {"text": split.texts}


FORMS: Mapping[str, Form] = {
    form.task: form
    for form in (OneLabel(), LabelledImages(), SeveralLabels(), Number(), Tags(), Answers(), Alike(), Plain())
}


def _require_steps(numbers: Sequence[float]) -> None:
    """
    Raises:
        InvalidDataset: single precision, in which a model answers, cannot tell such numbers apart.
    """
    highest = max(map(abs, numbers))
    step, spread = float(np.spacing(np.float32(highest))), float(np.std(numbers))
    if step > _COARSE * spread:
        raise fault(
            "train",
            f"the numbers reach from {min(numbers):,.10g} to {max(numbers):,.10g}, and a model's answers go in steps "
            f"of {step:,.3g} there; subtract a number that all of them have in common",
        )


def _texts(table: Table, column: str, where: str) -> list[str]:
    return [text_cell(value, row, column, where) for row, value in enumerate(table.columns[column], start=1)]


def _several(cell: Any, row: int, chosen: Chosen, where: str) -> Iterable[Any]:
    if isinstance(cell, str) and is_foreign_list(cell):
        raise fault(where, f"row {row}, column {chosen.label!r}: found {reprlib.repr(cell)}, {AS_JSON}")
    if isinstance(cell, str) and not is_list(cell):
        return [part for part in cell.split("|") if part.strip()] if cell.strip() else []
    if isinstance(cell, int) and not isinstance(cell, bool):
        return [cell]
    return list_cell(cell, row, chosen.label, where, "a list of labels")


def _tokens(cell: Any, row: int, column: str, where: str) -> tuple[str, ...]:
    tokens = list_cell(cell, row, column, where, "a list of tokens")
    if not tokens:
        raise fault(where, f"row {row}, column {column!r}: the list of tokens is empty")
    for number, token in enumerate(tokens, start=1):
        if not isinstance(token, str) or not token:
            found = kind(token) if token != "" else "an empty text"
            raise fault(where, f"row {row}, column {column!r}: token {number} is {found}; expected a text")
        require_whole(token, row, column, where)
    return tuple(tokens)


def _tag(value: Any, row: int, column: str, where: str, names: tuple[str, ...] | None) -> str:
    tag = label_cell(value, row, column, where, names)
    if not _TAG.fullmatch(tag):
        raise fault(
            where,
            f"row {row}, column {column!r}: found the tag {tag!r}; allowed: O, and types behind B- and I- such as "
            "B-person (IOB2; E- and S- are read as well)",
        )
    return tag


def _answers(cell: Any, context: str, row: int, chosen: Chosen, where: str) -> tuple[tuple[str, int], ...]:
    """The answers of one question, each where it says that it stands."""
    place = f"row {row}, column {chosen.label!r}"
    value = object_cell(cell, row, chosen.label, where)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        starts = value.get("answer_start")
        if not isinstance(starts, list) or len(starts) != len(value["text"]):
            raise fault(where, f"{place}: answer_start has to be a list as long as text; expected {_ANSWERS}")
        found = list(zip(value["text"], starts, strict=True))
    elif isinstance(value, list | dict):
        each = [value] if isinstance(value, dict) else value
        if not all(isinstance(one, dict) and {"text", "answer_start"} <= one.keys() for one in each):
            raise fault(where, f"{place}: found {kind(value)}; expected {_ANSWERS}")
        found = [(one["text"], one["answer_start"]) for one in each]
    else:
        raise fault(where, f"{place}: found {kind(value)}; expected {_ANSWERS}")
    if not found:
        raise fault(where, f"{place}: there is no answer; questions that the context does not answer are not supported")
    for text, start in found:
        if not isinstance(text, str) or not text.strip():
            raise fault(where, f"{place}: found the answer {kind(text)}; expected a text that stands in the context")
        if not isinstance(start, int) or isinstance(start, bool) or context[max(start, 0) : start + len(text)] != text:
            stands = context.find(text)
            at = f"it stands at {stands}" if stands >= 0 else "it does not stand in the context"
            raise fault(where, f"{place}: found answer_start {start!r} for {text[:60]!r}; {at}")
    return tuple(dict.fromkeys(found))
