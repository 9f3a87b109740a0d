"""Any number of labels for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from limbeck.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

    from limbeck.batches import Batch, Encoded
    from limbeck.data import Split


class MultiLabel(Task):
    """Say of each of the data set's labels whether it applies to a text or a pair of texts.

    A label applies where its probability, a sigmoid of its logit, is at least one half. The soft loss is the divergence
    of two such probabilities at T, as the hard one (binary cross-entropy) the mean over the labels.
    """

    kind: ClassVar[Literal["categorical", "binary", "value", "vector"]] = "binary"
    main_metric: ClassVar[str] = "micro_f1"
    metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1")

    type: Literal["multi_label"] = "multi_label"

    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "multi_label_classification"

    def begin_head(self, layer: Any, train: Encoded) -> None:
        """At how often each label applies: a head that says one half of all spends the training on unlearning that, and
        takes the network along, so that in the end all texts look alike (Lin et al. 2017, arXiv:1708.02002, 4.1)."""
        import torch

        applies = torch.from_numpy(train.labels.sum(axis=0, dtype="float64"))
        with torch.no_grad():
            # One more of each kind: a label that every text has, or none, is not out of the question.
            layer.bias.copy_(((applies + 1) / (len(train) - applies + 1)).log())

    def encode(
        self, tokenizer: Any, split: Split, labels: Sequence[str], max_length: int, poll: Callable[[], None]
    ) -> Encoded:
        import numpy as np

        from limbeck.batches import encode

        applies = np.zeros((len(split), len(labels)), dtype=np.int8)
        for row, places in enumerate(split.labels):
            applies[row, list(places)] = 1
        return encode(tokenizer, split, max_length, poll, labels=applies)

    def targets(self, batch: Batch) -> Tensor:
        return batch.labels.float()  # (examples, labels)

    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        from limbeck.losses import binary_hard_losses

        return binary_hard_losses(logits, targets)

    def soft_losses(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        from limbeck.losses import binary_soft_losses

        return binary_soft_losses(student_logits, teacher_logits, temperature)

    def predictions(self, logits: NDArray[np.float32], data: Encoded) -> NDArray[np.int8]:  # (examples, labels)
        return (logits >= 0).astype("int8")

    def guess(self, truth: Any) -> NDArray[np.int8]:
        """Always the one label that applies most often."""
        import numpy as np

        answers = np.zeros(np.shape(truth), dtype=np.int8)
        answers[:, np.asarray(truth).sum(axis=0).argmax()] = 1
        return answers
