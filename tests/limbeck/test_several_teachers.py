"""Several teachers: whole jobs, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from limbeck.config import DistillConfig
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted, InvalidConfig, InvalidModel, TeacherUnfit
from limbeck.latency import one_after_the_other
from limbeck.scorecard import Latency
from tests.limbeck.bench import Recorder
from tests.limbeck.task_data import write
from tests.tiny import vocabulary, write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking")


def test_times_of_several_are_sums() -> None:
    """Guards the speed-up, which holds a student against all that its teachers take."""
    one = Latency(batch_size=32, p50_ms=2.0, p95_ms=3.0, examples_per_second=100.0)
    other = Latency(batch_size=32, p50_ms=5.0, p95_ms=9.0, examples_per_second=25.0)
    (found,) = one_after_the_other([(one,), (other,)])
    assert (found.p50_ms, found.p95_ms, found.examples_per_second) == (7.0, 12.0, 20.0)


def _other_reader(folder: Path) -> Path:
    """An encoder of another size whose tokenizer knows other words."""
    whole = write_tiny_bert(folder / "whole", layers=2, hidden=48, seed=5)
    pieces = [*vocabulary()[:5], *reversed(vocabulary()[5:])]
    own = folder / "own"
    shutil.copytree(whole, own)
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=True)
    tokenizer.save_pretrained(own)
    weights = load_file(own / "model.safetensors")
    table = weights["embeddings.word_embeddings.weight"]
    weights["embeddings.word_embeddings.weight"] = torch.cat([table[:5], table[5:].flip(0)]).contiguous()
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    return own


def _taught(encoder: Path, data: Path, folder: Path, layers: int) -> Path:
    """A fit teacher with its own head: what plain fine-tuning makes of the encoder."""
    document = {
        "teacher": {"source": f"path:{encoder}", "finetune": {"epochs": 4, "learning_rate": 3e-3}},
        "dataset": f"path:{data}",
        "student": layers,
        "method": "none",
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32},
        "evaluation": {"baseline": False, "hard_samples": False},
        "export": [],
    }
    return distill(DistillConfig.parse(document), folder).student


def _with_labels_reversed(folder: Path) -> Path:
    """The same model whose head has its outputs in the other order."""
    config = json.loads((folder / "config.json").read_text())
    names = [config["id2label"][key] for key in sorted(config["id2label"], key=int)][::-1]
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Place:
    """Two fit teachers: of other sizes, tokenizers, and orders of their labels."""

    def __init__(self, folder: Path) -> None:
        self.data = write_tiny_dataset(folder / "data", rows=96, labels=LABELS)
        self.first = _taught(write_tiny_bert(folder / "encoder"), self.data, folder / "first", 4)
        other = _taught(_other_reader(folder), self.data, folder / "second", 2)
        self.second = _with_labels_reversed(other)

    def config(self, **changes: Any) -> DistillConfig:
        document: dict[str, Any] = {
            "teacher": {"source": f"path:{self.first}", "more": [f"path:{self.second}"]},
            "dataset": f"path:{self.data}",
            "student": [1, 3],
            "method": "kd",
            "training": {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32},
            "export": [],
        }
        return DistillConfig.parse({**document, **changes})

    def teachers(self, **changes: Any) -> dict[str, Any]:
        return {"source": f"path:{self.first}", "more": [{"source": f"path:{self.second}", **changes}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def finished(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[DistillResult, Recorder]:
    said = Recorder()
    return distill(place.config(), tmp_path_factory.mktemp("whole"), callbacks=said), said


def _chances(folder: Path, texts: list[str]) -> Tensor:
    """What plain transformers makes of a teacher's folder, in the order of :data:`LABELS`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    coded = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(**coded).logits.softmax(dim=1)
    return found[:, [model.config.label2id[label] for label in LABELS]]


def _split(place: Place, name: str) -> tuple[list[str], Tensor]:
    table = pyarrow.parquet.read_table(place.data / f"{name}.parquet").to_pydict()
    return table["text"], torch.tensor([LABELS.index(label) for label in table["label"]])


