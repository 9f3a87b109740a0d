"""Reading files: what is broken is told by row and column, and never read as something else."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from limbeck.data import read_table
from limbeck.data.table import Table
from limbeck.errors import InvalidDataset

ROWS = [
    {"text": "Parse a URL into 6 components.", "label": "net"},
    {"text": 'Say "ä", and\na new line', "label": "text"},
]


def _write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def _delimited(delimiter: str) -> bytes:
    quoted = '"Say ""ä"", and\na new line"'
    return f"text{delimiter}label\n{ROWS[0]['text']}{delimiter}net\n{quoted}{delimiter}text\n".encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


CONTENTS = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode(),
    ".parquet": _parquet(ROWS),
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", CONTENTS)
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str, packed: str) -> None:
    name = f"train{suffix}{packed}"
    table = read_table(_write(tmp_path, name, CONTENTS[suffix]), name)
    assert table.rows == 2
    assert table.columns == {key: [row[key] for row in ROWS] for key in ("text", "label")}


def test_a_byte_order_mark_and_windows_line_ends_do_not_change_a_column_name(tmp_path: Path) -> None:
    table = read_table(_write(tmp_path, "a.csv", b"\xef\xbb\xbftext,label\r\none two,x\r\n"), "a.csv")
    assert table.columns == {"text": ["one two"], "label": ["x"]}


BROKEN = {
    "empty": ("a.csv", b"", "the file is empty"),
    "header only": ("a.csv", b"text,label\n", "the file has no rows"),
    "ragged": ("a.csv", b"text,label\nfine,x\nno label\n", "row 2 (line 3) has 1 fields; the header has 2"),
    "two of a name": ("a.csv", b"text,text\na,b\n", "names a column twice: 'text'"),
    "no name": ("a.csv", b"text,\na,b\n", "column 2 of the header has no name"),
    "open quote": ("a.csv", b'text,label\n"never closed,x\n', "cannot be read"),
    "quote open to the end": (
        "a.csv",
        b'text,label\n\nfine,x\n"never closed,x\nmore,y\n',
        "its row begins in line 4, with a quotation mark that is not closed there",
    ),
    "pandas' index": (
        "a.csv",
        b",text\n0,b\n",
        "column 1 of the header has no name; pandas writes its index like that",
    ),
    "not utf-8": (
        "a.csv",
        "text,label\ngut,x\nüber,y\n".encode("latin-1"),
        "line 3 is not UTF-8: byte 0xfc at offset 17",
    ),
    "cut utf-8": ("a.csv", "text,label\ngut,ü".encode()[:-1], "UTF-8"),
    "not json": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON: column "),
    "no object": ("a.jsonl", b'["a", "b"]\n', "line 1 is not a JSON object"),
    "no parquet": ("a.parquet", b"PAR1 and nothing", "not a Parquet file"),
    "unknown": ("a.xlsx", b"PK", "allowed: .csv, .tsv, .jsonl, .parquet"),
    "deep json": ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1 is nested too deeply"),
    "semicolons": ("a.csv", b"text;label\nfine;x\n", "its parts are separated by ';'"),
    "tabs in csv": ("a.csv", b"text\tlabel\nfine\tx\n", "and in .tsv by tabs"),
    "parquet unsaid": ("a.csv", CONTENTS[".parquet"], "the file is Parquet, but its name says .csv"),
    "gzip of another": ("a.jsonl.gz", CONTENTS[".parquet"], "the file is Parquet, but its name says .jsonl"),
    "not utf-8, packed": ("a.csv.gz", "text,label\ngut,x\nüber,y\n".encode("latin-1"), "line 3 is not UTF-8"),
    "gzip unsaid": ("a.csv", gzip.compress(b"text,label\n"), "the file is gzipped, but its name says that it is not"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_and_the_place_is_named(tmp_path: Path, case: str) -> None:
    name, content, expected = BROKEN[case]
    with pytest.raises(InvalidDataset) as caught:
        read_table(_write(tmp_path, name, content), name, where="validation")
    assert expected in caught.value.message
    assert caught.value.problems[0].pointer == "/validation"


GLUE = ['"It is late\t1', "fine\t0", "no way\t1", 'the end"\t0', '"Good movie"\t1', 'so "good"\t0']


def _tabs(folder: Path, lines: list[str], header: str = "text\tlabel") -> Table:
    return read_table(_write(folder, "a.tsv", "\n".join([header, *lines, ""]).encode()), "a.tsv")


@pytest.mark.parametrize("lines", [GLUE, GLUE[:4], GLUE[1:5], GLUE[4:5] * 2 + GLUE[2:3]])
def test_texts_of_a_tsv_without_quoting_keep_their_marks_and_swallow_no_rows(tmp_path: Path, lines: list[str]) -> None:
    """As CSV, the first text of GLUE's lines is four of them, labels and all, under the fourth one's label."""
    table = _tabs(tmp_path, lines)
    assert [f"{text}\t{label}" for text, label in zip(*table.columns.values(), strict=True)] == lines
    (note,) = table.notes
    assert "read as parts of the texts" in note


WRITTEN = {"text": ['Say "ä"', "a\ttab", "two\nlines", '"Good movie"', "fine, so"], "label": [1, 0, 1, 0, 1]}


@pytest.mark.parametrize("rows", [range(5), [0, 3, 4], [0, 4], [4, 4]])
@pytest.mark.parametrize("writer", ["minimal", "all", "texts", "spreadsheet"])
def test_a_tsv_that_quotes_as_csv_is_read_as_it_was_written(tmp_path: Path, writer: str, rows: Sequence[int]) -> None:
    written = {name: [cells[row] for row in rows] for name, cells in WRITTEN.items()}
    kinds = {"all": csv.QUOTE_ALL, "texts": csv.QUOTE_NONNUMERIC}
    content = io.StringIO()
    out = csv.writer(content, delimiter="\t", lineterminator="\n", quoting=kinds.get(writer, csv.QUOTE_MINIMAL))
    out.writerow(written)
    out.writerows(zip(*written.values(), strict=True))
    lines = content.getvalue()
    if writer == "spreadsheet":  # it quotes what has a comma as well
        lines = lines.replace("fine, so", '"fine, so"')
    table = read_table(_write(tmp_path, "a.tsv", lines.encode()), "a.tsv")
    assert table.columns == {"text": written["text"], "label": [str(label) for label in written["label"]]}
    assert bool(table.notes) == ('"' in lines)
    assert ("6 lines are 5 rows" in "".join(table.notes)) == (len(rows) == 5)


SINGLE = {
    "line ends inside": (['"a', 'b"', "plain", '"say ""c""', 'd"'], ["a\nb", "plain", 'say "c"\nd']),
    "texts with marks": (['"It is late', "no way", 'so "good"', 'the end"'], None),
    "one that stays open": (["fine", '"It is late', "no way"], None),
}


@pytest.mark.parametrize("case", SINGLE)
def test_a_single_column_has_line_ends_inside_where_csv_explains_every_mark(tmp_path: Path, case: str) -> None:
    lines, texts = SINGLE[case]
    assert _tabs(tmp_path, lines, "text").columns == {"text": lines if texts is None else texts}


def test_a_writer_may_quote_what_has_a_blank(tmp_path: Path) -> None:
    """As PHP's fputcsv does: the marks would tell how long a text is."""
    table = _tabs(tmp_path, ['"a good film"\tpos', "great\tpos", '"it is bad"\tneg'])
    assert table.columns["text"] == ["a good film", "great", "it is bad"]


