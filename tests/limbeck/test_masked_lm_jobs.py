"""Whole masked-LM jobs, what the student is good for afterwards, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from limbeck import data, preflight
from limbeck.batches import Collator
from limbeck.config import DistillConfig
from limbeck.data.corpus import Split
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted, InvalidConfig, InvalidInput
from limbeck.families import family_of
from limbeck.model_folder import model_facts
from limbeck.runtime import Predictor
from limbeck.sources import builtin_minilm
from limbeck.students import read_config
from limbeck.tokenizing import load_tokenizer
from tests.limbeck.bench import Recorder
from tests.limbeck.hidden_words import LENGTH, TASK, config, encoded
from tests.limbeck.task_data import texts
from tests.limbeck.test_data_forms import SHARED
from tests.tiny import write_tiny_bert, write_tiny_dataset, write_tiny_lm


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_lm(tmp_path_factory.mktemp("lm") / "teacher")


def write(folder: Path, count: int = 150) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("\n\n".join(text for _, text in texts(count)), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Done:
    result: DistillResult
    test: Split
    events: Mapping[str, str]
    work: Path


@pytest.fixture(scope="module", params=["full", "trimmed"])
def done(request: pytest.FixtureRequest, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp(request.param)
    corpus = write(folder / "data")
    heard = Recorder()
    document = config(teacher, corpus, student={"layers": 2, "vocabulary": request.param})
    document["export"] = ["onnx", "onnx-int8"]
    parsed = DistillConfig.parse(document)
    result = distill(parsed, folder / "work", callbacks=heard)
    found = data.load(parsed.dataset, seed=42)
    events = {kind: message for kind, message, _ in heard.events}
    return Done(result, found.test, events, folder / "work")


def test_the_scorecard_is_what_plain_transformers_gets_at_the_same_places(done: Done) -> None:
    """Guards the figures: the saved student alone, by hand, on the tokens that are hidden for everybody."""
    card, folder = done.result.scorecard, done.result.student
    assert card.task == "masked_lm"
    assert card.baseline is not None
    assert card.dataset.labels == ()
    model: Any = AutoModelForMaskedLM.from_pretrained(folder).eval()
    split = TASK.encode(AutoTokenizer.from_pretrained(folder), done.test, (), LENGTH, lambda: None)
    right, losses = list[bool](), list[float]()
    for row in range(len(split)):
        part = split.take(np.array([row]))
        hidden = torch.from_numpy(part.labels != -100)
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(part.ids).long()[None]).logits[0, hidden]
        labels = torch.from_numpy(part.labels)[hidden]
        right += (logits.argmax(-1) == labels).tolist()
        losses += torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
    assert card.student.metrics["masked_accuracy"].value == pytest.approx(np.mean(right))
    assert card.student.metrics["perplexity"].value == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)
    onnx, small = card.exports
    assert onnx.label_agreement == 1
    assert onnx.max_logit_difference < 1e-3
    assert small.bytes < onnx.bytes


def test_the_student_has_the_vocabulary_that_was_asked_for(done: Done, teacher: Path) -> None:
    """Guards a head over fewer tokens than the folder's tokenizer, whose answers would be other words."""
    weights = load_file(done.result.student / "model.safetensors")
    tokens = len(AutoTokenizer.from_pretrained(done.result.student))
    whole = len(AutoTokenizer.from_pretrained(teacher))
    assert tokens == whole if "full" in str(done.work) else tokens < whole
    assert len(weights["bert.embeddings.word_embeddings.weight"]) == len(weights["cls.predictions.bias"]) == tokens


def test_the_teachers_answers_are_never_kept_and_the_job_says_so(done: Done) -> None:
    """Guards the disk: a kept answer to each token would be as large as the vocabulary."""
    assert "cache.built" not in done.events
    assert "would take" in done.events["teacher.live"]
    assert not list((done.work / "state").glob("cache*"))


def test_hard_samples_are_measured(done: Done) -> None:
    rows = pyarrow.parquet.read_table(done.result.hard_samples[0]).to_pylist()
    assert len(rows) == done.result.scorecard.dataset.train + done.result.scorecard.dataset.validation
    assert all(row["loss"] > 0 and row["text"] for row in rows)


def test_answers_are_those_of_the_pipeline(done: Done) -> None:
    """Guards the shape and the scores of fill-mask, with one mask and with several."""
    student, pipe = (
        Predictor.load(done.result.student, threads=1),
        pipeline("fill-mask", model=str(done.result.student)),
    )
    one, two = "Return the [MASK] of the window.", "Return [MASK] of the [MASK]."
    assert student.mask == "[MASK]"
    assert _plain(student.predict(one)) == _plain(pipe(one))
    assert _plain(student.predict([one, two], top_k=2)) == _plain(pipe([one, two], top_k=2))
    with pytest.raises(InvalidInput, match="/inputs/1: found no"):
        student.predict([one, "Return the window."])
    with pytest.raises(InvalidInput, match="how many"):
        student.predict(one, top_k="all")


