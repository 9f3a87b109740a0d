"""From the tables that there are to three splits over one list of labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from limbeck.config import Columns
from limbeck.data.columns import Chosen, choose_columns
from limbeck.data.corpus import ONE_LABEL, Corpus, Split, content_hash
from limbeck.data.forms import FORMS, Form, Named
from limbeck.data.inferring import unlabelled, with_task
from limbeck.data.splits import cut
from limbeck.data.table import Table, fault, listed


def assemble(
    tables: Mapping[str, Table],
    *,
    columns: Columns,
    source: str,
    revision: str | None = None,
    columns_at: str = "/dataset/columns",
    task: str | None = None,
) -> tuple[Corpus, Chosen]:
    """Check the tables, cut the missing splits from train, and keep no training example that is tested on.

    Args:
        tables: ``train``, and ``validation`` and ``test`` where there are any.
        columns_at: the JSON pointer of ``columns`` in what the user sent.
        task: the ``type`` of the task; default: what the columns and their cells say.

    Raises:
        InvalidDataset: naming split, row and column.
    """
    chosen = with_task(tables["train"], choose_columns(tables["train"], columns, "train", at=columns_at, task=task))
    form = FORMS[chosen.task or ONE_LABEL]
    notes = [note for table in tables.values() for note in table.notes]
    named = _read(tables, chosen, form, notes)
    labels = form.order(named, tables["train"].names.get(chosen.label))
    splits = {where: form.coded(split, labels) for where, split in named.items()}
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notes.append("There is no labelled test split: the validation split is reported on, and a new one is cut.")
    train = _without_tested(splits.pop("train"), splits, notes, form, labels)
    if len(splits) == 2 and (both := len(set(splits["validation"].keys()) & set(splits["test"].keys()))):
        notes.append(f"Texts that stand in both validation and test: {both:,}.")
    for where in ("test", "validation"):
        if where not in splits:
            train, splits[where] = cut(train, form=form)
            notes.append(f"The {where} split, {len(splits[where]):,} rows, is cut from train.")
    parts = train, splits["validation"], splits["test"]
    digest = content_hash(labels, *parts, task=form.task)
    corpus = Corpus(*parts, labels, source, digest, revision, tuple(dict.fromkeys(notes)), form.task)
    return corpus, chosen


def _read(tables: Mapping[str, Table], chosen: Chosen, form: Form, notes: list[str]) -> dict[str, Named]:
    """The splits that have labels, by name."""
    named = {"train": form.read(tables["train"], chosen, "train")}
    for where in ("validation", "test"):
        if where not in tables:
            continue
        _require_columns(tables[where], chosen, where)
        if unlabelled(tables[where], chosen) and "-1" not in named["train"].labels:
            notes.append(f"The {where} split has no labels and is left out.")
        else:
            named[where] = form.read(tables[where], chosen, where)
    return named


def _require_columns(table: Table, chosen: Chosen, where: str) -> None:
    for name in chosen.all:
        if name not in table.columns:
            raise fault(where, f"found no column {name!r}, which train has; it has {listed(table.columns)}")


def _without_tested(
    train: Split, others: Mapping[str, Split], notes: list[str], form: Form, labels: tuple[str, ...]
) -> Split:
    """Train without the texts that stand in another split: measuring on them would measure memory.

    Where each example has one label, a class that has no other texts keeps these, and is told.
    """
    tested = set[object]()
    for split in others.values():
        tested.update(split.keys())
    shared = [key in tested for key in train.keys()]
    if not any(shared):
        return train
    lost = _labels_in(train.labels) - _labels_in(
        one for one, also in zip(train.labels, shared, strict=True) if not also
    )
    kept = [not also or (form.stratified and one in lost) for one, also in zip(train.labels, shared, strict=True)]
    about = f" ({listed(labels[one] for one in sorted(lost))})" if labels else ""
    if not any(kept):
        notes.append(
            f"All {len(train):,} training texts also stand in another split, and are kept: there are no others."
        )
        return train
    if out := kept.count(False):
        notes.append(f"Training texts that also stand in another split, and are left out of train: {out:,}.")
    if also := sum(kept) - shared.count(False):
        notes.append(
            f"Training texts that also stand in another split, kept since their classes have no others{about}: "
            f"{also:,}; on these, figures measure memory."
        )
    elif labels and lost:
        notes.append(f"Labels that have no training text without those, and cannot be learned{about}.")
    return train.take(row for row, stays in enumerate(kept) if stays)


def _labels_in(rows: Iterable[Any]) -> set[Any]:
    """The labels that stand in these rows, of which one may have several."""
    return {one for row in rows for one in (row if isinstance(row, tuple) else (row,))}
