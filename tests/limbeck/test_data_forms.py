"""Data of every task: what the columns mean, where each can be written down, and what is wrong named by row."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from limbeck.config import Columns, Dataset
from limbeck.data import ingest, load, preview, read_table
from limbeck.data.forms import FORMS
from limbeck.data.splits import cut, limited
from limbeck.errors import InvalidDataset
from tests.limbeck.task_data import EXAMPLES, examples
from tests.tiny import docstrings

SHARED = Path(os.environ.get("LIMBECK_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def written(folder: Path, rows: Sequence[dict[str, Any]], suffix: str) -> Path:
    path = folder / f"train{suffix}"
    if suffix == ".jsonl":
        return jsonl(path, rows)
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, rows[0].keys())
        out.writeheader()
        for row in rows:
            out.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})
    return path


def taken_in(folder: Path, path: Path, **options: Any) -> Any:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return ingest({"train": (path, path.name)}, out, **options)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("task", EXAMPLES)
def test_the_same_data_in_any_format_is_of_the_same_task(tmp_path: Path, task: str, suffix: str) -> None:
    """Guards the inference, and what is stored: it reads back as the same, under Limbeck's own column names."""
    rows = examples(task, 60)
    found = taken_in(tmp_path, written(tmp_path, rows, suffix))
    assert found.profile["task"] == task
    (tmp_path / "other").mkdir()
    assert found.sha256 == taken_in(tmp_path / "other", written(tmp_path / "other", rows, ".jsonl")).sha256
    corpus = load(Dataset(source="dataset:ds_1"), seed=1, sources={"dataset:ds_1": tmp_path / "out"})
    assert (corpus.task, corpus.sha256) == (task, found.sha256)
    assert list(corpus.labels) == found.profile["labels"]
    shown = preview(tmp_path / "out" / "train.parquet", 1)[0]
    expected = {"token_classification": {"tokens", "tags"}, "question_answering": {"question", "context", "answers"}}
    assert shown.keys() == expected.get(task, shown.keys() & {"text", "text_pair", "label"})


def test_names_between_bars_are_several_labels_where_they_recur(tmp_path: Path) -> None:
    """Guards both ways: the usual form of several labels in CSV, and one odd name with a bar in it."""
    texts = [*docstrings("gui")[:20], *docstrings("numbers")[:20]]
    for cells, task, labels in (
        (["red|round", "red", "", "round"], "multi_label", ["red", "round"]),
        (["c|c++", "java", "java", "c|c++"], "sequence_classification", ["c|c++", "java"]),
    ):
        path = tmp_path / "train.csv"
        rows = [[text, cells[row % 4]] for row, text in enumerate(texts)]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *rows])
        found = taken_in(tmp_path, path).profile
        assert (found["task"], found["labels"]) == (task, labels)


def test_numbers_of_labels_in_a_list_are_several_labels(tmp_path: Path) -> None:
    """Guards GoEmotions as pandas writes it: ``[0, 27]`` is JSON, and was one label of that name."""
    rows = [
        {"text": text, "label": ["[27]", "[0, 27]", "[]"][row % 3]} for row, text in enumerate(docstrings("gui")[:60])
    ]
    profile = taken_in(tmp_path, jsonl(tmp_path / "train.jsonl", rows)).profile
    assert (profile["task"], profile["labels"]) == ("multi_label", ["0", "27"])


@pytest.mark.parametrize("cells", [["['a', 'b']", "['a']"], ["['a', 'b']", "[]"], ["[0 27]", "[3 4]"]])
def test_a_list_as_python_writes_it_is_no_label(tmp_path: Path, cells: list[str]) -> None:
    """Guards a CSV by pandas against classes that are called ``['a', 'b']`` and ``['a']``: nothing was said."""
    rows = [{"text": text, "label": cells[row % 2]} for row, text in enumerate(docstrings("gui")[:60])]
    path = jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(InvalidDataset, match=r"column 'label'.*\[.*a list that is no JSON"):
        taken_in(tmp_path, path)
    with pytest.raises(InvalidDataset, match=r"row 1, column 'label': found .*a list that is no JSON"):
        taken_in(tmp_path, path, task="multi_label")


def test_names_in_brackets_are_names_where_the_task_says_so(tmp_path: Path) -> None:
    rows = [{"text": text, "label": ["[a]", "[b]"][row % 2]} for row, text in enumerate(docstrings("gui")[:60])]
    profile = taken_in(tmp_path, jsonl(tmp_path / "train.jsonl", rows), task="sequence_classification").profile
    assert profile["labels"] == ["[a]", "[b]"]


