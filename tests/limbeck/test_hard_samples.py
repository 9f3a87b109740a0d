"""The table of hard samples and its summary, against numbers that plain transformers, or a pencil, finds anew."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from limbeck.config import DistillConfig
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted
from limbeck.hard_samples import _by_example, _rows, measure, summary
from limbeck.texts import LONGEST, Shown, pack, shown, unpack
from tests.limbeck.bench import TASK, Bench, Recorder
from tests.tiny import write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    folder = tmp_path_factory.mktemp("place")
    teacher = write_tiny_bert(folder / "teacher")
    data = write_tiny_dataset(folder / "data", rows=96, labels=LABELS)
    document: dict[str, Any] = {
        "teacher": {"source": f"path:{teacher}", "finetune": {"epochs": 2, "learning_rate": 3e-3}},
        "dataset": {"source": f"path:{data}"},
        "student": [1, 3],
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32},
        "export": [],
    }
    return DistillConfig.parse(document)


@pytest.fixture(scope="module")
def result(config: DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> DistillResult:
    return distill(config, tmp_path_factory.mktemp("job"))


def rows_of(result: DistillResult) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(result.hard_samples[0]).to_pylist()
    return rows


def test_each_example_stands_in_the_table_with_the_students_own_loss(
    config: DistillConfig, result: DistillResult
) -> None:
    """Guards rows that are shuffled against their texts: plain transformers answers the texts of the table."""
    rows = rows_of(result)
    data = Path(config.dataset.source.removeprefix("path:"))
    for split in ("train", "validation"):
        given = pyarrow.parquet.read_table(data / f"{split}.parquet").to_pylist()
        found = [row for row in rows if row["split"] == split]
        assert sorted(row["row"] for row in found) == list(range(1, len(given) + 1))
        for row in found:
            assert (row["text"], row["label"]) == (given[row["row"] - 1]["text"], given[row["row"] - 1]["label"])
    model = AutoModelForSequenceClassification.from_pretrained(result.student).eval()
    coded = AutoTokenizer.from_pretrained(result.student)(
        [row["text"] for row in rows], truncation=True, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**coded).logits
    labels = torch.tensor([LABELS.index(row["label"]) for row in rows])
    chances = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0].tolist()
    assert [row["student_p"] for row in rows] == pytest.approx(chances, abs=1e-4)
    assert [row["loss"] for row in rows] == pytest.approx([-math.log(p) for p in chances], abs=1e-3)
    assert [row["student_right"] for row in rows] == (logits.argmax(dim=1) == labels).tolist()


def test_the_hardest_come_first_and_the_csv_says_the_same(result: DistillResult) -> None:
    rows = rows_of(result)
    for split in ("train", "validation"):
        losses = [row["loss"] for row in rows if row["split"] == split]
        assert losses == sorted(losses, reverse=True)
    with result.hard_samples[1].open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["split"], int(row["row"]), row["text"]) for row in written] == [
        (row["split"], row["row"], row["text"]) for row in rows
    ]


def test_the_scorecard_sums_the_table_up(result: DistillResult) -> None:
    found, rows = result.scorecard.difficulty, rows_of(result)
    assert found is not None
    for split in ("train", "validation"):
        lost = [row for row in rows if row["split"] == split and row["teacher_right"] and not row["student_right"]]
        assert found.lost[split] == len(lost)
    hardest = [row for row in rows if row["split"] == "validation"][:10]
    assert [sample.row for sample in found.hardest] == [row["row"] for row in hardest]
    assert all(len(sample.text) <= 200 for sample in found.hardest)
    accuracy = result.scorecard.student.metrics["accuracy"].value
    total = sum(one.examples for one in found.classes)
    assert total == result.scorecard.dataset.test
    assert sum(one.student * one.examples for one in found.classes) / total == pytest.approx(accuracy)


def test_no_text_of_the_data_lies_in_the_students_folder(result: DistillResult) -> None:
    """Guards the data set's texts: the student's folder is what goes out into the world."""
    assert all(path.parent == result.student.parent for path in result.hard_samples)
    assert not list(result.student.rglob("hard_samples*"))


def test_an_interrupted_measurement_ends_with_the_same_table(
    config: DistillConfig, result: DistillResult, tmp_path: Path
) -> None:
    """Guards the state: the teacher's logits have to live until they are read, and the texts with them."""
    for _ in range(60):
        try:
            found = distill(config, tmp_path, callbacks=Recorder(stop_after=9))
            break
        except Interrupted:
            continue
    else:
        pytest.fail("the job never ended")
    assert rows_of(found) == rows_of(result)


def test_a_job_that_is_told_so_measures_nothing(config: DistillConfig, tmp_path: Path) -> None:
    document = config.model_dump(mode="json") | {"evaluation": {"hard_samples": False, "baseline": False}}
    document["method"] = "none"
    found = distill(DistillConfig.parse(document), tmp_path)
    assert found.hard_samples == ()
    assert found.scorecard.difficulty is None
    assert not list((tmp_path / "output").glob("hard_samples*"))


