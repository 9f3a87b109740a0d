"""What a task is: which head the models carry, which losses fit its labels, and how its answers are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from limbeck.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


class Task(Spec, ABC):
    """Tasks, as methods, never import torch at module level."""

    shorthand: ClassVar[str | None] = "type"
    #: The metric that selects weights and that retention is of; a name of ``limbeck.evaluate``.
    main_metric: ClassVar[str]
    #: Every metric of the scorecard.
    metrics: ClassVar[tuple[str, ...]]

    type: Any

    @abstractmethod
    def model_class(self) -> Any:
        """The transformers ``AutoModelFor…`` class whose head fits the task."""

    @abstractmethod
    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        """Write the labels into a model's configuration."""

    @abstractmethod
    def hard_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss against the true labels, a float32 scalar, the mean over examples."""

    @abstractmethod
    def soft_loss(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """The loss against the teacher's logits at ``temperature``, a float32 scalar, the mean over examples."""
