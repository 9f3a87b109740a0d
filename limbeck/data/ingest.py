"""Taking an upload in: read, check, cut, and write one normalised Parquet file for each split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.config import Columns
from limbeck.data.assemble import assemble
from limbeck.data.columns import Chosen
from limbeck.data.corpus import LABELLED_ONCE, ONE_LABEL, Corpus, Split
from limbeck.data.forms import FORMS
from limbeck.data.parquet import LABELS_KEY, NOTES_KEY, TASK_KEY
from limbeck.data.readers import UNPACKED_LIMIT, read_table
from limbeck.data.table import fault

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Ingested:
    """A data set that lies ready as ``{split}.parquet``."""

    splits: dict[str, dict[str, Any]]  #: ``{"train": {"rows", "bytes", "sha256"}, …}``
    profile: dict[str, Any]
    sha256: str  #: of the normalised content, whatever the upload's format was


def ingest(
    files: Mapping[str, tuple[Path, str]],
    out: Path,
    *,
    columns: Columns | None = None,
    max_unpacked_bytes: int = UNPACKED_LIMIT,
    task: str | None = None,
) -> Ingested:
    """Turn uploaded files into a data set.

    Args:
        files: for ``train``, and ``validation`` and ``test`` where given, the file and the name that it was sent under.
        out: an existing folder; on an error nothing is left in it.
        task: the ``type`` of the task; default: what the columns and their cells say.

    Raises:
        InvalidDataset: naming split, row and column.
    """
    if "train" not in files:
        raise fault("train", "this file is required; validation and test are cut from it where they are not given")
    tables = {
        where: read_table(*files[where], where=where, max_unpacked_bytes=max_unpacked_bytes)
        for where in SPLITS
        if where in files
    }
    corpus, chosen = assemble(tables, columns=columns or Columns(), source="upload", columns_at="", task=task)
    splits = {}
    try:
        for where in SPLITS:
            # Once is enough: who reads the splits again gathers what is noted in each.
            notes = corpus.notes if where == "train" else ()
            splits[where] = _write(getattr(corpus, where), corpus, out / f"{where}.parquet", notes)
    except BaseException:
        for where in SPLITS:
            (out / f"{where}.parquet").unlink(missing_ok=True)
        raise
    return Ingested(splits, profile(corpus, chosen), corpus.sha256)


def _write(split: Split, corpus: Corpus, path: Path, notes: Sequence[str]) -> dict[str, Any]:
    import pyarrow
    import pyarrow.parquet

    columns = FORMS[corpus.task].stored(split, corpus.labels)
    # The order of the labels is not always theirs by name: it has to outlive the upload. So has the task, which is a
    # choice where labels are whole numbers.
    named = "tags" if corpus.task == "token_classification" else "label"
    metadata = {LABELS_KEY: json.dumps({named: corpus.labels} if corpus.labels else {}).encode()}
    if corpus.task != ONE_LABEL:
        metadata[TASK_KEY] = corpus.task.encode()
    if notes:
        metadata[NOTES_KEY] = json.dumps(notes).encode()
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), path, compression="zstd")
    with path.open("rb") as stored:
        digest = hashlib.file_digest(stored, "sha256").hexdigest()
    return {"rows": len(split), "bytes": path.stat().st_size, "sha256": digest}


def profile(corpus: Corpus, chosen: Chosen) -> dict[str, Any]:
    """What a person wants to know before training: counts, lengths, and what should be looked at."""
    return {
        "task": corpus.task,
        "columns": chosen.by_field,
        "labels": list(corpus.labels),
        "pair": corpus.train.pairs is not None,
        "splits": {where: _split_profile(getattr(corpus, where), corpus) for where in SPLITS},
        "notes": list(corpus.notes),
        "warnings": _warnings(corpus),
    }


def _split_profile(split: Split, corpus: Corpus) -> dict[str, Any]:
    texts: Sequence[str | bytes] = (
        split.pairs if corpus.task == "question_answering" and split.pairs is not None else split.texts
    )
    texts = texts if split.images is None else split.images
    marks = np.percentile([len(text) for text in texts], [0, 50, 95, 100])
    keys = split.keys()
    return {
        "rows": len(split),
        **_label_profile(split, corpus),
        "characters" if split.images is None else "bytes_each": dict(
            zip(("least", "median", "p95", "most"), map(int, marks), strict=True)
        ),
        "duplicates": len(keys) - len(set(keys)),
    }


def _label_profile(split: Split, corpus: Corpus) -> dict[str, Any]:
    if corpus.task == "embeddings" and split.pairs is None:
        return {"labels": {}}
    if corpus.task in ("regression", "embeddings"):
        marks = np.percentile(split.labels, [0, 50, 100])
        return {"labels": {}, "numbers": dict(zip(("least", "median", "most"), map(float, marks), strict=True))}
    counts = _counts(split, corpus)
    return {"labels": {name: counts[index] for index, name in enumerate(corpus.labels)}}


def _counts(split: Split, corpus: Corpus) -> Counter[int]:
    """How often each label occurs."""
    if not corpus.labels:
        return Counter()
    if corpus.task in LABELLED_ONCE:
        return Counter(split.labels)
    return Counter(one for row in split.labels for one in row)


def _warnings(corpus: Corpus) -> list[str]:
    found = []
    counts = _counts(corpus.train, corpus)
    rare = [name for index, name in enumerate(corpus.labels) if counts[index] < 10]
    if rare:
        which = f"The label {rare[0]!r} has" if len(rare) == 1 else f"{len(rare)} labels, among them {rare[0]!r}, have"
        found.append(f"{which} fewer than 10 training examples.")
    common = max(counts.values(), default=0) / len(corpus.train)
    if corpus.task in LABELLED_ONCE and common > 0.9:
        found.append(f"{common:.0%} of the training examples have one label; accuracy says little here, read macro F1.")
    if len(corpus.test) < 100:
        found.append(f"The test split has {len(corpus.test)} rows; intervals will be wide.")
    answers: dict[object, object] = {}
    if any(
        answers.setdefault(key, label) != label
        for key, label in zip(corpus.train.keys(), corpus.train.labels, strict=True)
    ):
        what = "texts" if corpus.train.images is None else "images"
        found.append(f"Some {what} stand in train more than once with different labels.")
    return found


def preview(parquet: Path, rows: int) -> list[dict[str, Any]]:
    """The first rows of a stored split."""
    import pyarrow.parquet

    batch = next(pyarrow.parquet.ParquetFile(parquet).iter_batches(batch_size=rows), None)
    return [] if batch is None else [{name: _shown(cell) for name, cell in row.items()} for row in batch.to_pylist()]


def _shown(cell: Any) -> Any:
    """An image as what it is called and how large it is: its bytes are no JSON, and too many to look at."""
    if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
        return cell
    from limbeck.runtime.images import opened

    image = opened(cell["bytes"])
    return {"path": cell.get("path"), "bytes": len(cell["bytes"]), "width": image.width, "height": image.height}
