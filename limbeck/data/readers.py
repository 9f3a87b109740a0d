"""Reading CSV, TSV, JSONL and Parquet, each also gzipped, into a :class:`Table`, with faults named by row and column.

Rows are counted as records from 1, a header left out; where a file has lines, the line is named as well.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from limbeck.data.table import Table, fault, listed
from limbeck.errors import InvalidDataset

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
UNPACKED_LIMIT = 8 * 1024**3
_CELL_LIMIT = 16 * 1024**2
_BLOCK = 1024**2


def read_table(path: Path, filename: str, *, where: str = "train", max_unpacked_bytes: int = UNPACKED_LIMIT) -> Table:
    """Read a file whose format its ``filename`` tells, e.g. ``train.csv`` or ``train.jsonl.gz``.

    Args:
        where: the split that the file is, for messages.
        max_unpacked_bytes: what a gzipped file may unpack to.

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
            return _read_parquet(stream, where)
        if suffix == ".jsonl":
            return _read_jsonl(stream, where)
        return _read_delimited(stream, "\t" if suffix == ".tsv" else ",", where)


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
            yield io.BytesIO(_unpack(raw, where, limit))
        except (OSError, EOFError, zlib.error) as error:
            raise fault(where, f"the gzip data is broken: {error}") from error


def _unpack(raw: IO[bytes], where: str, limit: int) -> bytes:
    out = bytearray()
    with gzip.GzipFile(fileobj=raw) as unpacked:
        while block := unpacked.read(_BLOCK):
            out += block
            if len(out) > limit:
                raise fault(where, f"the file unpacks to more than {limit:,} bytes")
    return bytes(out)


def _read_delimited(stream: IO[bytes], delimiter: str, where: str) -> Table:
    csv.field_size_limit(_CELL_LIMIT)
    with _utf8(stream, where) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if not header:
                raise fault(where, "the file has no header line")
            names = _header(header, where)
            cells: list[list[str]] = [[] for _ in names]
            for number, record in enumerate(filter(None, reader), start=1):
                if len(record) != len(names):
                    raise fault(
                        where,
                        f"row {number} (line {reader.line_num}) has {len(record)} fields; the header has {len(names)}: "
                        f"{listed(names)}",
                    )
                for column, value in zip(cells, record, strict=True):
                    column.append(value)
        except csv.Error as error:
            raise fault(where, f"line {reader.line_num} cannot be read: {error}") from error
    return _filled(dict(zip(names, cells, strict=True)), where)


def _header(header: list[str], where: str) -> list[str]:
    names = [name.strip() for name in header]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise fault(where, f"the header names a column twice: {listed(twice)}")
    if "" in names:
        raise fault(where, f"column {names.index('') + 1} of the header has no name")
    return names


def _read_jsonl(stream: IO[bytes], where: str) -> Table:
    columns: dict[str, list[Any]] = {}
    rows = 0
    with _utf8(stream, where) as text:
        for line, content in enumerate(text, start=1):
            if not content.strip():
                continue
            record = _json_object(content, line, where)
            for name in record.keys() - columns.keys():
                columns[name] = [None] * rows
            for name, values in columns.items():
                values.append(record.get(name))
            rows += 1
    return _filled(columns, where)


def _json_object(content: str, line: int, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError as error:
        raise fault(where, f"line {line} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise fault(where, f'line {line} is not a JSON object such as {{"text": "…", "label": "…"}}')
    return record


def _read_parquet(stream: IO[bytes], where: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(stream)
    except (pyarrow.ArrowException, OSError) as error:
        raise fault(where, f"this is not a Parquet file that can be read: {error}") from error
    names = _class_names((table.schema.metadata or {}).get(b"huggingface"))
    return _filled({name: table.column(name).to_pylist() for name in table.column_names}, where, names)


def _class_names(metadata: bytes | None) -> dict[str, tuple[str, ...]]:
    """The names of ClassLabel columns, which ``datasets`` writes into a Parquet file's schema."""
    try:
        features = json.loads(metadata or b"{}")["info"]["features"]
        return {name: tuple(one["names"]) for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _filled(columns: dict[str, list[Any]], where: str, names: dict[str, tuple[str, ...]] | None = None) -> Table:
    rows = len(next(iter(columns.values()), []))
    if rows == 0:
        raise fault(where, "the file has no rows")
    return Table(columns, rows, names or {})


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
