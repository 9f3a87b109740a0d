"""What is matched inside the models: the losses against constants, what is captured, maps, and what padding may do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from limbeck.batches import Batch
from limbeck.capture import captured
from limbeck.errors import Diverged
from limbeck.matching import (
    attention_distance,
    cosine_distance,
    hidden_distance,
    normalised_distance,
    relation_divergence,
    uniform_map,
)
from limbeck.methods.base import SpecialTokens
from limbeck.methods.minilm import Relations
from limbeck.methods.patient import Patient
from tests.families import FAMILIES, write_tiny
from tests.limbeck.bench import Bench

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
    relations = Relations(bench.models(), None, None)
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
