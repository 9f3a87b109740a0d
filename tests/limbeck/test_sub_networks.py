"""Parts of a network: which neurons and heads come first, and what a sub-network is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from limbeck.batches import Batch, Collator
from limbeck.elastic import Elastic, Size, evenly, heads_of, neurons_of, sizes
from limbeck.families import family_of
from limbeck.pruning import Part, neuron_importance
from tests.families import write_tiny
from tests.limbeck.bench import Bench
from tests.limbeck.test_families import answers, prepared

CPU = torch.device("cpu")
SERVED = ("bert", "distilbert", "electra", "roberta", "xlm-roberta", "deberta-v2", "mpnet")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def test_neurons_are_sorted_by_what_the_loss_would_lose() -> None:
    """By hand: all four neurons fire alike and write along one direction, by 1, -3, 0 and 2 of it, so that this is how
    much the loss hangs on each. Guards an order that is rising, or of one matrix alone."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4, num_labels=3
    )
    model = BertForSequenceClassification(config).eval()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight.copy_(torch.randn(1, 8).expand(4, 8))
        layer.intermediate.dense.bias.fill_(0.5)
        layer.output.dense.weight.copy_(torch.randn(8, 1) * torch.tensor([1.0, -3.0, 0.0, 2.0]))
        layer.intermediate.dense.bias[0] += 1e-3  # so that rows can be told apart
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    labelled = Batch(inputs, torch.tensor([1]), counts={"examples": 1})
    found = neuron_importance(
        model, [labelled], lambda one, batch: nn.functional.cross_entropy(one(**batch.inputs).logits, batch.labels)
    )
    torch.testing.assert_close(found[0] / found[0, 3] * 2, torch.tensor([1.0, 3.0, 0.0, 2.0]), atol=5e-3, rtol=0)
    before, direction = model(**inputs).logits, layer.output.dense.weight.detach()[:, 0].clone()
    network: Any = Elastic(model, {"neurons": found}).network
    sorted_layer = network.bert.encoder.layer[0]
    expected = direction[:, None] * torch.tensor([-3.0, 2.0, 1.0, 0.0])
    torch.testing.assert_close(sorted_layer.output.dense.weight.detach(), expected)
    torch.testing.assert_close(sorted_layer.intermediate.dense.bias.detach()[2], torch.tensor(0.501))
    torch.testing.assert_close(network(**inputs).logits, before)


def test_heads_are_sorted_whole(bench: Bench) -> None:
    """Guards rows of one head beside those of another: the first of two heads has to hold, in each layer, all that the
    more important one is made of, and the network to answer as before."""
    teacher: Any = bench.teacher()
    importance = bench.importance("heads")
    assert importance.shape == (4, 2)
    assert len(set(importance.argmax(dim=1).tolist())) == 2, "one of the layers has to change"
    network: Any = Elastic(bench.teacher(), {"heads": importance}).network
    torch.testing.assert_close(answers(network, bench.train), answers(bench.teacher(), bench.train))
    for old, new, head in zip(
        teacher.bert.encoder.layer, network.bert.encoder.layer, importance.argmax(dim=1).tolist(), strict=True
    ):
        best = slice(16 * head, 16 * head + 16)
        for name in ("query", "key", "value"):
            one, other = (getattr(layer.attention.self, name) for layer in (old, new))
            assert torch.equal(other.weight[:16], one.weight[best])
            assert torch.equal(other.bias[:16], one.bias[best])
        one, other = (layer.attention.output.dense.weight for layer in (old, new))
        assert torch.equal(other[:, :16], one[:, best])


def test_the_sub_networks_are_the_papers_and_the_students() -> None:
    """12 layers as the authors keep them at .75 and .5; the student's own in place of as many, and its width."""
    assert evenly(6, 12) == (0, 2, 4, 6, 8, 10)
    assert evenly(9, 12) == (0, 1, 2, 4, 5, 6, 8, 9, 10)
    whole, every = Size(tuple(range(12)), 3072, 12), tuple(range(12))
    own = Size((0, 2, 4), 1000, 12)
    wide = sizes(whole, own, (0.25, 0.5, 0.75, 1.0), None, heads=True)
    assert wide == [Size(every, *width) for width in ((3072, 12), (2304, 9), (1536, 6), (1000, 12), (768, 3))]
    alone = sizes(whole, own, (0.25, 0.5, 0.75, 1.0), None, heads=False)
    assert alone == [Size(every, neurons, 12) for neurons in (3072, 2304, 1536, 1000, 768)]
    deep = sizes(whole, Size((1, 3, 5, 7, 9, 11), 1536, 6), (0.5, 1.0), (0.5, 0.75, 1.0), heads=True)
    layers = (every, evenly(9, 12), (1, 3, 5, 7, 9, 11))
    assert deep == [Size(chosen, *width) for chosen in layers for width in ((3072, 12), (1536, 6))]
    few = sizes(whole, Size((0, 4, 8), 768, 4), (1.0,), (1.0,), heads=True)
    assert {(len(one.layers), one.heads) for one in few} == {(12, 12), (12, 4), (3, 12), (3, 4)}
    # A share of less than one head is one.
    assert sizes(Size((0,), 64, 2), Size((0,), 64, 2), (0.1,), None, heads=True)[-1] == Size((0,), 6, 1)