def test_the_scorecards_teacher_is_all_of_them_together(place: Place, finished: tuple[DistillResult, Recorder]) -> None:
    """Guards tokens, label orders and the mean on the whole way: plain transformers gets the accuracies claimed for
    each teacher and for both, and the losses that the table of hard samples has for the teacher."""
    result, said = finished
    card = result.scorecard
    texts, truth = _split(place, "test")
    each = [_chances(folder, texts) for folder in (place.first, place.second)]

    def accuracy(chances: Tensor) -> float:
        return float((chances.argmax(dim=1) == truth).float().mean())

    assert [one.name for one in card.teachers] == [f"path:{place.first}", f"path:{place.second}"]
    assert [one.metrics["accuracy"].value for one in card.teachers] == pytest.approx([accuracy(one) for one in each])
    assert card.teacher.metrics["accuracy"].value == pytest.approx(accuracy(sum(each) / 2))
    assert card.retention.value == pytest.approx(
        card.student.metrics["accuracy"].value / card.teacher.metrics["accuracy"].value
    )
    assert card.teacher.parameters == sum(one.parameters for one in card.teachers)
    assert card.teacher.layers == 6
    for place_, latency in enumerate(card.teacher.latency):
        assert latency.p50_ms == pytest.approx(sum(one.latency[place_].p50_ms for one in card.teachers))
    (path,) = (one for one in result.hard_samples if one.suffix == ".parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for split in ("train", "validation"):
        texts, truth = _split(place, split)
        mean = sum(_chances(folder, texts) for folder in (place.first, place.second)) / 2
        wanted = {text: -float(row[label].log()) for text, row, label in zip(texts, mean, truth, strict=True)}
        found = {row["text"]: row["teacher_loss"] for row in rows if row["split"] == split}
        assert found == pytest.approx(wanted, abs=1e-4)
    kinds = [kind for kind, _, _ in said.events]
    assert kinds.count("teacher.evaluated") == kinds.count("teacher.tested") == 2
    assert kinds.count("teachers.combined") == kinds.count("teachers.tested") == 1
    message = next(message for kind, message, _ in said.events if kind == "teachers.combined")
    assert "The 2 teachers together" in message
    assert "inside a teacher" not in message
    assert [one["source"] for one in result.provenance["more_teachers"]] == [f"path:{place.second}"]
    assert result.more_teachers[0].sha256 == result.provenance["more_teachers"][0]["sha256"] != result.teacher.sha256
    assert f"`path:{place.first}` and `path:{place.second}`" in (result.student / "README.md").read_text()


def test_the_student_learns_from_both(place: Place, finished: tuple[DistillResult, Recorder], tmp_path: Path) -> None:
    """Guards against a second teacher that is paid for and not listened to; the baseline has none and stays."""
    alone = distill(place.config(teacher=f"path:{place.first}"), tmp_path / "alone")
    for folder, same in (("student", False), ("baseline", True)):
        one, other = (load_file(getattr(found, folder) / "model.safetensors") for found in (finished[0], alone))
        assert all(torch.equal(value, other[name]) for name, value in one.items()) is same


@pytest.mark.parametrize("stop_after", [6, 14, 22, 30])
def test_an_interrupted_job_ends_with_the_same_weights(
    place: Place, finished: tuple[DistillResult, Recorder], tmp_path: Path, stop_after: int
) -> None:
    """Guards exact resume in every phase that several teachers have more of."""
    with pytest.raises(Interrupted):
        distill(place.config(), tmp_path / "job", callbacks=Recorder(stop_after=stop_after), checkpoint_seconds=0)
    again = distill(place.config(), tmp_path / "job", checkpoint_seconds=0)
    assert again.scorecard.teacher.metrics == finished[0].scorecard.teacher.metrics
    assert again.scorecard.difficulty == finished[0].scorecard.difficulty
    for folder in ("student", "baseline"):
        one, other = (load_file(getattr(found, folder) / "model.safetensors") for found in (finished[0], again))
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"type": "noise", "kind": "random"}},
        {"method": "auto"},
        {"method": "fastbert", "student": {}},
        {"training": {"epochs": 1, "learning_rate": 3e-3, "sample_weighting": "curriculum", "max_length": 32}},
        {"training": {"epochs": 1, "learning_rate": 3e-3, "sample_weighting": "disagreement", "max_length": 32}},
    ],
    ids=["noise", "auto", "fastbert", "curriculum", "disagreement"],
)
def test_methods_and_weightings_take_what_all_answer(place: Place, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Guards what reads the teacher's answers in another place than ``kd`` does, and the label-free confidence."""
    said, teachers = Recorder(), {**place.teachers(), "combine": "confidence"}
    wanted = place.config(teacher=teachers, evaluation={"baseline": False}, **changes)
    result = distill(wanted, tmp_path / "job", callbacks=said)
    assert len(result.scorecard.teachers) == 2
    message = next(message for kind, message, _ in said.events if kind == "teachers.combined")
    assert "by how sure each is" in message
    assert ("inside a teacher is the first one's" in message) is (changes.get("method") == "auto")


def test_a_bare_encoder_among_them_is_fine_tuned_with_the_first_ones_tokenizer(place: Place, tmp_path: Path) -> None:
    """Guards the second teacher's own training, and tokens that are shared with a table of another size."""
    encoder = write_tiny_bert(tmp_path / "encoder", layers=2, hidden=48, seed=7)
    teacher = {
        "source": f"path:{place.first}",
        "more": [{"source": f"path:{encoder}", "finetune": {"epochs": 3, "learning_rate": 3e-3}}],
    }
    said = Recorder()
    result = distill(place.config(teacher=teacher), tmp_path / "job", callbacks=said)
    assert [one.finetuned for one in (result.teacher, *result.more_teachers)] == [False, True]
    assert "Teacher 2, epoch 3 of 3" in " ".join(message for _, message, _ in said.events)
    assert [one.layers for one in result.scorecard.teachers] == [4, 2]


def _refused(place: Place, tmp_path: Path, **changes: Any) -> dict[str, str]:
    with pytest.raises((InvalidConfig, InvalidModel)) as caught:
        distill(place.config(**changes), tmp_path / "job")
    return {one.pointer: one.detail for one in caught.value.problems}


def test_what_several_teachers_cannot_do_is_refused(place: Place, tmp_path: Path) -> None:
    """Guards against hours of training from answers that mean nothing."""
    for method, student in (("theseus", [1, 3]), ("dynabert", [1, 3]), ("none", [1, 3])):
        problems = _refused(place, tmp_path, method=method, student=student)
        assert "take auto or kd" in problems["/teacher/more"]
    assert "options" in _refused(place, tmp_path, method={"type": "fastbert", "alpha": 0}, student={})["/teacher/more"]
    for loss in ("annealing", "logit_standardisation"):
        problems = _refused(place, tmp_path, training={"loss": loss, "max_length": 32})
        assert "allowed: kl, reverse_kl, jsd, dkd, dist" in problems["/training/loss"]
    problems = _refused(place, tmp_path, training={"augmentation": "sentence_shuffle", "max_length": 32})
    assert "is not the first teacher's" in problems["/teacher/more/0/source"]
    missing = {"source": f"path:{place.first}", "more": ["path:/nowhere"]}
    assert _refused(place, tmp_path, teacher=missing) == {"/teacher/more/0/source": "there is no folder /nowhere"}
    problems = _refused(place, tmp_path, training={"max_length": 200})
    assert set(problems) == {"/training/max_length"}


def test_a_teacher_whose_tokenizer_is_no_good_is_named(place: Place, tmp_path: Path) -> None:
    """Guards against a search among several teachers for the one that is meant."""
    file = shutil.copytree(place.first, tmp_path / "other") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 5}))
    teacher = {"source": f"path:{place.first}", "more": [f"path:{file.parent}"]}
    assert "pads with the token 0" in _refused(place, tmp_path, teacher=teacher)["/teacher/more/0/source"]


