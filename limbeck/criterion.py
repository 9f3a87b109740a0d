"""What a method minimises against the labels and against a teacher's logits, whatever the task and its weights are.

A method says *which* logits are compared and how much that counts; the task says which rows of them are judged, and
this class what a row counts. So ``kd`` is the same file for a text, for its tokens and for a span in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.methods.base import Term

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.batches import Batch
    from limbeck.tasks.base import Task


class Criterion:
    """The two losses of a job."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def logits(self, output: Any) -> Tensor:
        """The answer in a model's output, in the task's shape."""
        return self.task.logits(output)

    def hard(self, logits: Tensor, batch: Batch) -> Term:
        """The loss of ``logits`` against the true labels."""
        losses = self.task.hard_losses(self.task.rows(logits, batch), self.task.targets(batch))
        return self._mean(losses)

    def soft(
        self,
        logits: Tensor,
        batch: Batch,
        temperature: float,
        *,
        teacher_logits: Tensor | None = None,
        progress: float = 0.0,
    ) -> Term:
        """The loss of ``logits`` against the teacher's.

        Args:
            logits: in the task's shape, as :meth:`logits` has them.
            teacher_logits: of the same shape; default: those that the batch carries (``Part.teacher_logits``).
            progress: share of the part's steps that is done, for losses that change on the way.

        Raises:
            ValueError: there are no teacher's logits.
        """
        teacher = batch.teacher_logits if teacher_logits is None else teacher_logits
        if teacher is None:
            raise ValueError("the soft loss needs the teacher's logits in every batch: Part(teacher_logits=True)")
        rows = self.task.rows(logits, batch), self.task.rows(teacher, batch)
        return self._mean(self.task.soft_losses(*rows, temperature))

    def _mean(self, losses: Tensor) -> Term:
        return Term(losses.mean(), unit=self.task.unit)