def _plain(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_plain(one) for one in answer]
    return answer | {"score": pytest.approx(answer["score"], abs=1e-4)}


@pytest.mark.parametrize("method", ["distilbert", "kd"])
def test_an_interrupted_distillation_ends_with_the_same_weights(teacher: Path, tmp_path: Path, method: str) -> None:
    """Guards what is hidden after a resumption in the middle of an epoch, and dropout where the teacher is loaded again
    in the first step: both have to be what they would have been."""
    corpus = write(tmp_path / "data")
    document = config(teacher, corpus, method=method, export=[], evaluation={"baseline": False})
    parsed = DistillConfig.parse(document)
    whole = distill(parsed, tmp_path / "whole").student
    for polls in (8, 12):  # in the first epoch, and in the second
        with pytest.raises(Interrupted):
            distill(parsed, tmp_path / "parts", callbacks=Recorder(stop_after=polls))
    parts = distill(parsed, tmp_path / "parts").student
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("method", "combine"), [("kd", "mean"), ("distilbert", "confidence"), ("auto", "mean")])
def test_a_job_of_several_teachers(teacher: Path, tmp_path: Path, method: str, combine: str) -> None:
    """Guards the whole way: plain transformers gets what the scorecard and the table of hard samples say of both."""
    other = write_tiny_lm(tmp_path / "other", common="a")
    both = {"source": f"path:{teacher}", "more": [f"path:{other}"], "combine": combine}
    heard = Recorder()
    document = config(teacher, write(tmp_path / "data"), teacher=both, method=method, export=[])
    document["evaluation"] = {"baseline": False}
    parsed = DistillConfig.parse(document)
    result = distill(parsed, tmp_path / "work", callbacks=heard)
    card = result.scorecard
    assert len(card.teachers) == 2
    assert {"teachers.combined", "teacher.live"} <= {kind for kind, _, _ in heard.events}
    assert not list((tmp_path / "work" / "state").glob("cache*"))
    if combine != "mean":
        return
    models: list[Any] = [AutoModelForMaskedLM.from_pretrained(folder).eval() for folder in (teacher, other)]
    tokenizer = load_tokenizer(teacher, read_config(teacher))
    split = TASK.encode(tokenizer, data.load(parsed.dataset, seed=42).test, (), LENGTH, lambda: None)
    batch = Collator(split, 0, torch.device("cpu"))(np.arange(len(split)))
    with torch.inference_mode():
        chances = torch.stack([TASK.answer(one, batch).softmax(-1) for one in models]).mean(0)
    losses = torch.nn.functional.nll_loss(chances.log(), TASK.targets(batch))
    assert card.teacher.metrics["perplexity"].value == pytest.approx(float(losses.exp()), rel=1e-3)
    assert card.teacher.metrics["perplexity"].value != pytest.approx(card.teachers[0].metrics["perplexity"].value)
    rows = pyarrow.parquet.read_table(result.hard_samples[0]).to_pylist()
    assert all(row["teacher_loss"] > 0 for row in rows)


def test_teachers_with_word_tables_of_unlike_size_are_refused(teacher: Path, tmp_path: Path) -> None:
    """Guards chances that are added up for unlike tokens: the same tokenizer, and a table with a row more."""
    other = write_tiny_lm(tmp_path / "other")
    model: Any = AutoModelForMaskedLM.from_pretrained(other)
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(other)
    both = {"source": f"path:{teacher}", "more": [f"path:{other}"]}
    with pytest.raises(InvalidConfig, match="word table has") as caught:
        distill(DistillConfig.parse(config(teacher, write(tmp_path / "data"), teacher=both)), tmp_path / "work")
    assert caught.value.problems[0].pointer == "/teacher/more/0/source"


@pytest.mark.parametrize("as_teacher", [True, False], ids=["teacher", "student"])
def test_the_student_is_the_start_of_another_job(done: Done, tmp_path: Path, as_teacher: bool) -> None:
    """Guards what it is for: its layers begin a classifier's, and its masked-LM head is in nobody's way."""
    source = f"path:{done.result.student}"
    labelled = write_tiny_dataset(tmp_path / "data", rows=120)
    teacher = source if as_teacher else f"path:{write_tiny_bert(tmp_path / 'teacher')}"
    document = {
        "teacher": {"source": teacher, "finetune": {"epochs": 10, "learning_rate": 3e-3}},
        "dataset": f"path:{labelled}",
        "method": "none",
        "student": 1 if as_teacher else {"source": source},
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": LENGTH},
        "export": [],
        "evaluation": {"hard_samples": False},
    }
    result = distill(DistillConfig.parse(document), tmp_path / "work")
    assert result.teacher.finetuned
    assert result.scorecard.student.layers == (1 if as_teacher else 2)
    assert result.scorecard.student.architecture == "BertForSequenceClassification"


