"""Splits and labels: what is tested on is never trained on, and the same data gives the same splits."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from limbeck.config import Columns, Dataset, Splits
from limbeck.data import Corpus, Split, ingest, load, preview
from limbeck.data.splits import cut, limited
from limbeck.errors import InvalidDataset
from tests.tiny import docstrings

AREAS = ("gui", "networking", "numbers")


def _csv(folder: Path, name: str, rows: Sequence[tuple[str, ...]], header: str = "text,label") -> tuple[Path, str]:
    path = folder / name
    lines = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path, name


def _rows(count: int) -> list[tuple[str, str]]:
    return [(docstrings(area)[index], area) for index in range(count) for area in AREAS]


def _out(folder: Path) -> Path:
    out = folder / "out"
    out.mkdir()
    return out


def test_missing_splits_are_cut_stratified_and_no_text_stands_in_two(tmp_path: Path) -> None:
    rows = _rows(60) + _rows(60)[:40]  # forty texts stand twice
    random.Random(1).shuffle(rows)
    out = _out(tmp_path)
    found = ingest({"train": _csv(tmp_path, "train.csv", rows)}, out)
    splits = {name: pyarrow.parquet.read_table(out / f"{name}.parquet") for name in found.splits}
    texts = {name: set(table["text"].to_pylist()) for name, table in splits.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["test"] & texts["validation"]
    assert sum(table.num_rows for table in splits.values()) == len(rows)
    for name in ("validation", "test"):
        assert set(Counter(splits[name]["label"].to_pylist())) == set(AREAS)


def test_the_same_data_has_the_same_hash_in_any_format_and_the_same_cut(tmp_path: Path) -> None:
    rows = _rows(30)
    first, second = _out(tmp_path), tmp_path / "second"
    second.mkdir()
    one = ingest({"train": _csv(tmp_path, "train.csv", rows)}, first)
    table = pyarrow.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    two = ingest({"train": (tmp_path / "train.parquet", "train.parquet")}, second)
    assert one.sha256 == two.sha256
    assert preview(first / "test.parquet", 5) == preview(second / "test.parquet", 5)
    other = ingest({"train": _csv(tmp_path, "train.csv", rows[:-1])}, second)
    assert other.sha256 != one.sha256


def test_training_texts_that_stand_in_test_are_left_out(tmp_path: Path) -> None:
    rows = _rows(40)
    files = {"train": _csv(tmp_path, "train.csv", rows), "test": _csv(tmp_path, "test.csv", rows[:12])}
    out = _out(tmp_path)
    found = ingest(files, out)
    tested = {row["text"] for row in preview(out / "test.parquet", 100)}
    assert not tested & set(pyarrow.parquet.read_table(out / "train.parquet")["text"].to_pylist())
    assert any("left out of train: 12" in note for note in found.profile["notes"])


def _leaky(folder: Path, train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]], **dataset: Any) -> Corpus:
    for name, rows in (("train", train), ("test", test)):
        pyarrow.parquet.write_table(
            pyarrow.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]}),
            folder / f"{name}.parquet",
        )
    return load(Dataset(source=f"path:{folder}"), seed=1, **dataset)


def test_a_class_without_texts_of_its_own_keeps_its_own_in_train_and_no_others(tmp_path: Path) -> None:
    """Guards the other classes' figures: one such class kept every tested text in train, and was named nowhere."""
    rows = [*_rows(40), ("the only text of its kind", "rare")]
    corpus = _leaky(tmp_path, rows, [*rows[:30], rows[-1]])
    assert set(corpus.train.texts) & set(corpus.test.texts) == {"the only text of its kind"}
    assert not set(corpus.validation.texts) & set(corpus.test.texts)
    assert len(corpus.test) == 31
    assert corpus.notes[:2] == (
        "Training texts that also stand in another split, and are left out of train: 30.",
        "Training texts that also stand in another split, kept since their classes have no others ('rare'): 1; on "
        "these, figures measure memory.",
    )


