"""Reading CSV, TSV, JSONL and TXT, each also gzipped, into a :class:`Table`, with faults named by row and column.

Parquet is told apart here and read in :mod:`limbeck.data.parquet`.

Rows are counted as records from 1, a header left out; where a file has lines, the line is named as well.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from limbeck.data.tab_quotes import TabQuotes
from limbeck.data.table import Table, fault, listed
from limbeck.errors import InvalidDataset

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
UNPACKED_LIMIT = 8 * 1024**3
#: A cell takes up to 60 bytes of memory more than its text: a file of one-letter cells would need 20 times its size.
CELLS_LIMIT = 100_000_000
_PARQUET = b"PAR1"
_CELL_LIMIT = 16 * 1024**2
_BLOCK = 1024**2


def read_table(path: Path, filename: str, *, where: str = "train", max_unpacked_bytes: int = UNPACKED_LIMIT) -> Table:
    """Read a file whose format its ``filename`` tells, e.g. ``train.csv`` or ``train.jsonl.gz``.

    Args:
        where: the split that the file is, for messages.
        max_unpacked_bytes: what a gzipped file, or the columns of a Parquet file, may unpack to.

    Raises:
        InvalidDataset: naming row and column.
    """
    name = filename.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in FORMATS:
        raise fault(where, f"found a file named {filename!r}; allowed: {', '.join(FORMATS)}, each also with .gz")
    if path.stat().st_size == 0:
        raise fault(where, "the file is empty")
    with _opened(path, packed, where, max_unpacked_bytes) as stream:
        if suffix == ".parquet":
            from limbeck.data.parquet import read_parquet

            with _seekable(stream, packed) as file:
                return read_parquet(file, where, max_unpacked_bytes)
        if stream.read(len(_PARQUET)) == _PARQUET:
            raise fault(where, f"the file is Parquet, but its name says {suffix}")
        stream.seek(0)
        if suffix == ".jsonl":
            return _read_jsonl(stream, where)
        if suffix == ".txt":
            return _read_lines(stream, where)
        return _read_tabs(stream, where) if suffix == ".tsv" else _read_delimited(stream, where)


@contextmanager
def _opened(path: Path, packed: bool, where: str, limit: int) -> Iterator[IO[bytes]]:
    with path.open("rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if packed != (magic == b"\x1f\x8b"):
            found, expected = ("is not gzipped", "is") if packed else ("is gzipped", "is not")
            raise fault(where, f"the file {found}, but its name says that it {expected}")
        if not packed:
            yield raw
            return
        try:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield io.BufferedReader(_Limited(unpacked, where, limit), _BLOCK)
        except (OSError, EOFError, zlib.error) as error:
            raise fault(where, f"the gzip data is broken: {error}") from error


class _Limited(io.RawIOBase):
    """A gzipped stream that is refused once it has given more than its limit; nothing is unpacked ahead of need."""

    def __init__(self, unpacked: gzip.GzipFile, where: str, limit: int) -> None:
        self._unpacked, self._where, self._limit = unpacked, where, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = self._unpacked.readinto(buffer)
        if self._unpacked.tell() > self._limit:
            raise fault(self._where, f"the file unpacks to more than {self._limit:,} bytes")
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._unpacked.seek(offset, whence)

    def tell(self) -> int:
        return self._unpacked.tell()


@contextmanager
def _seekable(stream: IO[bytes], packed: bool) -> Iterator[IO[bytes]]:
    """Parquet is read from its end: a gzipped one is unpacked into a file, for going back in gzip starts it anew."""
    if not packed:
        yield stream
        return
    with tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(stream, unpacked, _BLOCK)
        unpacked.seek(0)
        yield unpacked


def _read_tabs(stream: IO[bytes], where: str) -> Table:
    """As the file's own quotation marks say, with a note where that decides what the texts are."""
    with _utf8(stream, where) as text:
        marks = TabQuotes(text)
    stream.seek(0)
    try:
        table = _read_delimited(stream, where, "\t", csv.QUOTE_MINIMAL if marks.quoted else csv.QUOTE_NONE)
    except InvalidDataset as error:
        if marks.ragged is None or not marks.opened:
            raise
        detail = f"{error.problems[0].detail}; with its quotation marks read as parts of the texts, {marks.ragged}"
        raise fault(where, detail) from error
    return replace(table, notes=(marks.note(where, table.rows, quoted=marks.quoted),)) if marks.opened else table