def test_numbers_that_a_model_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    """Guards Unix times of one day: in single precision they are a few numbers, and every figure would be of those."""
    texts = docstrings("gui")[:60]
    rows = [{"text": text, "label": 1.7e9 + 90 * row} for row, text in enumerate(texts)]
    with pytest.raises(
        InvalidDataset, match=r"from 1,700,000,000 to 1,700,005,310, and .* in steps of 128 there; subtract"
    ):
        taken_in(tmp_path, jsonl(tmp_path / "train.jsonl", rows), task="regression")
    rows = [{"text": text, "label": 2000 + row / 60} for row, text in enumerate(texts)]
    assert taken_in(tmp_path, jsonl(tmp_path / "train.jsonl", rows)).profile["task"] == "regression"


def test_whole_numbers_are_classes_unless_they_are_said_to_be_numbers(tmp_path: Path) -> None:
    """Guards stars from 1 to 5: the choice is kept with the data, and a stored class can still be read as a number."""
    rows = [{"text": text, "label": 1 + row % 5} for row, text in enumerate(docstrings("gui")[:60])]
    path = jsonl(tmp_path / "train.jsonl", rows)
    assert taken_in(tmp_path, path).profile["labels"] == ["1", "2", "3", "4", "5"]
    source = {"dataset:ds_1": tmp_path / "out"}
    assert load(Dataset(source="dataset:ds_1"), seed=1, sources=source, task="regression").train.labels[0] in range(6)
    assert taken_in(tmp_path, path, task="regression").profile["splits"]["train"]["numbers"]["most"] == 5.0
    assert load(Dataset(source="dataset:ds_1"), seed=1, sources=source).task == "regression"


