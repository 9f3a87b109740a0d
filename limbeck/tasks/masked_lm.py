"""Finding hidden tokens of plain texts: what encoders are pretrained with, before there is any other task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from limbeck.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from limbeck.batches import Batch, Encoded
    from limbeck.data import Split

#: Numbers that are kept of an answer: the token that is found, and the loss of the true one.
_KEPT = 2
_INSIDE = "compares states of a text's first token, which say nothing where the texts have no label"


class MaskedLM(Task):
    """Find the tokens of a text that are hidden; texts need no labels.

    Hidden are 15 % of them (BERT's rule: 80 % of these are masked, 10 % are another token, 10 % stay).

    Which tokens are hidden in validation and test is drawn once, for the teacher, the student and the baseline alike;
    in training they are drawn anew for each epoch. The teacher's answers are as wide as its vocabulary: they are
    computed at the hidden tokens of each batch, and never kept. The student is an encoder with a masked-LM head, and so
    a ``student.source`` or a teacher for other jobs.
    """

    architecture: ClassVar[str] = "ForMaskedLM"
    of_words: ClassVar[bool] = True
    named: ClassVar[bool] = False
    joined: ClassVar[bool] = False
    main_metric: ClassVar[str] = "masked_accuracy"
    metrics: ClassVar[tuple[str, ...]] = ("masked_accuracy", "perplexity")
    unit: ClassVar[str] = "labelled"
    refused: ClassVar[Mapping[str, str]] = {
        "noise": "spoils answers of the teacher that are kept, and those to hidden tokens are not",
        "self": "starts from its teacher with a new head, and a masked-LM head is one with the word table",
        "patient": _INSIDE,
        "fastbert": "puts a classifier of texts behind each layer",
        "dynabert": "compares sub-networks by their answers to labels",
    }

    type: Literal["masked_lm"] = "masked_lm"

    def model_class(self) -> Any:
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        """The vocabulary is all that there is to answer."""
        if config.model_type == "deberta-v2":
            config.legacy = True  # the head that is tied to the word table as a layer

    def outputs(self, labels: Sequence[str]) -> int:
        return 0

    def width(self, config: PreTrainedConfig) -> int:
        return _KEPT

    def output_layer(self, model_type: str) -> str:
        from limbeck.families import family_of

        return family_of(model_type).words[1]

    def head_tensor(self, model_type: str) -> str:
        from limbeck.families import family_of

        # The last layer is the word table, which every encoder has.
        return f"{family_of(model_type).words[0]}.weight"

    def begin_head(self, layer: Any, train: Encoded) -> None:
        """Every token as likely as it is frequent."""
        import torch

        from limbeck.tasks._cloze import shown

        if layer.bias is None:
            return
        counts = torch.bincount(torch.from_numpy(shown(train)).long(), minlength=len(layer.bias)).float() + 1
        with torch.no_grad():
            layer.bias.copy_((counts / counts.sum()).log())

    def encode(
        self, tokenizer: Any, split: Split, labels: Sequence[str], max_length: int, poll: Callable[[], None]
    ) -> Encoded:
        from limbeck.errors import InvalidModel
        from limbeck.tasks._cloze import encode_hidden

        if tokenizer.mask_token_id is None:
            raise InvalidModel("The teacher's tokenizer has no mask token, which stands for what is hidden.")
        return encode_hidden(tokenizer, split, max_length, poll)

    def in_epoch(self, data: Encoded, seed: int, epoch: int) -> Encoded:
        from limbeck.tasks._cloze import hide

        return hide(data, [seed, epoch])

    def answer(self, model: PreTrainedModel, batch: Batch, *, inside: bool = False) -> Tensor:
        from limbeck.ensemble import Panel
        from limbeck.tasks._cloze import answering

        if isinstance(model, Panel):
            return model.answer(self, batch)
        with answering(model, batch.labels != -100):
            return self.logits(model(**batch.inputs))[0]  # (hidden, vocabulary)

    def kept(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return _judged(self.answer(model, batch).float(), self.targets(batch))

    def rows(self, values: Tensor, batch: Batch) -> Tensor:
        return values

    def targets(self, batch: Batch) -> Tensor:
        return batch.labels[batch.labels != -100]

    def owners(self, batch: Batch) -> Tensor:
        return (batch.labels != -100).nonzero()[:, 0]

    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        from limbeck.losses import hard_losses

        return hard_losses(logits, targets)

    def soft_losses(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        from limbeck.losses import soft_losses

        return soft_losses(student_logits, teacher_logits, temperature)

    def truth(self, data: Encoded) -> list[list[int]]:
        """The hidden tokens of each text."""
        hidden = data.labels != -100
        return [part.tolist() for part in _by_text(data.labels[hidden], data)]

    def predictions(self, logits: NDArray[np.float32], data: Encoded) -> list[list[list[float]]]:
        """For each hidden token of a text the one that is found, and the loss of the true one.

        Args:
            logits: (hidden, 2) as :meth:`kept` has them, or (hidden, vocabulary).
        """
        import torch

        if logits.shape[1] != _KEPT:
            labels = torch.from_numpy(data.labels[data.labels != -100])
            logits = _judged(torch.from_numpy(logits), labels).numpy()
        return [part.tolist() for part in _by_text(logits, data)]

    def guess(self, truth: Any) -> list[list[list[float]]]:
        """The most frequent token, everywhere."""
        ((common, _),) = Counter(one for row in truth for one in row).most_common(1)
        return [[[common, 0.0] for _ in row] for row in truth]

    def agreement(self, one: Any, other: Any, truth: Any) -> float:
        pairs = [both for texts in zip(one, other, strict=True) for both in zip(*texts, strict=True)]
        return float(sum(first[0] == second[0] for first, second in pairs) / len(pairs))


def _judged(logits: Tensor, targets: Tensor) -> Tensor:
    """(hidden, vocabulary) -> (hidden, 2)"""
    import torch
    import torch.nn.functional as F

    losses = F.cross_entropy(logits, targets, reduction="none")
    return torch.stack([logits.argmax(dim=-1).to(losses), losses], dim=1)


def _by_text(hidden: NDArray[Any], data: Encoded) -> list[NDArray[Any]]:
    """What there is of each hidden token, text by text."""
    import numpy as np

    before = np.concatenate(([0], np.cumsum(data.labels != -100)))
    return np.split(hidden, before[data.starts[1:-1]])
