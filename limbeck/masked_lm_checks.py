"""What the task ``masked_lm`` asks of a configuration, beside the methods that it refuses (``Task.refused``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from limbeck.errors import Problem

if TYPE_CHECKING:
    from limbeck.config import DistillConfig


def alone(config: DistillConfig) -> Iterator[Problem]:
    """What can be seen without teacher and data."""
    weighting = config.training.sample_weighting
    if weighting is not None and weighting.by_teacher:
        yield Problem(
            "/training/sample_weighting",
            f"found {weighting.type!r}, which weighs by the teacher's answers to the whole training split; those to "
            "hidden tokens are never kept; allowed: focal",
        )
    if config.student.recurrent:
        yield Problem(
            "/student/architecture",
            f"found {config.student.architecture!r}, which answers for a text as a whole; masked_lm asks for its "
            "tokens: take 'transformer'",
        )
