"""Whole jobs for students that are not just fewer layers: the folder, the scorecard and an exact resume."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer, pipeline

from limbeck.checkpoint import CheckpointStore
from limbeck.config import DistillConfig
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted, InvalidConfig
from limbeck.runtime import Predictor
from limbeck.scorecard import ModelCard
from tests.limbeck.bench import Recorder
from tests.limbeck.task_data import write
from tests.tiny import vocabulary, write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_tiny_bert(folder / "teacher")
    write_tiny_dataset(folder / "data", rows=96, labels=LABELS)
    return folder


def config(place: Path, student: dict[str, Any], **changes: Any) -> DistillConfig:
    return DistillConfig.parse(
        {
            "teacher": {"source": f"path:{place}/teacher", "finetune": {"epochs": 3, "learning_rate": 3e-3}},
            "dataset": {"source": f"path:{place}/data"},
            "student": student,
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32},
            "export": [],
            **changes,
        }
    )


def texts(place: Path) -> list[str]:
    found: list[str] = pyarrow.parquet.read_table(place / "data" / "test.parquet").to_pydict()["text"]
    return found


def accuracy(place: Path, folder: Path) -> tuple[float, int]:
    """What plain transformers gets from a folder, and the parameters that it finds there."""
    wanted = pyarrow.parquet.read_table(place / "data" / "test.parquet").to_pydict()["label"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    coded = AutoTokenizer.from_pretrained(folder)(texts(place), truncation=True, padding=True, return_tensors="pt")
    coded.pop("token_type_ids", None)
    with torch.inference_mode():
        answers = [LABELS[i] for i in model(**coded).logits.argmax(dim=1)]
    right = sum(answer == label for answer, label in zip(answers, wanted, strict=True))
    return right / len(wanted), sum(parameter.numel() for parameter in model.parameters())


def check(place: Path, result: DistillResult) -> tuple[ModelCard, ModelCard]:
    """The scorecard's figures of student and baseline are those of their folders."""
    card = result.scorecard
    assert card.baseline is not None
    assert result.baseline is not None
    for folder, claimed in ((result.student, card.student), (result.baseline, card.baseline)):
        found, parameters = accuracy(place, folder)
        assert found == pytest.approx(claimed.metrics["accuracy"].value)
        assert parameters == claimed.parameters
        size = (folder / "model.safetensors").stat().st_size
        assert claimed.bytes < size < claimed.bytes + 10_000
    assert card.student.architecture == card.baseline.architecture
    return card.student, card.baseline


def test_a_trimmed_narrow_student_is_exported(place: Path, tmp_path: Path) -> None:
    """Guards ids on the whole way: training, tokenizer, table, ONNX and the runtime speak of the same tokens."""
    student = {"layers": 2, "hidden_size": 16, "vocabulary": "trimmed"}
    result = distill(config(place, student, export=["onnx"]), tmp_path)
    card, _ = check(place, result)
    assert (card.layers, card.hidden_size) == (2, 16)
    tokenizer = AutoTokenizer.from_pretrained(result.student)
    assert json.loads((result.student / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )
    assert card.parameters < 16 * len(vocabulary())
    assert len(tokenizer) < len(vocabulary())
    assert result.scorecard.exports[0].label_agreement == 1
    asked = [*texts(place)[:6], "a zyzzyva never seen ☃"]
    model = AutoModelForSequenceClassification.from_pretrained(result.student).eval()
    coded = tokenizer(asked, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model(**coded).logits.softmax(dim=1)
    answers = Predictor.load(result.student, threads=1).predict(asked)
    assert [answer["score"] for answer in answers] == pytest.approx(scores.amax(dim=1).tolist(), abs=1e-4)


@pytest.mark.parametrize("words", ["full", "trimmed"])
def test_a_student_is_served_the_end_of_a_text_that_it_was_trained_on(place: Path, tmp_path: Path, words: str) -> None:
    """Guards teachers whose tokenizer cuts texts in front: their students were measured on the ends of long texts, and
    answered from the beginnings. One that pads in front, too, would have moved all positions in a batch."""
    shutil.copytree(place / "teacher", tmp_path / "teacher")
    settings = tmp_path / "teacher" / "tokenizer_config.json"
    sides = {"truncation_side": "left", "padding_side": "left"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | sides))
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 8}
    teacher = {"source": f"path:{tmp_path}/teacher", "finetune": {"epochs": 3, "learning_rate": 3e-3}}
    student = {"layers": 2, "vocabulary": words}
    result = distill(config(place, student, teacher=teacher, training=training, export=["onnx"]), tmp_path / "job")
    check(place, result)
    asked = [*texts(place), "window", "parse it"]
    plain = pipeline("text-classification", model=str(result.student), batch_size=4)
    answers = Predictor.load(result.student, threads=1).predict(asked)
    expected = [one["score"] for one in plain(asked, truncation=True, max_length=8)]
    assert [one["score"] for one in answers] == pytest.approx(expected, abs=1e-4)
    assert len({one["score"] for one in answers}) > 10


