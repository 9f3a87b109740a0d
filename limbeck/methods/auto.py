"""The default: the teacher's answers and the labels, and for a third of the steps the teacher's inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from limbeck.methods.base import Method, Models, Objective, Part, Term
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.minilm import Relations
from limbeck.methods.none import FineTuning
from limbeck.methods.theseus import Theseus
from limbeck.methods.tinybert import HiddenStates

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.criterion import Criterion
    from limbeck.tasks.base import Task

#: Of the steps, the part in which the inside is matched; then T, and the weight of the teacher's answers.
_SHARE = 1 / 3
_TEMPERATURE, _ALPHA = 4.0, 0.5


class Auto(Method):
    """``kd`` at T = 4 with half of the weight on the labels, and in the first third of the steps the relations of the
    last layer (MiniLMv2) and the hidden states on a uniform map (TinyBERT): beside the answers where these are classes,
    and before them where they are numbers, vectors or words. Where they are places in a text it is ``kd``.

    Where a family's attention is not in its projections (ModernBERT) the hidden states are matched alone; a student
    without layers (BiLSTM, BiGRU) learns the answers alone. What was measured of all that: docs/adr/0012 and 0013.
    """

    paper: ClassVar[str | None] = (
        "Limbeck's own choice, of MiniLMv2 (arXiv:2012.15828), TinyBERT (arXiv:1909.10351) and kd"
    )

    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    looks_inside: ClassVar[bool] = True

    type: Literal["auto"] = "auto"
    race: bool = False
    """Try this method, ``kd``, additive ``theseus`` and plain fine-tuning (``none``) on an eighth of the steps each,
    the better two on a quarter, and let the best train the student. That costs about as much as the training itself."""

    def rivals(self) -> tuple[Method, ...]:
        if not self.race:
            return ()
        return KnowledgeDistillation(), Theseus(replacing="additive"), FineTuning()

    def for_task(self, task: Task) -> Method:
        return KnowledgeDistillation() if task.of_places else self

    def remarks(self, *, teacher: str, student: str) -> Iterable[str]:
        from limbeck.families import has_states

        if not has_states(student):
            yield "The student has no layers to match: it learns the teacher's answers alone."
        elif not has_states(teacher):
            yield "The teacher has no layers to match: the student learns its answers alone."
        elif not _related(teacher, student):
            yield (
                f"The attention of {' and '.join(dict.fromkeys((teacher, student)))} cannot be compared by queries, "
                "keys and values: the hidden states are matched alone."
            )

    def parts(self) -> tuple[Part, ...]:
        return (
            Part("inside", share=_SHARE, selects=False, teacher_logits=True),
            Part("answers", share=1 - _SHARE, teacher_logits=True),
        )

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        from limbeck.families import has_states

        inside = has_states(models.student.config.model_type)
        if part.name == "inside" and inside:
            teacher = models.teacher()  # loaded once
            if has_states(teacher.config.model_type):
                return _Inside(replace(models, teacher=lambda: teacher), criterion)
        if inside and not _beside(criterion.task):
            return _Answers(models.student, criterion)
        before, share = (0.0, _SHARE) if part.name == "inside" else (_SHARE, 1 - _SHARE)
        return _Answers(models.student, criterion, before, share)


class _Answers(Objective):
    """As ``kd``, in a share of the steps: losses that change on the way do so over all steps that have answers."""

    def __init__(self, student: PreTrainedModel, criterion: Criterion, before: float = 0.0, share: float = 1.0) -> None:
        self.module: nn.Module = student
        self.student, self.criterion = student, criterion
        self.before, self.share = before, share

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        return self.answers(self.criterion.answer(self.student, batch), batch, step / steps)

    def answers(self, logits: Tensor, batch: Batch, done: float) -> dict[str, Term]:
        """
        Args:
            done: share of this part's steps.
        """
        soft = self.criterion.soft(logits, batch, _TEMPERATURE, progress=self.before + self.share * done)
        return {"soft_loss": soft.times(_ALPHA), "hard_loss": self.criterion.hard(logits, batch).times(1 - _ALPHA)}


class _Inside(_Answers):
    """What is inside, and where answers are learned beside it, both from one pass of each model."""

    def __init__(self, models: Models, criterion: Criterion) -> None:
        super().__init__(models.student, criterion, 0.0, _SHARE)
        self.beside = _beside(criterion.task)
        self.states = HiddenStates(models)
        self.module, self.teacher = self.states.module, self.states.teacher
        related = _related(self.teacher.config.model_type, self.student.config.model_type)
        self.relations = Relations(models, None, None) if related else None

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        import torch

        from limbeck.capture import captured

        projections = self.relations is not None
        with captured(self.student, projections=projections) as ours:
            if self.beside:
                logits = self.criterion.answer(self.student, batch, inside=True)
            else:
                self.student.base_model(**batch.inputs)
        # no_grad, not inference_mode: autograd keeps the teacher's states for the student's gradient.
        with torch.no_grad(), captured(self.teacher, projections=projections) as theirs:
            self.teacher.base_model(**batch.inputs)
        terms = self.answers(logits, batch, step / steps) if self.beside else {}
        terms["hidden_loss"] = Term(self.states.distance(ours, theirs, batch), unit="tokens")
        if self.relations is not None:
            terms["relation_loss"] = Term(self.relations.relations(ours, theirs, batch), unit="tokens")
        return terms


def _beside(task: Task) -> bool:
    """Whether the answers are learned beside the inside from the first step on: those that are some of a data set's
    classes. A number, a vector or a word is learned once the inside is near, and so is a place in a run that was
    begun before :meth:`Auto.for_task` was there."""
    return task.kind in ("categorical", "binary") and not (task.of_words or task.of_places)


def _related(*types: str) -> bool:
    """Whether what tokens attend to is in the projections of all these."""
    from limbeck.families import family_of

    return not any(family_of(kind).rotary for kind in types)
