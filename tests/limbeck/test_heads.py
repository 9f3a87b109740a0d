"""Where a new head begins, so that a short fine-tuning is not spent on getting there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from limbeck.batches import Encoded
from limbeck.tasks.multi_label import MultiLabel
from limbeck.tasks.regression import Regression

ROWS = 200


def labelled(labels: NDArray[Any]) -> Encoded:
    return Encoded(np.zeros(len(labels), np.int32), None, np.arange(len(labels) + 1, dtype=np.int64), labels)


def test_a_multi_label_head_begins_at_how_often_each_label_applies() -> None:
    """Guards against 28 emotions, most of them rare: from one half of each, three epochs ended without any label."""
    shares = torch.tensor([0.3, 0.05, 0.005, 0.0, 1.0])
    labels = np.zeros((ROWS, 5), dtype=np.int8)
    for place, share in enumerate(shares.tolist()):
        labels[: round(ROWS * share), place] = 1
    layer = nn.Linear(8, 5)
    weight = layer.weight.detach().clone()
    MultiLabel().begin_head(layer, labelled(labels))
    torch.testing.assert_close(layer.bias.sigmoid(), shares, atol=1 / ROWS, rtol=0)
    assert layer.bias.isfinite().all()  # of labels that no text has, or every one, too
    assert torch.equal(layer.weight, weight)


def test_a_regression_head_begins_at_the_mean_with_the_spread() -> None:
    labels = np.random.default_rng(0).normal(50, 4, ROWS).astype(np.float32)
    layer = nn.Linear(8, 1)
    weight = layer.weight.detach().clone()
    Regression().begin_head(layer, labelled(labels))
    assert layer.bias.item() == pytest.approx(50, abs=1)
    torch.testing.assert_close(layer.weight, weight * float(labels.std()))
