"""From a configuration's ``dataset`` to a :class:`Corpus`, wherever the data lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.config import Dataset, Splits
from limbeck.data.assemble import assemble
from limbeck.data.corpus import IMAGES, PLAIN, Corpus, content_hash
from limbeck.data.digits import SOURCE as DIGITS
from limbeck.data.digits import load_digits
from limbeck.data.forms import FORMS, SeveralLabels
from limbeck.data.ingest import SPLITS
from limbeck.data.readers import FORMATS, read_table
from limbeck.data.splits import limited
from limbeck.data.stdlib_docstrings import SOURCE, load_docstrings
from limbeck.data.table import Table, listed
from limbeck.errors import InvalidDataset, Problem
from limbeck.image_files import SPLIT_NAMES, image_splits, labelled_images


def load(
    spec: Dataset,
    *,
    seed: int,
    sources: Mapping[str, Path] | None = None,
    task: str | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Corpus:
    """Load a data set, checked and split.

    Args:
        seed: draws the training examples where ``spec.limit`` is set; the splits never depend on it.
        sources: where the service has put ``dataset:ds_…``: a folder of ``{train,validation,test}.parquet``.
        task: the ``type`` of the task; default: what the columns and their cells say.
        poll: called while files come from the hub, by several threads; may raise to stop.

    Raises:
        InvalidDataset: it cannot be learned from; split, row and column are named.
        Unavailable: the hub does not answer.
    """
    corpus = _whole(spec, sources or {}, task, poll)
    if spec.limit is None or len(corpus.train) <= spec.limit:
        return corpus
    return corpus.with_train(limited(corpus.train, spec.limit, seed, form=FORMS[corpus.task]))


def _whole(spec: Dataset, sources: Mapping[str, Path], task: str | None, poll: Callable[[], None]) -> Corpus:
    if spec.source == SOURCE:
        return _docstrings(task)
    if spec.source == DIGITS:
        return load_digits()
    if spec.source in sources:
        return _folder(sources[spec.source], spec, task)
    if spec.source.startswith("path:"):
        return _folder(Path(spec.source.removeprefix("path:")), spec, task)
    if spec.source.startswith("dataset:"):
        raise _not_there(f"{spec.source} is known to the service that stores it, not to the library")
    from limbeck.data.hub import load_tables

    tables, revision = load_tables(spec, poll)
    return assemble(tables, columns=spec.columns, source=spec.source, revision=revision, task=task)[0]


def _docstrings(task: str | None) -> Corpus:
    """With the labels of the task, where it is another than theirs that such texts serve for as well."""
    corpus = load_docstrings()
    if task == PLAIN:
        return _relabelled(corpus, lambda _: None, (), PLAIN)
    if task == SeveralLabels.task:
        return _relabelled(corpus, lambda label: (label,), corpus.labels, SeveralLabels.task)
    return corpus


def _relabelled(corpus: Corpus, label: Callable[[Any], Any], labels: tuple[str, ...], task: str) -> Corpus:
    train, validation, test = (
        replace(one, labels=list(map(label, one.labels))) for one in (corpus.train, corpus.validation, corpus.test)
    )
    digest = content_hash(labels, train, validation, test, task=task)
    return Corpus(train, validation, test, labels, corpus.source, digest, corpus.revision, corpus.notes, task)


def _folder(folder: Path, spec: Dataset, task: str | None) -> Corpus:
    tables: dict[str, Table] = {}
    if pictures := image_splits(folder):
        for where, name in wanted_splits(spec.splits, pictures.keys()).items():
            tables[where] = _image_table(pictures[name], where)
        return assemble(tables, columns=spec.columns, source=spec.source, task=task)[0]
    files = split_files(folder)
    for where, name in wanted_splits(spec.splits, files.keys()).items():
        tables[where] = read_table(files[name], files[name].name, where=where)
    return assemble(tables, columns=spec.columns, source=spec.source, task=task)[0]


def _image_table(folder: Path, where: str) -> Table:
    images: list[Any] = []
    labels: list[Any] = []
    for file, name, label in labelled_images(folder, where):
        images.append({"bytes": file.read_bytes(), "path": name})
        labels.append(label)
    return Table({"image": images, "label": labels}, len(labels), task=IMAGES)


def split_files(folder: Path) -> dict[str, Path]:
    """The split files of a folder by their names without endings.

    Raises:
        InvalidDataset: there is no such folder, or none in it.
    """
    if not folder.is_dir():
        raise _not_there(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        plain = path.name.removesuffix(".gz")
        if path.is_file() and plain.endswith(FORMATS):
            found.setdefault(plain.rpartition(".")[0], path)
    if not found:
        raise _not_there(
            f"{folder} has no file such as train.csv, train.jsonl.gz or train.parquet, and no images as "
            "train/<label>/*.png"
        )
    return found


def wanted_splits(splits: Splits, present: Iterable[str]) -> dict[str, str]:
    """Which split of the data set serves as ``train``, ``validation`` and ``test``.

    ``validation`` and ``test`` are taken by their own names, or another usual one (``dev``), where nothing is said,
    unless the split that has that name already serves as something else.

    Raises:
        InvalidDataset: a split that is asked for is not there.
    """
    names = set(present)
    chosen = {where: name for where in SPLITS if (name := getattr(splits, where)) is not None}
    for where, name in chosen.items():
        if name not in names:
            detail = f"found no split {name!r}; allowed: {listed(sorted(names))}"
            raise InvalidDataset(f"splits.{where}: {detail}", [Problem(f"/dataset/splits/{where}", detail)])
    for where in SPLITS:
        usual = (name for name, means in SPLIT_NAMES.items() if means == where and name in names)
        if where not in chosen and (name := next((one for one in usual if one not in chosen.values()), None)):
            chosen[where] = name
    return chosen


def _not_there(detail: str) -> InvalidDataset:
    return InvalidDataset(f"dataset.source: {detail}", [Problem("/dataset/source", detail)])
