"""The default: a third of the steps bring the student's inside near its teacher's, the rest its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from limbeck.methods.base import Method, Models, Objective, Part, Term
from limbeck.methods.kd import KnowledgeDistillation, TeacherAndLabels
from limbeck.methods.minilm import Relations, both
from limbeck.methods.none import FineTuning
from limbeck.methods.theseus import Theseus
from limbeck.methods.tinybert import HiddenStates

if TYPE_CHECKING:
    from limbeck.batches import Batch
    from limbeck.criterion import Criterion

_SHARE = 1 / 3


class Auto(Method):
    """Relations of the last layer (MiniLMv2) and hidden states on a uniform map (TinyBERT); then ``kd`` at T = 4, 0.9.

    Where a family's attention is not in its projections (ModernBERT) the hidden states are matched alone; a student
    without layers (BiLSTM, BiGRU) learns the answers from the first step on.

    Where the user does not say from which of the teacher's layers the student starts, a trial on a sixteenth of the
    steps chooses between evenly spread ones and the first ones; a training of fewer than 320 steps has none.
    """

    paper: ClassVar[str | None] = (
        "Limbeck's own choice, of MiniLMv2 (arXiv:2012.15828), TinyBERT (arXiv:1909.10351) and kd"
    )

    starts: ClassVar[tuple[str, ...]] = ("uniform", "first")
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    looks_inside: ClassVar[bool] = True

    type: Literal["auto"] = "auto"
    race: bool = False
    """Try this method, ``kd``, additive ``theseus`` and plain fine-tuning (``none``) on an eighth of the steps each,
    the better two on a quarter, and let the best train the student. That costs about as much as the training itself."""

    def rivals(self) -> tuple[Method, ...]:
        if not self.race:
            return ()
        return KnowledgeDistillation(temperature=4.0, alpha=0.9), Theseus(replacing="additive"), FineTuning()

    def remarks(self, *, teacher: str, student: str) -> Iterable[str]:
        from limbeck.families import has_states

        if not has_states(student):
            yield "The student has no layers to match: it learns the teacher's answers from the first step on."
        elif not has_states(teacher):
            yield "The teacher has no layers to match: the student learns its answers from the first step on."
        elif not _related(teacher, student):
            yield (
                f"The attention of {' and '.join(dict.fromkeys((teacher, student)))} cannot be compared by queries, "
                "keys and values: the hidden states are matched alone, then the answers."
            )

    def parts(self) -> tuple[Part, ...]:
        return (
            Part("inside", share=_SHARE, selects=False, teacher_logits=True),
            Part("answers", share=1 - _SHARE, teacher_logits=True),
        )

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        from limbeck.families import has_states

        if part.name == "inside" and has_states(models.student.config.model_type):
            teacher = models.teacher()  # loaded once
            if has_states(teacher.config.model_type):
                return _Inside(replace(models, teacher=lambda: teacher))
        return TeacherAndLabels(models.student, criterion, temperature=4.0, alpha=0.9)


class _Inside(Objective):
    def __init__(self, models: Models) -> None:
        self.states = HiddenStates(models)
        self.module, self.student, teacher = self.states.module, models.student, self.states.teacher
        shared = Models(models.student, lambda: teacher, models.layers)  # loaded once
        related = _related(teacher.config.model_type, models.student.config.model_type)
        self.relations = Relations(shared, None, None) if related else None

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        ours, theirs = both(self.student, self.states.teacher, batch, projections=self.relations is not None)
        terms = {"hidden_loss": Term(self.states.distance(ours, theirs, batch), unit="tokens")}
        if self.relations is not None:
            terms["relation_loss"] = Term(self.relations.relations(ours, theirs, batch), unit="tokens")
        return terms


def _related(*types: str) -> bool:
    """Whether what tokens attend to is in the projections of all these."""
    from limbeck.families import family_of

    return not any(family_of(kind).rotary for kind in types)
