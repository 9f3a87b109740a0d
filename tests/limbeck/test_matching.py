"""What is matched inside the models: the losses against constants, what is captured, maps, and what padding may do."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from limbeck.batches import Batch, Collator
from limbeck.capture import captured
from limbeck.criterion import Criterion
from limbeck.errors import Diverged, InvalidConfig
from limbeck.gradients import Cut, backward
from limbeck.masked_words import MaskedWords
from limbeck.matching import (
    attention_distance,
    cosine_distance,
    hidden_distance,
    normalised_distance,
    relation_divergence,
    uniform_map,
)
from limbeck.methods.auto import Auto
from limbeck.methods.base import Method, Models, SpecialTokens, Term
from limbeck.methods.distilbert import DistilBERT
from limbeck.methods.dynabert import DynaBERT
from limbeck.methods.minilm import MiniLM, Relations, relation_heads
from limbeck.methods.patient import Patient
from limbeck.methods.tinybert import TinyBERT
from limbeck.phases import teacher_of
from limbeck.recurrent import RecurrentConfig, RecurrentForSequenceClassification
from limbeck.tasks.question_answering import QuestionAnswering
from tests.families import FAMILIES, write_tiny
from tests.limbeck.bench import TASK, Bench

CPU = torch.device("cpu")
TOKENS = SpecialTokens(4, (0, 1, 2, 3, 4))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"), rows=16)


def test_the_uniform_map_ends_with_the_last_layer() -> None:
    """TinyBERT's map: k = N / M, attention of layer i from i·k + k - 1 (from 0)."""
    assert uniform_map(4, 12) == (2, 5, 8, 11)
    assert uniform_map(3, 6) == (1, 3, 5)
    assert uniform_map(6, 6) == (0, 1, 2, 3, 4, 5)
    assert uniform_map(2, 5) == (1, 4)


def test_patients_maps_are_those_of_the_paper() -> None:
    assert Patient().teacher_places(6, 12) == (2, 4, 6, 8, 10)
    assert Patient().teacher_places(3, 12) == (4, 8)
    assert Patient(layer_map="last").teacher_places(6, 12) == (7, 8, 9, 10, 11)
    assert Patient(layer_map=(0, 4)).teacher_places(3, 6) == (1, 5)


def test_normalised_distance_by_hand() -> None:
    """Right angles are 2 apart, whatever the lengths; the mean is over examples and not over the width."""
    student = torch.tensor([[3.0, 0.0], [0.0, 5.0], [3.0, 4.0]])
    teacher = torch.tensor([[0.0, 7.0], [0.0, 1.0], [4.0, 3.0]])  # a cosine of 24/25 in the third
    assert normalised_distance(student, teacher).item() == pytest.approx((2 + 0 + 2 / 25) / 3)