def _without_tokenizer(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "special_tokens*"))
    return copy


def test_a_model_without_a_vocabulary_is_named(place: Place, tmp_path: Path) -> None:
    """Guards against hours of training on nothing but unknown tokens: transformers makes a tokenizer of no words."""
    bare = _without_tokenizer(place.second, tmp_path / "bare")
    for changes, pointer in (
        ({"teacher": f"path:{bare}", "student": 1}, "/teacher/source"),
        ({"teacher": {"source": f"path:{place.first}", "more": [f"path:{bare}"]}}, "/teacher/more/0/source"),
        ({"teacher": f"path:{place.first}", "student": {"source": f"path:{bare}"}}, "/student/source"),
    ):
        problems = _refused(place, tmp_path, **changes)
        assert list(problems) == [pointer]
        assert "tokenizer knows no word" in problems[pointer]
        assert "tokenizer.json or vocab.txt" in problems[pointer]


def test_weights_that_do_not_load_are_named_before_any_teacher_is_tuned(place: Place, tmp_path: Path) -> None:
    """Guards against the first teacher's hours of fine-tuning for a second one that was never any good."""
    file = shutil.copytree(place.second, tmp_path / "broken") / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] + 8}))
    encoder, said = write_tiny_bert(tmp_path / "encoder"), Recorder()
    teacher = {"source": f"path:{encoder}", "more": [f"path:{file.parent}"]}
    with pytest.raises(InvalidModel, match="weights could not be loaded") as caught:
        distill(place.config(teacher=teacher), tmp_path / "job", callbacks=said)
    assert [one.pointer for one in caught.value.problems] == ["/teacher/more/0/source"]
    assert not any(kind == "epoch.finished" for kind, _, _ in said.events)


