"""Dropout that draws two bytes for each element.

torch draws a 64-bit number for each on the CPU, on one thread: a tenth of a training step's time. Here a 64-bit number
serves four elements; the probability is kept to 1/65536.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 2**16


class QuickDropout(nn.Dropout):
    """``nn.Dropout`` on the CPU, from torch's own generator; elsewhere, and in ``eval()``, its parent."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        dropped = round(self.p * _LEVELS)
        numbers = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        levels = numbers.view(torch.int16)[: input.numel()].view(input.shape)
        kept = (levels >= dropped - _LEVELS // 2).to(input.dtype)
        return input * kept.mul_(_LEVELS / (_LEVELS - dropped))


def quicken_dropout(model: nn.Module) -> None:
    """Replace every ``nn.Dropout`` in place; attention's own, within torch's kernel, stays."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p < 1:
                setattr(module, name, QuickDropout(child.p))
