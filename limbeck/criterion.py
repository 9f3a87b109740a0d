"""What a method minimises against the labels and against a teacher's logits, whatever the task and its weights are.

A method says *which* logits are compared and how much that counts; the task says which rows of them are judged,
``training.loss`` how two models' rows are compared, and ``training.sample_weighting`` what a row counts. So ``kd`` is
the same file for a text, for its tokens and for a span in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.difficulty import example_means, ranks
from limbeck.methods.base import Term
from limbeck.ranks import ALONE
from limbeck.soft_loss import KullbackLeibler

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch, Collator
    from limbeck.ensemble import Ensemble, Panel
    from limbeck.ranks import Ranks
    from limbeck.soft_loss import SoftLoss
    from limbeck.tasks.base import Task
    from limbeck.weighting import SampleWeighting

#: Added to every difficulty, so that a batch in which nothing is hard at all has equal weights instead of 0 / 0.
_LEAST = 1e-6


class Criterion:
    """The two losses of a job.

    Args:
        loss: how student and teacher are compared; default: the divergence that fits the task.
        weighting: what makes an example count more; default: all count alike.
        ensemble: of several teachers, whose logits the batches carry side by side; default: there is one.
        ranks: who shares every batch.
        teacher: loads the teacher, or all of several, whom a task whose answers are not kept (``Task.of_words``) asks
            in every batch.
        unit: what both losses are divided by (``Task.loss_unit``).
    """

    def __init__(
        self,
        task: Task,
        loss: SoftLoss | None = None,
        weighting: SampleWeighting | None = None,
        ensemble: Ensemble | None = None,
        ranks: Ranks = ALONE,
        teacher: Callable[[], PreTrainedModel | Panel] | None = None,
        unit: float = 1.0,
    ) -> None:
        self.task = task
        self._unit = unit
        self._teacher = None if teacher is None else cache(partial(_undrawn, teacher))
        self.ensemble = ensemble
        self.loss = loss or KullbackLeibler()
        self.weighting = weighting
        self.ranks = ranks
        self.weighed = False  #: whether a loss of it was asked for
        self._places: Tensor | None = None

    @property
    def needs_teacher_logits(self) -> bool:
        """Whether every batch has to carry the teacher's logits, also for a method that does not look at them."""
        return self.weighting is not None and self.weighting.by_teacher

    def logits(self, output: Any) -> Tensor:
        """The answer in a model's output, in the task's shape."""
        return self.task.logits(output)

    def answer(self, model: PreTrainedModel, batch: Batch, *, inside: bool = False) -> Tensor:
        """A model's logits for a batch, in the task's shape; those that :meth:`hard` and :meth:`soft` take.

        Args:
            inside: whether somebody looks at the states of its layers meanwhile.
        """
        return self.task.answer(model, batch, inside=inside)

    def hard(self, logits: Tensor, batch: Batch) -> Term:
        """The loss of ``logits`` against the true labels, of the examples that have one."""
        rows, targets, weights = self.task.rows(logits, batch), self.task.targets(batch), self._weights(logits, batch)
        if batch.labelled is None:
            return self._term(self.task.hard_losses(rows, targets), weights, self.task.unit)
        known = batch.labelled  # of examples that are each answered as a whole: no others come without labels
        if weights is not None:
            own = weights.index_select(0, known)
            # Before any return: the ranks add up together.
            mean = batch.labelled_weight
            weights = own / (self._mean(own, stands_in=batch.stands_in) if mean is None else mean)
        if not len(known):
            # Nothing to learn here, yet every parameter has to keep its gradient.
            return Term(logits.float().sum() * 0, unit="labelled")
        losses = self.task.hard_losses(rows.index_select(0, known), targets.index_select(0, known))
        return self._term(losses, weights, "labelled")

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
            teacher_logits: of the same shape; default: those that the batch carries (``Part.teacher_logits``). Of a
                task whose answers are not kept those of the first teacher: the others are asked for theirs.
            progress: share of the part's steps that is done, for losses that change on the way.

        Raises:
            ValueError: there are no teacher's logits.
        """
        if self.task.of_words and self._teacher is not None:
            teacher = self._live_rows(self._teacher, batch, temperature, teacher_logits)
        elif teacher_logits is not None:
            teacher = self.task.rows(teacher_logits, batch)
        elif batch.teacher_logits is not None:
            teacher = self.teacher_rows(batch, temperature)
        else:
            raise ValueError("the soft loss needs the teacher's logits in every batch: Part(teacher_logits=True)")
        student = self.task.rows(logits, batch)
        losses = self.loss.losses(self.task, student, teacher, self.task.targets(batch), temperature, progress)
        return self._term(losses, self._weights(logits, batch), self.task.unit)

    def study(self, collate: Collator) -> None:
        """Look at the whole training split where the weights need that; ``collate`` carries the teacher's logits."""
        if self.weighting is not None and self.weighting.ranked:
            self._places = ranks(self.weighting, self.task, collate, self.teacher_rows)

    @torch.no_grad()
    def weigh(self, parts: Sequence[Batch], progress: float) -> list[Batch]:
        """The parts of one batch with ``Batch.weights``, whose mean over the rows of *all* parts, of all ranks, is 1;
        where examples have no label, with that of those that have one, which :meth:`hard` divides by.

        Weights that hang on the student's answers are not known yet; :meth:`hard` and :meth:`soft` find them.

        Args:
            progress: share that is done of the training's steps that learn answers.
        """
        if self.weighting is None or self.weighting.by_student:
            return list(parts)
        found = [self.weighting.weights(self._teachers_difficulty(part), progress) + _LEAST for part in parts]
        owners = [self.task.owners(part) for part in parts]
        rows = torch.cat([weights[owner] for weights, owner in zip(found, owners, strict=True)])
        stands_in = any(part.stands_in for part in parts)
        mean, labelled = self._mean(rows, stands_in=stands_in), None
        if all(part.labelled is not None for part in parts):
            known = [weights[part.labelled] for part, weights in zip(parts, found, strict=True)]
            labelled = self._mean(torch.cat(known), stands_in=stands_in) / mean
        return [
            replace(part, weights=weights / mean, labelled_weight=labelled)
            for part, weights in zip(parts, found, strict=True)
        ]

    def _teachers_difficulty(self, batch: Batch) -> Tensor:
        """Of each example, (examples,): its rank where the weighting is by rank."""
        assert self.weighting is not None
        if self.weighting.ranked:
            assert self._places is not None
            assert batch.places is not None
            return self._places[torch.from_numpy(batch.places)].to(batch.labels.device)
        return self._difficulty(None, batch)

    def _difficulty(self, logits: Tensor | None, batch: Batch) -> Tensor:
        assert self.weighting is not None
        student = None if logits is None else self.task.rows(logits.detach(), batch)
        teacher = None if batch.teacher_logits is None else self.teacher_rows(batch)
        values = self.weighting.difficulties(self.task, student, teacher, self.task.targets(batch))
        return example_means(values, self.task.owners(batch), batch.counts["examples"])

    def teacher_rows(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """The teacher's logits, or those of all teachers together at ``temperature``, (units, classes)."""
        assert batch.teacher_logits is not None
        if self.ensemble is None:
            return self.task.rows(batch.teacher_logits, batch)
        each = [self.task.rows(one, batch) for one in self.ensemble.apart(batch.teacher_logits)]
        return self.ensemble.logits(self.task, each, temperature)

    @torch.no_grad()
    def _live_rows(
        self, load: Callable[[], PreTrainedModel | Panel], batch: Batch, temperature: float, first: Tensor | None
    ) -> Tensor:
        """As :meth:`teacher_rows`, of teachers that are asked now; the first one's logits may be known."""
        asked: Any = load() if self.ensemble is not None or first is None else None
        if self.ensemble is not None:
            together: Tensor = asked.answer(self.task, batch, temperature, first=first)
            return together
        return self.task.rows(self.task.answer(asked, batch) if first is None else first, batch)

    @torch.no_grad()
    def _weights(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Of each row, (units,); ``None`` where all count alike."""
        self.weighed = True
        if self.weighting is None:
            return None
        owners = self.task.owners(batch)
        if batch.weights is not None:
            return batch.weights[owners]
        rows = (self._difficulty(logits, batch) + _LEAST)[owners]
        return rows / self._mean(rows, stands_in=batch.stands_in)

    def _mean(self, rows: Tensor, *, stands_in: bool) -> Tensor:
        """Over the rows of all ranks, those aside that only stand in; 1 where there is none."""
        sums = torch.stack([rows.sum(), rows.new_full((), float(len(rows)))])
        total, count = self.ranks.sum(sums * (not stands_in))
        return torch.where(count > 0, total / count.clamp_min(1), torch.ones_like(total))

    def _term(self, losses: Tensor, weights: Tensor | None, unit: str) -> Term:
        return Term((losses if weights is None else losses * weights).mean() / self._unit, unit=unit)


def _undrawn(load: Callable[[], PreTrainedModel | Panel]) -> PreTrainedModel | Panel:
    """A model that is loaded between two steps. Building it draws a random start, from nobody's generator: a run that
    goes on loads it at another step."""
    with torch.random.fork_rng(devices=[]):
        return load()