def test_one_of_several_labels_that_loses_its_texts_is_told(tmp_path: Path) -> None:
    rows = [*_rows(40), ("the only text of its kind", "gui|rare")]
    corpus = _leaky(tmp_path, rows, [*rows[:30], rows[-1]], task="multi_label")
    assert not set(corpus.train.texts) & set(corpus.test.texts)
    assert "Labels that have no training text without those, and cannot be learned ('rare')." in corpus.notes


def test_a_train_split_that_is_tested_on_as_a_whole_is_told(tmp_path: Path) -> None:
    rows = [(text, f"{number}.5") for number, (text, _) in enumerate(_rows(20))]
    corpus = _leaky(tmp_path, rows, rows, task="regression")
    assert "All 60 training texts also stand in another split, and are kept: there are no others." in corpus.notes


REFUSED = {
    "one class": ([("some text here", "x"), ("more text here", "x")], "every row has the label 'x'"),
    "empty text": ([("some text", "x"), ("  ", "y")], "row 2, column 'text': the text is empty"),
    "no label": ([("some text", "x"), ("more text", "")], "row 2, column 'label': the label is missing"),
    "every label differs": ([(f"text {i}", f"name {i}") for i in range(50)], "does not look like a class"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_cannot_be_learned_from_is_refused_and_nothing_is_left(tmp_path: Path, case: str) -> None:
    rows, expected = REFUSED[case]
    out = _out(tmp_path)
    with pytest.raises(InvalidDataset) as caught:
        ingest({"train": _csv(tmp_path, "train.csv", list(rows))}, out)
    assert expected in caught.value.message
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_label_that_only_another_split_has_is_named_with_its_row(tmp_path: Path, split: str) -> None:
    """A validation split without a test split becomes that, and must not be called so to whoever sent it."""
    files = {
        "train": _csv(tmp_path, "train.csv", _rows(20)),
        split: _csv(tmp_path, f"{split}.csv", [("one text", "gui"), ("another text", "cooking")]),
    }
    with pytest.raises(InvalidDataset, match="row 2: the label 'cooking' does not stand in train") as caught:
        ingest(files, _out(tmp_path))
    assert caught.value.problems[0].pointer == f"/{split}"


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    files = {"train": _csv(tmp_path, "train.csv", _rows(20), header="body_text,label")}
    with pytest.raises(InvalidDataset, match="found no column 'txt' in train; it has 'body_text', 'label'"):
        ingest(files, _out(tmp_path), columns=Columns(text="txt"))
    with pytest.raises(InvalidDataset, match="no text column in train"):
        ingest(files, tmp_path / "out")
    assert ingest(files, tmp_path / "out", columns=Columns(text="body_text")).profile["columns"]["text"] == "body_text"


def test_fractions_are_not_taken_for_classes(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b", "c d"], "label": [0.5, 1.0]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidDataset, match=r"row 1, column 'label': found 0\.5; labels are names or whole"):
        ingest({"train": (tmp_path / "a.parquet", "a.parquet")}, _out(tmp_path), task="sequence_classification")


def test_numbers_as_labels_are_ordered_by_value(tmp_path: Path) -> None:
    rows = [(f"{text} {label}", label) for text, _ in _rows(10) for label in ("10", "9", "2")]
    assert ingest({"train": _csv(tmp_path, "a.csv", rows)}, _out(tmp_path)).profile["labels"] == ["2", "9", "10"]


def test_a_hub_like_test_split_without_answers_is_replaced_by_validation(tmp_path: Path) -> None:
    for name, labels in (("train", None), ("validation", None), ("test", -1)):
        rows = _rows(30)[: 90 if name == "train" else 15]
        kept = [AREAS.index(label) if labels is None else labels for _, label in rows]
        table = pyarrow.table({"sentence": [f"{name} {text}" for text, _ in rows], "label": kept})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    corpus = load(Dataset(source=f"path:{tmp_path}"), seed=1)
    assert all(text.startswith("validation") for text in corpus.test.texts)
    assert all(text.startswith("train") for text in corpus.validation.texts)
    assert any("no labelled test split" in note for note in corpus.notes)


def test_what_was_done_to_an_upload_is_told_by_the_jobs_on_it(tmp_path: Path) -> None:
    """Guards scorecards that pass over what only the upload's profile knew: which rows left train, what was cut."""
    train = [*_rows(30), *((f"{text} again", label) for text, label in _rows(3))]
    tested = [*train[-4:], *((f"{text} elsewhere", label) for text, label in _rows(10))]
    files = {"train": _csv(tmp_path, "a.csv", train), "test": _csv(tmp_path, "b.csv", tested)}
    out = _out(tmp_path)
    told = ingest(files, out).profile["notes"]
    assert [note for note in told if note.endswith("left out of train: 4.")]
    assert [note for note in told if note.startswith("The validation split")]
    corpus = load(Dataset(source="dataset:ds_1"), seed=1, sources={"dataset:ds_1": out})
    assert list(corpus.notes) == told


def test_what_others_call_validation_is_no_file_to_pass_over(tmp_path: Path) -> None:
    """Guards GLUE's folders, whose dev.tsv would else be ignored in silence, and another validation be cut."""
    for name, count in (("train", 40), ("dev", 10), ("test", 10)):
        _csv(tmp_path, f"{name}.csv", [(f"{name} {text}", label) for text, label in _rows(count)])
    corpus = load(Dataset(source=f"path:{tmp_path}"), seed=1)
    assert all(text.startswith("dev") for text in corpus.validation.texts)
    assert len(corpus.train) == 120
    tested = load(Dataset(source=f"path:{tmp_path}", splits=Splits(test="dev")), seed=1)
    assert all(text.startswith("dev") for text in tested.test.texts)
    assert all(text.startswith("train") for text in tested.validation.texts)


def test_a_limit_is_exact_stratified_and_leaves_validation_and_test_whole(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [t for t, _ in _rows(60)], "label": [a for _, a in _rows(60)]}),
        tmp_path / "train.parquet",
    )
    whole = load(Dataset(source=f"path:{tmp_path}"), seed=1)
    some = load(Dataset(source=f"path:{tmp_path}", limit=31), seed=1)
    other = load(Dataset(source=f"path:{tmp_path}", limit=31), seed=2)
    assert len(some.train) == 31
    assert (some.validation, some.test) == (whole.validation, whole.test) == (other.validation, other.test)
    assert some.train != other.train
    assert max(Counter(some.train.labels).values()) - min(Counter(some.train.labels).values()) <= 1


def test_a_limit_holds_where_rare_classes_round_up() -> None:
    split = Split([f"text {i}" for i in range(1000)], None, [min(i, 20) for i in range(1000)])
    kept = limited(split, 40, seed=3)
    assert len(kept) == 40
    assert set(kept.labels) == set(range(21))


def test_no_more_is_held_out_than_an_epoch_should_spend_on_validation() -> None:
    split = Split([f"text {i}" for i in range(50_000)], None, [i % 2 for i in range(50_000)])
    left, held = cut(split)
    assert (len(left), len(held)) == (48_000, 2_000)


def test_a_class_with_a_single_text_stays_in_train() -> None:
    split = Split(["same", "same", "a", "b", "c"], None, [0, 0, 1, 1, 1])
    left, held = cut(split)
    assert left.texts.count("same") == 2
    assert len(held) == 1


@pytest.mark.parametrize("name", ["sst2_glue", "banking77", "mrpc", "rte", "snips"])
def test_real_data_sets_load_as_they_lie(test_data: Path, name: str) -> None:
    corpus = load(Dataset(source=f"path:{test_data / name}"), seed=1)
    assert (corpus.train.pairs is not None) == (name in ("mrpc", "rte"))
    assert not set(corpus.train.keys()) & set(corpus.test.keys())
    assert set(corpus.test.labels) <= set(corpus.train.labels)
