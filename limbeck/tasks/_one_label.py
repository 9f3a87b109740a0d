"""What the tasks of one label for each example have in common, whatever an example is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from limbeck.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig


class OneLabelTask(Task):
    """Choose one of the data set's labels."""

    main_metric: ClassVar[str] = "accuracy"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")

    def guess(self, truth: Any) -> NDArray[np.int64]:
        import numpy as np

        classes, counts = np.unique(np.asarray(truth), return_counts=True)
        return np.full(len(truth), classes[counts.argmax()], dtype=np.int64)

    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"

    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        from limbeck.losses import hard_losses

        return hard_losses(logits, targets)

    def soft_losses(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        from limbeck.losses import soft_losses

        return soft_losses(student_logits, teacher_logits, temperature)