def test_a_bilstm_learns_and_tells_how_it_is_read(place: Path, tmp_path: Path) -> None:
    training = {"epochs": 8, "batch_size": 16, "learning_rate": 1e-2, "max_length": 32}
    student = {"architecture": "bilstm", "hidden_size": 24}
    wanted, recorder = config(place, student, export=["onnx"], training=training), Recorder(stop_after=60)
    with pytest.raises(Interrupted):
        distill(wanted, tmp_path, callbacks=recorder)
    assert any(kind == "method.adapted" for kind, *_ in recorder.events)
    recorder.stop_after = None
    result = distill(wanted, tmp_path, callbacks=recorder)
    # Said before the first step, and not again by the attempt that goes on.
    adapted = [(message, data["method"]) for kind, message, data in recorder.events if kind == "method.adapted"]
    assert adapted == [("The student has no layers to match: it learns the teacher's answers alone.", "auto")]
    card, _ = check(place, result)
    assert (card.architecture, card.layers, card.hidden_size) == ("RecurrentForSequenceClassification", 1, 24)
    assert card.metrics["accuracy"].value > 0.7
    assert "import recurrent" in (result.student / "README.md").read_text(encoding="utf-8")
    asked = texts(place)[:4]
    answers = Predictor.load(result.student, threads=1).predict(asked)
    assert read_without_limbeck(result.student, asked) == [
        {"label": one["label"], "score": pytest.approx(one["score"], abs=1e-4)} for one in answers
    ]
    assert result.baseline is not None
    assert (result.baseline / "recurrent.py").exists()


