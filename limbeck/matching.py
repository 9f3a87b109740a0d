"""Losses between what goes on inside a student and inside its teacher: pure functions of tensors, in float32.

Padding counts nowhere: neither as a token whose state is matched, nor as one that attends or is attended to. Each is a
mean over what is real, so that the same examples give the same loss however they are padded.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import require_finite


def uniform_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer (from 0) for each of the student's, evenly spread, the last for the last."""
    return tuple((place + 1) * teacher_layers // student_layers - 1 for place in range(student_layers))


def normalised_distance(
    student: Tensor,  # (examples, width)
    teacher: Tensor,  # (examples, width)
) -> Tensor:
    """The squared distance of the two vectors, each brought to length 1: 0 to 4, the mean over examples.

    PKD's loss (Sun et al. 2019, arXiv:1908.09355, equation 7), which published code divides by the width as well.
    """
    _require_same(student, teacher)
    apart = F.normalize(student.float(), dim=-1) - F.normalize(teacher.float(), dim=-1)
    return apart.square().sum(dim=-1).mean()


def hidden_distance(
    student: Tensor,  # (examples, tokens, width)
    teacher: Tensor,  # (examples, tokens, width)
    mask: Tensor,  # (examples, tokens)
) -> Tensor:
    """The mean squared error over the width, the mean over real tokens (TinyBERT, arXiv:1909.10351, equation 8)."""
    _require_same(student, teacher)
    return _over_tokens((student.float() - teacher.float()).square().mean(dim=-1), mask)


def cosine_distance(
    student: Tensor,  # (examples, tokens, width)
    teacher: Tensor,  # (examples, tokens, width)
    mask: Tensor,  # (examples, tokens)
) -> Tensor:
    """1 - cosine, the mean over real tokens (DistilBERT, Sanh et al. 2019, arXiv:1910.01108)."""
    _require_same(student, teacher)
    return _over_tokens(1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1), mask)


def attention_distance(
    student: tuple[Tensor, Tensor],  # queries and keys, each (examples, tokens, width)
    teacher: tuple[Tensor, Tensor],
    mask: Tensor,  # (examples, tokens)
    heads: int,
) -> Tensor:
    """The mean squared error of the attention scores before the softmax, over heads and all pairs of real tokens
    (TinyBERT, equation 7; the published code also counts the rows of padding)."""
    ours, theirs = (_scores(*projections, heads) for projections in (student, teacher))
    _require_same(ours, theirs)
    apart = (ours - theirs).square().mean(dim=1)  # (examples, tokens, tokens)
    pairs = mask[:, :, None] * mask[:, None, :]
    return torch.where(pairs > 0, apart, 0.0).sum() / pairs.sum()


def relation_divergence(
    student: Tensor,  # queries, keys or values: (examples, tokens, width)
    teacher: Tensor,  # (examples, tokens, its own width)
    mask: Tensor,  # (examples, tokens)
    heads: int,
) -> Tensor:
    """KL(teacher ‖ student) of softmax(XXᵀ/√d) in ``heads`` relation heads, the mean over heads and real tokens
    (MiniLMv2, Wang et al. 2021, arXiv:2012.15828). The widths may differ; ``heads`` divides both."""
    ours, theirs = (_relations(states, mask, heads) for states in (student, teacher))
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True)
    # A key that is padding has log 0 on both sides: 0 · (-inf - -inf) is no number.
    divergence = torch.where(mask[:, None, None, :] > 0, divergence, 0.0).sum(dim=-1).mean(dim=1)
    return _over_tokens(divergence, mask)


def _scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """(examples, heads, tokens, tokens)"""
    left, right = (_by_head(states, heads) for states in (queries, keys))
    # Autocast multiplies float32 in bfloat16 as well: its rounding is larger than what two models still differ by.
    with torch.autocast(left.device.type, enabled=False):
        return torch.matmul(left, right.transpose(-1, -2)).div(math.sqrt(left.shape[-1]))


def _relations(states: Tensor, mask: Tensor, heads: int) -> Tensor:
    """The log of each token's relation to all others, (examples, heads, tokens, tokens)."""
    scores = _scores(states, states, heads)
    return torch.log_softmax(scores.masked_fill(mask[:, None, None, :] == 0, float("-inf")), dim=-1)


def _by_head(states: Tensor, heads: int) -> Tensor:
    """(examples, tokens, width) -> (examples, heads, tokens, width / heads)"""
    if states.shape[-1] % heads:
        raise ValueError(f"{heads} heads do not divide a width of {states.shape[-1]}")
    require_finite(states.detach(), "the captured states")
    return states.float().reshape(*states.shape[:2], heads, -1).transpose(1, 2)


def _over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask > 0, values, 0.0).sum() / mask.sum()


def _require_same(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher have to have the same shape; found {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
