"""How a student's answer is compared with its teacher's: the choices of ``training.loss``.

Imports no torch: the API process reads these options. The formulas are in ``limbeck/losses.py`` and
``limbeck/categorical_losses.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from limbeck.errors import Problem
from limbeck.spec import Spec, type_tag

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.tasks.base import Task

_POINTER = "/training/loss"


class BaseLoss(Spec, ABC):
    """Options of a soft loss, and its values."""

    shorthand: ClassVar[str | None] = "type"
    #: The paper, for people.
    paper: ClassVar[str | None] = None
    #: Whether the true labels take part.
    needs_labels: ClassVar[bool] = False
    #: Why several teachers have no answer for it; ``None`` where they have: it takes the logits through their softmax.
    of_one: ClassVar[str | None] = None
    #: Why two classes are too few; ``None`` where they are not.
    degenerate: ClassVar[str | None] = None

    type: Any

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss of a batch is something else than the mean over its parts."""
        return False

    def problems(self, *, task: Task, classes: int | None) -> Iterator[Problem]:
        """What forbids this loss for such data; ``classes`` is ``None`` where it is not known yet."""
        if self.type == "kl":
            return
        if task.kind != "categorical":
            yield Problem(
                _POINTER,
                f"found {self.type!r}, which compares how two models divide one choice among classes; the answers of "
                f"{task.type!r} are no such choice; allowed: 'kl'",
            )
        elif self.type != "annealing" and task.type == "question_answering" and self.degenerate is not None:
            yield Problem(
                _POINTER,
                f"found {self.type!r}; the choices of 'question_answering' are the tokens of a text, as many as it "
                "has, padding among them: allowed are kl, reverse_kl, jsd and annealing",
            )
        elif self.degenerate is not None and classes is not None and classes < 3:
            yield Problem(_POINTER, f"found {self.type!r} with {classes} classes: {self.degenerate}; it needs three")

    @abstractmethod
    def losses(
        self, task: Task, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, progress: float
    ) -> Tensor:
        """The loss of each row, (units,) in float32.

        Args:
            student: logits in rows, (units, classes).
            teacher: likewise.
            targets: (units,), the true classes.
            temperature: the method's.
            progress: share of the part's steps that is done.
        """


class KullbackLeibler(BaseLoss):
    """``T² · KL(teacher ‖ student)``, or what takes its place in a task whose answer is not one class of several."""

    paper: ClassVar[str | None] = "Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531"

    type: Literal["kl"] = "kl"

    def losses(
        self, task: Task, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, progress: float
    ) -> Tensor:
        return task.soft_losses(student, teacher, temperature)


class ReverseKL(BaseLoss):
    """``T² · KL(student ‖ teacher)``: the student keeps to what the teacher holds likely."""

    paper: ClassVar[str | None] = "Gu et al. 2023, MiniLLM, arXiv:2306.08543"

    type: Literal["reverse_kl"] = "reverse_kl"

    def losses(
        self, task: Task, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, progress: float
    ) -> Tensor:
        from limbeck.categorical_losses import reverse_kl_losses

        return reverse_kl_losses(student, teacher, temperature)


class JensenShannon(BaseLoss):
    """The generalised Jensen-Shannon divergence, between the forward and the reverse one."""

    paper: ClassVar[str | None] = "Agarwal et al. 2023, On-Policy Distillation (GKD), arXiv:2306.13649"

    type: Literal["jsd"] = "jsd"
    beta: float = Field(default=0.5, ge=0, le=1)
    """0 is the forward divergence, 1 the reverse one; divided by ``beta · (1 - beta)``, which the paper does not."""

    @field_validator("beta")
    @classmethod
    def _computable(cls, value: float) -> float:
        if 0 < value < 0.01 or 0.99 < value < 1:
            raise ValueError("allowed: 0, 1, and 0.01 to 0.99; nearer to the ends float32 loses the difference")
        return value

    def losses(
        self, task: Task, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, progress: float
    ) -> Tensor:
        from limbeck.categorical_losses import jsd_losses

        return jsd_losses(student, teacher, temperature, self.beta)


