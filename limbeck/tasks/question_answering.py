"""Answers to questions, as spans of a context."""

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

#: The logit of a token that is only padding: its probability is 0 at every temperature, and no difference is NaN.
_NEVER = -1e4


class QuestionAnswering(Task):
    """Find the span of a context that answers a question, as in SQuAD.

    A long context is cut into windows that overlap by a quarter of ``max_length``; of all their spans of up to 30
    tokens the one with the highest logits of start and end is the answer. Losses are over the tokens of a window, for
    start and end alike; a window without the answer points at its first token. Answers are scored as in SQuAD's
    evaluation, those with ideographs or kana by characters, as in CMRC 2018's.
    """

    architecture: ClassVar[str] = "ForQuestionAnswering"
    named: ClassVar[bool] = False
    of_places: ClassVar[bool] = True
    main_metric: ClassVar[str] = "answer_f1"
    metrics: ClassVar[tuple[str, ...]] = ("answer_f1", "exact_match")

    type: Literal["question_answering"] = "question_answering"

    def model_class(self) -> Any:
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        config.num_labels = 2

    def outputs(self, labels: Sequence[str]) -> int:
        return 2

    def output_layer(self, model_type: str) -> str:
        return "classifier" if model_type == "modernbert" else "qa_outputs"

    def encode(
        self, tokenizer: Any, split: Split, labels: Sequence[str], max_length: int, poll: Callable[[], None]
    ) -> Encoded:
        from limbeck.tasks._encoding import encode_windows

        return encode_windows(tokenizer, split, max_length, poll)

    def logits(self, output: Any) -> Tensor:
        import torch

        return torch.stack([output.start_logits, output.end_logits], dim=-1)  # (windows, tokens, 2)

    def rows(self, values: Tensor, batch: Batch) -> Tensor:
        import torch

        padding = batch.inputs["attention_mask"] == 0
        starts, ends = (values[..., one].float().masked_fill(padding, _NEVER) for one in (0, 1))
        return torch.cat([starts, ends])  # (2 · windows, tokens)

    def real(self, rows: Tensor) -> Tensor:
        return rows > _NEVER

    def choices(self, rows: Tensor) -> Tensor:
        return self.real(rows).sum(dim=-1).to(rows.dtype)  # the tokens of the window

    def targets(self, batch: Batch) -> Tensor:
        return batch.labels.T.reshape(-1)  # (2 · windows,)

    def owners(self, batch: Batch) -> Tensor:
        import torch

        windows = len(batch.labels)
        return torch.arange(windows, device=batch.labels.device).repeat(2)

    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        from limbeck.losses import hard_losses

        return hard_losses(logits, targets)

    def soft_losses(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        from limbeck.losses import soft_losses

        return soft_losses(student_logits, teacher_logits, temperature)

    def truth(self, data: Encoded) -> Sequence[Sequence[str]]:
        """For each question the answers that count as right."""
        return data.facts["answers"]

    def predictions(self, logits: NDArray[np.float32], data: Encoded) -> list[str]:
        from limbeck.runtime.windows import best_spans

        assert data.places is not None
        assert data.owners is not None
        windows: list[list[Any]] = [[] for _ in range(data.examples)]
        for row, owner in enumerate(data.owners):
            tokens = slice(data.starts[row], data.starts[row + 1])
            windows[owner].append((logits[tokens], data.places[tokens]))
        answers = []
        for context, each in zip(data.facts["context"], windows, strict=True):
            spans = best_spans(each, 1)
            answers.append(data.strings[context][spans[0].start : spans[0].end] if spans else "")
        return answers

    def guess(self, truth: Any) -> list[str]:
        """No answer."""
        return [""] * len(truth)
