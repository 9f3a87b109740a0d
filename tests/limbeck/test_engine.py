"""Whole jobs with a tiny teacher: what comes out, exact resume, and what a repeat holds to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from limbeck.callbacks import Stage
from limbeck.engine import DistillResult, distill
from limbeck.errors import (
    Conflict,
    Interrupted,
    InvalidDataset,
    InvalidModel,
)
from limbeck.preparation import prepare
from limbeck.run import Run
from limbeck.scorecard import Scorecard
from tests.limbeck.bench import Recorder, is_mapped
from tests.limbeck.place import LABELS, Place
from tests.tiny import write_tiny_bert, write_tiny_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    return Place(write_tiny_bert(folder / "teacher"), write_tiny_dataset(folder / "data", rows=96, labels=LABELS))


@dataclass(frozen=True)
class Finished:
    result: DistillResult
    said: Recorder
    workdir: Path


@pytest.fixture(scope="module")
def finished(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One undisturbed job, exported; most tests look at it from one side each."""
    workdir, said = tmp_path_factory.mktemp("whole"), Recorder()
    result = distill(place.config(export=["onnx"], gate={"min_retention": 1.4}), workdir, callbacks=said)
    return Finished(result, said, workdir)


def texts(place: Place) -> tuple[list[str], list[int]]:
    table = pyarrow.parquet.read_table(place.data / "test.parquet").to_pydict()
    return table["text"], [LABELS.index(label) for label in table["label"]]


