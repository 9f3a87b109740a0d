"""Parquet is taken apart with care: a small file can stand for a huge one, and its text need not be text."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from limbeck.data import ingest, read_table
from limbeck.errors import InvalidDataset
from tests.tiny import docstrings

TEXTS = [*docstrings("gui")[:30], *docstrings("numbers")[:30]]
AREAS = ["gui"] * 30 + ["numbers"] * 30


def _written(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet", **options)
    return folder / "a.parquet"


#: Kept, as Arrow's arrays do not keep the pool that they lie in.
_POOLS: list[Any] = []


def _refused_in(path: Path, limit: int) -> int:
    """The bytes of memory, Arrow's and Python's, that it takes to refuse a file as too large."""
    usual = pyarrow.default_memory_pool()
    counted = pyarrow.proxy_memory_pool(usual)
    _POOLS.append(counted)
    pyarrow.set_memory_pool(counted)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDataset, match=f"unpacks to more than {limit:,} bytes"):
            read_table(path, "a.parquet", max_unpacked_bytes=limit)
        return int(counted.max_memory() or 0) + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(usual)


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()])
def test_every_kind_of_string_is_text(tmp_path: Path, kind: Any) -> None:
    path = _written(tmp_path, {"text": pyarrow.array(TEXTS, kind), "label": pyarrow.array(AREAS).dictionary_encode()})
    assert read_table(path, "a.parquet").columns == {"text": TEXTS, "label": AREAS}


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
@pytest.mark.parametrize("listed", [pyarrow.list_, pyarrow.large_list])
def test_every_kind_of_list_is_one(tmp_path: Path, listed: Any, kind: Any) -> None:
    """Guards tokens that polars wrote, which has large lists of large texts."""
    columns = {"tokens": [["Tk", "is"], [], None], "tags": [["O"], ["B-x", "O"], ["O"]]}
    arrays = {name: pyarrow.array(cells, listed(kind)) for name, cells in columns.items()}
    arrays["answers"] = pyarrow.array(
        [{"text": ["Tk"], "answer_start": [0]}] * 3,
        pyarrow.struct([("text", listed(kind)), ("answer_start", listed(pyarrow.int32()))]),
    )
    columns["answers"] = [{"text": ["Tk"], "answer_start": [0]}] * 3  # type: ignore[list-item]
    assert read_table(_written(tmp_path, arrays), "a.parquet").columns == columns


def test_rows_keep_their_order_over_row_groups(tmp_path: Path) -> None:
    path = _written(tmp_path, {"text": [*TEXTS, None], "a.label": [*range(60), None]}, row_group_size=7)
    assert read_table(path, "a.parquet").columns == {"text": [*TEXTS, None], "a.label": [*range(60), None]}


def test_a_text_that_is_stored_once_and_counts_a_million_times_is_refused_in_little_memory(tmp_path: Path) -> None:
    """5 kB that unpack to 2 GB would end the API process."""
    long = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000, pyarrow.int32()), ["x" * 100_000])
    path = _written(tmp_path, {"text": long, "label": ["a", "b"] * 10_000})
    assert path.stat().st_size < 10_000
    assert _refused_in(path, 1_000_000_000) < 20_000_000


IMAGE = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.binary(),
        pyarrow.large_binary(),
        IMAGE,
        pyarrow.list_(pyarrow.string()),
    ],
    ids=str,
)
def test_whatever_is_stored_once_and_counts_often_is_refused_in_little_memory(tmp_path: Path, kind: Any) -> None:
    """Guards against kinds that are read without a dictionary: 5 kB of images that unpack to 100 GB would end the API
    process before their size is seen."""
    cell = "x" * 100_000 if kind != IMAGE else {"bytes": b"x" * 100_000, "path": "a.png"}
    cells = [[cell] if pyarrow.types.is_list(kind) else cell] * 500
    path = _written(tmp_path, {"image": pyarrow.array(cells, kind)})
    assert path.stat().st_size < 10_000
    assert _refused_in(path, 20_000_000) < 5_000_000


def test_the_values_of_lists_are_counted_before_they_are_read(tmp_path: Path) -> None:
    """Guards against a single row of a few hundred bytes that stands for a list of a billion numbers."""
    path = _written(tmp_path, {"tokens": [[1] * 2_000_000]})
    assert _refused_in(path, 10_000_000) < 1_000_000


def test_rows_of_nothing_are_counted_before_they_are_read(tmp_path: Path) -> None:
    path = _written(tmp_path, {"text": pyarrow.nulls(2_000_000)})
    with pytest.raises(InvalidDataset, match="unpacks to more than 10,000,000 bytes"):
        read_table(path, "a.parquet", max_unpacked_bytes=10_000_000)


def test_text_that_is_not_utf_8_is_named_by_its_row(tmp_path: Path) -> None:
    offsets = pyarrow.array([0, 2, 4], pyarrow.int32()).buffers()[1]
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"ab\xff\xff")])
    path = _written(tmp_path, {"text": broken, "label": ["a", "b"]})
    with pytest.raises(InvalidDataset, match="row 2, column 'text': the text is not UTF-8"):
        read_table(path, "a.parquet")


COLUMNS: dict[str, tuple[list[Any], list[Any], str]] = {
    "nested text": ([{"a": text} for text in TEXTS], AREAS, "row 1, column 'text': expected text, found dict"),
    "bytes": ([text.encode() for text in TEXTS], AREAS, "expected text, found binary"),
    "lists of lists": (TEXTS, [[[area]] for area in AREAS], "row 1, column 'label': found list .*; one label for each"),
    "several bytes": (TEXTS, [[b"a"]] * 60, "row 1, column 'label': found list<element: binary>; one label for each"),
    "nothing": ([None, *TEXTS[1:]], AREAS, "row 1, column 'text': expected text, found nothing"),
    "not a number": (TEXTS, [float("nan"), *[1.0] * 59], "row 1, column 'label': the label is missing"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_of_another_type_is_refused_where_it_is_used(tmp_path: Path, case: str) -> None:
    texts, labels, expected = COLUMNS[case]
    path = _written(tmp_path, {"text": texts, "label": labels})
    with pytest.raises(InvalidDataset, match=expected):
        ingest({"train": (path, "a.parquet")}, tmp_path)


def test_a_column_of_another_type_is_passed_over_where_it_is_not_used(tmp_path: Path) -> None:
    """A time beyond what Python counts would end the upload of a good data set."""
    times = pyarrow.array([2**62] * 60, pyarrow.timestamp("ms"))
    path = _written(tmp_path, {"text": TEXTS, "label": AREAS, "when": times, "tokens": [["a"]] * 60})
    assert ingest({"train": (path, "a.parquet")}, tmp_path).profile["labels"] == ["gui", "numbers"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(TEXTS), pyarrow.array(TEXTS)], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InvalidDataset, match="two columns of the name 'text'"):
        read_table(tmp_path / "a.parquet", "a.parquet")
