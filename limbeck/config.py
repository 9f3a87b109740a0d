"""What a distillation is: the engine's input, the body of ``POST /v1/jobs``, a job's JSON column and the CLI's options.

Imports no torch: the API process reads configurations and never trains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from limbeck.augmentation import BaseAugmentation, MaskReplace, SentenceShuffle
from limbeck.errors import Problem
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
from limbeck.spec import Spec, invalid_config, type_tag
from limbeck.tasks.embeddings import Embeddings
from limbeck.tasks.masked_lm import MaskedLM
from limbeck.tasks.multi_label import MultiLabel
from limbeck.tasks.question_answering import QuestionAnswering
from limbeck.tasks.regression import Regression
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.tasks.token_classification import TokenClassification
from limbeck.weighting import SampleWeighting

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


class Prune(Spec):
    """What is cut out of the layers that a student starts from, least important first."""

    shorthand: ClassVar[str | None] = "neurons"

    neurons: float = Field(gt=0, lt=1)
    """Share of the neurons of every feed-forward part; ``intermediate_size`` shrinks by it. Important is a neuron whose
    absence would change the teacher's loss on training texts, to the first order (Molchanov et al. 2017,
    arXiv:1611.06440). Whole heads are not offered: in transformers a head is ``hidden_size / heads`` wide, so that one
    without some heads could not be loaded, and masking them saves no time."""


class TextColumns(Spec):
    """Which columns hold texts; names that are not given are guessed from the usual ones."""

    text: str | None = None
    text_pair: str | None = None


class Unlabelled(BaseAugmentation):
    """Extra texts without labels, on which the student learns the teacher's answers alone.

    Their hard loss is left out, and so are labels that the source may have. The baseline, which has no teacher, does
    without them; its epochs are more by as much, so that it takes the same number of steps.
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
        return _source(value, what="data set", builtins=BUILTIN_DATASETS, reference="dataset:ds_")

    def problems(self, *, at: str, task: str, reads_logits: bool, method: str) -> Iterator[Problem]:
        yield from super().problems(at=at, task=task, reads_logits=reads_logits, method=method)
        if not reads_logits:
            yield Problem(
                at,
                f"found 'unlabelled'; the method {method!r} learns from labels, which these texts have none of",
            )


Augmentation = Annotated[
    Annotated[SentenceShuffle, Tag("sentence_shuffle")]
    | Annotated[MaskReplace, Tag("mask_replace")]
    | Annotated[Unlabelled, Tag("unlabelled")],
    Discriminator(type_tag),
]


