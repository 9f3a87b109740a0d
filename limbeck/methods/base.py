"""What a method is: a few options, and the objectives that it trains the student with.

The loop (``limbeck/loop.py``) knows no method by name. It asks the method for its :meth:`Method.parts` and runs each of
them in turn: build the objective, then steps with a fresh AdamW over whatever the objective leaves trainable. A method
never writes a loop; this is how those of ``docs/methods.md`` say what they need:

===========  ==========================================================================================================
kd           one part, cached teacher logits; terms ``soft_loss`` and ``hard_loss``
patient      ``teacher_places`` names the states of the teacher's first token that batches carry, cached as the logits
             are; a third term, the distance of the normalised states
distilbert   a masked-LM head beside the student in ``Objective.module``; words are masked in ``losses``, drawn for each
             example from seed, step and its place, and the term is divided by 15 % of all tokens
tinybert     two parts. The first (``selects=False``: its student answers nothing yet) matches attention and hidden
             states and adds the projection W as a second child of ``Objective.module``; the second is kd with T = 1
minilm       the relations of one layer pair; then a kd part
theseus      ``losses`` computes p from ``step``, draws once for each module from seed and step, and runs the frozen
             predecessor with the student's layers in it; ``module`` and ``student`` are the successor alone, which
             checkpoints, validation and the result hold; all but its layers get ``requires_grad_(False)`` in ``build``
self         kd; ``before_finetuning`` has the student start from what the teacher was before the job fine-tuned it
noise        kd; ``soft_labels`` spoils the teacher's logits once, before the first step
fastbert     part one is fine-tuning; part two attaches the branches to the student as a submodule, freezes the rest and
             keeps it in ``eval()`` by ``Objective.train_mode``; terms are the KLs to the last head. ``finish`` attaches
             the small loader
dynabert     ``losses`` runs the sub-networks one after the other and returns a term for each; ``module`` is the network
             that they are parts of, ``student`` one of them whose weights look into it (``limbeck/elastic.py``)
auto         relations and hidden states for a third of the steps, beside answers that are classes; then a kd part
             (``for_task``: where answers are places in a text, kd takes its place)
===========  ==========================================================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from limbeck.errors import Problem
from limbeck.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.config import Student
    from limbeck.criterion import Criterion
    from limbeck.pruning import Part as ModelPart
    from limbeck.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a method's training with one objective and one learning-rate schedule."""

    name: str = "main"
    share: float = 1.0  #: of the phase's steps; the shares of all parts sum to 1
    teacher_logits: bool = False  #: whether each batch carries the teacher's logits (computed once, cached)
    learning_rate: float = 1.0  #: factor on the configured one
    selects: bool = True  #: whether the best validated epoch of this part is kept, rather than its last step
    labels_alone: bool = False  #: whether the true labels are all that is learned in it


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids in the vocabulary that the batches are in."""

    mask: int | None
    special: tuple[int, ...]  #: all that are no words, the mask among them


def _no_tokens() -> SpecialTokens:
    return SpecialTokens(None, ())


def _not_measured(part: str) -> Tensor:
    raise ValueError(f"the importance of the teacher's {part} was not measured: give Models(importance=…)")


@dataclass(frozen=True, slots=True)
class Models:
    """What an objective is built from."""

    student: PreTrainedModel
    teacher: Callable[[], PreTrainedModel]  #: loads it, frozen and in ``eval()``; not called, it costs no memory
    layers: tuple[int, ...] = ()  #: of the teacher (from 0), that the student started from
    tokens: Callable[[], SpecialTokens] = _no_tokens  #: reads the tokenizer
    seed: int = 0  #: of the training, for draws that must not depend on where a run was interrupted
    #: How much each of the teacher's ``neurons`` or ``heads`` matters, (layers, parts); measured once, on training
    #: texts.
    importance: Callable[[ModelPart], Tensor] = _not_measured
    states_kept: bool = False  #: whether batches carry the states that the method's ``teacher_places`` names


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a loss: the *mean* over its units in a (micro-)batch, and its weight in the sum.

    The unit is a key of ``Batch.counts``; with gradient accumulation the loop weighs each micro-batch's mean by its
    share of the whole batch's units, so that the gradient is that of the whole batch.
    """

    value: Tensor  # scalar, float32
    weight: float = 1.0
    unit: str = "examples"

    def times(self, weight: float) -> Term:
        """The same with its weight multiplied."""
        return replace(self, weight=self.weight * weight)


