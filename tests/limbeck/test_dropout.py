"""The quick dropout is a dropout: right rate, right scale, right gradient, repeatable."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.dropout import QuickDropout, quicken_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_rate_and_the_mean_are_those_of_dropout(p: float) -> None:
    """Guards the threshold and the scale: unscaled, it trains a student that its own ``eval()`` does not match."""
    torch.manual_seed(0)
    found = QuickDropout(p)(torch.ones(1001, 999))
    assert (found == 0).float().mean().item() == pytest.approx(p, abs=0.002)
    assert found.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    assert found.mean().item() == pytest.approx(1, abs=0.01)


def test_neighbours_are_dropped_independently() -> None:
    """Guards the four numbers that share a draw."""
    torch.manual_seed(0)
    dropped = (QuickDropout(0.5)(torch.ones(400_000)) == 0).float()
    for distance in (1, 2, 3, 4):
        pairs = torch.stack([dropped[:-distance], dropped[distance:]])
        assert torch.corrcoef(pairs)[0, 1].item() == pytest.approx(0, abs=0.01)


def test_the_gradient_flows_where_the_value_did() -> None:
    values = torch.ones(4, 8, requires_grad=True)
    out = QuickDropout(0.5)(values)
    torch.autograd.backward(out.sum())
    assert values.grad is not None
    assert torch.equal(values.grad, out.detach())


def test_the_same_generator_state_drops_the_same() -> None:
    """Guards exact resume: the draws come from the generator whose state is checkpointed."""
    layer, found = QuickDropout(0.3), []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(layer(torch.ones(3, 7)))
    assert torch.equal(*found)
    assert not torch.equal(layer(torch.ones(3, 7)), found[0])


def test_evaluation_drops_nothing_and_only_dropouts_are_replaced() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.2)))
    quicken_dropout(model)
    assert [type(m) for m in model.modules()].count(QuickDropout) == 2
    values = torch.randn(2, 4)
    assert torch.equal(model.eval()(values), model[0](values))