class DecoupledDistillation(BaseLoss):
    """The divergence in two parts with weights of their own: the true class against the others, and among these."""

    paper: ClassVar[str | None] = "Zhao et al. 2022, Decoupled Knowledge Distillation, arXiv:2203.08679"
    needs_labels: ClassVar[bool] = True
    degenerate: ClassVar[str | None] = "with one class beside the true one, its non-target term is always 0"

    type: Literal["dkd"] = "dkd"
    alpha: float = Field(default=1.0, ge=0, le=100)
    """Weight of the true class against the others."""
    beta: float = Field(default=2.0, ge=0, le=100)
    """Weight of what the teacher says of the other classes; the paper has 0.5 to 10."""

    def losses(
        self, task: Task, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, progress: float
    ) -> Tensor:
        from limbeck.categorical_losses import dkd_losses

        return dkd_losses(student, teacher, targets, temperature, self.alpha, self.beta)


class Correlation(BaseLoss):
    """DIST: one minus the correlation with the teacher, over the classes of an example and over the examples of a
    class."""

    paper: ClassVar[str | None] = "Huang et al. 2022, Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536"
    degenerate: ClassVar[str | None] = "two numbers always correlate fully"

    type: Literal["dist"] = "dist"
    inter: float = Field(default=1.0, ge=0, le=100)
    """Weight of the correlation over classes."""
    intra: float = Field(default=1.0, ge=0, le=100)
    """Weight of the correlation over the examples of a batch."""

    @property
    def needs_whole_batch(self) -> bool:
        return self.intra > 0

    def losses(
        self, task: Task, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, progress: float
    ) -> Tensor:
        from limbeck.categorical_losses import dist_losses

        return dist_losses(student, teacher, temperature, self.inter, self.intra)


class LogitStandardisation(BaseLoss):
    """The divergence of z-scored logits: the student matches how the teacher's logits relate, not how large they
    are."""

    paper: ClassVar[str | None] = "Sun et al. 2024, Logit Standardization in Knowledge Distillation, arXiv:2403.01878"
    degenerate: ClassVar[str | None] = "two logits have the z-scores 0.707 and -0.707 whatever they are"
    of_one: ClassVar[str | None] = "the mean of several distributions has no z-scores of logits"

    type: Literal["logit_standardisation"] = "logit_standardisation"
    temperature: float = Field(default=2.0, ge=0.1, le=100)
    """Base temperature of the z-scores; takes the place of the method's, whose logits have another size."""

    def losses(
        self, task: Task, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, progress: float
    ) -> Tensor:
        from limbeck.categorical_losses import standardised_losses

        return standardised_losses(student, teacher, self.temperature)


class Annealing(BaseLoss):
    """First the squared distance to the teacher's logits, which grow from small to whole, then the true labels.

    The paper has no hard loss in the first phase: that is ``kd`` with ``alpha`` = 1. The method's temperature is not
    used.
    """

    paper: ClassVar[str | None] = "Jafari et al. 2021, Annealing Knowledge Distillation, arXiv:2104.07163"
    needs_labels: ClassVar[bool] = True
    of_one: ClassVar[str | None] = "the mean of several distributions has no logits to take the distance to"

    type: Literal["annealing"] = "annealing"
    max_temperature: float = Field(default=7.0, ge=1, le=100)
    """The teacher's logits start divided by this."""
    share: float = Field(default=0.7, gt=0, le=1)
    """Of the steps, that the first phase takes."""

    def scale(self, progress: float) -> float:
        """What the teacher's logits are multiplied by: ``1 - (τ - 1) / τ_max``, τ falling in a line to 1."""
        temperature = self.max_temperature - (self.max_temperature - 1) * min(1.0, progress / self.share)
        return 1 - (temperature - 1) / self.max_temperature

    def losses(
        self, task: Task, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, progress: float
    ) -> Tensor:
        from limbeck.categorical_losses import annealing_losses

        if progress < self.share:
            return annealing_losses(student, teacher, self.scale(progress), task.real(teacher))
        return task.hard_losses(student, targets)


SoftLoss = Annotated[
    Annotated[KullbackLeibler, Tag("kl")]
    | Annotated[ReverseKL, Tag("reverse_kl")]
    | Annotated[JensenShannon, Tag("jsd")]
    | Annotated[DecoupledDistillation, Tag("dkd")]
    | Annotated[Correlation, Tag("dist")]
    | Annotated[LogitStandardisation, Tag("logit_standardisation")]
    | Annotated[Annealing, Tag("annealing")],
    Discriminator(type_tag),
]
"""``training.loss``."""
