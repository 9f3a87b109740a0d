"""The choices of ``training.loss`` against constants worked out by hand, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limbeck.categorical_losses import (
    annealing_losses,
    dist_losses,
    dkd_losses,
    jsd_losses,
    reverse_kl_losses,
    standardised_losses,
)
from limbeck.errors import Diverged
from limbeck.losses import soft_losses
from limbeck.soft_loss import Annealing

TEACHER = torch.tensor([[3.0, 2.0, 1.0]]).log()  # softmax: 1/2, 1/3, 1/6
FLAT = torch.zeros(1, 3)
TARGETS = torch.tensor([0])

_Pairwise = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, _Pairwise] = {
    "reverse_kl": lambda s, t: reverse_kl_losses(s, t, 2.0),
    "jsd": lambda s, t: jsd_losses(s, t, 2.0, 0.3),
    "dkd": lambda s, t: dkd_losses(s, t, torch.arange(len(s)) % 3, 2.0, 1.0, 2.0),
    "dist": lambda s, t: dist_losses(s, t, 2.0, 1.0, 1.0),
    "logit_standardisation": lambda s, t: standardised_losses(s, t, 2.0),
    "annealing": lambda s, t: annealing_losses(s, t, 1.0),
}


def _logits(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


def test_reverse_kl_is_the_hand_computed_divergence_in_the_other_direction() -> None:
    """Guards the direction: the forward divergence of this pair is 0.087208."""
    by_hand = (math.log(2 / 3) + math.log(1) + math.log(2)) / 3
    assert by_hand == pytest.approx(0.095894, abs=1e-6)
    assert reverse_kl_losses(FLAT, TEACHER, 1.0).item() == pytest.approx(by_hand, abs=1e-6)
    assert soft_losses(FLAT, TEACHER, 1.0).item() == pytest.approx(0.087208, abs=1e-6)


def test_reverse_kl_carries_the_square_of_the_temperature() -> None:
    assert reverse_kl_losses(FLAT, 2 * TEACHER, 2.0).item() == pytest.approx(4 * 0.095894, abs=4e-6)


def test_jsd_is_the_hand_computed_divergence_to_the_middle() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2), m = (5/8, 3/8); the paper's value over beta (1 - beta) = 1/4."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    from_teacher = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    from_student = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    by_hand = (0.5 * from_teacher + 0.5 * from_student) / 0.25
    assert by_hand == pytest.approx(0.135288, abs=1e-6)
    assert jsd_losses(student, teacher, 1.0, 0.5).item() == pytest.approx(by_hand, abs=1e-6)


def test_jsd_weighs_teacher_and_student_by_beta_and_not_the_other_way_round() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2), beta = 1/4: m = (9/16, 7/16)."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    from_teacher = 0.75 * math.log(4 / 3) + 0.25 * math.log(4 / 7)
    from_student = 0.5 * math.log(8 / 9) + 0.5 * math.log(8 / 7)
    by_hand = (0.25 * from_teacher + 0.75 * from_student) / (0.25 * 0.75)
    assert jsd_losses(student, teacher, 1.0, 0.25).item() == pytest.approx(by_hand, abs=1e-6)


def test_jsd_goes_over_into_the_two_divergences_without_a_jump() -> None:
    """Guards the scale: with the paper's own, the loss would vanish near both ends."""
    student, teacher = _logits(5, 0), _logits(5, 1)
    forward, reverse = soft_losses(student, teacher, 2.0), reverse_kl_losses(student, teacher, 2.0)
    torch.testing.assert_close(jsd_losses(student, teacher, 2.0, 0.0), forward)
    torch.testing.assert_close(jsd_losses(student, teacher, 2.0, 1.0), reverse)
    torch.testing.assert_close(jsd_losses(student, teacher, 2.0, 0.01), forward, rtol=0.03, atol=1e-3)
    torch.testing.assert_close(jsd_losses(student, teacher, 2.0, 0.99), reverse, rtol=0.03, atol=1e-3)


def test_dkd_is_the_two_hand_computed_divergences() -> None:
    """Target 0: 1/2 against 1/3 for the target, (2/3, 1/3) against (1/2, 1/2) among the others."""
    target = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
    others = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert (target, others) == (pytest.approx(0.058892, abs=1e-6), pytest.approx(0.056633, abs=1e-6))
    assert dkd_losses(FLAT, TEACHER, TARGETS, 1.0, 1.0, 0.0).item() == pytest.approx(target, abs=1e-6)
    assert dkd_losses(FLAT, TEACHER, TARGETS, 1.0, 0.0, 1.0).item() == pytest.approx(others, abs=1e-6)
    assert dkd_losses(FLAT, TEACHER, TARGETS, 1.0, 2.0, 8.0).item() == pytest.approx(2 * target + 8 * others, abs=1e-6)


def test_dkd_with_the_coupled_weights_is_the_plain_divergence() -> None:
    """The paper's identity, at a temperature, with targets that differ by row: KL = TCKD + (1 - p) NCKD."""
    student, teacher, targets = _logits(4, 0), _logits(4, 1), torch.tensor([0, 1, 2, 1])
    p = (teacher / 3).softmax(dim=1).gather(1, targets[:, None])[:, 0]
    target = dkd_losses(student, teacher, targets, 3.0, 1.0, 0.0)
    others = dkd_losses(student, teacher, targets, 3.0, 0.0, 1.0)
    torch.testing.assert_close(target + (1 - p) * others, soft_losses(student, teacher, 3.0))


