"""What a method asks of models, loss and texts is told before any training, with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from limbeck import preflight
from limbeck.config import DistillConfig, Student
from limbeck.method_checks import unread
from limbeck.methods.auto import Auto
from limbeck.model_folder import ModelFacts, config_facts
from limbeck.preflight import serves
from limbeck.shapes import offers
from limbeck.tasks.base import Task
from limbeck.tasks.embeddings import Embeddings, TextEmbeddings
from limbeck.tasks.masked_lm import MaskedLM
from limbeck.tasks.sequence_classification import SequenceClassification

BERT = ModelFacts("BertModel", "bert", 6, 384, None, False, 0, 0, 512, heads=12, intermediate_size=1536)
ELECTRA = replace(BERT, model_type="electra", embedding_size=384)
OTHER = replace(BERT, layers=4, hidden_size=312)
_MODERN = {
    "model_type": "modernbert",
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
MODERN = config_facts(_MODERN, parameters=0, bytes=0)


def problems(teacher: ModelFacts | None = BERT, source: ModelFacts | None = None, **document: Any) -> dict[str, str]:
    config = DistillConfig.parse({"teacher": "org/teacher", "dataset": "org/data", **document})
    found = preflight.check(config, teacher=teacher, labels=["a", "b", "c"], student=source)
    return {problem.pointer: problem.detail for problem in found}


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({}, False),
        ({"global_attn_every_n_layers": 1}, True),
        ({"layer_types": ["full_attention"] * 6}, True),
        ({"layer_types": ["full_attention", "sliding_attention"] * 3}, False),
    ],
)
def test_additive_theseus_is_refused_where_layers_see_different_things(change: dict[str, Any], alike: bool) -> None:
    """Guards a job that fine-tuned its teacher and ended at the student's first step."""
    facts = config_facts({**_MODERN, **change}, parameters=0, bytes=0)
    assert facts.like_layers is alike
    found = problems(facts, student=3, method={"type": "theseus", "replacing": "additive"})
    assert ("allowed: linear, constant" in found.get("/method/replacing", "")) is not alike
    assert problems(facts, student=3, method="theseus") == {}
    race = Auto(race=True)
    assert problems(facts, student=3, method=race.model_dump()) == {}  # it races without
    served = {
        one.type: serves(one, SequenceClassification(), offers(Student(layers=3), facts)) for one in race.rivals()
    }
    assert served == {"kd": True, "theseus": alike, "none": True}


@pytest.mark.parametrize(
    ("teacher", "student"), [(BERT, {"start": "random"}), (ELECTRA, {"embedding_size": 128})], ids=["random", "table"]
)
def test_theseus_leaves_no_random_or_projected_embeddings_as_they_are(
    teacher: ModelFacts, student: dict[str, Any]
) -> None:
    """Guards a student that is trained between embeddings and a head that nobody ever trained."""
    found = problems(teacher, student={"layers": 3, **student}, method="theseus")
    assert "the teacher's own embeddings and head" in found["/method"]
    assert problems(teacher, student={"layers": 3}, method="theseus") == {}
    assert problems(teacher, student={"layers": 3, **student}, method="kd") == {}


@pytest.mark.parametrize("method", [{"type": "kd", "alpha": 0}, {"type": "distilbert", "soft_weight": 0}])
def test_answers_of_no_weight_are_compared_by_no_loss_and_asked_of_no_second_teacher(method: dict[str, Any]) -> None:
    """Guards options, and a teacher, that would be ignored in silence."""
    assert "no weight" in problems(student=3, method=method, training={"loss": "jsd"})["/training/loss"]
    several = {"teacher": {"source": "org/a", "more": ["org/b"]}, "dataset": "org/data", "method": method}
    (problem,) = preflight.check(DistillConfig.parse(several), teacher=None, labels=["a", "b", "c"])
    assert (problem.pointer, "with these options" in problem.detail) == ("/teacher/more", True)
    assert problems(student=3, method=method) == {}


@pytest.mark.parametrize(
    ("method", "rest", "why"),
    [
        ({}, {"task": "regression"}, "it softens probabilities, and the answers of 'regression' are numbers"),
        ({}, {"task": "embeddings"}, "it softens probabilities, and the answers of 'embeddings' are vectors"),
        ({}, {"training": {"loss": "annealing"}}, "training.loss 'annealing' compares the logits themselves"),
        (
            {},
            {"training": {"loss": "logit_standardisation"}},
            "training.loss 'logit_standardisation' has a temperature of its own",
        ),
        ({"alpha": 0}, {}, "the teacher's answers have no weight"),
        ({"type": "fastbert", "alpha": 0}, {}, "the teacher's answers have no weight"),
        ({"type": "distilbert", "soft_weight": 0}, {}, "the teacher's answers have no weight"),
        ({}, {}, None),
        ({}, {"task": "multi_label"}, None),
    ],
)
def test_a_temperature_that_softens_nothing_is_told_to_whoever_chose_it(
    method: dict[str, Any], rest: dict[str, Any], why: str | None
) -> None:
    """Guards against an option that is accepted and changes nothing, and against telling those who left it alone."""
    method = {"type": "kd", **method}

    def told(*, written: bool, **chosen: float) -> list[str]:
        document = {"teacher": "org/teacher", "dataset": "org/data", "method": method | chosen, **rest}
        config = DistillConfig.parse(document)
        if not written:  # as a job reads it
            config = DistillConfig.parse(config.model_dump(mode="json"), stored=True)
        return [*unread(config, config.task or SequenceClassification(), written=written)]

    default = {"distilbert": 2, "fastbert": 4}.get(method["type"], 3)
    assert told(written=True) == told(written=False) == told(written=False, temperature=default) == []
    for temperature in (8, default):
        expected = [] if why is None else [f"method.temperature ({temperature}) is not used: {why}."]
        assert told(written=True, temperature=temperature) == expected
        assert temperature == default or told(written=False, temperature=temperature) == expected