def _read_delimited(
    stream: IO[bytes], where: str, delimiter: str = ",", quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> Table:
    csv.field_size_limit(_CELL_LIMIT)
    with _utf8(stream, where) as text:
        reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            header = next(reader, None)
            if not header:
                raise fault(where, "the file has no header line")
            names = _header(header, where)
            cells: list[list[str]] = [[] for _ in names]
            most = CELLS_LIMIT // len(names)
            begun = reader.line_num + 1
            for number, record in enumerate(filter(None, reader), start=1):
                if number > most:
                    raise too_many_cells(where)
                if len(record) != len(names):
                    raise fault(
                        where,
                        f"row {number} (line {reader.line_num}) has {len(record)} fields; the header has {len(names)}: "
                        f"{listed(names)}",
                    )
                for column, value in zip(cells, record, strict=True):
                    column.append(value)
                begun = reader.line_num + 1
        except csv.Error as error:
            raise fault(
                where, f"line {reader.line_num} cannot be read: {error}{_begun(reader.line_num, begun)}"
            ) from error
    return _filled(dict(zip(names, cells, strict=True)), where)


def _begun(line: int, begun: int) -> str:
    """Where the record began that goes on to a line far behind, as one does whose quotation mark is never closed."""
    return f"; its row begins in line {begun}, with a quotation mark that is not closed there" * (line > begun)


def _header(header: list[str], where: str) -> list[str]:
    names = [name.strip() for name in header]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise fault(where, f"the header names a column twice: {listed(twice)}")
    if "" in names:
        index = "; pandas writes its index like that: to_csv(…, index=False)" if not names[0] else ""
        raise fault(where, f"column {names.index('') + 1} of the header has no name{index}")
    other = next((sign for sign in (";", "\t", "|", ",") if len(names) == 1 and sign in names[0]), None)
    if other is not None:
        raise fault(
            where,
            f"the header is one field, {names[0]!r}: its parts are separated by {other!r}; "
            "in .csv they are separated by ',' and in .tsv by tabs",
        )
    return names


def too_many_cells(where: str) -> InvalidDataset:
    return fault(where, f"the file has more than {CELLS_LIMIT:,} cells; leave out rows, or columns that are not used")


def _read_lines(stream: IO[bytes], where: str) -> Table:
    """A text a line, as the column ``text``; empty lines are none."""
    with _utf8(stream, where) as text:
        lines = [line.strip() for line in text if line.strip()]
    return _filled({"text": lines}, where)


def _read_jsonl(stream: IO[bytes], where: str) -> Table:
    columns: dict[str, list[Any]] = {}
    rows = 0
    with _utf8(stream, where) as text:
        for line, content in enumerate(text, start=1):
            if not content.strip():
                continue
            record = _json_object(content, line, where)
            if rows * max(len(columns), len(record)) > CELLS_LIMIT:
                raise too_many_cells(where)
            for name in record.keys() - columns.keys():
                columns[name] = [None] * rows
            for name, values in columns.items():
                values.append(record.get(name))
            rows += 1
    return _filled(columns, where)


def _json_object(content: str, line: int, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        raise fault(where, f"line {line} is not JSON: column {error.colno}: {error.msg}") from error
    except ValueError as error:  # a number with too many digits
        raise fault(where, f"line {line} is not JSON: {error}") from error
    except RecursionError:
        raise fault(where, f"line {line} is nested too deeply") from None
    if not isinstance(record, dict):
        raise fault(where, f'line {line} is not a JSON object such as {{"text": "…", "label": "…"}}')
    return record


def _filled(columns: dict[str, list[Any]], where: str) -> Table:
    rows = len(next(iter(columns.values()), []))
    if rows == 0:
        raise fault(where, "the file has no rows")
    return Table(columns, rows)


@contextmanager
def _utf8(stream: IO[bytes], where: str) -> Iterator[IO[str]]:
    """The stream as text; a byte that is not UTF-8 is told by line and offset."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    try:
        yield text
    except UnicodeDecodeError:
        raise _broken_utf8(stream, where) from None
    finally:
        text.detach()


def _broken_utf8(stream: IO[bytes], where: str) -> InvalidDataset:
    """Find the first byte that is not UTF-8; the text layer reads ahead and cannot tell."""
    stream.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    while block := stream.read(_BLOCK):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block)
        except UnicodeDecodeError as error:
            start = error.start - pending
            line += block[: max(start, 0)].count(b"\n")
            stream.seek(offset + start)
            found = f"byte 0x{stream.read(1).hex()} at offset {offset + start:,}"
            return fault(where, f"line {line} is not UTF-8: {found}; save the file as UTF-8")
        line += block.count(b"\n")
        offset += len(block)
    return fault(where, "the file ends in the middle of a UTF-8 character")