def test_logits_that_were_kept_stand_for_the_teacher(tmp_path: Path) -> None:
    """Guards the order of the rows: the kept logits are the split's, batches are sorted by length."""
    bench = Bench.make(tmp_path, rows=24)
    phase = bench.phase()
    run = bench.run(tmp_path / "run", phase)
    from limbeck.cache import predict

    logits = torch.from_numpy(predict(bench.teacher(), bench.train, TASK, run))
    fresh = measure(phase.models.student, bench.teacher, bench.train, len(bench.train), TASK, run)
    kept = measure(phase.models.student, pytest.fail, bench.train, len(bench.train), TASK, run, logits)
    for name, values in fresh.items():
        torch.testing.assert_close(kept[name], values, rtol=1e-4, atol=1e-5)
    # By hand, also what the table says of the teacher: guards two models that have changed places.
    own = torch.from_numpy(predict(phase.models.student, bench.train, TASK, run))
    theirs, ours, labels = logits.log_softmax(1), own.log_softmax(1), torch.from_numpy(bench.train.labels)
    by_hand = {
        "loss": -ours.gather(1, labels[:, None])[:, 0],
        "teacher_loss": -theirs.gather(1, labels[:, None])[:, 0],
        "disagreement": (theirs.exp() * (theirs - ours)).sum(dim=1),
        "entropy": -(theirs.exp() * theirs).sum(dim=1),
        "teacher_right": (logits.argmax(dim=1) == labels).float(),
        "student_right": (own.argmax(dim=1) == labels).float(),
    }
    for name, values in by_hand.items():
        torch.testing.assert_close(kept[name], values, rtol=1e-4, atol=1e-5, msg=name)
    few = measure(phase.models.student, pytest.fail, bench.train, 5, TASK, run, logits)
    torch.testing.assert_close(few["loss"], kept["loss"][:5], rtol=1e-4, atol=1e-5)


def test_classes_are_counted_by_hand() -> None:
    """Labels a a a b; the teacher misses the third, the student the first and the last, the baseline nothing."""
    columns = {
        "loss": torch.tensor([0.1, 2.0, 0.05, 0.3]),
        "teacher_loss": torch.tensor([0.2, 0.3, 0.9, 0.1]),
        "teacher_right": torch.tensor([1.0, 1.0, 0.0, 1.0]),
        "student_right": torch.tensor([1.0, 0.0, 1.0, 0.0]),
    }
    texts = {"validation": [Shown("easy", None, "a"), Shown("hard " * 60, "pair", "b"), *[Shown("x", None, "a")] * 2]}
    answers = {"teacher": [0, 0, 1, 1], "student": [1, 0, 0, 0], "baseline": [0, 0, 0, 1]}
    found = summary({"validation": columns}, texts, answers, np.array([0, 0, 0, 1]), ["a", "b", "unused"])
    assert (found.lost, found.won) == ({"validation": 2}, {"validation": 1})
    assert [sample.row for sample in found.hardest] == [2, 4, 1, 3]
    assert (found.hardest[0].loss, found.hardest[0].teacher_loss) == pytest.approx((2.0, 0.3))
    assert found.hardest[0].text.endswith("…")
    assert len(found.hardest[0].text) == 200
    first, second = found.classes
    assert (first.teacher, first.student, first.baseline, first.lost) == pytest.approx((2 / 3, 2 / 3, 1, 1))
    assert (second.label, second.examples, second.student, second.lost) == ("b", 1, 0, 1)


def test_an_example_of_several_rows_is_right_where_all_of_them_are() -> None:
    """Guards long contexts, whose windows are rows: half right is not right, and a loss is the mean, not the sum."""
    columns = {
        "loss": torch.tensor([1.0, 3.0, 5.0]),
        "student_right": torch.tensor([1.0, 1.0, 0.5]),
        "teacher_right": torch.tensor([1.0, 0.5, 1.0]),
    }
    data: Any = SimpleNamespace(owners=np.array([0, 0, 1, 2]))
    found = {name: values.tolist() for name, values in _by_example(columns, data, 2, 3).items()}
    assert found == {"loss": [2, 5], "student_right": [1, 0], "teacher_right": [0, 1]}
    alone: Any = SimpleNamespace(owners=None)
    tagged = _by_example({"student_right": torch.tensor([0.9, 1.0])}, alone, 2, 2)
    assert tagged["student_right"].tolist() == [0, 1]


def test_the_table_gives_each_model_its_own_probability_of_the_truth() -> None:
    columns = {
        "loss": torch.tensor([0.5, 2.0]),
        "teacher_loss": torch.tensor([0.25, 1.0]),
        "entropy": torch.tensor([0.1, 0.2]),
        "student_right": torch.tensor([1.0, 0.0]),
        "teacher_right": torch.tensor([0.0, 1.0]),
    }
    table = _rows("train", columns, [Shown("easy", "one", "a"), Shown("hard", "other", "b")])
    assert (table["row"], table["text"], table["text_pair"], table["label"]) == (
        [2, 1],
        ["hard", "easy"],
        ["other", "one"],
        ["b", "a"],
    )
    assert table["teacher_p"].tolist() == pytest.approx([math.exp(-1), math.exp(-0.25)])
    assert table["student_p"].tolist() == pytest.approx([math.exp(-2), math.exp(-0.5)])
    assert table["entropy"].tolist() == pytest.approx([0.2, 0.1])
    assert (table["teacher_right"].tolist(), table["student_right"].tolist()) == ([True, False], [False, True])


def test_texts_survive_the_state_whatever_their_script_and_shape() -> None:
    long = "很好。" * 400
    given = {
        "train": shown([long, "日本\n語"], ["a", "b"], [0, 1], ["neg", "pos"]),
        "validation": shown([["Ein", "Wort"]], None, [[0, 1]], ["B-X", "O"]),
    }
    assert unpack(pack(given)) == given
    assert len(given["train"][0].text) == LONGEST
    assert given["validation"] == [Shown("Ein Wort", None, "B-X, O")]
    assert [one.label for one in shown(["a"] * 2, None, [2.5, [("Paris", 3)]], [])] == ["2.5", "Paris"]


def test_the_summary_is_plain_json(result: DistillResult) -> None:
    text = json.dumps(result.scorecard.model_dump(mode="json"), allow_nan=False)
    assert json.loads(text)["difficulty"]["hardest"]