def test_the_students_folder_is_what_the_scorecard_measured(place: Place, finished: Finished) -> None:
    """Guards the whole chain from training to folder (vocabulary, layers, labels, tokenizer): plain transformers, with
    nothing of Limbeck, gets the accuracy that the scorecard claims, for the student and for the baseline."""
    questions, labels = texts(place)
    card = finished.result.scorecard
    assert card.baseline is not None
    assert finished.result.baseline is not None
    for folder, claimed in ((finished.result.student, card.student), (finished.result.baseline, card.baseline)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        coded = tokenizer(questions, truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            answers = model(**coded).logits.argmax(dim=1).numpy()
        assert model.config.id2label == dict(enumerate(LABELS))
        assert float(np.mean(answers == np.array(labels))) == pytest.approx(claimed.metrics["accuracy"].value)
        assert sum(p.numel() for p in model.parameters()) == claimed.parameters


def test_the_exported_student_answers_as_transformers_does(place: Place, finished: Finished) -> None:
    """Guards ``limbeck.json`` and the tokenizer, which the runtime reads instead of the training code."""
    from limbeck.runtime import Predictor

    questions, _ = texts(place)
    folder = finished.result.student
    answers = Predictor.load(folder, threads=1).predict(questions[:8])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    coded = AutoTokenizer.from_pretrained(folder)(questions[:8], truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model(**coded).logits.softmax(dim=1)
    assert [answer["label"] for answer in answers] == [LABELS[i] for i in scores.argmax(dim=1)]
    assert [answer["score"] for answer in answers] == pytest.approx(scores.amax(dim=1).tolist(), abs=1e-4)
    assert json.loads((folder / "limbeck.json").read_text()) == {
        "version": 1,
        "task": "sequence_classification",
        "labels": list(LABELS),
        "max_length": 32,
        "pair": False,
    }


def test_the_scorecard_holds_together(finished: Finished) -> None:
    card = finished.result.scorecard
    assert card.baseline is not None
    teacher, student = card.teacher.metrics["accuracy"], card.student.metrics["accuracy"]
    assert card.retention.value == pytest.approx(student.value / teacher.value)
    assert card.dataset.labels == LABELS
    assert (card.dataset.train, card.dataset.validation, card.dataset.test) == (96, 24, 24)
    assert (card.teacher.layers, card.student.layers, card.baseline.layers) == (4, 2, 2)
    assert card.student.parameters == card.baseline.parameters < card.teacher.parameters
    assert [latency.batch_size for latency in card.student.latency] == [1, 32]
    pairs = zip(card.teacher.latency, card.student.latency, strict=True)
    assert card.speedup == {str(slow.batch_size): slow.p50_ms / fast.p50_ms for slow, fast in pairs}
    assert card.compression == card.teacher.parameters / card.student.parameters
    assert card.student.bytes == 4 * card.student.parameters
    assert [export.format for export in card.exports] == ["onnx"]
    assert card.exports[0].label_agreement == 1
    assert set(card.minutes) == {str(stage) for stage in Stage}
    assert Scorecard.model_validate_json((finished.workdir / "output" / "scorecard.json").read_text()) == card


def test_the_gate_says_why_it_is_closed(finished: Finished) -> None:
    verdict = finished.result.scorecard.verdict
    assert not verdict.passed
    assert "asked for: 140.0%" in verdict.reasons[0]


def test_progress_never_falls_and_ends_whole(finished: Finished) -> None:
    percents = finished.said.percents
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert percents[-1] == 100
    assert finished.said.stages == list(Stage)


def test_metrics_are_series_by_phase_over_the_whole_job(finished: Finished) -> None:
    """Guards the charts: 6 steps an epoch, 2 epochs of teacher, student and baseline, one after the other."""
    steps: dict[str, list[int]] = {}
    for step, values in finished.said.points:
        for name in values:
            steps.setdefault(name, []).append(step)
    assert steps["teacher/loss"] == list(range(1, 13))
    assert steps["distilling/soft_loss"] == steps["distilling/loss"] == list(range(13, 25))
    assert steps["baseline/loss"] == list(range(25, 37))
    assert steps["distilling/validation_accuracy"] == [18, 24]


def test_events_are_sentences_for_people(finished: Finished) -> None:
    said = {kind: message for kind, message, _ in finished.said.events}
    card = finished.result.scorecard
    assert (
        said["teacher.evaluated"]
        == f"Fine-tuned teacher: {100 * card.teacher.validation['accuracy']:.1f} % on validation"
    )
    assert said["cache.built"].startswith("The teacher answered 96 training examples in")
    cache = next(data for kind, _, data in finished.said.events if kind == "cache.built")
    assert (cache["hits"], cache["misses"], cache["bytes"]) == (0, 96, 96 * 2 * 4)


def test_provenance_names_what_repeating_the_run_needs(finished: Finished) -> None:
    facts = finished.result.provenance
    assert facts["seed"] == 42
    assert facts["teacher"]["sha256"] == finished.result.teacher.sha256
    assert facts["dataset"]["sha256"] == finished.result.scorecard.dataset.sha256
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["hardware"]["threads"] == torch.get_num_threads()


def test_the_model_card_travels_with_the_folder(finished: Finished) -> None:
    text = (finished.result.student / "README.md").read_text()
    assert "2-layer student" in text
    assert "Retention" in text


def test_a_job_stopped_again_and_again_ends_with_the_same_files(
    place: Place, finished: Finished, tmp_path: Path
) -> None:
    """Guards exact resume over all phases, every attempt a fresh run; and that nothing finished is done again: each
    sentence is said once. The stops fall into steps, validations, the cache pass and the evaluation."""
    said: list[tuple[str, str]] = []
    for attempt in range(100):
        recorder = Recorder(stop_after=2 + attempt % 5)
        try:
            result = distill(place.config(), tmp_path, callbacks=recorder)
            break
        except Interrupted:
            torch.rand(3)
        finally:
            said += [(kind, message) for kind, message, _ in recorder.events if not kind.startswith("checkpoint.")]
    assert attempt >= 8
    assert_same_weights(result, finished.result)
    repeated = [kind for kind, _ in said]
    for kind in ("data.loaded", "teacher.evaluated", "cache.built", "student.trained", "baseline.trained"):
        assert repeated.count(kind) == 1, kind
    assert sum(kind == "epoch.finished" for kind in repeated) == 6
    for model in ("teacher", "student", "baseline"):
        assert repeated.count(f"{model}.tested") == 1
    assert result.scorecard.student.metrics == finished.result.scorecard.student.metrics


def test_a_job_killed_in_its_process_ends_with_the_same_files(place: Place, finished: Finished, tmp_path: Path) -> None:
    """Guards against state that only memory holds: SIGKILL in the middle of the student's training, at a place that no
    code of ours chose, and another process that goes on."""
    (tmp_path / "config.json").write_text(place.config().model_dump_json())
    script = """
import os, signal, sys
from pathlib import Path
import torch
from limbeck.callbacks import Callbacks
from limbeck.config import DistillConfig
from limbeck.engine import distill
torch.set_num_threads(int(sys.argv[2]))
folder, kill_at = Path(sys.argv[1]), int(sys.argv[3])
class Killer(Callbacks):
    def on_metrics(self, step, values):
        if step == kill_at and "distilling/loss" in values:
            os.kill(os.getpid(), signal.SIGKILL)
distill(DistillConfig.model_validate_json((folder / "config.json").read_text()), folder / "work",
        callbacks=Killer(), checkpoint_seconds=0.1)
"""

    def run(kill_at: int) -> int:
        command = [sys.executable, "-c", script, str(tmp_path), str(torch.get_num_threads()), str(kill_at)]
        return subprocess.run(command, timeout=120, check=False, env=os.environ).returncode

    assert run(kill_at=17) == -9
    assert run(kill_at=0) == 0
    work = tmp_path / "work" / "output"
    expected = finished.workdir / "output"
    for model in ("student", "baseline"):
        one, other = (load_file(base / model / "model.safetensors") for base in (work, expected))
        assert all(torch.equal(one[name], other[name]) for name in other)


def assert_same_weights(found: DistillResult, expected: DistillResult) -> None:
    for one, other in ((found.student, expected.student), (found.baseline, expected.baseline)):
        assert one is not None
        assert other is not None
        left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_folder_of_another_run_is_refused(place: Place, finished: Finished) -> None:
    """Guards against half of one job being finished as another."""
    with pytest.raises(Conflict, match="another configuration"):
        distill(place.config(student=1), finished.workdir)


def test_a_damaged_state_is_said_and_started_over(place: Place, tmp_path: Path) -> None:
    config = place.config(evaluation={"baseline": False})
    with pytest.raises(Interrupted):
        distill(config, tmp_path, callbacks=Recorder(stop_after=8))
    victim = next((tmp_path / "state").glob("data.*"))
    victim.write_bytes(b"broken")
    said = Recorder()
    distill(config, tmp_path, callbacks=said)
    kinds = [kind for kind, _, _ in said.events]
    assert kinds[0] == "checkpoint.damaged"
    assert "data.loaded" in kinds


def test_without_a_teacher_there_is_no_baseline_beside_it(place: Place, tmp_path: Path) -> None:
    result = distill(place.config(method="none"), tmp_path)
    assert result.baseline is None
    assert result.scorecard.baseline is None
    assert result.scorecard.gap_recovery is None
    assert result.scorecard.gap_recovery_note is not None
    assert result.scorecard.method == "none"


@pytest.fixture(scope="module")
def classifier(place: Place, finished: Finished) -> Path:
    """A teacher with a head of its own: the student of the finished job."""
    return finished.result.student


def test_a_teacher_with_a_head_is_taken_as_it_is(
    place: Place, classifier: Path, finished: Finished, tmp_path: Path
) -> None:
    result = distill(place.config(teacher=f"path:{classifier}", student=1), tmp_path)
    assert not result.teacher.finetuned
    assert result.scorecard.teacher.metrics == finished.result.scorecard.student.metrics


def test_labels_in_another_order_are_put_right(
    place: Place, classifier: Path, finished: Finished, tmp_path: Path
) -> None:
    """Guards against a head whose outputs mean other classes than the data set's numbers: the accuracy stays."""
    turned = tmp_path / "teacher"
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter.flip(0).clone())
    model.config.id2label = {0: "Networking", 1: "GUI"}
    model.config.label2id = {"Networking": 0, "GUI": 1}
    model.save_pretrained(turned)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(turned)
    result = distill(place.config(teacher=f"path:{turned}", student=1), tmp_path / "work")
    assert result.scorecard.teacher.metrics == finished.result.scorecard.student.metrics


def test_a_teacher_that_is_worth_nothing_on_test_costs_no_student(
    place: Place, classifier: Path, tmp_path: Path
) -> None:
    """Guards the work of a whole job: what validation did not tell shows when all is trained, and is told there."""
    from limbeck.runtime import Predictor

    data = tmp_path / "data"
    shutil.copytree(place.data, data)
    questions, _ = texts(place)
    answers = Predictor.load(classifier, threads=1).predict(questions)
    wrong = [LABELS[1 - LABELS.index(answer["label"])] for answer in answers]
    pyarrow.parquet.write_table(pyarrow.table({"text": questions, "label": wrong}), data / "test.parquet")
    config = place.config(
        teacher=f"path:{classifier}", dataset=f"path:{data}", student=1, gate={"min_retention": 0.5}, method="kd"
    )
    card = distill(config, tmp_path / "work").scorecard
    assert card.teacher.metrics["accuracy"].value == 0
    assert card.retention is None
    assert card.retention_note is not None
    assert "accuracy on the test split is 0.0 %, and always giving the most common answer has" in card.retention_note
    assert card.verdict.reasons == (f"A retention of 50.0% was asked for. {card.retention_note}",)
    assert f"- {card.retention_note}" in (tmp_path / "work" / "output" / "student" / "README.md").read_text()


def test_pairs_of_texts_are_told_apart(place: Place, tmp_path: Path) -> None:
    """Guards the second text: the label is whether both texts are of one area, so that one text alone says nothing."""
    for split in ("train", "validation", "test"):
        table = pyarrow.parquet.read_table(place.data / f"{split}.parquet").to_pydict()
        other = table["text"][1:] + table["text"][:1]
        kinds = table["label"][1:] + table["label"][:1]
        same = ["same" if a == b else "other" for a, b in zip(table["label"], kinds, strict=True)]
        columns = {"text": table["text"], "text_pair": other, "label": same}
        (tmp_path / "data").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "data" / f"{split}.parquet")
    config = place.config(dataset=f"path:{tmp_path / 'data'}", evaluation={"baseline": False})
    with pytest.raises(Interrupted):
        distill(config, tmp_path / "work", callbacks=Recorder(stop_after=12))
    data = load_file(next((tmp_path / "work" / "state").glob("data.*")))
    first = data["train.segments"][: data["train.starts"][1]].tolist()
    assert first == sorted(first)
    assert set(first) == {0, 1}


@pytest.mark.parametrize(("part", "refusal"), [("dataset", InvalidDataset), ("teacher", InvalidModel)])
def test_a_repeat_on_other_data_or_from_another_teacher_is_refused(
    place: Place, finished: Finished, tmp_path: Path, part: str, refusal: type[Exception]
) -> None:
    """Guards against a repeat that silently trains on something else: the name stays when the files change."""
    hashes = {name: finished.result.provenance[name]["sha256"] for name in ("dataset", "teacher")}
    said = Recorder(stop_after=1)
    with pytest.raises(Interrupted):
        distill(place.config(), tmp_path / "same", callbacks=said, expected=hashes)
    with pytest.raises(refusal, match=f"/{part}/source: .*found the sha256 {hashes[part]}, and it has to be other"):
        distill(place.config(), tmp_path / "other", expected={**hashes, part: "other"})


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_token_ids_are_mapped_and_nobody_writes_into_them(place: Place, tmp_path: Path) -> None:
    """Guards the memory of a large data set, which several ranks of a job would each have for themselves."""
    run = Run(place.config(), tmp_path, Recorder(), 60)
    job = prepare(run, {})
    for split in (job.train, job.validation, job.test):
        for array in (split.ids, split.starts, split.labels):
            assert is_mapped(array.ctypes.data, run.store.path("data"))
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
