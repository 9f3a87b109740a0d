"""TSV files of a hub's data set: ``datasets`` reads them with the quoting of CSV, whatever they have."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.tab_quotes import TabQuotes


@dataclass(frozen=True, slots=True)
class HubTabs:
    """What the files of each split say, by its name there."""

    marks: Mapping[str, list[TabQuotes]]

    @classmethod
    def of(cls, folder: str, subset: str | None) -> HubTabs:
        """Look into the files, where there are any and their data set does not say itself how they quote."""
        if not any(Path(folder).rglob("*.tsv*")):
            return cls({})
        import datasets

        config = datasets.load_dataset_builder(folder, subset).config
        if getattr(config, "sep", None) != "\t" or config.quoting != csv.QUOTE_MINIMAL or config.data_files is None:
            return cls({})
        return cls({str(split): [_marks(Path(file)) for file in files] for split, files in config.data_files.items()})

    @property
    def literal(self) -> bool:
        """Whether marks are parts of the texts in one file; then they are in all, for all are read alike."""
        return any(one.opened and not one.quoted for files in self.marks.values() for one in files)

    @property
    def mixed(self) -> bool:
        """Whether another file nevertheless needs its quotes."""
        return self.literal and any(one.opened and one.ragged for files in self.marks.values() for one in files)

    @property
    def options(self) -> dict[str, Any]:
        """For ``datasets.load_dataset``."""
        return {"quoting": csv.QUOTE_NONE} if self.literal else {}

    def notes(self, split: str, where: str, rows: int) -> tuple[str, ...]:
        files = self.marks.get(split, [])
        counts = [rows] if len(files) == 1 else [one.rows for one in files]
        told = zip(files, counts, strict=True)
        return tuple(one.note(where, count, quoted=not self.literal) for one, count in told if one.opened)


def _marks(file: Path) -> TabQuotes:
    return TabQuotes(_lines(file))


def _lines(file: Path) -> Iterator[str]:
    """What is not UTF-8 is told by who reads the file."""
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    opened = gzip.open if packed else open
    with opened(file, "rt", encoding="utf-8-sig", errors="replace", newline="") as text:
        yield from text
