"""What a distillation is: the engine's input, the body of ``POST /v1/jobs``, a job's JSON column and the CLI's options.

Imports no torch: the API process reads configurations and never trains.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator

from limbeck.dataset_spec import Columns, Dataset, Splits, TextColumns, Unlabelled
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
from limbeck.training_spec import Augmentation, Training

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
