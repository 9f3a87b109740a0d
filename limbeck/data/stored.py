"""What a job may name of an upload, which is stored as three splits with the usual columns, whatever it had before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from limbeck.config import Columns, DistillConfig, TextColumns, Unlabelled
from limbeck.data.columns import choose_columns, choose_texts
from limbeck.data.corpus import Split
from limbeck.data.forms import FORMS
from limbeck.data.ingest import SPLITS
from limbeck.data.loading import wanted_splits
from limbeck.data.table import Table, listed
from limbeck.errors import InvalidDataset, Problem

_WHY = "; uploads are stored under these names"


@dataclass(frozen=True, slots=True)
class Kept:
    """An upload as its profile tells of it."""

    task: str
    pair: bool

    def table(self) -> Table:
        """A split of it without rows."""
        empty = Split([], [] if self.pair else None, [], tokens=[], images=[])
        return Table(FORMS[self.task].stored(empty, ()), 0, task=self.task)


def problems(config: DistillConfig, uploads: Mapping[str, Kept]) -> Iterator[Problem]:
    """Columns and splits that ``config`` names and uploads do not have; told before the job, in the words of the job.

    Args:
        uploads: those of the configuration's sources that are known, by the JSON pointer of the field that names them.
    """
    if (kept := uploads.get("/dataset/source")) is not None:
        yield from _of_the_dataset(config, kept)
    for index, one in enumerate(config.training.augmentation):
        at = f"/training/augmentation/{index}"
        if isinstance(one, Unlabelled) and (kept := uploads.get(f"{at}/source")) is not None:
            yield from _of_texts(one, kept, at)


def _of_the_dataset(config: DistillConfig, kept: Kept) -> Iterator[Problem]:
    spec, task = config.dataset, kept.task if config.task is None else config.task.type
    try:
        wanted_splits(spec.splits, SPLITS)
    except InvalidDataset as error:
        yield from _explained(error)
    if spec.columns != Columns():
        try:
            choose_columns(kept.table(), spec.columns, spec.splits.train, task=task)
        except InvalidDataset as error:
            yield from _explained(error)


def _of_texts(spec: Unlabelled, kept: Kept, at: str) -> Iterator[Problem]:
    if spec.split not in SPLITS:
        yield Problem(f"{at}/split", f"found no split {spec.split!r}; allowed: {listed(SPLITS)}{_WHY}")
    if spec.columns != TextColumns():
        try:
            choose_texts(kept.table(), spec.columns.text, spec.columns.text_pair, spec.split, at=f"{at}/columns")
        except InvalidDataset as error:
            yield from _explained(error)


def _explained(error: InvalidDataset) -> Iterator[Problem]:
    yield from (Problem(one.pointer, one.detail + _WHY) for one in error.problems)