@pytest.mark.parametrize("targets", [torch.tensor([3]), torch.tensor([-1]), torch.tensor([[0]])])
def test_dkd_refuses_targets_that_do_not_fit(targets: Tensor) -> None:
    with pytest.raises(ValueError, match="labels"):
        dkd_losses(FLAT, TEACHER, targets, 1.0, 1.0, 1.0)


def test_dist_over_the_classes_is_one_minus_the_hand_computed_correlation() -> None:
    """Teacher (3, 2, 1) / 6 is centred (1, 0, -1) / 6; student (1, 2, 1) / 4 is centred (-1, 2, -1) / 12: they are
    orthogonal, and the second row agrees with its own."""
    teacher = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]).log()
    student = torch.tensor([[1.0, 2.0, 1.0], [3.0, 2.0, 1.0]]).log()
    assert dist_losses(student, teacher, 1.0, 1.0, 0.0).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_the_mean_of_dists_rows_is_one_minus_the_correlation_over_the_batch() -> None:
    """Guards the shares of the intra-class term, whose mean alone is the paper's loss; numpy computes it anew."""
    import numpy

    student, teacher = _logits(7, 0), _logits(7, 1)
    p, q = ((one / 2).softmax(dim=1).double().numpy() for one in (teacher, student))
    expected = 1 - numpy.mean([numpy.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(3)])
    found = dist_losses(student, teacher, 2.0, 0.0, 1.0)
    assert found.min() >= 0
    assert found.mean().item() == pytest.approx(expected, abs=1e-5)


def test_dist_stays_finite_for_one_row_and_for_a_flat_student() -> None:
    """Guards the last, single row of an epoch, and step 0: no spread to divide by."""
    student = torch.zeros(1, 3, requires_grad=True)
    loss = dist_losses(student, TEACHER, 1.0, 1.0, 1.0).sum()
    torch.autograd.backward(loss)
    assert student.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_standardised_logits_are_the_hand_computed_z_scores() -> None:
    """Teacher (2, 0, -2) has the z-scores (1, 0, -1) with the unbiased deviation 2; the student's are all 0."""
    teacher = torch.tensor([[2.0, 0.0, -2.0]])
    student = torch.zeros(1, 3)
    weights = [math.e, 1.0, 1 / math.e]
    p = [weight / sum(weights) for weight in weights]
    by_hand = sum(share * math.log(3 * share) for share in p)
    assert standardised_losses(student, teacher, 1.0).item() == pytest.approx(by_hand, abs=1e-6)


def test_standardising_forgets_the_size_and_the_level_of_the_logits() -> None:
    teacher = _logits(4, 0)
    assert standardised_losses(7 * teacher + 3, teacher, 2.0).tolist() == pytest.approx([0] * 4, abs=1e-5)
    student = torch.zeros(1, 3, requires_grad=True)
    torch.autograd.backward(standardised_losses(student, TEACHER, 2.0).sum())
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_annealing_is_the_hand_computed_squared_distance() -> None:
    teacher, student = torch.tensor([[4.0, 0.0, -2.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    assert annealing_losses(student, teacher, 0.5).item() == pytest.approx((1 + 1 + 4) / 3)


def test_the_temperature_falls_from_its_maximum_to_one_by_the_end_of_the_first_phase() -> None:
    annealing = Annealing(max_temperature=4, share=0.5)
    scales = [annealing.scale(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert scales == pytest.approx([1 / 4, 1 - 1.5 / 4, 1, 1])


@pytest.mark.parametrize("name", LOSSES)
def test_where_student_and_teacher_agree_there_is_no_loss_and_no_gradient(name: str) -> None:
    """Guards against a loss that pulls a finished student away from its teacher."""
    teacher = _logits(6, 0)
    student = teacher.clone().requires_grad_()
    loss = LOSSES[name](student, teacher)
    torch.autograd.backward(loss.sum())
    assert student.grad is not None
    assert loss.tolist() == pytest.approx([0] * 6, abs=1e-6)
    assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_each_gives_one_value_for_a_row_in_float32_and_pulls_towards_the_teacher(name: str) -> None:
    """Guards against a softmax in bfloat16 of either side, beside one row and one direction for each."""
    student, teacher = _logits(6, 0).bfloat16().requires_grad_(), _logits(6, 1).bfloat16()
    loss = LOSSES[name](student, teacher)
    assert loss.shape == (6,)
    torch.testing.assert_close(loss, LOSSES[name](student.float(), teacher.float()), rtol=0, atol=0)
    torch.autograd.backward(loss.mean())
    assert student.grad is not None
    nearer = student.detach().float() - 0.5 * student.grad.float()
    assert LOSSES[name](nearer, teacher).mean() < loss.mean()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_teacher_without_finite_logits_is_refused(name: str, bad: float) -> None:
    with pytest.raises(Diverged, match="teacher's logits"):
        LOSSES[name](torch.zeros(1, 3), torch.tensor([[0.0, 1.0, bad]]))


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_only_broadcast_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(1, 3\)"):
        LOSSES[name](torch.zeros(4, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("name", ["dkd", "dist", "logit_standardisation"])
def test_what_says_nothing_about_two_classes_is_refused(name: str) -> None:
    """Guards against a term that is a constant, and trains nothing, without anybody noticing."""
    with pytest.raises(ValueError, match="needs three classes and more; found 2"):
        LOSSES[name](torch.zeros(4, 2), torch.ones(4, 2))


def test_beta_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 … 1; found 1.5"):
        jsd_losses(FLAT, TEACHER, 1.0, 1.5)
