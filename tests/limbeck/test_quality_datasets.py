"""The quality benchmark's data sets: splits that are the same each time, and share nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from benchmarks.quality.datasets import DataSet, folder_of, unlabelled_of


def test_further_texts_are_in_no_split(tmp_path: Path) -> None:
    """A text of the reported split among the unlabelled ones would have the teacher tell its answer beforehand."""
    one = DataSet("toy", "toy", tokens=5, student={"epochs": 1}, teacher={"epochs": 1}, train=3, held=2)
    rows = [{"text": f" text {number % 9} ", "label": "yes"} for number in range(12)]
    _pack(tmp_path / "toy" / "train.jsonl.gz", rows)
    _pack(tmp_path / "toy" / "test.jsonl.gz", [{"text": "text 3", "label": "yes"}])
    splits = folder_of(one, tmp_path, tmp_path)
    used = {row["text"].strip() for name in ("train", "validation", "test") for row in _rows(splits, name)}
    others = _rows(unlabelled_of(one, tmp_path, tmp_path), "train")
    texts = [row["text"] for row in others]
    assert others == [{"text": text} for text in dict.fromkeys(texts)]
    assert used.isdisjoint(texts)
    assert used | set(texts) == {f"text {number}" for number in range(9)}


def _pack(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _rows(folder: Path, split: str) -> list[dict[str, str]]:
    with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_splits_are_the_same_each_time_and_share_no_group(tmp_path: Path) -> None:
    """Articles on both sides of SQuAD's cut would make memory look like reading."""
    rows = [{"title": f"t{i % 20}", "question": f"q{i}"} for i in range(400)]
    one = DataSet("x", "raw", tokens=1, student={}, teacher={}, test="dev", by="title", train=100, held=20, tested=50)
    (tmp_path / "raw").mkdir()
    with gzip.open(tmp_path / "raw" / "dev.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    found = [_splits(folder_of(one, tmp_path, tmp_path / cache)) for cache in ("a", "b")]
    assert found[0] == found[1]
    assert {name: len(split) for name, split in found[0].items()} == {"train": 100, "validation": 20, "test": 50}
    titles = [{row["title"] for row in split} for split in found[0].values()]
    assert sum(map(len, titles)) == len(set.union(*titles))


def test_dev_of_a_limited_set_has_no_text_that_is_trained_on(tmp_path: Path) -> None:
    one = DataSet("x", "raw", tokens=1, student={}, teacher={}, test="test", train=30, held=10)
    (tmp_path / "raw").mkdir()
    for name in ("train", "test"):
        with gzip.open(tmp_path / "raw" / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": f"text {i % 45}", "label": "a"}) + "\n" for i in range(60))
    found = _splits(folder_of(one, tmp_path, tmp_path))
    assert len(found["train"]) == 30
    assert not {row["text"] for row in found["train"]} & {row["text"] for row in found["validation"]}


def _splits(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            found[path.name.removesuffix(".jsonl.gz")] = [json.loads(line) for line in file]
    return found