def read_without_limbeck(folder: Path, asked: list[str]) -> list[dict[str, Any]]:
    """What a recurrent student answers in torch whoever has only its folder, as its card says it."""
    script = (
        "import sys, json; sys.modules['limbeck'] = None\n"
        "import recurrent\nfrom transformers import pipeline\n"
        f"ask = pipeline('text-classification', model='.')\nprint(json.dumps(ask({asked!r}, truncation=True)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


class Asked(Recorder):
    """Notes how often it had been asked whether to stop when an event came."""

    def __init__(self) -> None:
        super().__init__()
        self.until: dict[str, int] = {}

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        self.until[kind] = self.asked


def test_a_pruned_student_ends_the_same_when_it_is_stopped_on_the_way(place: Path, tmp_path: Path) -> None:
    """Guards the start of a resumed run: other neurons, or another draw, would make the baseline another model. And a
    stop while it is measured which neurons matter."""
    wanted, said = config(place, {"layers": [1, 3], "prune": 0.25}), Asked()
    whole = distill(wanted, tmp_path / "whole", callbacks=said)
    assert said.until["student.pruned"] >= said.until["cache.built"] + 2
    card, _ = check(place, whole)
    assert AutoModelForSequenceClassification.from_pretrained(whole.student).config.intermediate_size == 48
    with pytest.raises(Interrupted):
        distill(wanted, tmp_path / "parts", callbacks=Recorder(stop_after=34), checkpoint_seconds=0)
    again = distill(wanted, tmp_path / "parts", checkpoint_seconds=0)
    for folder in ("student", "baseline"):
        one, other = (load_file(getattr(result, folder) / "model.safetensors") for result in (whole, again))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert card.layers == 2


def test_a_student_may_be_another_model(place: Path, tmp_path: Path) -> None:
    """Guards whose layers and words a student of another source has; the teacher has four layers, it has three."""
    write_tiny_bert(tmp_path / "own", layers=3, hidden=16, seed=9)
    result = distill(config(place, {"source": f"path:{tmp_path}/own", "layers": 3}), tmp_path / "job")
    card, _ = check(place, result)
    assert (card.layers, card.hidden_size) == (3, 16)
    saved, own = (load_file(folder / "model.safetensors") for folder in (result.student, tmp_path / "own"))
    table = "embeddings.word_embeddings.weight"
    untouched = vocabulary().index("zipimport") if "zipimport" in vocabulary() else len(vocabulary()) - 1
    assert torch.equal(saved[f"bert.{table}"][untouched], own[table][untouched])
    assert result.provenance["student"]["source"] == f"path:{tmp_path}/own"


def other_reader(folder: Path) -> Path:
    """A model whose tokenizer knows single characters and the rarer half of the words, in another order."""
    from transformers import BertConfig, BertModel

    pieces = [*vocabulary()[:5], *reversed(vocabulary()[5:700])]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=True).save_pretrained(folder)
    torch.manual_seed(3)
    BertModel(
        BertConfig(
            vocab_size=len(pieces),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "minilm"}, "the method 'minilm' may take more"),
        ({"method": "kd", "training": {"augmentation": "sentence_shuffle", "max_length": 32}}, "augmentation"),
    ],
)
def test_a_student_with_another_tokenizer_is_refused(
    place: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    """Guards against a student that learns the teacher's answers to other words than it reads."""
    own = other_reader(tmp_path / "own")
    with pytest.raises(InvalidConfig, match=reason) as caught:
        distill(config(place, {"source": f"path:{own}"}, **changes), tmp_path / "job")
    assert caught.value.problems[0].pointer == "/student/source"


def teacher_losses(result: DistillResult) -> dict[tuple[str, str], float]:
    """The teacher's loss by split and text, from the table of hard samples."""
    (path,) = (one for one in result.hard_samples if one.suffix == ".parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    return {(row["split"], row["text"]): row["teacher_loss"] for row in rows}


def test_a_run_that_was_stopped_between_two_measurements_ends_the_same(place: Path, tmp_path: Path) -> None:
    """Guards dropout's draws: whose state has the neurons' importance already loads the teacher once less."""

    class Between(Recorder):
        def should_stop(self) -> bool:
            state = CheckpointStore(tmp_path / "parts" / "state")
            return state.has("pruning") and not state.has("pruning-heads")

    method = {"type": "dynabert", "widths": [1], "depths": [0.5]}
    wanted = config(place, {}, method=method, evaluation={"hard_samples": False, "baseline": False})
    whole = distill(wanted, tmp_path / "whole")
    with pytest.raises(Interrupted):
        distill(wanted, tmp_path / "parts", callbacks=Between())
    again = distill(wanted, tmp_path / "parts")
    one, other = (load_file(result.student / "model.safetensors") for result in (whole, again))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("words", ["full", "trimmed"])
def test_teacher_and_student_read_the_same_texts_as_other_tokens(place: Path, tmp_path: Path, words: str) -> None:
    """Guards ids: with one's tokens in the other's table nothing fails, and both only answer worse. The teacher is
    worth and answers what it does in a job without the other tokenizer; the folders answer as the scorecard says."""
    own = other_reader(tmp_path / "own")
    wanted = config(place, {"source": f"path:{own}", "vocabulary": words}, method="kd", export=["onnx"])
    result = distill(wanted, tmp_path / "job")
    check(place, result)
    alone = distill(config(place, {"layers": 1}, method="none"), tmp_path / "alone")
    assert result.scorecard.teacher.metrics == alone.scorecard.teacher.metrics
    assert result.scorecard.teacher.parameters == alone.scorecard.teacher.parameters
    # Of each training text, whose logits the student learned from, and of each validation text.
    losses, wanted_losses = teacher_losses(result), teacher_losses(alone)
    assert {split for split, _ in losses} == {"train", "validation"}
    assert losses == pytest.approx(wanted_losses, abs=1e-5)
    table = "bert.embeddings.word_embeddings.weight"
    rows = len(load_file(result.student / "model.safetensors")[table])
    assert rows == 700 if words == "full" else rows < 700
    asked = texts(place)
    model = AutoModelForSequenceClassification.from_pretrained(result.student).eval()
    coded = AutoTokenizer.from_pretrained(result.student)(asked, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        plain = [LABELS[i] for i in model(**coded).logits.argmax(dim=1)]
    answers = Predictor.load(result.student, threads=1).predict(asked)
    assert [answer["label"] for answer in answers] == plain
    with pytest.raises(Interrupted):
        distill(wanted, tmp_path / "parts", callbacks=Recorder(stop_after=34), checkpoint_seconds=0)
    again = distill(wanted, tmp_path / "parts", checkpoint_seconds=0)
    for folder in ("student", "baseline"):
        one, other = (load_file(getattr(found, folder) / "model.safetensors") for found in (result, again))
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("task", ["multi_label", "regression", "token_classification"])
def test_whole_texts_of_every_task_may_be_read_as_other_tokens(tmp_path: Path, task: str) -> None:
    """Guards against logits of tokens that are held against those of other tokens. Regression's texts are pairs."""
    teacher, data = write_tiny_bert(tmp_path / "teacher"), write(task, tmp_path / "data")
    own = other_reader(tmp_path / "own")
    document = {
        "teacher": {"source": f"path:{teacher}", "finetune": {"epochs": 12, "learning_rate": 5e-3}},
        "dataset": f"path:{data}",
        "student": {"source": f"path:{own}"},
        "method": "kd",
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3, "max_length": 32},
    }
    wanted = DistillConfig.parse(document)
    if task == "token_classification":
        with pytest.raises(InvalidConfig, match="does not answer each text as a whole") as caught:
            distill(wanted, tmp_path / "job")
        assert caught.value.problems[0].pointer == "/student/source"
        return
    result = distill(wanted, tmp_path / "job")
    (exported,) = result.scorecard.exports
    assert exported.label_agreement == 1
    assert (result.student / "tokenizer.json").read_bytes() != (teacher / "tokenizer.json").read_bytes()
