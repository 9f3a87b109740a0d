"""What is known to be wrong before any training is refused with the field to change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from limbeck import preflight
from limbeck.config import DistillConfig, Teacher
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.model_folder import model_facts
from limbeck.soft_loss import JensenShannon, KullbackLeibler
from limbeck.sources import teacher_folder
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.weighting import Focal
from tests.tiny import write_tiny_bert


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert", layers=3, labels=["gui", "networking"])


def _problems(**changes: object) -> dict[str, str]:
    document = {"teacher": "builtin:minilm-l6", "dataset": "someone/data", **changes}
    teacher = model_facts(teacher_folder(Teacher(source="builtin:minilm-l6")).path)
    found = preflight.check(DistillConfig.parse(document), teacher=teacher, labels=["a", "b"])
    return {problem.pointer: problem.detail for problem in found}


def test_preflight_names_the_field_and_what_is_allowed() -> None:
    assert _problems(student=3) == {}
    assert "1 to 6 are allowed" in _problems(student=7)["/student/layers"]
    assert "the layers 0 to 5" in _problems(student={"layers": [1, 6]})["/student/layers"]
    assert "at most 512 tokens" in _problems(training={"max_length": 513})["/training/max_length"]
    finetune = {"source": "builtin:minilm-l6", "finetune": False}
    assert "has no head to use" in _problems(teacher=finetune)["/teacher/finetune"]


def test_a_task_that_built_in_data_are_not_of_is_refused() -> None:
    """Guards against a job that is taken, and fails once it has read its data."""
    document = {"teacher": "builtin:minilm-l6", "dataset": "builtin:stdlib-docstrings", "task": "question_answering"}
    found = preflight.check(DistillConfig.parse(document), teacher=None, labels=None, task="sequence_classification")
    assert [one.pointer for one in found] == ["/task"]
    for task in ("multi_label", "embeddings", "masked_lm"):
        config = DistillConfig.parse({**document, "task": task, "method": "kd"})
        assert not preflight.check(config, teacher=None, labels=None, task="sequence_classification")


def test_labels_that_only_their_order_tells_are_noted(tiny: Path) -> None:
    """Guards a teacher whose LABEL_0 is the data's second label: after hours it would be "nothing to learn from"."""
    facts = model_facts(tiny)
    config = DistillConfig.parse({"teacher": "org/a", "dataset": "someone/data"})

    def noted(names: tuple[str, ...], labels: list[str], **changes: Any) -> list[str]:
        teachers = [replace(facts, labels=names)]
        chosen = config.model_copy(update=changes)
        return list(preflight.notes(chosen, "sequence_classification", False, teachers=teachers, labels=labels))

    (note,) = noted(("LABEL_0", "LABEL_1"), ["bad", "good"])
    assert note.startswith("The labels of org/a are")
    assert note.endswith("'LABEL_0' is 'bad', 'LABEL_1' is 'good'.")
    assert noted(("bad", "good"), ["0", "1"])[0].endswith("'bad' is '0', 'good' is '1'.")
    assert noted(("good", "bad"), ["bad", "good"]) == noted(("cat", "dog"), ["bad", "good"]) == []
    assert noted(("LABEL_0", "LABEL_1"), ["bad", "good"], teacher=Teacher(source="org/a", finetune=True)) == []


class NeedsLayers(KnowledgeDistillation):
    needs: ClassVar[frozenset[str]] = frozenset({"layers", "teacher_layers"})


@pytest.mark.parametrize(
    ("student", "missing"),
    [
        ({"layers": 3}, []),
        ({"preset": "T3-small"}, []),
        ({"hidden_size": 192}, ["the teacher's own shape"]),
        ({"prune": 0.5}, ["the teacher's own shape"]),
        ({"source": "builtin:minilm-l6"}, ["the teacher's own shape"]),
        ({"architecture": "bilstm"}, ["layers as a transformer"]),
    ],
)
def test_a_student_that_a_method_cannot_serve_is_refused(student: dict[str, Any], missing: list[str]) -> None:
    """A method that hooks layers would fail in the middle of a job, or match layers of different widths."""
    teacher = model_facts(teacher_folder(Teacher(source="builtin:minilm-l6")).path)
    document = {"teacher": "builtin:minilm-l6", "dataset": "someone/data", "student": student}
    config = DistillConfig.parse(document)
    assert preflight.check(config, teacher=teacher, labels=["a", "b"], student=teacher) == ()
    needy = config.model_copy(update={"method": NeedsLayers()})
    found = preflight.check(needy, teacher=teacher, labels=["a", "b"], student=teacher)
    assert [problem.pointer for problem in found] == ["/method"] * len(missing)
    assert all(words in problem.detail for words, problem in zip(missing, found, strict=True))


