"""What a task is: which head the models carry, which losses fit its labels, and how its answers are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from limbeck.spec import Spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from limbeck.batches import Batch, Encoded
    from limbeck.data import Split


class Task(Spec, ABC):
    """Tasks, as methods, never import torch at module level.

    Two forms of labels: ``targets`` are what losses compare with, ``truth`` is what metrics do. An example may be
    several rows (windows of a long context), and a row may be answered token by token; metrics judge examples.
    """

    shorthand: ClassVar[str | None] = "type"
    #: What the logits are of: one of several classes, yes or no for each of several labels, a number, or a vector.
    kind: ClassVar[Literal["categorical", "binary", "value", "vector"]] = "categorical"
    #: How the names of transformers' classes with the right head end.
    architecture: ClassVar[str] = "ForSequenceClassification"
    #: Whether any encoder answers as it is, without a head.
    headless: ClassVar[bool] = False
    #: Whether examples have labels to learn from, so that there is a hard loss and a baseline.
    labelled: ClassVar[bool] = True
    #: Whether the two texts of a pair are read as one input.
    joined: ClassVar[bool] = True
    #: What an example is.
    reads: ClassVar[Literal["text", "image"]] = "text"
    #: Whether the outputs of a head have the data set's names, so that a teacher's head can be told to be another's.
    named: ClassVar[bool] = True
    #: Whether an answer is one of the vocabulary's tokens: logits as wide as that are never kept.
    of_words: ClassVar[bool] = False
    #: Whether an answer is a place in the row's own text: each column of a row's logits is divided among its tokens.
    of_places: ClassVar[bool] = False
    #: Methods that make no sense for it: what they do that does not fit.
    refused: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: The metric that selects weights and that retention is of; a name of ``limbeck.evaluate``.
    main_metric: ClassVar[str]
    #: What a loss is the mean over: a key of ``Batch.counts``.
    unit: ClassVar[str] = "examples"
    #: Every metric of the scorecard.
    metrics: ClassVar[tuple[str, ...]]

    type: Any

    @abstractmethod
    def model_class(self) -> Any:
        """The transformers ``AutoModelFor…`` class whose head fits the task."""

    @abstractmethod
    def configure(self, config: PreTrainedConfig, labels: Sequence[str]) -> None:
        """Write the labels into a model's configuration."""

    def for_data(self, *, pair: bool) -> Task:
        """The task as it is on data of pairs of texts, or of single texts."""
        return self

    def judged(self, data: Encoded, teacher: NDArray[np.float32]) -> Encoded:
        """The split with the teacher's answers to it, for tasks whose only truth these are."""
        return data

    def outputs(self, labels: Sequence[str]) -> int:
        """How many logits a row, or a token, gets; 0 where that hangs on the model (:meth:`width`)."""
        return len(labels)

    def width(self, config: PreTrainedConfig) -> int:
        """How many logits a model of this configuration gives."""
        return int(config.num_labels or 0)

    def output_layer(self, model_type: str) -> str:
        """The name of the head's last linear layer in models of this type."""
        from limbeck.families import family_of

        return family_of(model_type).output

    def head_tensor(self, model_type: str) -> str:
        """The name of the weight that tells that a model has a head for the task."""
        return f"{self.output_layer(model_type)}.weight"

    def tokenizer_options(self, model_type: str) -> Mapping[str, Any]:
        """What the tokenizer of a model of this type is loaded with."""
        return {}

    def begin_head(self, layer: Any, train: Encoded) -> None:
        """Set a new head's last linear layer, which is random, to where training should start."""

    def loss_unit(self, labels: NDArray[Any]) -> float:
        """What both losses are divided by, so that no weight beside other losses hangs on the labels' unit."""
        return 1.0

    def encode(
        self, tokenizer: Any, split: Split, labels: Sequence[str], max_length: int, poll: Callable[[], None]
    ) -> Encoded:
        """Tokenise a split; what is longer than ``max_length`` tokens is cut."""
        from limbeck.batches import encode

        return encode(tokenizer, split, max_length, poll)

    def in_epoch(self, data: Encoded, seed: int, epoch: int) -> Encoded:
        """The training split as it is read in an epoch: a function of its arguments."""
        return data

    def answer(self, model: PreTrainedModel, batch: Batch, *, inside: bool = False) -> Tensor:
        """A model's logits for a batch, in the task's shape; ``inside`` where somebody looks at its layers' states."""
        from limbeck.first_token import answer

        return self.logits(model(**batch.inputs) if inside else answer(model, batch.inputs))

    def kept(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """What :meth:`predictions` needs of the answer to a batch, in float32: the logits, or less."""
        return self.answer(model, batch).float()

    def logits(self, output: Any) -> Tensor:
        """The answer in the output of a model of :meth:`model_class`: (examples, classes), or what the task has."""
        logits: Tensor = output.logits
        return logits

    def rows(self, values: Tensor, batch: Batch) -> Tensor:
        """Of logits in the task's shape those that have a label, (units, classes)."""
        return values

    def real(self, rows: Tensor) -> Tensor | None:
        """Which columns of each of :meth:`rows` can be chosen at all, (units, classes); None where all can."""
        return None

    def choices(self, rows: Tensor) -> Tensor:
        """Among how many answers each of :meth:`rows` chooses, (units,) in float32; between yes and no two."""
        return rows.new_full(rows.shape[:1], rows.shape[-1] if self.kind == "categorical" else 2)

    def targets(self, batch: Batch) -> Tensor:
        """The labels of :meth:`rows`, (units,) or what the task has."""
        return batch.labels

    def owners(self, batch: Batch) -> Tensor:
        """The row of the batch that each of :meth:`rows` belongs to, (units,)."""
        import torch

        return torch.arange(len(batch.labels), device=batch.labels.device)

    @abstractmethod
    def hard_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row of :meth:`rows` against its target, (units,) in float32."""

    @abstractmethod
    def soft_losses(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """The loss of each row against the teacher's at ``temperature``, (units,) in float32."""

    def truth(self, data: Encoded) -> Any:
        """What the metrics hold predictions against, of each example."""
        return data.labels

    def predictions(self, logits: NDArray[np.float32], data: Encoded) -> Any:
        """What the metrics judge, of each example, from logits over the whole of ``data``."""
        answers: NDArray[Any] = logits.argmax(axis=-1)
        return answers

    @abstractmethod
    def guess(self, truth: Any) -> Any:
        """The predictions of who always says the same: the best that one can do without reading."""

    def agreement(self, one: Any, other: Any, truth: Any) -> float:
        """The share of two models' predictions that are the same; of numbers ``truth`` tells what a difference is."""
        import numpy as np

        return float((np.asarray(one) == np.asarray(other)).mean())

    def astray(self, one: Any, other: Any) -> float:
        """The share of the spread of a model's predictions by which another's are off, where they are numbers: a metric
        of their order alone does not see that all are too high."""
        return 0.0

    def write_beside(self, folder: Path, config: PreTrainedConfig, max_length: int) -> None:
        """Write what else a saved model's folder needs for this task."""

    def described(self, config: PreTrainedConfig) -> Mapping[str, Any]:
        """What ``limbeck.json`` has to say beside the labels, for the runtime."""
        return {}