def test_the_hubs_class_names_of_lists_are_read(tmp_path: Path) -> None:
    """Guards CoNLL's and GoEmotions' numbers, which mean nothing without the names beside them."""
    names = ["O", "B-PER", "I-PER"]
    features = {"ner_tags": {"_type": "List", "feature": {"_type": "ClassLabel", "names": names}}}
    tokens = [text.split()[:4] for text in docstrings("gui")[:40]]
    table = pyarrow.table({"tokens": tokens, "ner_tags": [[1, 2, 0, 0][: len(one)] for one in tokens]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert taken_in(tmp_path, tmp_path / "train.parquet").profile["labels"] == names


TOKENS = {"tokens": ["a", "b"], "tags": ["B-x", "O"]}
QUESTION = {"question": "Who?", "context": "It is Ann.", "answers": {"text": ["Ann"], "answer_start": [6]}}
BAD: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "fewer tags": (TOKENS | {"tags": ["O"]}, None, "row 3, column 'tags': found 1 tags for the 2 tokens in 'tokens'"),
    "no tag": (TOKENS | {"tags": ["O", "person"]}, None, "found the tag 'person'; allowed: O, and types behind B-"),
    "a text for tokens": (TOKENS | {"tokens": "a b"}, None, "found str 'a b'; expected a list of tokens"),
    "a number for a token": (TOKENS | {"tokens": ["a", 3]}, None, "token 2 is int 3; expected a text"),
    "no tokens": (TOKENS | {"tokens": [], "tags": []}, None, "the list of tokens is empty"),
    "no answer": (QUESTION | {"answers": {"text": [], "answer_start": []}}, None, "there is no answer"),
    "elsewhere": (
        QUESTION | {"answers": {"text": ["Ann"], "answer_start": [5]}},
        None,
        "row 3, column 'answers': found answer_start 5 for 'Ann'; it stands at 6",
    ),
    "not there": (
        QUESTION | {"answers": {"text": ["Bob"], "answer_start": [6]}},
        None,
        "does not stand in the context",
    ),
    "no start": (QUESTION | {"answers": ["Ann"]}, None, 'expected an object such as {"text"'),
    "no context": (QUESTION | {"context": " "}, None, "row 3, column 'context': the text is empty"),
    "a word for a number": ({"text": "x", "label": "much"}, "regression", "found str 'much'; expected a number"),
    "no number": ({"text": "x", "label": None}, "regression", "row 3, column 'label': the number is missing"),
    "infinite": ({"text": "x", "label": 1e300}, "regression", "found 1e[+]300; expected a number within"),
    "a list as Python writes it": (TOKENS | {"tokens": "['a', 'b']"}, None, "is how Python writes it: json.dumps"),
    "a list in a list": ({"text": "x", "label": [["a"]]}, "multi_label", "found list .*; one label for each"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_by_row_and_column(tmp_path: Path, case: str) -> None:
    """Guards against a traceback, or a model of shifted tags, where one row of an upload is not like the others."""
    bad, task, expected = BAD[case]
    good: dict[str, Any] = {"text": "x", "label": [1.5, "1"][task == "multi_label"]}
    good = TOKENS if "tokens" in bad else QUESTION if "question" in bad else good
    path = jsonl(tmp_path / "train.jsonl", [good, good, bad, good])
    with pytest.raises(InvalidDataset, match=expected) as caught:
        taken_in(tmp_path, path, task=task)
    assert caught.value.problems[0].pointer == "/train"


def test_columns_of_two_tasks_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", [TOKENS | {"text": "a b", "label": "x"}] * 4)
    with pytest.raises(InvalidDataset, match="found 'text'; the columns of token_classification are tokens, tags"):
        taken_in(tmp_path, path, columns=Columns(tokens="tokens", text="text"))


def test_a_context_stands_on_one_side_of_a_cut(tmp_path: Path) -> None:
    """Guards SQuAD, where five questions share a paragraph: one that was read in training half answers others."""
    rows = [
        row | {"question": f"{row['question']} {n}"} for row in examples("question_answering", 40) for n in range(5)
    ]
    jsonl(tmp_path / "train.jsonl", rows)
    corpus = load(Dataset(source=f"path:{tmp_path}"), seed=1)
    contexts = [set(split.pairs or ()) for split in (corpus.train, corpus.validation, corpus.test)]
    assert sum(map(len, contexts)) == len(set.union(*contexts)) == 40
    assert 15 <= len(corpus.test) <= 30


def test_examples_without_one_label_are_drawn_at_random_and_the_same_each_time(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", examples("multi_label", 100))
    corpus = load(Dataset(source=f"path:{tmp_path}", limit=20), seed=1)
    again = load(Dataset(source=f"path:{tmp_path}", limit=20), seed=1)
    assert len(corpus.train) == 20
    assert corpus == again
    form = FORMS["multi_label"]
    assert limited(corpus.train, 16, 1, form=form) != limited(corpus.train, 16, 2, form=form)
    left, held = cut(corpus.train, 0.2, form=form)
    assert (len(left), len(held)) == (16, 4)


def test_lists_in_parquet_are_counted_before_they_are_read(tmp_path: Path) -> None:
    """Guards the server's memory: a text that a file stores once may stand in a hundred thousand lists."""
    table = pyarrow.table({"text": ["t"] * 100_000, "label": [["x" * 1000]] * 100_000})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    with pytest.raises(InvalidDataset, match="unpacks to more than 5,000,000 bytes"):
        read_table(tmp_path / "a.parquet", "a.parquet", max_unpacked_bytes=5_000_000)


REAL = {
    "goemotions": ("multi_label", 28),
    "stsb": ("regression", 0),
    "wnut17": ("token_classification", 13),
    "weibo_ner": ("token_classification", 21),
    "squad_v1_dev": ("question_answering", 0),
}


@pytest.mark.parametrize("name", REAL)
def test_published_data_sets_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    """Guards against rules that only our own examples keep."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    task, labels = REAL[name]
    for file in folder.glob("*.jsonl.gz"):
        split = "train" if name == "squad_v1_dev" else file.name.partition(".")[0]
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            (tmp_path / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    corpus = load(Dataset(source=f"path:{tmp_path}"), seed=1)
    assert (corpus.task, len(corpus.labels)) == (task, labels)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".csv"])
def test_texts_alone_are_texts_to_learn_words_from(tmp_path: Path, suffix: str) -> None:
    """Guards files without any label, and their empty lines; and a label with an odd name, which is no reason to learn
    something else than what was meant."""
    texts = docstrings("numbers")[:60]
    content = {
        ".txt": "\n\n".join(texts) + "\r\n \n",
        ".jsonl": "".join(json.dumps({"text": text}) + "\n" for text in (*texts, "")),
        ".csv": "text\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in texts),
    }[suffix.removesuffix(".gz")].encode()
    (tmp_path / f"train{suffix}").write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    out = tmp_path / "out"
    out.mkdir()
    taken = ingest({"train": (tmp_path / f"train{suffix}", f"train{suffix}")}, out)
    assert taken.profile["task"] == "masked_lm"
    assert taken.profile["labels"] == []
    again = load(Dataset(source="dataset:ds_1"), seed=0, sources={"dataset:ds_1": out})
    assert (again.task, again.sha256) == ("masked_lm", taken.sha256)
    found = {text.strip() for split in (again.train, again.validation, again.test) for text in split.texts}
    assert found == {text.strip() for text in texts}
    odd = jsonl(tmp_path / "odd.jsonl", [{"text": text, "kategorie": "a"} for text in texts])
    with pytest.raises(InvalidDataset, match="no label column"):
        ingest({"train": (odd, "odd.jsonl")}, out)


def test_labelled_texts_serve_as_texts_alone_by_name(tmp_path: Path) -> None:
    """Guards a job that asks for masked_lm on data with labels: these are not looked at, and not in the hash."""
    rows = [{"text": text, "label": str(place % 2)} for place, text in enumerate(docstrings("numbers")[:40])]
    jsonl(tmp_path / "train.jsonl", rows)
    found = load(Dataset(source=f"path:{tmp_path}"), seed=0, task="masked_lm")
    assert (found.task, found.labels, set(found.train.labels)) == ("masked_lm", (), {None})
    built = load(Dataset(source="builtin:stdlib-docstrings"), seed=0, task="masked_lm")
    assert (built.labels, built.validation.labels[0]) == ((), None)