@pytest.mark.parametrize("task", ["token_classification", "question_answering", "masked_lm"])
def test_a_recurrent_student_of_a_task_that_asks_for_tokens_is_refused(tiny: Path, task: str) -> None:
    """Guards against a job that is taken, and fails once it has read its data."""
    document = {
        "teacher": f"path:{tiny}",
        "dataset": "someone/data",
        "task": task,
        "student": {"architecture": "bigru"},
    }
    (problem,) = preflight.check(
        DistillConfig.parse({**document, "method": "kd"}), teacher=model_facts(tiny), labels=None
    )
    assert problem.pointer == "/student/architecture"
    assert "answers for a text as a whole" in problem.detail


def test_preflight_refuses_a_head_that_answers_with_other_labels(tiny: Path) -> None:
    config = DistillConfig.parse({"teacher": f"path:{tiny}", "dataset": "someone/data"})
    facts = model_facts(tiny)
    assert preflight.check(config, teacher=facts, labels=["networking", "gui"]) == ()
    (problem,) = preflight.check(config, teacher=facts, labels=["positive", "negative"])
    assert problem.pointer == "/teacher/source"


def test_preflight_refuses_a_family_whose_layers_cannot_be_taken_apart(tiny: Path) -> None:
    """A job would wait its turn, fetch gigabytes, and only then fail."""
    config = DistillConfig.parse({"teacher": "someone/gpt", "dataset": "someone/data"})
    facts = replace(model_facts(tiny), model_type="gpt2")
    (problem,) = preflight.check(config, teacher=facts, labels=None)
    assert problem.pointer == "/teacher/source"
    assert "'gpt2'; allowed: bert" in problem.detail


def _objective_problems(labels: list[str] | None = None, **changes: object) -> dict[str, str]:
    document = {"teacher": "builtin:minilm-l6", "dataset": "someone/data", **changes}
    found = preflight.check(DistillConfig.parse(document), teacher=None, labels=labels)
    return {problem.pointer: problem.detail for problem in found}


@pytest.mark.parametrize("loss", ["dkd", "dist", "logit_standardisation"])
def test_a_loss_that_says_nothing_about_two_classes_is_refused_with_the_reason(loss: str) -> None:
    """Guards against hours of training on a constant."""
    found = _objective_problems(["a", "b"], training={"loss": loss})
    assert "it needs three" in found["/training/loss"]
    assert _objective_problems(["a", "b", "c"], training={"loss": loss}) == {}
    assert _objective_problems(None, training={"loss": loss}) == {}


@pytest.mark.parametrize("loss", ["kl", "reverse_kl", "jsd", "annealing"])
def test_the_other_losses_serve_two_classes(loss: str) -> None:
    assert _objective_problems(["a", "b"], training={"loss": loss}) == {}


def test_without_a_teacher_neither_its_loss_nor_its_weights_are_left_out_silently() -> None:
    found = _objective_problems(method="none", training={"loss": "jsd", "sample_weighting": "entropy"})
    assert "has no teacher" in found["/training/loss"]
    assert "allowed: 'focal'" in found["/training/sample_weighting"]
    assert _objective_problems(method="none", training={"sample_weighting": "focal"}) == {}


@pytest.mark.parametrize("kind", ["binary", "value"])
def test_answers_that_are_no_choice_among_classes_have_only_the_plain_loss(kind: str) -> None:
    class Other(SequenceClassification):
        pass

    Other.kind = kind  # type: ignore[assignment]
    (problem,) = JensenShannon().problems(task=Other(), classes=5)
    assert problem.pointer == "/training/loss"
    assert "allowed: 'kl'" in problem.detail
    assert not list(KullbackLeibler().problems(task=Other(), classes=5))
    numbers = list(Focal().problems(task=Other(), uses_teacher=True, method="kd"))
    assert bool(numbers) == (kind == "value")