class Student(Spec):
    """The small model."""

    shorthand: ClassVar[str | None] = "layers"

    layers: int | tuple[int, ...] | None = None
    """How many layers, or which teacher layers (0-based, in order) the student starts from; default: half of them (all
    of those of ``source``, and with ``self`` and ``fastbert``; one for ``bilstm`` and ``bigru``)."""
    init: Literal["first", "last", "uniform", "skip"] | None = None
    """Which teacher layers a count means: the first ones, the last ones, evenly spread with the last layer in, or
    every n-th from the first on; default: what the method asks for, which is ``uniform`` for most."""
    preset: Literal["T6", "T3", "T3-small", "T4-tiny", "T12-nano"] | None = None
    """A public size (TextBrewer's), as layers × width: 6 × 768, 3 × 768, 3 × 384, 4 × 312, 12 × 256."""
    hidden_size: int | None = Field(default=None, ge=8, le=8192)
    """Width of the layers, at most the teacher's; of ``bilstm`` and ``bigru`` the units for each direction."""
    intermediate_size: int | None = Field(default=None, ge=1, le=65536)
    """Neurons of every feed-forward part; default: the teacher's share of the width."""
    heads: int | None = Field(default=None, ge=1, le=256)
    """Attention heads; has to divide the width. Default: as wide as the teacher's, where that goes."""
    embedding_size: int | None = Field(default=None, ge=8, le=8192)
    """Width of the word table where it may be narrower than the layers: electra, albert, deberta-v2, bilstm, bigru."""
    start: Literal["svd", "random"] = "svd"
    """What the weights begin as: the teacher's, projected onto its main directions where the student is narrower, or
    ``random`` ones throughout."""
    prune: Prune | None = None
    """What goes from the teacher's layers, by importance."""
    vocabulary: Literal["full", "trimmed"] = "full"
    """``trimmed``: tokens that none of the data set's texts uses go from the student's tokenizer and table. Its texts
    are read as before; a word that none of them had falls to smaller pieces."""
    architecture: Literal["transformer", "bilstm", "bigru"] = "transformer"
    """What the student is built of: layers as the teacher's, or a recurrent network over the teacher's word table."""
    source: str | None = None
    """Another model as the student: a hub name, ``model:mdl_…``, or (library only) ``path:/folder``. Its tokenizer may
    be another than the teacher's where the method takes nothing but the teacher's answers to whole texts: ``kd``,
    ``noise`` and ``none``, for ``sequence_classification``, ``multi_label`` and ``regression``, without
    ``training.augmentation``."""
    revision: str | None = None
    """A commit, tag or branch of ``source`` on the hub."""

    @property
    def recurrent(self) -> bool:
        """Whether it is no transformer."""
        return self.architecture != "transformer"

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str | None) -> str | None:
        if value is None:
            return None
        return _source(value, what="student", builtins=BUILTIN_TEACHERS, reference="model:mdl_")

    @field_validator("layers")
    @classmethod
    def _sensible_layers(cls, value: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if isinstance(value, int) and not 1 <= value <= 96:
            raise ValueError("a student has 1 to 96 layers")
        if isinstance(value, tuple) and (not value or min(value) < 0 or list(value) != sorted(set(value))):
            raise ValueError("name teacher layers from 0 on, rising, each at most once, e.g. [1, 3, 5]")
        return value

    @model_validator(mode="after")
    def _fields_that_go_together(self) -> Student:
        widths = ("hidden_size", "intermediate_size", "heads", "embedding_size")
        forbidden: dict[str, tuple[str, ...]] = {}
        if self.source is not None:
            forbidden["source, which has its own size and weights"] = (*widths, "preset", "prune", "start")
        if self.preset is not None:
            forbidden["preset, which names the size"] = ("layers", "hidden_size", "intermediate_size", "heads", "prune")
        if self.recurrent:
            forbidden[self.architecture] = ("preset", "source", "prune", "heads", "intermediate_size", "init")
        if self.prune is not None:
            forbidden["prune, which cuts the teacher's own neurons"] = ("intermediate_size", "start")
        for what, fields in forbidden.items():
            for field in fields:
                if getattr(self, field) != type(self).model_fields[field].default:
                    raise ValueError(f"{field} does not go with {what}: leave one of them out")
        if self.recurrent and isinstance(self.layers, tuple):
            raise ValueError(f"a {self.architecture} starts from none of the teacher's layers: give their number")
        if self.revision is not None and self.source is None:
            raise ValueError("revision is one of source, which is not given")
        return self


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
    loss: SoftLoss = KullbackLeibler()
    """How the student's answer is compared with the teacher's."""
    sample_weighting: SampleWeighting | None = None
    """Which examples count more, with mean 1 in a batch; default: all count alike. A baseline is weighted where that
    takes no teacher (``focal``), and a teacher that is fine-tuned never is."""

    augmentation: tuple[Augmentation, ...] = ()
    """More training texts, for the student and the baseline; a teacher is fine-tuned without. One, or a list."""

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
        if self.gradient_accumulation == 1:
            return self
        found = []
        if self.loss.needs_whole_batch:
            found.append(f"loss {self.loss.type!r} with intra > 0, which compares the examples of a batch")
        if self.sample_weighting is not None and self.sample_weighting.by_student:
            found.append(
                f"sample_weighting {self.sample_weighting.type!r}, whose weights hang on the student's answers to "
                "all of a batch"
            )
        if found:
            raise ValueError(
                f"gradient_accumulation ({self.gradient_accumulation}) has to be 1 with {' and '.join(found)}"
            )
        return self

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
    | Annotated[MaskedLM, Tag("masked_lm")],
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
    export: tuple[Literal["onnx", "onnx-int8"], ...] = ("onnx",)
    """Forms beside safetensors."""
    gate: Gate = Gate()

    def data_sources(self) -> dict[str, str]:
        """Every source of texts, by the JSON pointer of the field that names it."""
        extra = {
            f"/training/augmentation/{index}/source": one.source
            for index, one in enumerate(self.training.augmentation)
            if isinstance(one, Unlabelled)
        }
        return {"/dataset/source": self.dataset.source, **extra}

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
