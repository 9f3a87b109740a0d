"""The shortened last layer: the same logits and gradients as all tokens give, and everything else untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from limbeck.families import family_of
from limbeck.first_token import answer
from tests.families import FAMILIES, config_of

SHORT = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout")


def build(family: str, *, dropout: float = 0.0, auto: Any = AutoModelForSequenceClassification, **changes: Any) -> Any:
    config = config_of(family, 60, 1, **changes)
    for name in (*_DROPOUT, "seq_classif_dropout", "summary_last_dropout", "mlp_dropout", "embedding_dropout"):
        if hasattr(config, name):
            setattr(config, name, dropout)
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def texts(*lengths: int) -> dict[str, Tensor]:
    ids = torch.randint(2, 60, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.where(mask > 0, ids, 1), "attention_mask": mask}


def rows_in_last_feed_forward(model: Any, inputs: dict[str, Tensor], call: Callable[[], Any]) -> int:
    """How many tokens of each text the last layer's feed-forward part saw."""
    seen: list[int] = []
    family = family_of(model.config.model_type)
    place: Any = model.base_model.get_submodule(family.layers)
    layer = place if family.shared else place[-1]
    watched = layer.get_submodule(family.neurons[0])
    hook = watched.register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    call()
    hook.remove()
    return int(seen[-1]) // int(watched.in_features) // len(inputs["input_ids"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [(9, 9), (9, 4, 1)], ids=["alike", "padded"])
def test_logits_and_gradients_are_those_of_all_tokens(family: str, lengths: tuple[int, ...]) -> None:
    """Guards against a head that reads more than was computed, a mask that is cut wrongly, and a parameter that gets
    another gradient or none."""
    inputs, found = texts(*lengths), {}
    for name in ("all", "first"):
        model = build(family).double().train()  # so that rounding hides nothing
        output = model(**inputs) if name == "all" else answer(model, inputs)
        output.logits.square().sum().backward()
        found[name] = {"logits": output.logits} | {key: value.grad for key, value in model.named_parameters()}
    assert found["all"].keys() == found["first"].keys()
    for key, expected in found["all"].items():
        if expected is None:
            assert found["first"][key] is None, key
        else:
            assert torch.allclose(found["first"][key], expected, rtol=1e-9, atol=1e-12), key


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_computes_one_token_where_it_may(family: str) -> None:
    """Guards the gain, which no other test would miss, and that the model is whole again afterwards."""
    model, inputs = build(family).eval(), texts(9, 4)
    whole = 9
    assert rows_in_last_feed_forward(model, inputs, lambda: answer(model, inputs)) == (1 if family in SHORT else whole)
    assert rows_in_last_feed_forward(model, inputs, lambda: model(**inputs)) == whole
    assert rows_in_last_feed_forward(model, inputs, lambda: model.base_model(**inputs)) == whole


def test_who_needs_all_tokens_gets_them() -> None:
    """Guards heads that answer each token, layers that are not transformers' own, and attention of another kind."""
    inputs = texts(9, 4)
    tagging = build("bert", auto=AutoModelForTokenClassification).eval()
    assert answer(tagging, inputs).logits.shape[1] == 9

    class Layer(type(build("bert").bert.encoder.layer[0])):  # type: ignore[misc]
        pass

    other = build("bert").eval()
    other.bert.encoder.layer[-1].__class__ = Layer
    assert rows_in_last_feed_forward(other, inputs, lambda: answer(other, inputs)) == 9
    eager = build("bert").eval()
    eager.set_attn_implementation("eager")
    assert rows_in_last_feed_forward(eager, inputs, lambda: answer(eager, inputs)) == 9


def test_a_pass_that_breaks_leaves_the_model_whole() -> None:
    model, inputs = build("bert").eval(), texts(9, 4)
    with pytest.raises(IndexError):
        answer(model, inputs | {"input_ids": torch.full((2, 9), 1000)})
    assert rows_in_last_feed_forward(model, inputs, lambda: model(**inputs)) == 9


@pytest.mark.parametrize("family", SHORT)
def test_dropout_of_the_last_layer_is_drawn_in_training_alone(family: str) -> None:
    """Guards against a shortened layer that regularises less: attention's own dropout and the others'."""
    inputs = texts(9, 4)
    model = build(family, dropout=0.5, **{"n_layers" if family == "distilbert" else "num_hidden_layers": 1})
    torch.manual_seed(2)
    model.train()
    one, other = answer(model, inputs).logits, answer(model, inputs).logits
    assert not torch.allclose(one, other)
    model.eval()
    assert torch.equal(answer(model, inputs).logits, answer(model, inputs).logits)
    layer: Any = model.base_model.get_submodule(family_of(model.config.model_type).layers)[-1]
    place = layer.get_submodule("attention" if family == "distilbert" else "attention.self")
    gathered = _variances(model, inputs, place.dropout)
    assert gathered["on"] > gathered["off"] + 1e-6


def _variances(model: Any, inputs: dict[str, Tensor], dropout: Any) -> dict[str, float]:
    """How much the logits vary with attention's dropout alone, on and off."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = {}
    for name, p in (("on", 0.5), ("off", 0.0)):
        dropout.p = p
        model.train()
        found[name] = float(torch.stack([answer(model, inputs).logits for _ in range(8)]).var(dim=0).sum().detach())
    return found


def test_transformers_still_has_the_classes(tmp_path: Path) -> None:
    """Guards the names that the fast path goes by: were one renamed, it would silently not be taken."""
    for family in SHORT:
        model, inputs = build(family).eval(), texts(3, 2)
        model.save_pretrained(tmp_path / family)
        read = AutoModelForSequenceClassification.from_pretrained(tmp_path / family).eval()
        assert rows_in_last_feed_forward(read, inputs, lambda read=read, inputs=inputs: answer(read, inputs)) == 1  # type: ignore[misc]
