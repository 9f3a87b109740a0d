"""What a distillation is: the engine's input, the body of ``POST /v1/jobs``, a job's JSON column and the CLI's options.

Imports no torch: the API process reads configurations and never trains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.none import FineTuning
from limbeck.spec import Spec, invalid_config
from limbeck.tasks.multi_label import MultiLabel
from limbeck.tasks.question_answering import QuestionAnswering
from limbeck.tasks.regression import Regression
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.tasks.token_classification import TokenClassification

BUILTIN_TEACHERS = ("builtin:minilm-l6",)
BUILTIN_DATASETS = ("builtin:stdlib-docstrings",)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def _source(value: str, *, what: str, builtins: tuple[str, ...], reference: str) -> str:
    """Check the form of a source; ``reference`` is how the service's own things are named, e.g. ``model:mdl_``."""
    if value.startswith("builtin:") and value not in builtins:
        raise ValueError(f"there is no such built-in {what}; allowed: {', '.join(builtins)}")
    known = value in builtins or value.startswith(("path:", reference)) or _HUB_NAME.fullmatch(value)
    if not known:
        raise ValueError(
            f"a {what} is a hub name such as 'org/name', {' or '.join(map(repr, builtins))}, or '{reference}…'"
        )
    return value


class FineTune(Spec):
    """How a bare encoder is made a teacher."""

    epochs: int = Field(default=3, ge=1, le=50)
    """Passes over the training split."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1e-2)
    """Peak learning rate of AdamW."""


class Teacher(Spec):
    """The model whose knowledge is passed on."""

    shorthand: ClassVar[str | None] = "source"

    source: str
    """A hub name, ``builtin:minilm-l6``, ``model:mdl_…``, or (library only) ``path:/folder``."""
    revision: str | None = None
    """A commit, tag or branch of the hub; the commit that it meant is recorded."""
    finetune: FineTune | bool | None = None
    """``None``: fine-tune where the teacher has no head for the task. ``true`` and ``false`` force it."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        return _source(value, what="teacher", builtins=BUILTIN_TEACHERS, reference="model:mdl_")


class Columns(Spec):
    """Which column holds what; names that are not given are guessed from the usual ones."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    """Names, lists of names, or numbers: they tell the task."""
    tokens: str | None = None
    """Lists of tokens, for token classification."""
    tags: str | None = None
    """Lists of as many tags, such as ``B-person``."""
    question: str | None = None
    """For question answering."""
    context: str | None = None
    """The text that holds the answers."""
    answers: str | None = None
    """``{"text": […], "answer_start": […]}``, or a list of ``{"text", "answer_start"}``."""


class Splits(Spec):
    """Which of the data set's splits serve as what; a missing one is cut from ``train`` by a fixed seed, stratified
    where an example has one label."""

    train: str = "train"
    validation: str | None = None
    test: str | None = None


class Dataset(Spec):
    """What is learned from."""

    shorthand: ClassVar[str | None] = "source"

    source: str
    """A hub name, ``builtin:stdlib-docstrings``, ``dataset:ds_…``, or (library only) ``path:/folder``."""
    subset: str | None = None
    """The hub data set's configuration name."""
    revision: str | None = None
    columns: Columns = Columns()
    splits: Splits = Splits()
    limit: int | None = Field(default=None, ge=16)
    """At most this many training examples, drawn by the seed, stratified where an example has one label; validation and
    test stay whole."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        return _source(value, what="data set", builtins=BUILTIN_DATASETS, reference="dataset:ds_")


class Student(Spec):
    """The small model."""

    shorthand: ClassVar[str | None] = "layers"

    layers: int | tuple[int, ...] | None = None
    """How many layers, or which teacher layers (0-based, in order) the student starts from; default: half of them."""
    init: Literal["first", "last", "uniform", "skip"] = "uniform"
    """Which teacher layers a count means: the first ones, the last ones, evenly spread with the last layer in, or
    every n-th from the first on."""

    @field_validator("layers")
    @classmethod
    def _sensible_layers(cls, value: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if isinstance(value, int) and not 1 <= value <= 96:
            raise ValueError("a student has 1 to 96 layers")
        if isinstance(value, tuple) and (not value or min(value) < 0 or list(value) != sorted(set(value))):
            raise ValueError("name teacher layers from 0 on, rising, each at most once, e.g. [1, 3, 5]")
        return value


class Training(Spec):
    """How the student is trained. The baseline and the student always share this."""

    epochs: int = Field(default=3, ge=1, le=200)
    batch_size: int = Field(default=32, ge=1, le=1024)
    """Examples per optimizer step."""
    gradient_accumulation: int = Field(default=1, ge=1, le=256)
    """Parts that a batch is cut into, to save memory; the gradient stays the same."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1e-2)
    """Peak learning rate of AdamW."""
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0; from there it falls linearly to 0."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    max_length: int = Field(default=128, ge=8, le=8192)
    """Tokens; longer texts are cut."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 on CUDA, else float32."""

    @model_validator(mode="after")
    def _whole_parts(self) -> Training:
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"gradient_accumulation ({self.gradient_accumulation}) has to divide batch_size ({self.batch_size})"
            )
        return self


class Evaluation(Spec):
    """What the scorecard shows."""

    baseline: bool = True
    """Train the same student without a teacher as well; only this shows what the distillation was worth."""


class Gate(Spec):
    """What the student has to reach; the verdict stands in the job's result."""

    min_retention: float | None = Field(default=None, ge=0, le=1.5)
    """Student's main metric divided by the teacher's."""
    max_p95_ms: float | None = Field(default=None, gt=0)
    """95th percentile of the latency at batch size 1, in milliseconds, on the machine of the job."""


def _tag(value: Any) -> Any:
    """The ``type`` of a method, given in full, as shorthand, or already built."""
    if isinstance(value, Mapping):
        return value.get("type")
    return value if isinstance(value, str) else getattr(value, "type", None)


Method = Annotated[
    Annotated[KnowledgeDistillation, Tag("kd")] | Annotated[FineTuning, Tag("none")],
    Discriminator(_tag),
]
"""How knowledge is passed. A new method is one file in ``limbeck/methods/`` and one line here."""

Task = Annotated[
    Annotated[SequenceClassification, Tag("sequence_classification")]
    | Annotated[MultiLabel, Tag("multi_label")]
    | Annotated[Regression, Tag("regression")]
    | Annotated[TokenClassification, Tag("token_classification")]
    | Annotated[QuestionAnswering, Tag("question_answering")],
    Discriminator(_tag),
]
"""What is learned. A new task is one file in ``limbeck/tasks/``, a form in ``limbeck/data/forms.py``, one line here."""

TASKS = {
    task.model_fields["type"].default: task
    for task in (SequenceClassification, MultiLabel, Regression, TokenClassification, QuestionAnswering)
}
"""The same by name."""


class DistillConfig(Spec):
    """One distillation, whole."""

    version: Literal[1] = 1
    teacher: Teacher
    dataset: Dataset
    task: Task | None = None
    """Default: inferred from the data."""
    student: Student = Student()
    method: Method = KnowledgeDistillation()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    export: tuple[Literal["onnx", "onnx-int8"], ...] = ("onnx",)
    """Forms beside safetensors."""
    gate: Gate = Gate()

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Build a configuration from plain JSON data.

        Raises:
            InvalidConfig: with one problem, and its JSON pointer, for each thing that is wrong.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise invalid_config(error, document) from error