def reference(
    blueprint: Any,
    weights: dict[str, torch.Tensor],
    size: Size,
    chosen: list[torch.Tensor],
    heads: list[torch.Tensor],
) -> Any:
    """By hand: the other layers taken out, smaller linear layers in the places of the feed-forward ones, and the other
    heads silenced."""
    model = blueprint.cut(weights, size.layers)
    family = family_of(model.config.model_type)
    first, last = family.neurons
    layers = model.base_model.get_submodule(family.layers)
    for layer, number in zip(layers, size.layers, strict=True):
        silent = torch.ones(model.config.num_attention_heads, dtype=torch.bool)
        silent[heads[number]] = False
        width = model.config.hidden_size // model.config.num_attention_heads
        layer.get_submodule(family.mixing).weight.data[:, silent.repeat_interleave(width)] = 0
        for name, rows in ((first, True), (last, False)):
            place, _, key = name.rpartition(".")
            full, kept = layer.get_submodule(name), chosen[number]
            small = nn.Linear(full.in_features if rows else len(kept), len(kept) if rows else full.out_features)
            small.weight.data = full.weight.data[kept] if rows else full.weight.data[:, kept]
            small.bias.data = full.bias.data[kept] if rows else full.bias.data
            setattr(layer.get_submodule(place), key, small)
    return model


@pytest.mark.parametrize("family", SERVED)
def test_a_sub_network_is_the_network_that_is_really_cut(family: str, tmp_path: Path) -> None:
    """Guards every family's names, and all three ways to a sub-network: computed, cut, and lent to a student. Heads go
    where the family lets them, and a cut network has fewer of them instead of silent ones."""
    blueprint, data = prepared(write_tiny(family, tmp_path))
    teacher = blueprint.load_teacher(keep_head=True).eval()
    weights, drawn = teacher.state_dict(), torch.Generator().manual_seed(1)
    count, able = teacher.config.num_attention_heads, family_of(family).loses_heads
    importance: dict[Part, torch.Tensor] = {"neurons": torch.rand(4, 32, generator=drawn)}
    matters = torch.rand(4, count, generator=drawn)
    if able:
        importance["heads"] = matters
    expected_whole = answers(copy.deepcopy(teacher), data)
    elastic = Elastic(teacher).trainable(importance)
    assert elastic.inner.keys() == importance.keys()
    torch.testing.assert_close(answers(elastic.network, data), expected_whole)
    batch = Collator(data, teacher.config.pad_token_id, CPU)(np.arange(len(data)))
    few = 1 if able else count
    for size in (
        Size((0, 2), 8, count),
        Size((1, 2, 3), 20, few),
        Size((0, 1, 2, 3), 1, few),
        Size((1, 3), 32, few),
        Size((1, 3), 32, count),
    ):
        chosen = [values.sort(descending=True).indices[: size.neurons] for values in importance["neurons"]]
        heads = [values.sort(descending=True).indices[: size.heads] for values in matters]
        hand = reference(blueprint, weights, size, chosen, heads).eval()
        expected = answers(hand, data)
        assert not torch.allclose(expected, expected_whole, atol=1e-3)
        with torch.no_grad():
            output, states = elastic.run(batch.inputs, size)
            inside = hand(**batch.inputs, output_hidden_states=True).hidden_states
        torch.testing.assert_close(output.logits, expected)
        mask = batch.inputs["attention_mask"][:, :, None].bool()
        for place in range(len(size.layers) + 1):
            torch.testing.assert_close(states.hidden(place) * mask, inside[place] * mask)
        cut = elastic.cut(size)
        assert (neurons_of(cut.config), heads_of(cut.config)) == (size.neurons, size.heads)
        queries = cut.base_model.get_submodule(f"{elastic.family.layers}.0.{elastic.family.projections[0]}")
        assert queries.weight.shape[0] == size.heads * cut.config.hidden_size // count  # type: ignore[union-attr]
        torch.testing.assert_close(answers(cut, data), expected)
    torch.testing.assert_close(answers(elastic.network, data), expected_whole)  # whole again