def test_hidden_and_cosine_distance_by_hand_leave_padding_out() -> None:
    student = torch.tensor([[[2.0, 1.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
    mask = torch.tensor([[1, 0]])
    assert hidden_distance(student, teacher, mask).item() == pytest.approx((1 + 4) / 2)
    assert cosine_distance(student, teacher, mask).item() == pytest.approx(1 - 5 / math.sqrt(5 * 10))


@pytest.mark.parametrize("distance", [hidden_distance, cosine_distance, normalised_distance])
def test_states_that_only_broadcast_are_refused(distance: Any) -> None:
    """Guards against one text's states being matched with every text's."""
    with pytest.raises(ValueError, match=r"same shape; found \(4, 3, 8\) and \(1, 3, 8\)"):
        distance(
            torch.zeros(4, 3, 8), torch.zeros(1, 3, 8), *[torch.ones(4, 3)] * (distance is not normalised_distance)
        )


def test_projections_that_do_not_fit_are_refused() -> None:
    """Guards against one text's attention for every text's, heads that cut through a number of tokens, and NaN."""
    four, one = torch.zeros(4, 3, 6), torch.zeros(1, 3, 6)
    with pytest.raises(ValueError, match="same shape"):
        attention_distance((four, four), (one, one), torch.ones(4, 3), 2)
    with pytest.raises(ValueError, match="4 heads do not divide a width of 6"):
        relation_divergence(torch.zeros(4, 4, 6), torch.zeros(4, 4, 6), torch.ones(4, 4), 4)
    with pytest.raises(Diverged, match="captured states"):
        relation_divergence(four, torch.full_like(four, math.nan), torch.ones(4, 3), 2)


def test_attention_distance_by_hand() -> None:
    """Scores are q·k/√d before any softmax: one head of width 4, so that √d = 2."""
    queries = torch.tensor([[[2.0, 0, 0, 0], [0, 2.0, 0, 0]]])
    keys = torch.tensor([[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]])
    zero = torch.zeros_like(queries)
    found = attention_distance((queries, keys), (zero, zero), torch.ones(1, 2), heads=1)
    assert found.item() == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert attention_distance((queries, keys), (queries, keys), torch.ones(1, 2), heads=1).item() == 0


def test_relation_divergence_by_hand() -> None:
    """Two tokens of width 1. The teacher's are [1, 0]: relations softmax([1, 0]) and softmax([0, 0]); the student's are
    [0, 0]: all one half. KL(teacher ‖ student) of the first row is ln 2 - H(0.731), of the second 0."""
    teacher, student = torch.tensor([[[1.0], [0.0]]]), torch.zeros(1, 2, 1)
    p = 1 / (1 + math.exp(-1))
    by_hand = (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)) / 2
    assert relation_divergence(student, teacher, torch.ones(1, 2), 1).item() == pytest.approx(by_hand, abs=1e-6)


def test_attention_distance_of_two_heads_by_hand() -> None:
    """Guards the cut into heads and √d, which a single head does not show. Two tokens of width 4: two heads of 2, so
    that √d = √2. Head 1 has q = (1, 2), (0, 1) and k = (1, 0), (1, 1): scores 1, 3 | 0, 1; head 2 has q = (1, 0),
    (2, 1) and k = (0, 1), (1, 1): scores 0, 1 | 1, 3, each over √2. Against zeros the squares are 1 + 9 + 0 + 1 and
    0 + 1 + 1 + 9, halved; their mean over 2 heads and 4 pairs is 22 / 2 / 8."""
    queries = torch.tensor([[[1.0, 2, 1, 0], [0, 1, 2, 1]]])
    keys = torch.tensor([[[1.0, 0, 0, 1], [1, 1, 1, 1]]])
    zero = torch.zeros_like(queries)
    found = attention_distance((queries, keys), (zero, zero), torch.ones(1, 2), heads=2)
    assert found.item() == pytest.approx(22 / 16)


# Two tokens of width 4, so two heads of 2. For each head and token the scores of both tokens, before / √2:
# queries 5, 2 | 2, 1 and 1, 2 | 2, 5; keys 1, 1 | 1, 2 twice; values 4, 0 | 0, 4 and 2, 1 | 1, 1. With f(d) the
# divergence ln 2 - H(1 / (1 + exp(-d / √2))) of a row whose scores are d apart from one half each, the means are
# (f(3) + f(1)) / 2, f(1) / 2 and (2 · f(4) + f(1)) / 4: f(1) = 0.0587998, f(3) = 0.3528617, f(4) = 0.4778756.
RELATED = {
    "queries": ([[1.0, 2, 1, 0], [0, 1, 2, 1]], 0.2058308),
    "keys": ([[1.0, 0, 0, 1], [1, 1, 1, 1]], 0.0293999),
    "values": ([[2.0, 0, 1, 1], [0, 2, 0, 1]], 0.2536378),
}


@pytest.mark.parametrize("name", RELATED)
def test_relation_divergence_of_two_heads_by_hand(name: str) -> None:
    """Guards the cut into heads and √d of a head, which a single head of width 1 does not show."""
    teacher, by_hand = torch.tensor([RELATED[name][0]]), RELATED[name][1]
    found = relation_divergence(torch.zeros_like(teacher), teacher, torch.ones(1, 2), heads=2)
    assert found.item() == pytest.approx(by_hand, abs=1e-6)


class Made:
    """Stands for what was captured of a model, whose only layer that may be asked is ``layer``."""

    def __init__(self, layer: int, projections: list[Tensor]) -> None:
        self.layer, self.made = layer, projections

    def projections(self, layer: int) -> list[Tensor]:
        assert layer == self.layer
        return self.made


def test_relations_are_the_mean_of_queries_keys_and_values(bench: Bench) -> None:
    """Guards three that count alike, each with its own: (0.2058308 + 0.0293999 + 0.2536378) / 3, of the last layers."""
    relations = Relations(models(bench), None, None)
    teacher = [torch.tensor([values]) for values, _ in RELATED.values()]
    ours, theirs = Made(1, [torch.zeros_like(one) for one in teacher]), Made(3, teacher)
    batch = Batch({"attention_mask": torch.ones(1, 2)}, torch.zeros(1))
    found = relations.relations(ours, theirs, batch)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(0.1629561, abs=1e-6)


def test_padding_changes_none_of_the_losses() -> None:
    """Guards against padded queries, keys or states that are matched: TinyBERT's published code does so."""
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 5, 8, generator=draw) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    for loss in (
        lambda s, t, m: hidden_distance(s, t, m),
        lambda s, t, m: cosine_distance(s, t, m),
        lambda s, t, m: relation_divergence(s, t, m, 2),
        lambda s, t, m: attention_distance((s, s), (t, t), m, 2),
    ):
        whole = loss(ours, theirs, mask)
        longer = [torch.cat([one, 99 * torch.ones(2, 3, 8)], dim=1) for one in (ours, theirs)]
        padded = loss(*longer, torch.cat([mask, torch.zeros(2, 3, dtype=mask.dtype)], dim=1))
        assert torch.isfinite(whole)
        torch.testing.assert_close(padded, whole)


def test_scores_are_multiplied_in_float32_where_the_models_run_in_bfloat16() -> None:
    """Guards the precision on a GPU: autocast would multiply the scores in bfloat16, whose rounding made the relation
    loss of two like models eleven times as large."""
    draw = torch.Generator().manual_seed(0)
    ours = 3 * torch.randn(4, 32, 384, generator=draw)
    theirs = ours + 0.02 * torch.randn(ours.shape, generator=draw)
    mask = torch.ones(4, 32, dtype=torch.long)
    for loss in (
        lambda: relation_divergence(ours, theirs, mask, 12),
        lambda: attention_distance((ours, ours), (theirs, theirs), mask, 12),
    ):
        whole = loss()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(loss(), whole)


def test_relations_of_padded_tokens_have_no_gradient_that_is_not_a_number() -> None:
    """Guards log(0) - log(0) at masked keys, whose gradient would be NaN though the loss is not."""
    student = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    relation_divergence(student, torch.ones(1, 3, 4), torch.tensor([[1, 1, 0]]), 2).backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_states_are_those_that_transformers_gives(family: str, tmp_path: Path) -> None:
    """Guards a hook on the wrong module: every family's hidden states as ``output_hidden_states`` has them, and
    projections that are made of them."""
    write_tiny(family, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}
    with torch.no_grad(), captured(model, projections=True) as found:
        model.base_model(**inputs)
    # Looked for before transformers hangs hooks of its own into the model, which stay there.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        expected = model.base_model(**inputs, output_hidden_states=True).hidden_states
    layers = int(model.config.num_hidden_layers)
    assert len(expected) == layers + 1
    last = 1 if family == "modernbert" else 0  # its last state is given after the final norm
    for place in range(layers + 1 - last):
        torch.testing.assert_close(found.hidden(place), expected[place])
    for layer in range(layers):
        queries, keys, values = found.projections(layer)
        assert queries.shape == keys.shape == values.shape == expected[0].shape
        assert not torch.equal(queries, keys)


def models(bench: Bench, student: object = None) -> Models:
    return Models(student or bench.student(), bench.teacher, (1, 3), lambda: TOKENS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method", [Patient(), TinyBERT(), MiniLM(), Auto(), DistilBERT(words_weight=0)], ids=lambda method: method.type
)
def test_a_student_that_is_its_teacher_has_nothing_to_match(bench: Bench, method: Method) -> None:
    """Step-0 facts: every term that compares the inside is 0 where both are the same."""
    teacher = bench.teacher()
    objective = method.build(method.parts()[0], models(bench, teacher), Criterion(TASK))
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
    objective = method.build(method.parts()[0], models(bench), Criterion(TASK))
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
    objective = Auto().build(Auto().parts()[0], models(bench, recurrent), Criterion(TASK))
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
        objective = Auto().build(part, models(bench), Watched(TASK))
        assert {"soft_loss", "hard_loss"} == set(objective.losses(batch, 5, 10)) - matched
    assert seen == pytest.approx([1 / 6, 2 / 3])

    places = QuestionAnswering()
    assert set(Auto().build(inside, models(bench), Criterion(places)).losses(batch, 5, 10)) == matched
    after = Auto().build(answers, models(bench), Watched(places))
    assert (after.before, after.share) == (0, 1)  # type: ignore[attr-defined]