def test_what_is_empty_may_be_quoted_in_a_tsv(tmp_path: Path) -> None:
    """As databases write it, beside what is missing; the texts' own marks are doubled there."""
    table = _tabs(tmp_path, ['"Say ""ä"""\t""\t1', "fine\t\t0"], header="text\tnote\tlabel")
    assert table.columns == {"text": ['Say "ä"', "fine"], "note": ["", ""], "label": ["1", "0"]}


def test_a_tsv_that_is_neither_is_refused_with_what_either_reading_finds(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"line 2 cannot be read.*as parts of the texts, row 2 \(line 3\) has 1 "):
        _tabs(tmp_path, ['"So," he said\t1', "no label"])
    with pytest.raises(InvalidDataset, match=r"row 2 \(line 4\) has 1 fields.*read as parts of the texts, row 1 \("):
        _tabs(tmp_path, ['"two', 'lines"\t1', "no label"])


def test_the_offset_of_a_bad_byte_is_right_beyond_the_first_block(tmp_path: Path) -> None:
    """The text layer reads ahead; its own position is not that of the fault."""
    lines = b"text,label\n" + b"a plain line of text,x\n" * 100_000
    path = _write(tmp_path, "a.csv", lines + b"\xff\n")
    with pytest.raises(InvalidDataset, match=rf"line 100002 is not UTF-8: byte 0xff at offset {len(lines):,}"):
        read_table(path, "a.csv")


def test_a_gzip_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv.gz", b"text,label\n" + b"0" * 5_000_000)
    assert path.stat().st_size < 10_000
    with pytest.raises(InvalidDataset, match="unpacks to more than 1,000,000 bytes"):
        read_table(path, "a.csv.gz", max_unpacked_bytes=1_000_000)


def test_a_gzip_is_not_unpacked_into_memory(tmp_path: Path) -> None:
    """Two copies of an unpacked upload of 4 GiB would end the API process."""
    row = b"a plain line of text that stands here often,x\n"
    path = _write(tmp_path, "a.csv.gz", b"text,label\n" + row * 200_000 + b"ragged\n")
    tracemalloc.start()
    with pytest.raises(InvalidDataset, match="row 200001"):
        read_table(path, "a.csv.gz")
    everything_at_once = 2 * len(row) * 200_000
    cells = 200_000 * (sys.getsizeof(row.decode()[:-3]) + 2 * 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < cells + everything_at_once / 2


def test_a_gzip_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + bytes(range(65, 91)) * 1000)[:-12])
    with pytest.raises(InvalidDataset, match="gzip data is broken"):
        read_table(path, "a.csv.gz")


def test_names_of_integer_labels_are_read_from_a_parquet_file_that_datasets_wrote(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    datasets.Dataset.from_dict({"text": ["a b"], "label": [1]}, features=features).to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", "a.parquet").names == {"label": ("neg", "pos")}
