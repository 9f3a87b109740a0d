"""What methods match inside their models: beside the teacher itself, in parts, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.batches import Batch, Collator
from limbeck.criterion import Criterion
from limbeck.errors import InvalidConfig
from limbeck.gradients import Cut, backward
from limbeck.masked_words import MaskedWords
from limbeck.methods.auto import Auto
from limbeck.methods.base import Method, Models, SpecialTokens, Term
from limbeck.methods.distilbert import DistilBERT
from limbeck.methods.dynabert import DynaBERT
from limbeck.methods.minilm import MiniLM, relation_heads
from limbeck.methods.patient import Patient
from limbeck.methods.tinybert import TinyBERT
from limbeck.phases import teacher_of
from limbeck.recurrent import RecurrentConfig, RecurrentForSequenceClassification
from limbeck.tasks.question_answering import QuestionAnswering
from tests.limbeck.bench import TASK, Bench

CPU = torch.device("cpu")
TOKENS = SpecialTokens(4, (0, 1, 2, 3, 4))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"), rows=16)


@pytest.mark.parametrize(
    "method", [Patient(), TinyBERT(), MiniLM(), Auto(), DistilBERT(words_weight=0)], ids=lambda method: method.type
)
def test_a_student_that_is_its_teacher_has_nothing_to_match(bench: Bench, method: Method) -> None:
    """Step-0 facts: every term that compares the inside is 0 where both are the same."""
    teacher = bench.teacher()
    objective = method.build(method.parts()[0], bench.models(teacher), Criterion(TASK))
    batch = Collator(bench.train, 0, CPU, torch.zeros(len(bench.train), 3))(np.arange(6))
    terms = objective.losses(batch, 0, 10)
    inside = {name for name in terms if name.split("_")[0] in ("hidden", "attention", "relation", "state", "cosine")}
    assert inside
    for name in inside:
        assert terms[name].value.item() == pytest.approx(0, abs=1e-5), name


@pytest.mark.parametrize("method", [Patient(), TinyBERT(), MiniLM(), Auto(), DistilBERT()], ids=lambda m: m.type)
def test_the_teacher_gets_no_gradient_and_the_student_does(bench: Bench, method: Method) -> None:
    teacher = bench.teacher()
    given = Models(bench.student(), lambda: teacher, (1, 3), lambda: TOKENS)
    objective = method.build(method.parts()[0], given, Criterion(TASK))
    batch = Collator(bench.train, 0, CPU, torch.zeros(len(bench.train), 3))(np.arange(6))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    sum(term.value * term.weight for term in objective.losses(batch, 0, 10).values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    moved = [name for name, p in given.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any("query" in name for name in moved)
    assert any("word_embeddings" in name for name in moved)


@pytest.mark.parametrize(
    "method", [Patient(), TinyBERT(), MiniLM(), Auto(), DistilBERT(), DynaBERT()], ids=lambda m: m.type
)
def test_the_teacher_answers_without_dropout_while_the_student_trains(bench: Bench, method: Method) -> None:
    """Guards a teacher that is part of what an objective puts into training mode: its states would be other ones in
    every step, and no student could have them."""
    loaded: list[Any] = []

    def load() -> Any:
        loaded.append(bench.teacher())
        return loaded[-1]

    given = Models(bench.student(), load, (1, 3), lambda: TOKENS, importance=bench.importance)
    for part in method.parts():
        objective = method.build(part, given, Criterion(TASK, teacher=load))
        objective.train_mode()
        assert any(module.training for module in objective.module.modules())
        assert not any(module.training for teacher in loaded for module in teacher.modules())
        fixed = getattr(objective, "teacher", None)  # of dynabert's second part: what the first one trained
        network = getattr(fixed, "network", fixed)
        assert network is None or not network.training
    assert loaded


def test_a_teacher_is_loaded_frozen_and_without_dropout(bench: Bench, tmp_path: Path) -> None:
    """Guards what every method that looks inside is given: a model is built in training mode."""
    job: Any = SimpleNamespace(blueprint=bench.blueprint)
    teacher = teacher_of(bench.run(tmp_path, bench.phase()), job, bench.teacher().state_dict())()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_relation_heads_divide_both_widths(bench: Bench) -> None:
    class Width:
        def __init__(self, hidden_size: int, heads: int) -> None:
            self.hidden_size, self.num_attention_heads = hidden_size, heads

    assert relation_heads(None, Width(384, 12), Width(768, 12)) == 12
    assert relation_heads(None, Width(312, 12), Width(768, 12)) == 12
    assert relation_heads(None, Width(256, 8), Width(768, 12)) == 4
    assert relation_heads(64, Width(256, 8), Width(768, 12)) == 64
    with pytest.raises(InvalidConfig, match="relation_heads: found 5; it has to divide the widths 384 and 768"):
        relation_heads(5, Width(384, 12), Width(768, 12))


def test_masked_words_follow_berts_rule(bench: Bench) -> None:
    """15 % of the words, of which 80 % are masked and 10 % exchanged; special tokens and padding never."""
    words = MaskedWords(bench.student(), TOKENS, seed=0)
    ids = torch.full((200, 200), 50)
    ids[:, 0], ids[:, 150:] = 2, 0
    texts = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    changed, guessed = words.masked(Batch(texts, torch.zeros(200), places=np.arange(200)), 7)
    assert not guessed[:, 0].any()
    assert not guessed[:, 150:].any()
    assert guessed[:, 1:150].float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (changed[guessed] == TOKENS.mask).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (changed[guessed] == 50).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(changed[~guessed], ids[~guessed])


def test_patient_refuses_a_student_of_one_layer_and_a_map_that_does_not_fit() -> None:
    def found(method: Patient, student: int) -> list[str]:
        return [one.pointer for one in method.problems(classes=3, teacher_layers=6, student_layers=student)]

    assert found(Patient(), 3) == []
    assert found(Patient(), 1) == ["/method"]
    assert found(Patient(layer_map=(0,)), 2) == []
    assert found(Patient(layer_map=(1, 6)), 3) == ["/method/layer_map"]
    assert found(Patient(layer_map=(1, 9)), 3) == ["/method/layer_map"]
    assert found(Patient(layer_map=(1,)), 3) == ["/method/layer_map"]


def test_a_student_deeper_than_its_teacher_is_refused_where_each_layer_has_its_own_teacher() -> None:
    """Guards ``student.source``: a map to layers before the first one reads the last ones instead, and says nothing."""

    def found(method: Method) -> list[str]:
        return [one.detail for one in method.problems(classes=3, teacher_layers=6, student_layers=8)]

    for method in (Patient(), Patient(layer_map="last"), TinyBERT()):
        (detail,) = found(method)
        assert "a student of 8 layers, each of which learns from one of the teacher's 6" in detail
    assert found(Patient(layer_map=(0, 0, 1, 2, 3, 4, 5))) == []
    assert found(MiniLM()) == found(Auto()) == []


def test_auto_matches_a_student_deeper_than_its_teacher(bench: Bench) -> None:
    """Guards the default, which refuses nothing: the states before the first layer serve the first of the student's."""
    deeper = bench.teacher()
    shallow = bench.student().eval().requires_grad_(False)
    objective = Auto().build(Auto().parts()[0], Models(deeper, lambda: shallow), Criterion(TASK))
    batch = Collator(bench.train, 0, CPU, torch.zeros(len(bench.train), 3))(np.arange(6))
    assert all(bool(torch.isfinite(term.value)) for term in objective.losses(batch, 0, 10).values())


