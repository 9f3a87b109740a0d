"""What a distillation is: the engine's input, the body of ``POST /v1/jobs``, a job's JSON column and the CLI's options.

Imports no torch: the API process reads configurations and never trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator, model_validator

from limbeck.augmentation import BaseAugmentation, MaskReplace, SentenceShuffle
from limbeck.errors import Problem
from limbeck.findings import invalid_config
from limbeck.formats import Format
from limbeck.methods.auto import Auto
from limbeck.methods.distilbert import DistilBERT
from limbeck.methods.dynabert import DynaBERT
from limbeck.methods.fastbert import FastBert
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.minilm import MiniLM
from limbeck.methods.noise import NoisyLabels
from limbeck.methods.none import FineTuning
from limbeck.methods.patient import Patient
from limbeck.methods.self_distillation import SelfDistillation
from limbeck.methods.theseus import Theseus
from limbeck.methods.tinybert import TinyBERT
from limbeck.soft_loss import KullbackLeibler, SoftLoss
from limbeck.source_names import BUILTIN_DATASETS, BUILTIN_TEXTS, require_hub, source_name
from limbeck.spec import STORED, Spec, is_stored, type_tag
from limbeck.student_spec import Prune, Student
from limbeck.tasks.embeddings import Embeddings
from limbeck.tasks.image_classification import ImageClassification
from limbeck.tasks.masked_lm import MaskedLM
from limbeck.tasks.multi_label import MultiLabel
from limbeck.tasks.question_answering import QuestionAnswering
from limbeck.tasks.regression import Regression
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.tasks.token_classification import TokenClassification
from limbeck.teacher_spec import FineTune, Teacher, TeacherModel
from limbeck.weighting import SampleWeighting

__all__ = [
    "TASKS",
    "Augmentation",
    "Columns",
    "Dataset",
    "DistillConfig",
    "Evaluation",
    "FineTune",
    "Gate",
    "Method",
    "Prune",
    "Splits",
    "Student",
    "Task",
    "Teacher",
    "TeacherModel",
    "TextColumns",
    "Training",
    "Unlabelled",
]


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
    image: str | None = None
    """Encoded images (PNG, JPEG, WebP, BMP, GIF): bytes, ``{"bytes", "path"}`` as the hub has them, or base64."""


class Splits(Spec):
    """Which of the data set's splits serve as what; a missing one is cut from ``train`` by a fixed seed, stratified
    where an example has one label."""

    train: str = "train"
    validation: str | None = None
    test: str | None = None

    @model_validator(mode="after")
    def _each_once(self, info: ValidationInfo) -> Splits:
        named = [name for name in (self.train, self.validation, self.test) if name is not None]
        if len(set(named)) < len(named) and not is_stored(info):
            raise ValueError(f"found {', '.join(named)}: what is trained on cannot be tested on; name each split once")
        return self


class Dataset(Spec):
    """What is learned from."""

    shorthand: ClassVar[str | None] = "source"

    source: str
    """A hub name, ``builtin:stdlib-docstrings``, ``builtin:digits`` (scikit-learn's images of digits),
    ``dataset:ds_…``, or (library only) ``path:/folder``: of split files, or of images as ``train/<label>/*.png``."""
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
        return source_name(value, what="data set", builtins=BUILTIN_DATASETS, reference="dataset:ds_")

    @model_validator(mode="after")
    def _fields_that_are_read(self, info: ValidationInfo) -> Dataset:
        if is_stored(info):
            return self
        require_hub(self.source, subset=self.subset, revision=self.revision)
        if self.source.startswith("builtin:") and (self.columns != Columns() or self.splits != Splits()):
            name = "columns" if self.columns != Columns() else "splits"
            raise ValueError(f"{name} cannot be chosen of {self.source!r}, which has its own: leave them out")
        return self


class TextColumns(Spec):
    """Which columns hold texts; names that are not given are guessed from the usual ones."""

    text: str | None = None
    text_pair: str | None = None


class Unlabelled(BaseAugmentation):
    """Extra texts without labels, on which the student learns from the teacher alone.

    Their hard loss is left out, and so are labels that the source may have. The baseline, which has no teacher, does
    without them; its epochs are more by as much, the last one cut off, so that it takes the same number of steps.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sequence_classification",)

    type: Literal["unlabelled"] = "unlabelled"
    source: str
    """As a data set's: a hub name, ``builtin:stdlib-docstrings``, ``dataset:ds_…``, or (library only)
    ``path:/folder``."""
    subset: str | None = None
    """The hub data set's configuration name."""
    revision: str | None = None
    split: str = "train"
    """Which of the source's splits is read."""
    columns: TextColumns = TextColumns()
    limit: int | None = Field(default=None, ge=1)
    """At most this many texts, drawn by the seed."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        return source_name(value, what="data set", builtins=BUILTIN_TEXTS, reference="dataset:ds_")

    @model_validator(mode="after")
    def _fields_that_are_read(self, info: ValidationInfo) -> Unlabelled:
        if is_stored(info):
            return self
        require_hub(self.source, subset=self.subset, revision=self.revision)
        if self.source.startswith("builtin:") and (self.columns != TextColumns() or self.split != "train"):
            name = "columns" if self.columns != TextColumns() else "split"
            raise ValueError(f"{name} cannot be chosen of {self.source!r}, which has its own: leave it out")
        return self

    def problems(self, *, at: str, task: str, labels_alone: bool, method: str) -> Iterator[Problem]:
        yield from super().problems(at=at, task=task, labels_alone=labels_alone, method=method)
        if labels_alone:
            yield Problem(
                at,
                f"found 'unlabelled'; the method {method!r} with these options learns, in one part at least, "
                "from labels alone, which these texts have none of",
            )


Augmentation = Annotated[
    Annotated[SentenceShuffle, Tag("sentence_shuffle")]
    | Annotated[MaskReplace, Tag("mask_replace")]
    | Annotated[Unlabelled, Tag("unlabelled")],
    Discriminator(type_tag),
]


class Training(Spec):
    """How the student is trained. The baseline and the student always share this."""

    epochs: int = Field(default=3, ge=1, le=200)
    batch_size: int = Field(default=32, ge=1, le=1024)
    """Examples per optimizer step."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    """Parts that a batch is cut into, to save memory; the gradient stays the same. ``auto``: a short probe before each
    training finds them: of the parts that fit into memory with the longest examples, the largest that are within 5 % of
    the fastest. What it found is recorded, and kept when the job resumes or is run again."""
    token_budget: int | None = Field(default=None, ge=8, le=1_048_576)
    """Most tokens, padding included, that each device computes at once. A batch with more, one of long texts, is
    computed in as many parts as that takes, and one of short texts whole; the gradient stays the same."""
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
    devices: int = Field(default=1, ge=1, le=64)
    """Processes that share every batch, each with its own GPU; without GPUs they share the cores."""
    hosts: int = Field(default=1, ge=1, le=64)
    """Machines that they are on, as many on each. The worker that has the job is one, idle workers lend theirs; what is
    missing after a while is done without. More than 1 for jobs of the service alone."""
    loss: SoftLoss = KullbackLeibler()
    """How the student's answer is compared with the teacher's."""
    sample_weighting: SampleWeighting | None = None
    """Which examples count more, with mean 1 in a batch; default: all count alike. A baseline is weighted where that
    takes no teacher (``focal``), and a teacher that is fine-tuned never is."""

    augmentation: tuple[Augmentation, ...] = ()
    """More training texts, for the student and the baseline; a teacher is fine-tuned without. One, or a list."""

    @field_validator("hosts")
    @classmethod
    def _as_many_on_each(cls, hosts: int, info: ValidationInfo) -> int:
        devices = info.data.get("devices")
        if devices is not None and devices % hosts:
            allowed = ", ".join(str(count) for count in range(1, devices + 1) if devices % count == 0)
            raise ValueError(f"it has to divide devices ({devices}); allowed: {allowed}")
        return hosts

    @field_validator("augmentation", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping | BaseAugmentation) else value

    @model_validator(mode="after")
    def _labels_where_needed(self) -> Training:
        if not any(one.type == "unlabelled" for one in self.augmentation):
            return self
        weighting = self.sample_weighting
        found = [f"loss {self.loss.type!r}"] if self.loss.needs_labels else []
        found += [f"sample_weighting {weighting.type!r}"] if weighting is not None and weighting.needs_labels else []
        if found:
            raise ValueError(
                f"augmentation 'unlabelled' brings texts without labels, which {' and '.join(found)} would need"
            )
        return self

    @model_validator(mode="after")
    def _one_batch(self) -> Training:
        """With what looks at a batch as a whole, a batch cut into parts would have another gradient."""
        intra = f"loss {self.loss.type!r} with intra > 0, which compares the examples of a batch"
        if self.devices > 1 and self.loss.needs_whole_batch:
            raise ValueError(f"devices ({self.devices}) has to be 1 with {intra}")
        if self.gradient_accumulation == 1 and self.token_budget is None:
            return self
        found = []
        if self.loss.needs_whole_batch:
            found.append(intra)
        if self.sample_weighting is not None and self.sample_weighting.by_student:
            found.append(
                f"sample_weighting {self.sample_weighting.type!r}, whose weights hang on the student's answers to "
                "all of a batch"
            )
        if found and self.token_budget is not None:
            raise ValueError(f"token_budget ({self.token_budget}) has to be left out with {' and '.join(found)}")
        if found:
            raise ValueError(
                f"gradient_accumulation ({self.gradient_accumulation}) has to be 1 with {' and '.join(found)}"
            )
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> Training:
        if self.token_budget is None:
            return self
        if self.gradient_accumulation != 1:
            raise ValueError(
                f"token_budget ({self.token_budget}) cuts the batches that need it, and gradient_accumulation "
                f"({self.gradient_accumulation}) cuts all of them: name one of the two"
            )
        if self.token_budget < self.max_length:
            raise ValueError(
                f"token_budget ({self.token_budget}) has to be at least max_length ({self.max_length}), the tokens "
                "that a single text may have"
            )
        return self

    @model_validator(mode="after")
    def _whole_parts(self) -> Training:
        parts, named = self.gradient_accumulation, f"gradient_accumulation ({self.gradient_accumulation})"
        if isinstance(parts, str):  # auto
            parts, named = self.devices, f"devices ({self.devices})"
        elif self.devices > 1:
            parts, named = parts * self.devices, f"devices ({self.devices}) times {named}"
        if self.batch_size % parts:
            raise ValueError(f"{named} has to divide batch_size ({self.batch_size})")
        return self


class Evaluation(Spec):
    """What the scorecard shows."""

    baseline: bool = True
    """Train the same student without a teacher as well; only this shows what the distillation was worth."""
    hard_samples: bool = True
    """Measure how hard each training and validation example is for the student, by one more pass over both; the table
    holds their texts, up to 500 characters of each. Not of ``embeddings``: no vector is hard by itself."""


class Gate(Spec):
    """What the student has to reach; the verdict stands in the job's result."""

    min_retention: float | None = Field(default=None, ge=0, le=1.5)
    """Student's main metric divided by the teacher's."""
    max_p95_ms: float | None = Field(default=None, gt=0)
    """95th percentile of the latency at batch size 1, in milliseconds, on the machine of the job."""


Method = Annotated[
    Annotated[Auto, Tag("auto")]
    | Annotated[KnowledgeDistillation, Tag("kd")]
    | Annotated[Patient, Tag("patient")]
    | Annotated[DistilBERT, Tag("distilbert")]
    | Annotated[TinyBERT, Tag("tinybert")]
    | Annotated[MiniLM, Tag("minilm")]
    | Annotated[Theseus, Tag("theseus")]
    | Annotated[SelfDistillation, Tag("self")]
    | Annotated[NoisyLabels, Tag("noise")]
    | Annotated[FastBert, Tag("fastbert")]
    | Annotated[DynaBERT, Tag("dynabert")]
    | Annotated[FineTuning, Tag("none")],
    Discriminator(type_tag),
]
"""How knowledge is passed. A new method is one file in ``limbeck/methods/`` and one line here."""

Task = Annotated[
    Annotated[SequenceClassification, Tag("sequence_classification")]
    | Annotated[MultiLabel, Tag("multi_label")]
    | Annotated[Regression, Tag("regression")]
    | Annotated[TokenClassification, Tag("token_classification")]
    | Annotated[QuestionAnswering, Tag("question_answering")]
    | Annotated[Embeddings, Tag("embeddings")]
    | Annotated[MaskedLM, Tag("masked_lm")]
    | Annotated[ImageClassification, Tag("image_classification")],
    Discriminator(type_tag),
]
"""What is learned. A new task is one file in ``limbeck/tasks/``, a form in ``limbeck/data/forms.py``, one line here."""

TASKS = {
    task.model_fields["type"].default: task
    for task in (
        SequenceClassification,
        MultiLabel,
        Regression,
        TokenClassification,
        QuestionAnswering,
        Embeddings,
        MaskedLM,
        ImageClassification,
    )
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
    method: Method = Auto()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    export: tuple[Format, ...] = ("onnx",)
    """Forms beside safetensors. ``onnx`` is exact, or the job fails; the others are left out, and that is said, where
    they do not answer as well as torch. ``onnx-int8`` scales activations as they come, ``onnx-int8-static`` by what
    training texts had; ``onnx-fp16`` is for GPUs."""
    gate: Gate = Gate()

    @field_validator("export")
    @classmethod
    def _each_once(cls, value: tuple[Format, ...], info: ValidationInfo) -> tuple[Format, ...]:
        if len(set(value)) < len(value) and not is_stored(info):
            raise ValueError(f"found {', '.join(value)}: name each form once")
        return value

    def model_sources(self) -> dict[str, str]:
        """Every model that is named, by the JSON pointer of the field that names it."""
        found = {f"{at}/source": one.source for at, one in zip(self.teacher.pointers, self.teacher.models, strict=True)}
        return found if self.student.source is None else {**found, "/student/source": self.student.source}

    def data_sources(self) -> dict[str, str]:
        """Every source of texts, by the JSON pointer of the field that names it."""
        extra = {
            f"/training/augmentation/{index}/source": one.source
            for index, one in enumerate(self.training.augmentation)
            if isinstance(one, Unlabelled)
        }
        return {"/dataset/source": self.dataset.source, **extra}

    @classmethod
    def parse(cls, document: Any, *, stored: bool = False) -> Self:
        """Build a configuration from plain JSON data.

        Args:
            stored: whether it was accepted before; options that nobody reads are then no reason to refuse it.

        Raises:
            InvalidConfig: with one problem, and its JSON pointer, for each thing that is wrong.
        """
        try:
            return cls.model_validate(document, context=STORED if stored else None)
        except ValidationError as error:
            raise invalid_config(error, document, cls) from error
