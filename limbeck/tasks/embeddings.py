"""A vector for each text, near those of texts that mean the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from limbeck.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

    from limbeck.batches import Encoded
    from limbeck.data import Split


class Embeddings(Task):
    """Give each text a vector of length 1: the pooled states of the last layer, as all-MiniLM has it.

    The teacher is used as it is, and the soft loss is the squared distance of the student's vector from its own, which
    is 2 - 2 · cosine; so the student is as wide as its teacher. Data are texts, or pairs of texts with a score of how
    alike they are, as in STS-B. With scores the metrics are the correlations of the cosine of two vectors with the
    score, and the hard loss is the squared difference of that cosine from the score, brought to 0 … 1. Without scores
    there is no hard loss and no baseline, and the metric is the mean cosine to the teacher's vectors.
    """

    kind: ClassVar[Literal["categorical", "binary", "value", "vector"]] = "vector"
    headless: ClassVar[bool] = True
    named: ClassVar[bool] = False
    joined: ClassVar[bool] = False
    main_metric: ClassVar[str] = "spearman"
    metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson")

    type: Literal["embeddings"] = "embeddings"
    pooling: Literal["mean", "cls"] = "mean"
    """How the states of a text's tokens become one: their mean, or the first token's state. It has to be the
    teacher's own (its ``1_Pooling/config.json``)."""

    def for_data(self, *, pair: bool) -> Task:
        return self if pair else TextEmbeddings(pooling=self.pooling)

    def model_class(self) -> Any:
        from limbeck.tasks._pooling import PooledEncoder

        return PooledEncoder(self.pooling)

    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        """An encoder as it is has no labels."""

    def outputs(self, labels: Sequence[str]) -> int:
        return 0

    def width(self, config: PreTrainedConfig) -> int:
        return int(config.hidden_size)

    def encode(
        self, tokenizer: Any, split: Split, labels: Sequence[str], max_length: int, poll: Callable[[], None]
    ) -> Encoded:
        """The two texts of a pair as rows that stay together, each with the score as a share of the split's range."""
        from dataclasses import replace

        import numpy as np

        from limbeck.batches import encode
        from limbeck.data import Split as Texts

        texts = split.texts
        scores = np.zeros(len(split), dtype=np.float32)
        if split.pairs is not None:
            texts = [text for both in zip(split.texts, split.pairs, strict=True) for text in both]
            found = np.asarray(split.labels, dtype=np.float64)
            # The metrics are blind to the scale, so that each split may have its own.
            scores = ((found - found.min()) / max(float(np.ptp(found)), 1e-9)).astype(np.float32)
        each = 1 if split.pairs is None else 2
        rows = Texts(texts, None, [])
        return replace(encode(tokenizer, rows, max_length, poll, labels=scores.repeat(each)), together=each)

    def logits(self, output: Any) -> Tensor:
        vectors: Tensor = output["sentence_embedding"]  # (texts, width)
        return vectors

    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        from limbeck.losses import cosine_losses

        return cosine_losses(logits[0::2], logits[1::2], targets[0::2]).repeat_interleave(2)

    def soft_losses(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        from limbeck.losses import vector_losses

        return vector_losses(student_logits, teacher_logits)

    def truth(self, data: Encoded) -> NDArray[np.float32]:  # (pairs,)
        scores: NDArray[np.float32] = data.labels[0::2]
        return scores

    def predictions(self, logits: NDArray[np.float32], data: Encoded) -> NDArray[np.float32]:
        """The cosine of each pair's vectors, (pairs,)."""
        cosines: NDArray[np.float32] = (logits[0::2] * logits[1::2]).sum(axis=1)
        return cosines

    def guess(self, truth: Any) -> NDArray[np.float32]:
        """Vectors that have nothing to do with their texts."""
        import numpy as np

        return np.zeros(len(truth), dtype=np.float32)

    def agreement(self, one: Any, other: Any, truth: Any) -> float:
        """The share of cosines that are the same to three decimals."""
        import numpy as np

        return float((np.abs(np.asarray(one) - np.asarray(other)) <= 1e-3).mean())

    def described(self, config: PreTrainedConfig) -> Mapping[str, Any]:
        return {"width": self.width(config), "pooling": self.pooling, "normalised": True}

    def write_beside(self, folder: Path, config: PreTrainedConfig, max_length: int) -> None:
        """What the package sentence-transformers reads, so that it pools as Limbeck does."""
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(kinds)
        ]
        pooling = {
            "word_embedding_dimension": self.width(config),
            "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        }
        (folder / "1_Pooling").mkdir(exist_ok=True)
        for name, content in (
            ("modules.json", modules),
            ("1_Pooling/config.json", pooling),
            ("sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False}),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class TextEmbeddings(Embeddings):
    """The same where texts come without scores: all that there is to learn, and to be judged by, is the teacher."""

    labelled: ClassVar[bool] = False
    main_metric: ClassVar[str] = "teacher_cosine"
    metrics: ClassVar[tuple[str, ...]] = ("teacher_cosine",)

    def judged(self, data: Encoded, teacher: NDArray[np.float32]) -> Encoded:
        from dataclasses import replace

        return replace(data, labels=teacher)

    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.float().sum(dim=-1) * 0

    def truth(self, data: Encoded) -> NDArray[np.float32]:  # (texts,)
        import numpy as np

        return np.ones(len(data), dtype=np.float32)

    def predictions(self, logits: NDArray[np.float32], data: Encoded) -> NDArray[np.float32]:
        """The cosine of each text's vector with the teacher's, which :meth:`judged` has put in, (texts,)."""
        cosines: NDArray[np.float32] = (logits * data.labels).sum(axis=1)
        return cosines
