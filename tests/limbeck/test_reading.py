"""What a job says of its data: whoever reads its log or its scorecard learns what was done to them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from limbeck.config import DistillConfig
from limbeck.reading import read_data
from limbeck.run import Run
from limbeck.teachers import find_teachers
from tests.families import write_tiny
from tests.limbeck.bench import Recorder
from tests.tiny import docstrings, write_tiny_bert


def _texts(folder: Path) -> dict[str, Any]:
    rows = [f"{text}\t{area}" for area in ("gui", "networking") for text in docstrings(area)[:30]]
    for name, held in (("train", rows), ("validation", rows[::5])):
        lines = ["text\tlabel", *held, f"\"Marks are {name}'s own\tgui", ""]
        (folder / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")
    return {"teacher": f"path:{write_tiny_bert(folder / 'teacher')}", "dataset": f"path:{folder}", "student": 2}


def _pictures(_: Path) -> dict[str, Any]:
    return {"teacher": "builtin:vit-digits", "dataset": "builtin:digits", "student": 2}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            _texts,
            [
                "The train file has 1 fields that begin with a quotation mark; as its lines are rows",
                "There is no labelled test split: the validation split is reported on",
                "left out of train: 12.",
            ],
        ),
        (_pictures, ["The validation split, 120 rows, is cut from train."]),
    ],
)
def test_what_was_done_to_the_data_is_told(tmp_path: Path, document: Any, said: list[str]) -> None:
    """Guards a leak, or validation in the place of test, that stands in a profile alone, which only uploads have."""
    recorder = Recorder()
    run = Run(DistillConfig.parse(document(tmp_path)), tmp_path / "run", recorder, 60)
    read_data(run, find_teachers(run, {}), {}, None, None)
    (told,) = (message for kind, message, _ in recorder.events if kind == "data.noted")
    _, stored = run.store.read_tensors("data")
    assert told == " ".join(stored["card"]["notes"])
    for part in said:
        assert part in told


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_vocabulary_is_trimmed_where_pairs_are_cut(tmp_path: Path, family: str) -> None:
    """Guards the cut itself: how much it leaves of either text hangs on tokens that stand behind it."""
    texts = docstrings("gui")[:60]
    rows = [
        {"premise": one, "hypothesis": other, "label": ["odd", "even"][place % 2]}
        for place, (one, other) in enumerate(pairwise(texts))
    ]
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    document = {
        "teacher": f"path:{write_tiny(family, tmp_path / 'teacher', head=False)}",
        "dataset": f"path:{data}",
        "student": {"layers": 2, "vocabulary": "trimmed"},
        "training": {"max_length": 16},
    }
    run = Run(DistillConfig.parse(document), tmp_path / "run", Recorder(), 60)
    teachers = find_teachers(run, {})
    read_data(run, teachers, {}, None, None)
    tensors, _ = run.store.read_tensors("data")
    assert len(tensors["vocabulary"]) < json.loads((teachers[0].path / "config.json").read_text())["vocab_size"]
