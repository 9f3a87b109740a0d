"""Texts without labels, from wherever a data set may come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.config import Dataset, Splits, Unlabelled
from limbeck.data.columns import choose_texts
from limbeck.data.corpus import PLAIN, Split, content_hash
from limbeck.data.loading import split_files
from limbeck.data.readers import read_table
from limbeck.data.stdlib_docstrings import SOURCE, load_docstrings
from limbeck.data.table import Table, listed
from limbeck.errors import InvalidDataset, Problem


@dataclass(frozen=True, slots=True)
class ExtraTexts:
    """The texts of a source, and what tells whether it still has them."""

    texts: Split
    source: str
    revision: str | None  #: the hub's commit
    notes: tuple[str, ...]  #: of the table that they stood in

    def provenance(self) -> dict[str, str | None]:
        digest = content_hash((), self.texts, task=PLAIN)
        return {"source": self.source, "revision": self.revision, "sha256": digest}


def load_unlabelled(
    spec: Unlabelled,
    *,
    pair: bool,
    at: str,
    seed: int,
    sources: Mapping[str, Path],
    poll: Callable[[], None] = lambda: None,
) -> ExtraTexts:
    """The texts of a source, each once and none empty; every label is -1.

    Args:
        pair: whether an example is two texts.
        at: the JSON pointer of ``spec``.
        seed: draws the texts where ``spec.limit`` is set.
        sources, poll: as :func:`limbeck.data.load` has them.

    Raises:
        InvalidDataset: there is no such split or column, or no text in it.
        Unavailable: the hub does not answer.
    """
    table, revision = _table(spec, at, sources, poll)
    text, text_pair = choose_texts(table, spec.columns.text, spec.columns.text_pair, spec.split, at=f"{at}/columns")
    if pair and text_pair is None:
        raise _fault(f"{at}/columns/text_pair", f"the data set has pairs of texts; {spec.source} has {text!r} alone")
    others = table.columns[text_pair] if pair and text_pair is not None else [None] * table.rows
    found = dict.fromkeys(
        (one, other)
        for one, other in zip(table.columns[text], others, strict=True)
        if _readable(one) and (not pair or _readable(other))
    )
    if not found:
        raise _fault(f"{at}/source", f"the column {text!r} of {spec.source} has no text")
    kept = list(found)
    if spec.limit is not None and spec.limit < len(kept):
        places = np.random.default_rng(seed).permutation(len(kept))[: spec.limit]
        kept = [kept[place] for place in sorted(places.tolist())]
    pairs = [str(other) for _, other in kept] if pair else None
    texts = Split([one for one, _ in kept], pairs, [-1] * len(kept))
    return ExtraTexts(texts, spec.source, revision, table.notes)


def _readable(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _table(
    spec: Unlabelled, at: str, sources: Mapping[str, Path], poll: Callable[[], None]
) -> tuple[Table, str | None]:
    """Its split, and the hub's commit."""
    if spec.source == SOURCE:
        texts = load_docstrings().train.texts
        return Table({"text": list(texts)}, len(texts)), None
    if spec.source in sources or spec.source.startswith("path:"):
        files = split_files(sources.get(spec.source) or Path(spec.source.removeprefix("path:")))
        if spec.split not in files:
            raise _fault(f"{at}/split", f"found no split {spec.split!r}; allowed: {listed(sorted(files))}")
        return read_table(files[spec.split], files[spec.split].name, where=spec.split), None
    if spec.source.startswith("dataset:"):
        raise _fault(f"{at}/source", f"{spec.source} is known to the service that stores it, not to the library")
    from limbeck.data.hub import load_tables

    splits = Splits(train=spec.split)
    wanted = Dataset(source=spec.source, subset=spec.subset, revision=spec.revision, splits=splits)
    try:
        tables, revision = load_tables(wanted, poll)
    except InvalidDataset as error:
        # The hub's loader names the fields of the job's own data set.
        raise _fault(f"{at}/source", error.message) from error
    return tables["train"], revision


def _fault(pointer: str, detail: str) -> InvalidDataset:
    return InvalidDataset(f"{pointer}: {detail}", [Problem(pointer, detail)])