def test_a_bare_encoder_gets_a_head_first(tmp_path: Path) -> None:
    """Guards teachers that were made for something else: their head is new, tied, and begins with what is frequent."""
    folder = write_tiny_lm(tmp_path / "teacher", head=False)
    tune = {"source": f"path:{folder}", "finetune": {"epochs": 6, "learning_rate": 3e-3}}
    lean: dict[str, Any] = {"evaluation": {"baseline": False, "hard_samples": False}, "export": []}
    result = distill(
        DistillConfig.parse(config(folder, write(tmp_path / "data"), teacher=tune, **lean)), tmp_path / "w"
    )
    assert result.teacher.finetuned
    model: Any = AutoModelForMaskedLM.from_pretrained(result.student)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_chinese_texts(tmp_path: Path) -> None:
    """Guards tokens that are single characters."""
    vocabulary = SHARED / "vocab" / "bert-base-chinese-vocab.txt"
    if not vocabulary.is_file():
        pytest.skip(f"no {vocabulary}: LIMBECK_TEST_DATA names the folder of data sets")
    tokens = vocabulary.read_text(encoding="utf-8").splitlines()
    folder = write_tiny_lm(tmp_path / "teacher", tokens=tokens, common="，")
    with gzip.open(SHARED / "tnews" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(next(lines))["text"] for _ in range(240)]
    corpus = tmp_path / "data"
    corpus.mkdir()
    (corpus / "train.txt").write_text("\n".join(rows), encoding="utf-8")
    document = config(
        folder,
        corpus,
        student={"layers": 2, "vocabulary": "trimmed"},
        evaluation={"baseline": False, "hard_samples": False},
    )
    result = distill(DistillConfig.parse(document), tmp_path / "work")
    student = Predictor.load(result.student, threads=1)
    answers = student.predict("今天[MASK]气很好", top_k=3)
    assert len(answers) == 3
    assert all(len(one["token_str"]) >= 1 for one in answers)
    (export,) = result.scorecard.exports
    assert export.label_agreement == 1


@pytest.mark.parametrize(
    ("changes", "pointer", "says"),
    [
        ({"method": "noise"}, "/method", "that are kept"),
        ({"method": "self"}, "/method", "word table"),
        ({"method": "patient"}, "/method", "first token"),
        ({"method": "fastbert"}, "/method", "allowed for masked_lm: auto"),
        ({"method": "dynabert"}, "/method", "labels"),
        ({"training": {"sample_weighting": "entropy"}}, "/training/sample_weighting", "focal"),
        ({"training": {"augmentation": "sentence_shuffle"}}, "/training/augmentation/0", "masked_lm"),
        ({"student": {"architecture": "bilstm"}}, "/student/architecture", "transformer"),
        ({"teacher": {"source": "builtin:minilm-l6", "finetune": False}}, "/teacher/finetune", "no head for masked_lm"),
        ({"task": "regression"}, "/task", "the data set is of masked_lm"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(changes: dict[str, Any], pointer: str, says: str) -> None:
    """Guards hours of training on nothing."""
    document = {"teacher": "builtin:minilm-l6", "dataset": "org/data", "method": "kd", "student": 3}

    def check(document: dict[str, Any]) -> list[tuple[str, str]]:
        parsed = DistillConfig.parse(document)
        found = preflight.check(parsed, teacher=model_facts(builtin_minilm().path), labels=[], task="masked_lm")
        return [(one.pointer, one.detail) for one in found]

    assert check(document) == []
    for method in ("auto", "minilm", "tinybert", "distilbert", "theseus", "none"):
        assert check(document | {"method": method}) == []
    found = check(document | changes)
    assert any(where == pointer and says in detail for where, detail in found), found


def test_a_student_with_another_word_table_is_refused(teacher: Path, tmp_path: Path) -> None:
    """Guards answers that are compared place by place, of two vocabularies of unlike size."""
    other = write_tiny_lm(tmp_path / "other")
    wide = read_config(other)
    wide.vocab_size += 8
    AutoModelForMaskedLM.from_config(wide).save_pretrained(other)
    corpus = write(tmp_path / "data", 40)
    document = config(teacher, corpus, student={"source": f"path:{other}"})
    with pytest.raises(InvalidConfig, match="/student/source: found a model whose word table has 2,008"):
        distill(DistillConfig.parse(document), tmp_path / "work")
    assert family_of("bert").words[1] == TASK.output_layer("bert")
    assert replace(encoded(teacher, 4), cloze=False).answers > encoded(teacher, 4).answers