class Objective(ABC):
    """What the loop minimises during one part."""

    #: Everything that takes part in training; its parameters with ``requires_grad`` are optimised and checkpointed.
    module: nn.Module
    #: The model that is validated, kept and returned; part of ``module``.
    student: PreTrainedModel

    @abstractmethod
    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        """The terms whose weighted sum is the loss of ``batch``, at ``step`` (from 0) of this part's ``steps``."""

    def train_mode(self) -> None:
        """Put the modules into the mode that this objective trains in."""
        self.module.train()

    def variants(self) -> Mapping[str, PreTrainedModel]:
        """Other models that this part has trained along, by name; validated when it ends, for the job's events."""
        return {}


def no_deeper(method: str, *, teacher_layers: int, student_layers: int) -> Iterator[Problem]:
    """For methods that give each of the student's layers one of the teacher's: a deeper student has too many."""
    if student_layers > teacher_layers:
        yield Problem(
            "/method",
            f"found {method!r} for a student of {student_layers} layers, each of which learns from one of the "
            f"teacher's {teacher_layers}: take auto, minilm or kd, or a student of at most {teacher_layers} layers",
        )


class Method(Spec, ABC):
    """The options of a method (the fields), and what it does with them.

    Methods never import torch at module level: the API process reads their schemas.
    """

    shorthand: ClassVar[str | None] = "type"
    #: Whether the method learns from a teacher at all.
    uses_teacher: ClassVar[bool] = True
    #: Whether the student is cut from what the teacher was before the job fine-tuned it.
    before_finetuning: ClassVar[bool] = False
    #: The paper, for people.
    paper: ClassVar[str | None] = None
    #: What the student has to offer, of ``limbeck.shapes.OFFERS``.
    needs: ClassVar[frozenset[str]] = frozenset()
    #: Whether it compares more of the student with the teacher than answers: hidden states, attention.
    looks_inside: ClassVar[bool] = False
    #: Why it cannot learn from several teachers; None where it can, since batches carry their answers.
    one_teacher: ClassVar[str | None] = None
    #: Whether all that it takes from the teacher is its answers to whole texts, so that the student may read the texts
    #: as other tokens.
    any_tokenizer: ClassVar[bool] = False
    #: What its examples may be: a method that looks at words, or at what stands in for them, reads texts alone.
    modalities: ClassVar[frozenset[str]] = frozenset({"text"})
    #: The tasks that it serves; None: all.
    tasks: ClassVar[frozenset[str] | None] = None

    #: Whether the true labels are all that its student learns from; where that is so of one part, the part says it.
    labels_alone: ClassVar[bool] = False
    #: What learns from answers alone, so that no true label may come in by ``training.loss``; None where nothing does.
    no_labels: ClassVar[str | None] = None

    type: Any

    def rivals(self) -> tuple[Method, ...]:
        """The methods that this one is raced against before the student is trained; the best of all trains it."""
        return ()

    def for_task(self, task: Task) -> Method:
        """What trains the student where the answers are this task's: this method, or one that it takes in its place."""
        return self

    def problems(self, *, classes: int, teacher_layers: int, student_layers: int) -> Iterable[Problem]:
        """What forbids this method for such a teacher and data set; pointers start at ``/method``."""
        return ()

    def student(self, student: Student, teacher_layers: int) -> Student:
        """The student with what the user left open and this method wants otherwise than the rest."""
        return student

    def begin(self, student: Student, task: Task) -> Student:
        """The same for what hangs on the task."""
        return student

    def soft_labels(self, logits: Tensor, seed: int) -> Tensor:
        """What the student learns in place of the teacher's ``logits`` over the training split, (examples, …, classes).

        Called before every start and resumption: it has to be a function of its arguments.
        """
        return logits

    def remarks(self, *, teacher: str, student: str) -> Iterable[str]:
        """What the method does otherwise for models of these types (``config.model_type``); said once, in an event."""
        return ()

    def parts(self) -> tuple[Part, ...]:
        """The parts, in order."""
        return (Part(teacher_logits=self.uses_teacher),)

    def teacher_places(self, student_layers: int, teacher_layers: int) -> tuple[int, ...]:
        """How many of the teacher's layers lie before each state of its first token that batches carry
        (``Batch.teacher_states``, computed once, with the logits), where ``Models.states_kept`` says so: those of a
        large training split take too much room."""
        return ()

    @abstractmethod
    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        """The objective of ``part``; called again when a run resumes in the middle of it."""

    def finish(self, objective: Objective) -> PreTrainedModel:
        """The student to save, once the last part's best weights are loaded."""
        return objective.student
