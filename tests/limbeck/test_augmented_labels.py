"""Labels of texts that augmentation adds: those of the texts that they are made of, whatever a label is, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from limbeck.augmentation import SentenceShuffle
from limbeck.callbacks import Callbacks
from limbeck.checkpoint import CheckpointStore
from limbeck.config import Training
from limbeck.copies import shuffled
from limbeck.data import load
from limbeck.engine import distill
from limbeck.preflight import check
from limbeck.reading import read_data
from limbeck.run import Run
from limbeck.tasks.regression import Regression
from limbeck.teachers import find_teachers
from tests.limbeck import task_data
from tests.limbeck.bench import Recorder
from tests.limbeck.test_augmentation import job
from tests.tiny import docstrings, write_tiny_bert, write_tiny_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_tiny_bert(folder / "teacher")
    write_tiny_dataset(folder / "data", rows=96)
    return folder


def all_kinds(tmp_path: Path, task: str) -> list[dict[str, Any]]:
    columns = {"text": docstrings("testing")[:40], "text_pair": docstrings("networking")[-40:]}
    if task == "multi_label":
        del columns["text_pair"]
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "more.parquet")
    extra = {"type": "unlabelled", "source": f"path:{tmp_path}", "split": "more"}
    return [extra, {"type": "mask_replace", "p": 1.0}, {"type": "sentence_shuffle"}]


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_copies_have_their_texts_labels_whatever_a_label_is(place: Path, tmp_path: Path, task: str) -> None:
    """Guards copies of several labels and of numbers: as class numbers they would have those of other texts."""
    data = f"path:{task_data.write(task, tmp_path / 'data')}"
    run = Run(job(place, all_kinds(tmp_path, task), dataset=data), tmp_path / "run", Callbacks(), 60)
    read_data(run, find_teachers(run, {}), {}, None, None)
    tensors, stored = run.store.read_tensors("data")
    card, labels = stored["card"], tensors["train.labels"].tolist()
    assert (card["train"], card["unlabelled"]) == (96, 40)
    assert labels[96:192] == labels[:96], "each text has a word to replace, and the copies stand in order"
    seed = run.config.training.seed
    corpus = load(run.config.dataset, seed=seed)
    expected: list[Any] = shuffled(corpus.train, SentenceShuffle(), [seed, 2]).labels
    if task == "multi_label":
        expected = [[int(place in row) for place in range(len(corpus.labels))] for row in expected]
    assert len(expected) > 10
    assert labels[192:-40] == expected


def test_a_number_that_nobody_knows_counts_for_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the unit of the losses and of the head's steps, and where a head begins: a text without a number is none
    of -1 among these around 100, which would make of a spread of 1 one of 40."""
    folder = task_data.write("regression", tmp_path / "data")
    for file in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({**row, "label": row["label"] + 100}) for row in rows]
        file.write_text("\n".join(lines), encoding="utf-8")
    seen = {"loss_unit": set[float](), "begin_head": set[float]()}
    for name, lowest in seen.items():
        plain = getattr(Regression, name)

        def spied(task: Regression, *given: Any, plain: Any = plain, lowest: set[float] = lowest) -> Any:
            lowest.add(float(getattr(given[-1], "labels", given[-1]).min()))
            return plain(task, *given)

        monkeypatch.setattr(Regression, name, spied)
    said = Recorder()
    config = job(
        place,
        all_kinds(tmp_path, "regression"),
        dataset=f"path:{folder}",
        method={"type": "kd", "alpha": 0.5},
        student={"architecture": "bilstm"},
    )
    result = distill(config, tmp_path / "job", callbacks=said)
    assert seen == {"loss_unit": {100.25}, "begin_head": {100.25}}
    assert result.scorecard.dataset.unlabelled == 40
    assert result.scorecard.student.metrics["rmse"].value < 5
    assert {name for _, values in said.points for name in values} >= {"distilling/soft_loss", "distilling/hard_loss"}


def test_copies_may_leave_their_labels_to_the_teacher(place: Path, tmp_path: Path) -> None:
    """Guards the label of a text whose words are others: it is neither learned nor shown to the baseline, which takes
    as many steps over the texts as they are."""
    said = Recorder()
    config = job(place, {"type": "mask_replace", "copies": 2, "p": 1.0, "keep_labels": False})
    result = distill(config, tmp_path / "job", callbacks=said)
    assert (result.scorecard.dataset.copies, result.scorecard.dataset.unlabelled) == (0, 192)
    labels = CheckpointStore(tmp_path / "job" / "state").read_tensors("data")[0]["train.labels"]
    assert (labels[:96] >= 0).all()
    assert (labels[96:] == -1).all()
    ended = [message for kind, message, _ in said.events if kind == "epoch.finished" and "Baseline" in message]
    assert len(ended) == 6, "two epochs over three times as many texts"


@pytest.mark.parametrize("method", ["none", "theseus", "kd"])
def test_copies_without_labels_are_refused_where_labels_alone_are_learned(place: Path, method: str) -> None:
    config = job(place, {"type": "mask_replace", "keep_labels": False}, method=method)
    found = check(config, teacher=None, labels=None)
    wanted = [] if method == "kd" else ["/training/augmentation/0"]
    assert [one.pointer for one in found if "mask_replace" in one.detail] == wanted
    with pytest.raises(ValueError, match="augmentation 'mask_replace' brings texts without labels"):
        Training.model_validate(
            {"sample_weighting": "focal", "augmentation": {"type": "mask_replace", "keep_labels": False}}
        )
    Training.model_validate({"sample_weighting": "focal", "augmentation": "mask_replace"})
