"""The grid's data sets as folders of fixed splits, made from the published files.

Sizes are cut here and not by ``dataset.limit``, whose draw depends on the seed: a teacher and all of its students, over
all seeds, see the same examples. Where there is no labelled test split, the public validation split is the reported one
and weights are selected on a part of train (Limbeck's own cut where ``validation`` is None).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: Changes when splits are made otherwise.
_VERSION = 1
_DRAW_SEED = 20_260_101


@dataclass(frozen=True)
class DataSet:
    """One data set with what is trained on it; the epochs are sized for two cores."""

    name: str
    folder: str
    tokens: int  #: mean length of a training example, for the estimate
    student: Mapping[str, Any]  #: ``training`` of every student
    teacher: Mapping[str, Any]  #: ``teacher.finetune``
    train: int | None = None  #: at most so many examples
    validation: str | None = None  #: the published split that selects the weights; None: a part of train does
    test: str = "test"
    held: int | None = None  #: at most so many validation examples
    tested: int | None = None  #: at most so many test examples
    examples: int = 0  #: of training, for the estimate
    columns: Mapping[str, str] = field(default_factory=dict)
    task: str | None = None
    chinese: bool = False  #: the teacher is trained from scratch with the Chinese vocabulary
    by: str | None = None  #: a column whose values never stand in two splits; then all are cut from ``test``
    note: str = ""  #: what the page says of its splits


DATASETS: Mapping[str, DataSet] = {
    one.name: one
    for one in (
        DataSet(
            "mrpc",
            "mrpc",
            tokens=53,
            examples=3668,
            teacher={"epochs": 3, "learning_rate": 5e-5},
            student={"epochs": 3, "learning_rate": 1e-4, "max_length": 128},
            note="dev is a part of train",
        ),
        DataSet(
            "sst2",
            "sst2_glue",
            tokens=14,
            examples=8000,
            train=8000,
            held=2000,
            test="validation",
            teacher={"epochs": 2, "learning_rate": 5e-5},
            student={"epochs": 2, "learning_rate": 1e-4, "max_length": 64},
            note="8,000 training sentences, dev 2,000 others of train; reported on the public validation split, whose "
            "test labels are not public",
        ),
        DataSet(
            "banking77",
            "banking77",
            tokens=14,
            examples=9000,
            teacher={"epochs": 6, "learning_rate": 1e-4},
            student={"epochs": 4, "learning_rate": 2e-4, "max_length": 64},
            note="dev is a part of train",
        ),
        DataSet(
            "rte",
            "rte",
            tokens=70,
            examples=2240,
            test="validation",
            teacher={"epochs": 4, "learning_rate": 5e-5},
            student={"epochs": 4, "learning_rate": 1e-4, "max_length": 128},
            note="dev is a part of train; reported on the public validation split",
        ),
        DataSet(
            "stsb",
            "stsb",
            tokens=30,
            examples=5749,
            validation="validation",
            task="regression",
            teacher={"epochs": 3, "learning_rate": 5e-5},
            student={"epochs": 4, "learning_rate": 1e-4, "max_length": 96},
        ),
        DataSet(
            "snips",
            "snips",
            tokens=11,
            examples=6000,
            train=6000,
            validation="validation",
            task="token_classification",
            columns={"tokens": "tokens", "tags": "labels"},
            teacher={"epochs": 4, "learning_rate": 1e-4},
            student={"epochs": 4, "learning_rate": 2e-4, "max_length": 48},
            note="slots, 6,000 training sentences",
        ),
        DataSet(
            "wnut17",
            "wnut17",
            tokens=26,
            examples=3394,
            validation="validation",
            task="token_classification",
            columns={"tokens": "tokens", "tags": "labels"},
            teacher={"epochs": 5, "learning_rate": 1e-4},
            student={"epochs": 5, "learning_rate": 2e-4, "max_length": 96},
        ),
        DataSet(
            "goemotions",
            "goemotions",
            tokens=17,
            examples=10000,
            train=10000,
            validation="validation",
            held=2000,
            task="multi_label",
            teacher={"epochs": 3, "learning_rate": 1e-4},
            student={"epochs": 3, "learning_rate": 2e-4, "max_length": 48},
            note="10,000 training texts",
        ),
        DataSet(
            "squad",
            "squad_v1_dev",
            tokens=170,
            examples=3000,
            train=3000,
            held=600,
            tested=1000,
            test="validation",
            by="title",
            task="question_answering",
            teacher={"epochs": 3, "learning_rate": 1e-4},
            student={"epochs": 3, "learning_rate": 2e-4, "max_length": 256},
            note="SQuAD 1.1's dev split, its 48 articles cut into train, dev and test: not comparable with figures on "
            "SQuAD",
        ),
        DataSet(
            "douban",
            "douban_book_review",
            tokens=50,
            examples=12000,
            train=12000,
            validation="validation",
            held=1000,
            tested=4000,
            chinese=True,
            teacher={"epochs": 4, "learning_rate": 3e-4},
            student={"epochs": 2, "learning_rate": 1e-4, "max_length": 64},
            note="12,000 training and 4,000 test reviews; the teacher (6 layers of width 256)"
            " is trained from scratch with BERT's Chinese vocabulary",
        ),
    )
}


def data_hash(one: DataSet, root: Path) -> str:
    """Of the published files and of how the splits are made from them."""
    digest = hashlib.sha256(f"{_VERSION} {one.train} {one.validation} {one.test} {one.held} {one.tested}".encode())
    for path in sorted((root / one.folder).glob("*.jsonl.gz")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def folder_of(one: DataSet, root: Path, cache: Path) -> Path:
    """The folder of the data set's splits, made where it is not there yet."""
    folder = cache / "data" / f"{one.name}-{data_hash(one, root)}"
    if folder.exists():
        return folder
    _put(folder, _by_groups(one, root) if one.by else _published(one, root))
    return folder


