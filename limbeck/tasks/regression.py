"""A number for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from limbeck.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

    from limbeck.batches import Encoded
    from limbeck.data import Split


class Regression(Task):
    """Give a text or a pair of texts a number, such as how alike two sentences are.

    Both losses are the squared difference, to the true number and to the teacher's, as a share of the training labels'
    variance: always to answer their mean has a loss of 1, whether they are stars or prices.
    """

    kind: ClassVar[Literal["categorical", "binary", "value", "vector"]] = "value"
    named: ClassVar[bool] = False
    main_metric: ClassVar[str] = "spearman"
    metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson", "rmse")

    type: Literal["regression"] = "regression"

    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        config.num_labels = 1
        config.problem_type = "regression"

    def outputs(self, labels: Sequence[str]) -> int:
        return 1

    def begin_head(self, layer: Any, train: Encoded) -> None:
        """At the mean, with the labels' spread: a head that starts at 0 spends its training on getting there."""
        import torch

        with torch.no_grad():
            layer.weight.mul_(float(train.labels.std()))
            layer.bias.fill_(float(train.labels.mean()))

    def loss_unit(self, labels: NDArray[Any]) -> float:
        return float(labels.var(dtype="float64")) or 1.0  # labels that are all the same have no spread

    def encode(
        self, tokenizer: Any, split: Split, labels: Sequence[str], max_length: int, poll: Callable[[], None]
    ) -> Encoded:
        import numpy as np

        from limbeck.batches import encode

        return encode(tokenizer, split, max_length, poll, labels=np.asarray(split.labels, dtype=np.float32))

    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        from limbeck.losses import squared_losses

        return squared_losses(logits, targets[:, None])

    def soft_losses(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        from limbeck.losses import squared_losses

        return squared_losses(student_logits, teacher_logits)

    def predictions(self, logits: NDArray[np.float32], data: Encoded) -> NDArray[np.float32]:  # (examples,)
        return logits[:, 0]

    def guess(self, truth: Any) -> NDArray[np.float64]:
        """Always the mean, which correlates with nothing."""
        import numpy as np

        return np.full(len(truth), np.mean(truth))

    def agreement(self, one: Any, other: Any, truth: Any) -> float:
        """The share that are within a hundredth of the true numbers' spread: that of answers which are nearly constant
        is no more than what float32 rounds."""
        import numpy as np

        spread = float(np.std(truth, dtype="float64")) or 1.0  # as in loss_unit()
        near = np.abs(np.asarray(one) - np.asarray(other)) <= 0.01 * spread
        return float(near.mean())

    def astray(self, one: Any, other: Any) -> float:
        import numpy as np

        ours, theirs = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
        return float(np.sqrt(np.mean((ours - theirs) ** 2)) / max(float(np.std(ours)), 1e-12))