@pytest.mark.parametrize("method", [Patient(), TinyBERT(), MiniLM(), Auto(), DistilBERT()], ids=lambda m: m.type)
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(bench: Bench, tmp_path: Path, method: Method) -> None:
    """Guards each term's unit: a mean over tokens, or pairs of them, weighed by examples favours short texts. And words
    that are masked otherwise when their text comes in another part of the batch."""
    objective = method.build(method.parts()[0], bench.models(), Criterion(TASK))
    objective.module.eval()
    run, found = bench.run(tmp_path, bench.phase(method)), []
    collate = Collator(bench.train, 0, CPU, torch.zeros(len(bench.train), 3))
    for accumulation in (1, 3):
        objective.module.zero_grad()
        sums = backward(objective, collate, np.array([0, 11, 5, 14, 2, 9, 7, 3]), Cut(accumulation), 0, 1, run)
        gradients = {name: p.grad.clone() for name, p in objective.module.named_parameters() if p.grad is not None}
        found.append(gradients | {f"the {name}": value for name, value in sums.items()})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_auto_says_what_it_leaves_out() -> None:
    assert list(Auto().remarks(teacher="bert", student="bert")) == []
    assert "hidden states are matched alone" in next(iter(Auto().remarks(teacher="modernbert", student="modernbert")))
    assert "no layers to match" in next(iter(Auto().remarks(teacher="bert", student="limbeck-recurrent")))


def test_auto_teaches_a_student_without_layers_by_its_answers(bench: Bench) -> None:
    """Guards the default: whoever asks for a BiLSTM and names no method has no layers to match."""
    config = RecurrentConfig(vocab_size=2_000, embedding_size=8, hidden_size=8, num_labels=3)
    recurrent = RecurrentForSequenceClassification(config)
    objective = Auto().build(Auto().parts()[0], bench.models(recurrent), Criterion(TASK))
    batch = Collator(bench.train, 0, CPU, torch.zeros(len(bench.train), 3))(np.arange(6))
    assert set(objective.losses(batch, 0, 10)) == {"soft_loss", "hard_loss"}


def test_auto_answers_beside_the_inside_where_answers_are_classes_and_after_it_elsewhere(bench: Bench) -> None:
    """Guards the first third of the default, and its losses that change on the way: once over all steps that answer."""
    inside, answers = Auto().parts()
    batch = Collator(bench.train, 0, CPU, torch.zeros(len(bench.train), 3))(np.arange(6))
    matched = {"hidden_loss", "relation_loss"}

    class Watched(Criterion):
        def soft(self, logits: Tensor, batch: Batch, temperature: float, **named: Any) -> Term:
            seen.append(named["progress"])
            return super().soft(logits, batch, temperature, **named)

    seen: list[float] = []
    for part in (inside, answers):
        objective = Auto().build(part, bench.models(), Watched(TASK))
        assert {"soft_loss", "hard_loss"} == set(objective.losses(batch, 5, 10)) - matched
    assert seen == pytest.approx([1 / 6, 2 / 3])

    places = QuestionAnswering()
    assert set(Auto().build(inside, bench.models(), Criterion(places)).losses(batch, 5, 10)) == matched
    after = Auto().build(answers, bench.models(), Watched(places))
    assert (after.before, after.share) == (0, 1)  # type: ignore[attr-defined]
