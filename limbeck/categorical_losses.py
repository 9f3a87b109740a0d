"""Losses between two models' answers that choose one of several classes, beside Kullback and Leibler's own.

Each is a pure function in float32 with one value for each row, is 0 with gradient 0 where student and teacher agree,
and refuses what :func:`limbeck.losses.require_pair` refuses. All are scaled as ``T² · KL`` is, so that the weight of
the soft loss means about the same whichever is chosen.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import hard_losses, require_pair, soft_losses

#: Below this a standard deviation, or the length of a centred row of probabilities, counts as none at all.
_NONE = 1e-7


def reverse_kl_losses(
    student_logits: Tensor,  # (rows, classes)
    teacher_logits: Tensor,  # (rows, classes)
    temperature: float,
) -> Tensor:
    """``T² · KL(softmax(s/T) ‖ softmax(t/T))`` (Gu et al. 2023, MiniLLM, arXiv:2306.08543).

    Where the forward divergence makes the student cover all that the teacher holds possible, this one makes it keep to
    what the teacher holds likely.

    Returns:
        (rows,) in float32.
    """
    require_pair(student_logits, teacher_logits, temperature)
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return _kl(student, teacher) * temperature**2


def jsd_losses(
    student_logits: Tensor,  # (rows, classes)
    teacher_logits: Tensor,  # (rows, classes)
    temperature: float,
    beta: float,
) -> Tensor:
    """``T² · [β · KL(p ‖ m) + (1 - β) · KL(q ‖ m)] / (β · (1 - β))`` with ``m = β · p + (1 - β) · q``, p the teacher's
    and q the student's softened distribution (Agarwal et al. 2023, GKD, arXiv:2306.13649).

    The paper has no denominator, so that its loss goes to 0 with β. Divided by it, the loss is the forward divergence
    at β = 0 and the reverse one at β = 1 without a jump, and has the same curvature at every β where p and q are
    close.

    Returns:
        (rows,) in float32.

    Raises:
        ValueError: β is outside 0 … 1.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta has to lie in 0 … 1; found {beta}")
    if beta == 0:
        return soft_losses(student_logits, teacher_logits, temperature)
    if beta == 1:
        return reverse_kl_losses(student_logits, teacher_logits, temperature)
    require_pair(student_logits, teacher_logits, temperature)
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    shares = student.new_tensor([beta, 1 - beta]).log()
    middle = torch.logaddexp(teacher + shares[0], student + shares[1])
    divergence = _kl(teacher, middle) / (1 - beta) + _kl(student, middle) / beta
    return divergence * temperature**2


def dkd_losses(
    student_logits: Tensor,  # (rows, classes)
    teacher_logits: Tensor,  # (rows, classes)
    targets: Tensor,  # (rows,) of int64
    temperature: float,
    alpha: float,
    beta: float,
) -> Tensor:
    """``T² · (α · TCKD + β · NCKD)``: decoupled distillation (Zhao et al. 2022, arXiv:2203.08679).

    TCKD is the divergence between the chances of the true class against all others, NCKD the one among the others. The
    plain divergence is ``TCKD + (1 - p) · NCKD`` with p the teacher's chance of the true class: there a teacher that is
    sure hides what it knows of the other classes. With two classes NCKD is always 0.

    Returns:
        (rows,) in float32.

    Raises:
        ValueError: there are fewer than three classes, or the targets do not fit.
    """
    require_pair(student_logits, teacher_logits, temperature)
    rows, classes = student_logits.shape
    _require_three(classes, "the non-target term of DKD is always 0")
    # For its checks alone: targets of the wrong shape, or outside the classes, would gather something all the same.
    hard_losses(teacher_logits, targets)
    # By place and not by a mask, whose count a GPU would have to be asked for.
    others = torch.arange(classes - 1, device=targets.device).expand(rows, -1)
    others = others + (others >= targets[:, None])
    parts = []
    for logits in (student_logits, teacher_logits):
        scaled = logits.float() / temperature
        rest = scaled.gather(1, others)
        binary = torch.stack((scaled.gather(1, targets[:, None])[:, 0], rest.logsumexp(dim=1)), dim=1)
        parts.append((F.log_softmax(binary, dim=1), F.log_softmax(rest, dim=1)))
    (student_binary, student_rest), (teacher_binary, teacher_rest) = parts
    target, non_target = _kl(teacher_binary, student_binary), _kl(teacher_rest, student_rest)
    return (alpha * target + beta * non_target) * temperature**2


