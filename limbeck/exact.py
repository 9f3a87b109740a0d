"""Heads whose answers are computed in float32, where all else is multiplied in bfloat16.

bfloat16 has eight bits: between 1024 and 2048 its numbers are 8 apart. A label's logit is near 0 and its rounding as
small; the number that a regression answers with is wherever its labels are, and of years there would be 2000 and 2008.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExactLinear(nn.Linear):
    """``nn.Linear``, by the same weights, that autocast leaves as it is."""

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(input)
        with torch.autocast(kind, enabled=False):
            return super().forward(input.float())


def make_exact(model: nn.Module, name: str) -> None:
    """Put such a layer in the place of a linear one; its parameters stay the same."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    # On "meta" no random start is drawn, which would move torch's generator.
    made = ExactLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    made.train(layer.training)
    model.set_submodule(name, made)


def make_exact_as(model: nn.Module, other: nn.Module) -> None:
    """Of a model the same layers as of another one that is built alike."""
    for name, module in other.named_modules():
        if isinstance(module, ExactLinear):
            make_exact(model, name)