@pytest.mark.parametrize(
    ("method", "task", "told"),
    [
        ({"type": "kd", "alpha": 0.7}, TextEmbeddings(), "method.alpha (0.7) is not used: texts without scores"),
        ({"type": "kd", "alpha": 0.7}, Embeddings(), None),
        (
            {"type": "distilbert", "answers": "all"},
            SequenceClassification(),
            "method.answers ('all') is not used: it is",
        ),
        ({"type": "distilbert", "answers": "all"}, MaskedLM(), None),
        (
            {"type": "fastbert", "floor": 0.9, "max_loss": 1},
            SequenceClassification(),
            "method.max_loss (1) is not used",
        ),
        ({"type": "fastbert", "max_loss": 1}, SequenceClassification(), None),
    ],
)
def test_other_options_that_are_not_read_are_told_as_well(method: dict[str, Any], task: Task, told: str | None) -> None:
    config = DistillConfig.parse({"teacher": "org/teacher", "dataset": "org/data", "method": method})
    for written in (True, False):
        found = [*unread(config, task, written=written)]
        assert len(found) == (told is not None)
        assert told is None or found[0].startswith(told)


@pytest.mark.parametrize("method", ["theseus", "none"])
def test_a_loss_that_nobody_computes_is_refused(method: str) -> None:
    """Guards an option that would be ignored in silence: these learn from labels alone."""
    assert "labels alone" in problems(student=3, method=method, training={"loss": "jsd"})["/training/loss"]
    assert problems(student=3, method=method) == {}


@pytest.mark.parametrize(
    ("method", "source", "words"),
    [
        ("patient", OTHER, "the width of the teacher"),
        ("distilbert", OTHER, "the width of the teacher"),
        ("tinybert", replace(OTHER, heads=6), "as many attention heads"),
        ("fastbert", replace(BERT, model_type="deberta-v2"), "layers that can be run one by one"),
        ("minilm", MODERN, "queries, keys and values"),
    ],
)
def test_a_students_source_is_compared_with_the_teacher_before_it_is_trained(
    method: str, source: ModelFacts, words: str
) -> None:
    """Guards a refusal at the student's first step, hours after the teacher was fine-tuned."""
    wanted: dict[str, Any] = {"student": {"source": "org/student"}, "method": method}
    found = problems(BERT, source, **wanted)
    assert list(found) == ["/method"]
    assert words in found["/method"]
    assert problems(BERT, BERT, **wanted) == {}
    assert problems(BERT, None, **wanted) == {}  # it is not known yet: the method looks again


def test_relation_heads_have_to_divide_the_widths_of_both() -> None:
    """Guards the same for ``minilm``'s own option."""
    method = {"type": "minilm", "relation_heads": 9}
    assert "384" in problems(student=3, method=method)["/method/relation_heads"]
    narrow = {"layers": 3, "hidden_size": 192}
    assert problems(student=narrow, method={"type": "minilm", "relation_heads": 48}) == {}
    assert (
        "192 and 384"
        in problems(student=narrow, method={"type": "minilm", "relation_heads": 128})["/method/relation_heads"]
    )
    fewer = {"layers": 3, "prune": {"heads": 0.5}}  # 6 heads of 32
    assert problems(student=fewer, method={"type": "minilm", "relation_heads": 12}) == {}
    assert (
        "192 and 384"
        in problems(student=fewer, method={"type": "minilm", "relation_heads": 128})["/method/relation_heads"]
    )


def test_what_a_source_offers_counts_as_the_teachers_until_it_is_known() -> None:
    student = DistillConfig.parse({"teacher": "a/b", "dataset": "a/b", "student": {"source": "a/c"}}).student
    assert offers(student, BERT) == offers(student, BERT, BERT)
    assert offers(student, BERT, OTHER) == offers(student, BERT) - {"same_width"}


@pytest.mark.parametrize("loss", ["dkd", "annealing"])
@pytest.mark.parametrize("method", ["fastbert", "dynabert"])
def test_no_label_reaches_a_part_that_learns_from_answers_alone(method: str, loss: str) -> None:
    """Guards branches and sub-networks, which are documented to read no label, against a loss that brings them in."""
    found = problems(method=method, training={"loss": loss})
    assert "reads the true labels" in found["/training/loss"]
    assert problems(method=method, training={"loss": "jsd"}) == {}
    assert problems(method="kd", training={"loss": loss}) == {}


def test_random_noise_is_refused_where_classes_are_places() -> None:
    """Guards the control: with start and end exchanged token by token it would know half of what the teacher does."""
    method, task = {"type": "noise", "kind": "random"}, "question_answering"
    assert "allowed: permuted" in problems(method=method, task=task)["/method/kind"]
    assert problems(method="noise", task=task) == {}
    assert problems(method=method) == {}