def unlabelled_of(one: DataSet, root: Path, cache: Path) -> Path:
    """The texts of the published train split that are in no split of ours, without their labels."""
    folder = cache / "data" / f"{one.name}-{data_hash(one, root)}-unlabelled"
    if not folder.exists():
        used = {row["text"].strip() for rows in _published(one, root).values() for row in rows}
        texts = dict.fromkeys(row["text"].strip() for row in _read(one, root, "train"))
        _put(folder, {"train": [{"text": text} for text in texts if text not in used]})
    return folder


def _put(folder: Path, splits: Mapping[str, list[dict[str, Any]]]) -> None:
    """Whole, or not at all."""
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, rows in splits.items():
        with gzip.open(aside / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    aside.replace(folder)


def _read(one: DataSet, root: Path, split: str) -> list[dict[str, Any]]:
    with gzip.open(root / one.folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _drawn(rows: list[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """``count`` of the rows, in their order."""
    if count is None or len(rows) <= count:
        return rows
    chosen = np.random.default_rng(_DRAW_SEED).permutation(len(rows))[:count]
    return [rows[place] for place in sorted(chosen)]


def _published(one: DataSet, root: Path) -> dict[str, list[dict[str, Any]]]:
    whole = _read(one, root, "train")
    splits = {"train": _drawn(whole, one.train), "test": _drawn(_read(one, root, one.test), one.tested)}
    if one.validation is not None:
        splits["validation"] = _drawn(_read(one, root, one.validation), one.held)
    elif one.train is not None:
        # There is more of train than is used: dev comes from the rest, without texts that are trained on.
        used = {row["text"].strip() for row in splits["train"]}
        splits["validation"] = _drawn([row for row in whole if row["text"].strip() not in used], one.held)
    return splits


def _by_groups(one: DataSet, root: Path) -> dict[str, list[dict[str, Any]]]:
    """Six tenths of the groups train, a tenth selects, three tenths are reported."""
    rows = _read(one, root, one.test)
    groups = sorted({row[one.by] for row in rows})
    order = np.random.default_rng(_DRAW_SEED).permutation(len(groups))
    edges = [0, round(0.6 * len(groups)), round(0.7 * len(groups)), len(groups)]
    splits = {}
    sizes = (one.train, one.held, one.tested)
    for name, size, start, end in zip(("train", "validation", "test"), sizes, edges, edges[1:], strict=False):
        chosen = {groups[place] for place in order[start:end]}
        splits[name] = _drawn([row for row in rows if row[one.by] in chosen], size)
    return splits