def test_two_ranks_ask_all_teachers(place: Place, finished: tuple[DistillResult, Recorder], tmp_path: Path) -> None:
    """Guards against ranks that wait for each other for ever: each model's answers are shared work, in one order."""
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32, "devices": 2}
    said = Recorder()
    result = distill(place.config(training=training), tmp_path / "job", callbacks=said)
    assert result.scorecard.teacher.metrics == finished[0].scorecard.teacher.metrics
    assert [kind for kind, _, _ in said.events].count("teachers.combined") == 1


def test_each_teacher_has_to_have_the_labels_and_to_be_fit(place: Place, tmp_path: Path) -> None:
    """Guards against a mean with a teacher of other labels, or with one that knows nothing."""
    other = write_tiny_bert(tmp_path / "other", labels=("numbers", "testing"))
    teacher = {"source": f"path:{place.first}", "more": [f"path:{other}"]}
    assert "answers with numbers, testing" in _refused(place, tmp_path, teacher=teacher)["/teacher/more/0/source"]
    unfit = write_tiny_bert(tmp_path / "unfit", labels=LABELS)
    weights = load_file(unfit / "model.safetensors")
    weights["classifier.bias"] = torch.tensor([50.0, 0.0])
    save_file(weights, unfit / "model.safetensors", metadata={"format": "pt"})
    teacher = {"source": f"path:{place.first}", "more": [f"path:{unfit}"]}
    with pytest.raises(TeacherUnfit, match="The teacher 2's accuracy on validation is 50"):
        distill(place.config(teacher=teacher), tmp_path / "unfit-job")


@pytest.mark.parametrize("task", ["multi_label", "regression", "token_classification", "question_answering"])
def test_tasks_whose_answers_have_a_mean_are_served(tmp_path: Path, task: str) -> None:
    """Guards each task's rows of logits beside those of another teacher, in training and in the hard samples."""
    data = write(task, tmp_path / "data")
    tune = {"epochs": 12, "learning_rate": 5e-3}
    more = {"source": f"path:{write_tiny_bert(tmp_path / 'more', seed=1)}", "finetune": tune}
    document = {
        "teacher": {"source": f"path:{write_tiny_bert(tmp_path / 'one')}", "finetune": tune, "more": [more]},
        "dataset": f"path:{data}",
        "student": 1,
        "method": "kd",
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3, "max_length": 32},
        "evaluation": {"baseline": False},
        "export": [],
    }
    result = distill(DistillConfig.parse(document), tmp_path / "job")
    assert len(result.scorecard.teachers) == 2
    assert result.scorecard.teacher.metrics != result.scorecard.teachers[0].metrics


@pytest.mark.parametrize(
    ("teacher", "pointer", "detail"),
    [
        ({"source": "org/a", "combine": "confidence"}, "/teacher", "name the others in more"),
        ({"source": "org/a", "more": ["org/b", "org/a"]}, "/teacher", "name each teacher once"),
        (
            {"source": "org/a", "more": [{"source": "builtin:none"}]},
            "/teacher/more/0/source",
            "no such built-in teacher",
        ),
        ({"source": "org/a", "more": ["b"], "combine": "sum"}, "/teacher/combine", "confidence"),
    ],
)
def test_a_configuration_is_refused_at_its_field(teacher: dict[str, Any], pointer: str, detail: str) -> None:
    """Guards the pointers of a list within the teacher."""
    with pytest.raises(InvalidConfig) as caught:
        DistillConfig.parse({"teacher": teacher, "dataset": "org/data"})
    assert {one.pointer for one in caught.value.problems} == {pointer}
    assert detail in caught.value.problems[0].detail


def test_a_rerun_expects_each_teacher_as_it_was(place: Place, tmp_path: Path) -> None:
    """Guards a repeat from a second teacher whose name stays while its weights change."""
    expected = {"teacher/more/0": "0" * 64}
    with pytest.raises(InvalidModel, match="no longer the one that the first run had") as caught:
        distill(place.config(), tmp_path / "job", expected=expected)
    assert caught.value.problems[0].pointer == "/teacher/more/0/source"