def dist_losses(
    student_logits: Tensor,  # (rows, classes)
    teacher_logits: Tensor,  # (rows, classes)
    temperature: float,
    inter: float,
    intra: float,
) -> Tensor:
    """``inter · (1 - ρ over the classes of a row) + intra · (1 - ρ over the rows of a class)``, ρ Pearson's correlation
    of the softened distributions (Huang et al. 2022, DIST, arXiv:2205.10536).

    As ``1 - ρ = ½ · ‖û - v̂‖²`` of the centred and normalised vectors, the second term is a sum over rows: each row gets
    its own summand times the number of rows, so that the *mean* of what is returned is the paper's loss. It belongs to
    the batch as a whole: halves of a batch have other correlations. Published code multiplies by T², but a
    correlation does not shrink as T grows, so that there is nothing to make good.

    Returns:
        (rows,) in float32.

    Raises:
        ValueError: there are fewer than three classes: two numbers always correlate fully.
    """
    require_pair(student_logits, teacher_logits, temperature)
    _require_three(
        student_logits.shape[1], "two numbers always correlate fully, so that the inter-class term says nothing"
    )
    student = F.softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.softmax(teacher_logits.float() / temperature, dim=-1)
    between_classes = (_centred(student, 1) - _centred(teacher, 1)).square().sum(dim=1) / 2
    between_rows = (_centred(student, 0) - _centred(teacher, 0)).square().mean(dim=1) * len(student) / 2
    return inter * between_classes + intra * between_rows


def standardised_losses(
    student_logits: Tensor,  # (rows, classes)
    teacher_logits: Tensor,  # (rows, classes)
    temperature: float,
) -> Tensor:
    """``T² · KL`` of the z-scores of each row's logits (Sun et al. 2024, Logit Standardization, arXiv:2403.01878).

    The student need not match the size of the teacher's logits, only the relations among them. The deviation is the
    unbiased one, as in the authors' code. With two classes every z-score is ±0.707, whatever the logits say.

    Returns:
        (rows,) in float32.

    Raises:
        ValueError: there are fewer than three classes.
    """
    require_pair(student_logits, teacher_logits, temperature)
    _require_three(student_logits.shape[1], "two logits have the z-scores 0.707 and -0.707 whatever they are")
    return soft_losses(_z_scores(student_logits), _z_scores(teacher_logits), temperature)


def annealing_losses(
    student_logits: Tensor,  # (rows, classes)
    teacher_logits: Tensor,  # (rows, classes)
    scale: float,
    real: Tensor | None = None,  # (rows, classes)
) -> Tensor:
    """``mean over classes of (s - scale · t)²``, the first phase of Annealing-KD (Jafari et al. 2021,
    arXiv:2104.07163).

    Args:
        scale: ``1 - (τ - 1) / τ_max``, which grows to 1 as the temperature τ falls from τ_max to 1.
        real: which classes a row has; default: all. The others are padding, whose logits are far below all others and
            would be most of the distance.

    Returns:
        (rows,) in float32.
    """
    require_pair(student_logits, teacher_logits)
    apart = student_logits.float() - scale * teacher_logits.float()
    if real is None:
        return apart.square().mean(dim=-1)
    return torch.where(real, apart, 0.0).square().sum(dim=-1) / real.sum(dim=-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of each row; both are given, and the gradient flows, through logarithms."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)


def _centred(values: Tensor, dim: int) -> Tensor:
    """Minus their mean, and of length 1; what does not vary stays 0."""
    return F.normalize(values - values.mean(dim=dim, keepdim=True), dim=dim, eps=_NONE)


def _z_scores(logits: Tensor) -> Tensor:
    centred = logits.float() - logits.float().mean(dim=-1, keepdim=True)
    # The deviation by the length of the row: its gradient is 0, not NaN, where all logits are equal.
    return F.normalize(centred, dim=-1, eps=_NONE) * math.sqrt(logits.shape[-1] - 1)


def _require_three(classes: int, reason: str) -> None:
    if classes < 3:
        raise ValueError(f"this loss needs three classes and more; found {classes}: {reason}")
