"""The losses, each a pure function of tensors, computed in float32, one value for each row of logits.

What they are averaged over, and how much each row counts, is the business of :class:`limbeck.criterion.Criterion`.

They refuse what would train silently into nonsense: NaN, and shapes that only fit by broadcasting.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import Diverged


def soft_losses(
    student_logits: Tensor,  # (rows, classes)
    teacher_logits: Tensor,  # (rows, classes)
    temperature: float,
) -> Tensor:
    """``T² · KL(softmax(t/T) ‖ softmax(s/T))`` of each row (Hinton et al. 2015, arXiv:1503.02531).

    The factor T² keeps the gradient's size independent of the temperature, so that a weight beside the hard loss
    means the same at every T. The sum over classes is not divided by their number, as some published code does.

    Returns:
        (rows,) in float32, 0 exactly where the two distributions agree.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
        Diverged: the teacher's logits hold NaN or infinity.
    """
    require_pair(student_logits, teacher_logits, temperature)
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2


def hard_losses(
    logits: Tensor,  # (rows, classes)
    labels: Tensor,  # (rows,) of int64
) -> Tensor:
    """Cross-entropy of each row with its true label, (rows,) in float32.

    Raises:
        ValueError: the shapes do not belong together, or a label is outside the classes.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "logits have to be (rows, classes) and labels (rows,); "
            f"found {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if (
        labels.device.type == "cpu"
        and labels.numel()
        and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]
    ):
        raise ValueError(f"labels have to lie in 0 … {logits.shape[1] - 1}; found {labels.min()} … {labels.max()}")
    return F.cross_entropy(logits.float(), labels, reduction="none")


def require_pair(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> None:
    """What every loss between two models' logits asks of them.

    Raises:
        ValueError: the shapes differ or are not (rows, classes), or the temperature is not above 0.
        Diverged: the teacher's logits hold NaN or infinity.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.dim() != 2:
        raise ValueError(
            "student and teacher logits have to have the same shape (rows, classes); "
            f"found {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature has to be above 0; found {temperature}")
    require_finite(teacher_logits, "the teacher's logits")


def binary_hard_losses(
    logits: Tensor,  # (rows, labels)
    targets: Tensor,  # (rows, labels), 0 or 1
) -> Tensor:
    """Binary cross-entropy, the mean over the labels of each row, (rows,) in float32.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(logits, targets)
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").mean(dim=-1)


def binary_soft_losses(
    student_logits: Tensor,  # (rows, labels)
    teacher_logits: Tensor,  # (rows, labels)
    temperature: float,
) -> Tensor:
    """``T² · KL(σ(t/T) ‖ σ(s/T))`` of each label's yes or no, the mean over the labels of each row, (rows,) in float32.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
        Diverged: the teacher's logits hold NaN or infinity.
    """
    _require_same_shape(student_logits, teacher_logits)
    if not temperature > 0:
        raise ValueError(f"the temperature has to be above 0; found {temperature}")
    require_finite(teacher_logits, "the teacher's logits")
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    yes = torch.sigmoid(teacher) * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = torch.sigmoid(-teacher) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (yes + no).mean(dim=-1) * temperature**2


def squared_losses(
    numbers: Tensor,  # (rows, numbers)
    targets: Tensor,  # (rows, numbers)
) -> Tensor:
    """The squared difference, the mean over each row, (rows,) in float32.

    Raises:
        ValueError: the shapes differ.
        Diverged: the targets hold NaN or infinity.
    """
    _require_same_shape(numbers, targets)
    require_finite(targets, "the numbers to learn")
    return (numbers.float() - targets.float()).square().mean(dim=-1)


def _require_same_shape(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape or one.dim() != 2:
        raise ValueError(
            f"both have to have the same shape (rows, values); found {tuple(one.shape)} and {tuple(other.shape)}"
        )


def require_finite(values: Tensor, what: str) -> None:
    """Raise :class:`Diverged` naming ``what`` where a value on the CPU is NaN or infinite.

    A look would stop a GPU's pipeline; the loop looks at the loss there, which is not finite either.
    """
    if values.device.type == "cpu" and not bool(torch.isfinite(values).all()):
        raise Diverged(f"{what[:1].upper()}{what[1:]} hold NaN or infinite values.")


def vector_losses(
    student: Tensor,  # (texts, width), of length 1
    teacher: Tensor,  # (texts, width), of length 1
) -> Tensor:
    """The squared distance of two vectors, 2 - 2 · cosine: 0 to 4, (texts,) in float32.

    Raises:
        ValueError: the shapes differ.
        Diverged: the teacher's vectors hold NaN or infinity.
    """
    _require_same_shape(student, teacher)
    require_finite(teacher, "the teacher's vectors")
    return (student.float() - teacher.float()).square().sum(dim=-1)


def cosine_losses(
    one: Tensor,  # (pairs, width), of length 1
    other: Tensor,  # (pairs, width), of length 1
    scores: Tensor,  # (pairs,), 0 to 1
) -> Tensor:
    """The squared difference of the cosine of a pair from its score, (pairs,) in float32.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _require_same_shape(one, other)
    if scores.shape != one.shape[:1]:
        raise ValueError(f"each pair has one score; found {tuple(scores.shape)} for {tuple(one.shape)}")
    return ((one.float() * other.float()).sum(dim=-1) - scores.float()).square()
