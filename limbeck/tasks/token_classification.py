"""A tag for each token of a text: named entities, slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from limbeck.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

    from limbeck.batches import Batch, Encoded
    from limbeck.data import Split


class TokenClassification(Task):
    """Give each token of a text one of the data set's tags (IOB2), and so find entities.

    The first piece of a token carries its tag; other pieces and special tokens are in no loss. Tokens behind
    ``max_length`` are answered with ``O``, and count as missed where they are part of an entity. A served text is cut
    into such tokens by ``limbeck/runtime/words.py``.
    """

    architecture: ClassVar[str] = "ForTokenClassification"
    main_metric: ClassVar[str] = "entity_f1"
    metrics: ClassVar[tuple[str, ...]] = ("entity_f1", "entity_precision", "entity_recall")
    unit: ClassVar[str] = "labelled"

    type: Literal["token_classification"] = "token_classification"

    def model_class(self) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}

    def output_layer(self, model_type: str) -> str:
        return "classifier"

    def tokenizer_options(self, model_type: str) -> Mapping[str, Any]:
        # Byte-level tokenizers tell a word by the blank before it, which a list of tokens does not have.
        return {"add_prefix_space": True} if model_type in ("roberta", "modernbert") else {}

    def encode(
        self, tokenizer: Any, split: Split, labels: Sequence[str], max_length: int, poll: Callable[[], None]
    ) -> Encoded:
        from limbeck.tasks._encoding import encode_words

        return encode_words(tokenizer, split, labels, max_length, poll)

    def rows(self, values: Tensor, batch: Batch) -> Tensor:
        assert batch.tagged is not None
        return values.flatten(0, 1).index_select(0, batch.tagged)  # (labelled, tags)

    def targets(self, batch: Batch) -> Tensor:
        assert batch.tagged is not None
        return batch.labels.flatten().index_select(0, batch.tagged)

    def owners(self, batch: Batch) -> Tensor:
        assert batch.tagged is not None
        return batch.tagged // batch.labels.shape[1]

    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        from limbeck.losses import hard_losses

        return hard_losses(logits, targets)

    def soft_losses(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        from limbeck.losses import soft_losses

        return soft_losses(student_logits, teacher_logits, temperature)

    def truth(self, data: Encoded) -> Sequence[Sequence[str]]:
        return data.facts["tags"]

    def predictions(self, logits: NDArray[np.float32], data: Encoded) -> list[list[str]]:
        """The tags of each example's tokens."""
        assert data.places is not None
        best = logits.argmax(axis=-1)
        answers = [["O"] * len(tags) for tags in data.facts["tags"]]
        for row, (start, end) in enumerate(zip(data.starts[:-1], data.starts[1:], strict=True)):
            for word, place in zip(data.places[start:end], best[start:end], strict=True):
                if word >= 0:
                    answers[row][word] = data.strings[place]
        return answers

    def guess(self, truth: Any) -> list[list[str]]:
        """No entity anywhere."""
        return [["O"] * len(tags) for tags in truth]

    def agreement(self, one: Any, other: Any, truth: Any) -> float:
        same = [a == b for first, second in zip(one, other, strict=True) for a, b in zip(first, second, strict=True)]
        return float(sum(same) / len(same))
