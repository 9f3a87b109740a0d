"""The losses against constants that were computed by hand, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.errors import Diverged
from limbeck.losses import hard_losses, soft_losses


def test_soft_loss_is_the_hand_computed_divergence_at_temperature_one() -> None:
    """Guards the direction: KL(student ‖ teacher) of the same pair is 0.143841, not 0.130812."""
    teacher = torch.tensor([[math.log(3.0), 0.0]])  # softmax: 3/4, 1/4
    student = torch.tensor([[0.0, 0.0]])  # softmax: 1/2, 1/2
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert by_hand == pytest.approx(0.130812, abs=1e-6)
    assert soft_losses(student, teacher, 1.0).item() == pytest.approx(by_hand, abs=1e-6)


def test_soft_loss_carries_the_square_of_the_temperature() -> None:
    """Guards against the factor that published code drops: at T = 2, logits 2·ln 3 soften to 3/4 and 1/4 again."""
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    student = torch.tensor([[0.0, 0.0]])
    assert soft_losses(student, teacher, 2.0).item() == pytest.approx(4 * 0.130812, abs=4e-6)


def test_soft_loss_is_the_mean_over_examples_and_not_over_classes() -> None:
    """Guards against ``reduction="mean"``, which divides by the number of classes as well."""
    teacher = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    student = torch.zeros(2, 2)
    assert soft_losses(student, teacher, 1.0).tolist() == pytest.approx([0.130812, 0], abs=1e-6)


def test_gradient_of_the_soft_loss_hardly_depends_on_the_temperature() -> None:
    """Guards the meaning of ``alpha``: without T² the gradient would shrink a hundredfold from T = 4 to T = 40."""
    teacher, gradients = torch.tensor([[0.3, -0.1, 0.2]]), []
    for temperature in (4.0, 40.0):
        student = torch.zeros(1, 3, requires_grad=True)
        soft_losses(student, teacher, temperature).sum().backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        gradients.append(student.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.1, atol=0.001)


def test_hard_loss_is_the_hand_computed_cross_entropy() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(4.0)]])
    expected = [-math.log(3 / 4), -math.log(1 / 5)]
    assert hard_losses(logits, torch.tensor([0, 0])).tolist() == pytest.approx(expected, abs=1e-6)


def test_losses_are_computed_in_float32_from_half_precision_logits() -> None:
    """Guards against a softmax in bfloat16, whose error would be larger than the loss late in training."""
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert soft_losses(logits, logits, 4.0).dtype == torch.float32
    assert soft_losses(logits, logits, 4.0).tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert hard_losses(logits, torch.zeros(4, dtype=torch.long)).dtype == torch.float32


def test_shapes_that_only_broadcast_are_refused() -> None:
    """Guards against one teacher row, or a column of labels, being compared with every example."""
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(1, 3\)"):
        soft_losses(torch.zeros(4, 3), torch.zeros(1, 3), 1.0)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 1\)"):
        hard_losses(torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(2, 4, 3\)"):
        soft_losses(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_teacher_without_finite_logits_is_refused(bad: float) -> None:
    """Guards against a student that learns NaN for hours."""
    with pytest.raises(Diverged, match="teacher's logits"):
        soft_losses(torch.zeros(1, 2), torch.tensor([[0.0, bad]]), 1.0)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        soft_losses(torch.zeros(1, 2), torch.zeros(1, 2), 0.0)


def test_a_label_outside_the_classes_is_named() -> None:
    """Guards against -100, which cross-entropy would silently leave out of the mean."""
    with pytest.raises(ValueError, match="-100"):
        hard_losses(torch.zeros(2, 3), torch.tensor([0, -100]))
