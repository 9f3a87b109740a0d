"""Columns and labels: what is learned is what was meant, and a guess that could be wrong is not made."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from limbeck.config import Columns, Dataset
from limbeck.data import Split, ingest, load
from limbeck.data.columns import choose_columns
from limbeck.data.labelling import natural, require_known_labels
from limbeck.data.splits import cut
from limbeck.data.table import Table
from limbeck.errors import InvalidDataset
from tests.tiny import docstrings

TEXTS = [*docstrings("gui")[:30], *docstrings("numbers")[:30]]


def _chosen(names: str, **wanted: str) -> tuple[str, str | None, str]:
    table = Table({name: ["x"] for name in names.split()}, 1)
    chosen = choose_columns(table, Columns(**wanted), "train")
    return chosen.text, chosen.text_pair, chosen.label


def test_the_usual_names_are_found() -> None:
    assert _chosen("id sentence label") == ("sentence", None, "label")
    assert _chosen("Sentence1 Sentence2 Label") == ("Sentence1", "Sentence2", "Label")
    assert _chosen("idx question sentence label") == ("question", "sentence", "label")
    assert _chosen("text title label topic") == ("text", None, "label")
    assert _chosen("premise hypothesis label", text="hypothesis") == ("hypothesis", None, "label")
    assert _chosen("sentence1 sentence2 label", text_pair="sentence2") == ("sentence1", "sentence2", "label")
    assert _chosen("body stars", label="stars") == ("body", None, "stars")


@pytest.mark.parametrize(
    ("names", "field", "expected"),
    [
        ("title content label", "text", "could be 'content', 'title'; name the one"),
        ("sentence coarse_label fine_label", "label", "could be 'coarse_label', 'fine_label'"),
        ("premise hypothesis question1 question2 label", "text", "'premise' and 'hypothesis' or 'question1' and"),
        ("a b label", "text", "no text column in train: it has 'a', 'b', 'label'"),
        ("text b", "label", "no label column in train: it has 'text', 'b'"),
    ],
)
def test_a_guess_that_could_be_wrong_is_not_made(names: str, field: str, expected: str) -> None:
    """A model of the titles looks just like one of the articles, only worse."""
    with pytest.raises(InvalidDataset) as caught:
        _chosen(names)
    assert expected in caught.value.message
    assert caught.value.problems[0].pointer == f"/dataset/columns/{field}"


@pytest.mark.parametrize("name", ["9" * 5_000, "-" + "9" * 5_000, "order " + "9" * 5_000])
def test_labels_of_thousands_of_digits_are_ordered(name: str) -> None:
    """Guards an upload against Python, which turns no text of more than 4,300 digits into a number."""
    assert sorted([name, "a", "7"], key=natural) == sorted(["7", name, "a"], key=natural)


def _ingest(folder: Path, labels: list[str], name: str = "a.jsonl", texts: list[str] = TEXTS) -> list[str]:
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
    (folder / name).write_text("\n".join(rows))
    found: list[str] = ingest({"train": (folder / name, name)}, folder).profile["labels"]
    return found


def test_whole_numbers_that_are_no_classes_are_told_of_regression(tmp_path: Path) -> None:
    """Guards the way out: prices without cents look like classes, of which validation has some that train has not."""
    with pytest.raises(InvalidDataset, match=r"40 different labels.*for numbers that are no classes, name the"):
        _ingest(tmp_path, [str(100 * min(row, 39)) for row in range(60)])
    with pytest.raises(
        InvalidDataset, match="'7' does not stand in train; train has '0', '1'; for numbers that are no"
    ):
        require_known_labels([["0"], ["7"]], ["0", "1"], "validation")
    with pytest.raises(InvalidDataset, match=r"train has 'a', '1'$"):
        require_known_labels([["7"]], ["a", "1"], "validation")


def test_fractions_in_a_text_file_are_not_taken_for_classes(tmp_path: Path) -> None:
    """CSV has no types: scores such as 3.5 would be learned as the names of a few dozen classes."""
    assert _ingest(tmp_path, [f"{row % 7 / 2:.3f}" for row in range(60)]) == []
    with pytest.raises(InvalidDataset, match=r"row 2, column 'label': found 0.500; labels are names or whole numbers"):
        ingest({"train": (tmp_path / "a.jsonl", "a.jsonl")}, tmp_path, task="sequence_classification")
    assert _ingest(tmp_path, [f"{row % 3}.0" for row in range(60)]) == ["0", "1", "2"]
    assert _ingest(tmp_path, ["v3.11", "3.12"] * 30) == ["3.12", "v3.11"]


def test_half_a_character_is_refused_with_its_place(tmp_path: Path) -> None:
    """JSON may escape a surrogate without its mate: no file and no tokenizer takes it."""
    with pytest.raises(InvalidDataset, match=r"row 4, column 'text': U\+D800 at character 1 is half a character"):
        _ingest(tmp_path, ["a", "b"] * 30, texts=[*TEXTS[:3], "\ud800", *TEXTS[4:]])
    with pytest.raises(InvalidDataset, match=r"row 1, column 'label': .*half a character"):
        _ingest(tmp_path, ["a\udc00", "b"] * 30)
    with pytest.raises(InvalidDataset, match=r"row 2, column 'label': .*NUL"):
        _ingest(tmp_path, ["a", "b\x00"] * 30)


def test_the_order_of_the_labels_outlives_the_upload(tmp_path: Path) -> None:
    """Sorted again, class 0 of a stored data set would be another one, and its hash another than the recorded one."""
    features = {"label": {"_type": "ClassLabel", "names": ["world", "sports", "business"]}}
    table = pyarrow.table({"text": TEXTS, "label": [0, 1, 2] * 20})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "out").mkdir()
    found = ingest({"train": (tmp_path / "a.parquet", "a.parquet")}, tmp_path / "out")
    corpus = load(Dataset(source="dataset:ds_1"), seed=1, sources={"dataset:ds_1": tmp_path / "out"})
    assert corpus.labels == tuple(found.profile["labels"]) == ("world", "sports", "business")
    assert corpus.sha256 == found.sha256


@pytest.mark.parametrize("label", [-1, 7])
def test_a_named_number_that_no_name_stands_for_is_told_and_not_counted_from_the_end(
    tmp_path: Path, label: int
) -> None:
    """Guards stars from 1 to 5: a row without a label, which is -1 there, had the most of them."""
    features = {"label": {"_type": "ClassLabel", "names": ["1", "2", "3", "4", "5"]}}
    for labels, said in (([0, 1, 2, 3, 4, 0] * 10, None), ([0, 1, 2, 3, 4, label] * 10, f"row 6, .*label {label}")):
        table = pyarrow.table({"text": TEXTS, "label": labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
        with nullcontext() if said is None else pytest.raises(InvalidDataset, match=said):
            corpus = load(Dataset(source=f"path:{tmp_path}"), seed=1, task="regression")
            assert set(corpus.train.labels) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_a_label_column_that_test_has_not_is_told_and_not_passed_over(tmp_path: Path) -> None:
    """A misspelt column of the test file would silently turn validation into test."""
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("text,label\n" + "".join(f"text {row},{row % 2}\n" for row in range(20)))
    test.write_text("text,lable\nsome text,1\n")
    with pytest.raises(InvalidDataset, match="test: found no column 'label', which train has; it has 'text', 'lable'"):
        ingest({"train": (train, "train.csv"), "test": (test, "test.csv")}, tmp_path)


def test_minus_one_is_a_label_where_train_has_it(tmp_path: Path) -> None:
    """A test split of the one class -1 is not one that keeps its answers back."""
    for name, labels in (("train", [-1, 0, 1] * 20), ("test", [-1] * 4)):
        texts = [f"{name} {text}" for text in TEXTS[: len(labels)]]
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), tmp_path / f"{name}.parquet")
    corpus = load(Dataset(source=f"path:{tmp_path}"), seed=1)
    assert (corpus.labels, corpus.test.labels) == (("-1", "0", "1"), [0] * 4)


def test_a_cut_leaves_every_class_in_train_even_where_copies_disagree() -> None:
    """Held out with its copies, a text can take the last example of another class along."""
    split = Split([f"text {row}" for row in range(10)] * 2, None, [0] * 10 + [1] * 10)
    left, held = cut(split, 0.9)
    assert set(left.labels) == {0, 1}
    assert not set(left.texts) & set(held.texts)
    assert Counter(left.labels + held.labels) == Counter(split.labels)


def test_texts_in_both_validation_and_test_are_told(tmp_path: Path) -> None:
    for name, rows in (("train", range(60)), ("validation", range(60, 70)), ("test", range(65, 75))):
        content = "".join(f"text {row},{row % 2}\n" for row in rows)
        (tmp_path / f"{name}.csv").write_text("text,label\n" + content)
    notes = load(Dataset(source=f"path:{tmp_path}"), seed=1).notes
    assert "Texts that stand in both validation and test: 5." in notes
