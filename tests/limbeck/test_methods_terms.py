"""What each method's terms are made of, by plain models' outputs: its options, its layers, its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.batches import Batch, Collator
from limbeck.capture import captured
from limbeck.criterion import Criterion
from limbeck.losses import hard_losses, soft_losses
from limbeck.matching import attention_distance, cosine_distance, hidden_distance, normalised_distance
from limbeck.methods.auto import Auto
from limbeck.methods.base import Method, Models, SpecialTokens, Term
from limbeck.methods.distilbert import DistilBERT
from limbeck.methods.fastbert import FastBert
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.minilm import MiniLM
from limbeck.methods.noise import NoisyLabels
from limbeck.methods.patient import Patient
from limbeck.methods.self_distillation import SelfDistillation
from limbeck.methods.tinybert import TinyBERT
from tests.limbeck.bench import TASK, Bench

TOKENS = SpecialTokens(4, (0, 1, 2, 3, 4))
OPTIONS: dict[str, Any] = {"temperature": 3.0, "alpha": 0.2}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"), rows=16)


def terms_of(
    bench: Bench, method: Method, number: int, student: Any = None
) -> tuple[Mapping[str, Term], Batch, Any, Any]:
    """Of a part, with the student and the teacher that they are made of, both without dropout."""
    student, teacher = (student or bench.student()).eval(), bench.teacher().eval()
    given = Models(student, lambda: teacher, (1, 3), lambda: TOKENS)
    objective = method.build(method.parts()[number], given, Criterion(TASK))
    logits = 3 * torch.randn(len(bench.train), 3, generator=torch.Generator().manual_seed(0))
    batch = Collator(bench.train, 0, torch.device("cpu"), logits)(np.arange(6))
    return objective.losses(batch, 0, 10), batch, student, teacher


@torch.no_grad()
def states(model: Any, batch: Batch) -> Any:
    return model.base_model(**batch.inputs, output_hidden_states=True).hidden_states


@pytest.mark.parametrize(
    ("method", "part", "temperature", "alpha"),
    [
        (KnowledgeDistillation(**OPTIONS), 0, 3, 0.2),
        (NoisyLabels(**OPTIONS), 0, 3, 0.2),
        (SelfDistillation(**OPTIONS), 0, 3, 0.2),
        (Patient(**OPTIONS), 0, 3, 0.2),
        (MiniLM(**OPTIONS), 1, 3, 0.2),
        (FastBert(**OPTIONS), 0, 3, 0.2),
        (TinyBERT(), 1, 1, 1),
        (Auto(), 0, 4, 0.5),
        (Auto(), 1, 4, 0.5),
    ],
    ids=lambda one: getattr(one, "type", None),
)
def test_answers_are_softened_and_weighed_as_the_options_say(
    bench: Bench, method: Method, part: int, temperature: float, alpha: float
) -> None:
    """Guards options that change their places on the way to the loss: both are plain numbers, and either trains."""
    terms, batch, student, _ = terms_of(bench, method, part)
    assert batch.teacher_logits is not None
    with torch.no_grad():
        own = student(**batch.inputs).logits
    soft, hard = terms["soft_loss"], terms["hard_loss"]
    torch.testing.assert_close(soft.value.detach(), soft_losses(own, batch.teacher_logits, temperature).mean())
    torch.testing.assert_close(hard.value.detach(), hard_losses(own, batch.labels).mean())
    assert (soft.weight, hard.weight) == pytest.approx((alpha, 1 - alpha))


@pytest.mark.parametrize(("layer_map", "place"), [("skip", 2), ("last", 3), ((0,), 1)])
def test_patient_matches_the_first_token_behind_the_layers_of_its_map(bench: Bench, layer_map: Any, place: int) -> None:
    """Guards the place that is counted from 0 on one side and from 1 on the other."""
    terms, batch, student, teacher = terms_of(bench, Patient(layer_map=layer_map, beta=7), 0)
    expected = normalised_distance(states(student, batch)[1][:, 0], states(teacher, batch)[place][:, 0])
    torch.testing.assert_close(terms["state_loss"].value.detach(), expected)
    assert expected > 1e-4
    assert terms["state_loss"].weight == 7


def test_patients_layers_count_alike(bench: Bench) -> None:
    """Guards a mean that is a sum: a deeper student's states would weigh more beside its answers."""
    deep = bench.teacher()
    with torch.no_grad():
        for number, parameter in enumerate(deep.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    terms, batch, student, teacher = terms_of(bench, Patient(), 0, deep)
    ours, theirs = states(student, batch), states(teacher, batch)
    expected = [normalised_distance(ours[place][:, 0], theirs[place][:, 0]) for place in (1, 2, 3)]
    torch.testing.assert_close(terms["state_loss"].value.detach(), torch.stack(expected).mean())


@pytest.mark.parametrize("method", [TinyBERT(), Auto()], ids=lambda method: method.type)
def test_hidden_states_are_matched_with_those_of_the_layers_that_they_stand_for(bench: Bench, method: Method) -> None:
    """Guards the map (embeddings, and every n-th layer), and that each of them counts alike."""
    terms, batch, student, teacher = terms_of(bench, method, 0)
    ours, theirs, mask = states(student, batch), states(teacher, batch), batch.mask
    expected = [hidden_distance(ours[s], theirs[t], mask) for s, t in ((0, 0), (1, 2), (2, 4))]
    torch.testing.assert_close(terms["hidden_loss"].value.detach(), torch.stack(expected).mean())
    assert (terms["hidden_loss"].weight, terms["hidden_loss"].unit) == (1, "tokens")


def test_attention_is_matched_with_that_of_the_layers_that_it_stands_for(bench: Bench) -> None:
    """Guards queries against queries and keys against keys, of the second and the fourth layer."""
    terms, batch, student, teacher = terms_of(bench, TinyBERT(), 0)
    with torch.no_grad(), captured(student, projections=True) as ours, captured(teacher, projections=True) as theirs:
        for model in (student, teacher):
            model.base_model(**batch.inputs)
    heads = int(teacher.config.num_attention_heads)
    expected = [
        attention_distance(ours.projections(s)[:2], theirs.projections(t)[:2], batch.mask, heads)
        for s, t in ((0, 1), (1, 3))
    ]
    torch.testing.assert_close(terms["attention_loss"].value.detach(), torch.stack(expected).mean())
    assert (terms["attention_loss"].weight, terms["attention_loss"].unit) == (1, "pairs")


def test_the_triple_loss_of_a_task_is_the_papers(bench: Bench) -> None:
    """Guards 5 : 2 : 1, and which states' direction is compared: the last ones'."""
    options = {"soft_weight": 6.0, "words_weight": 3.0, "cosine_weight": 0.5, "temperature": 3.0}
    terms, batch, student, teacher = terms_of(bench, DistilBERT.model_validate(options), 0)
    assert batch.teacher_logits is not None
    with torch.no_grad():
        own = student(**batch.inputs).logits
    torch.testing.assert_close(terms["soft_loss"].value.detach(), soft_losses(own, batch.teacher_logits, 3.0).mean())
    expected = cosine_distance(states(student, batch)[-1], states(teacher, batch)[-1], batch.mask)
    torch.testing.assert_close(terms["cosine_loss"].value.detach(), expected)
    assert [term.weight for term in terms.values()] == [6, 3, 0.5]
