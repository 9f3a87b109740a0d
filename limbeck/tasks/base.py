"""What a task is: which head the models carry, which losses fit its labels, and how its answers are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from limbeck.spec import Spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

    from limbeck.batches import Batch


class Task(Spec, ABC):
    """Tasks, as methods, never import torch at module level."""

    shorthand: ClassVar[str | None] = "type"
    #: The metric that selects weights and that retention is of; a name of ``limbeck.evaluate``.
    main_metric: ClassVar[str]
    #: What a loss is the mean over: a key of ``Batch.counts``.
    unit: ClassVar[str] = "examples"
    #: What an answer is: one class of several, a yes or no for each label, or a number.
    kind: ClassVar[Literal["categorical", "binary", "value"]] = "categorical"
    #: Every metric of the scorecard.
    metrics: ClassVar[tuple[str, ...]]

    type: Any

    @abstractmethod
    def model_class(self) -> Any:
        """The transformers ``AutoModelFor…`` class whose head fits the task."""

    @abstractmethod
    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        """Write the labels into a model's configuration."""

    def logits(self, output: Any) -> Tensor:
        """The answer in the output of a model of :meth:`model_class`: (examples, classes), or what the task has."""
        logits: Tensor = output.logits
        return logits

    def rows(self, values: Tensor, batch: Batch) -> Tensor:
        """Of logits in the task's shape those that have a label, (units, classes)."""
        return values

    def targets(self, batch: Batch) -> Tensor:
        """The labels of :meth:`rows`, (units,) or what the task has."""
        return batch.labels

    def owners(self, batch: Batch) -> Tensor:
        """The example of the batch that each of :meth:`rows` belongs to, (units,)."""
        import torch

        return torch.arange(len(batch.labels), device=batch.labels.device)

    @abstractmethod
    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row of :meth:`rows` against its target, (units,) in float32."""

    @abstractmethod
    def soft_losses(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """The loss of each row against the teacher's at ``temperature``, (units,) in float32."""

    def predictions(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        """What the metrics judge, from logits over a whole split."""
        answers: NDArray[Any] = logits.argmax(axis=-1)
        return answers
