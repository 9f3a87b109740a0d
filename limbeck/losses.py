"""The losses, each a pure function of tensors, computed in float32 and averaged over the batch.

They refuse what would train silently into nonsense: NaN, and shapes that only fit by broadcasting.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import Diverged


def soft_loss(
    student_logits: Tensor,  # (examples, classes)
    teacher_logits: Tensor,  # (examples, classes)
    temperature: float,
) -> Tensor:
    """``T² · KL(softmax(t/T) ‖ softmax(s/T))``, the mean over examples (Hinton et al. 2015, arXiv:1503.02531).

    The factor T² keeps the gradient's size independent of the temperature, so that a weight beside the hard loss
    means the same at every T. The sum over classes is not divided by their number, as some published code does.

    Returns:
        A float32 scalar, 0 exactly where the two distributions agree.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
        Diverged: the teacher's logits hold NaN or infinity.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.dim() != 2:
        raise ValueError(
            "student and teacher logits have to have the same shape (examples, classes); "
            f"found {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature has to be above 0; found {temperature}")
    require_finite(teacher_logits, "the teacher's logits")
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def hard_loss(
    logits: Tensor,  # (examples, classes)
    labels: Tensor,  # (examples,) of int64
) -> Tensor:
    """Cross-entropy with the true labels, the mean over examples, as a float32 scalar.

    Raises:
        ValueError: the shapes do not belong together, or a label is outside the classes.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "logits have to be (examples, classes) and labels (examples,); "
            f"found {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if (
        labels.device.type == "cpu"
        and labels.numel()
        and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]
    ):
        raise ValueError(f"labels have to lie in 0 … {logits.shape[1] - 1}; found {labels.min()} … {labels.max()}")
    return F.cross_entropy(logits.float(), labels)


def require_finite(values: Tensor, what: str) -> None:
    """Raise :class:`Diverged` naming ``what`` where a value is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        raise Diverged(f"{what[:1].upper()}{what[1:]} hold NaN or infinite values.")
