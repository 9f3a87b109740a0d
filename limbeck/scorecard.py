"""The scorecard: teacher, student and baseline on the same held-out data and the same machine.

Imports no torch: the API, the client and the command line read it.
"""

from __future__ import annotations

from typing import Any, Literal

from limbeck.formats import Format
from limbeck.spec import Spec

#: The table of hard samples, beside the student's files; its texts belong to the data set, so no archive holds it.
HARD_SAMPLES = ("hard_samples.parquet", "hard_samples.csv")
#: Metrics that are not shares of 1, and not shown in per cent.
NO_SHARES = frozenset({"pearson", "perplexity", "rmse", "spearman", "teacher_cosine"})


class Estimate(Spec):
    """A measured quality with its 95 % interval by bootstrap over the examples."""

    value: float
    low: float
    high: float


class Latency(Spec):
    """Seconds that a model takes on the job's machine, tokenising left out."""

    batch_size: int
    p50_ms: float
    p95_ms: float
    examples_per_second: float


class ModelCard(Spec):
    """One model's row."""

    name: str
    architecture: str = ""
    """As in its config.json, e.g. ``BertForSequenceClassification``."""
    layers: int
    hidden_size: int
    kept_heads: int | None = None
    """Attention heads that each layer has, where pruning took some."""
    parameters: int
    bytes: int
    """Of its weights in float32, whole vocabulary included: about the size of the safetensors file."""
    metrics: dict[str, Estimate]
    """On the test split, e.g. ``accuracy`` and ``macro_f1``, as shares of 1 (correlations and ``rmse`` as they are)."""
    validation: dict[str, float]
    """The same on the validation split, which selected the weights."""
    latency: tuple[Latency, ...]
    """In torch, at batch sizes 1 and 32."""


class ExportCard(Spec):
    """One exported form of the student, checked against torch."""

    format: Format
    bytes: int
    examples: int
    """How many test examples the check compared."""
    max_logit_difference: float
    label_agreement: float
    """Share of the predictions that are the same: of labels, of yes or no for each label, of tokens' tags, of answers.
    Numbers are the same where they are within a hundredth of the true ones' spread."""
    metrics: dict[str, Estimate]
    latency: tuple[Latency, ...]


class RefusedExport(Spec):
    """A form that was asked for and is not in the student's folder."""

    format: Format
    reason: str
    """What it failed: as a sentence."""


class ExitPoint(Spec):
    """A student with early exits at one speed, on the test split."""

    speed: float
    metric: Estimate
    """The main metric."""
    mean_layers: float
    """That a text goes through."""
    leaving: tuple[float, ...]
    """Share of the texts that leave behind each layer; the last one's is of those that never were sure."""
    flops: float
    """Floating-point operations of layers and branches, as a share of those of all layers without branches."""
    latency: tuple[Latency, ...]
    """As ONNX, at batch sizes 1 and 32; empty where the student was not exported. Texts leave at different layers, so
    that ``examples_per_second`` says more than the median."""


class ExitsCard(Spec):
    """What a student's early exits are worth."""

    layers: int
    speed: float
    """The default: the highest one that keeps the floor on validation; 0 where none does."""
    floor: float
    """The main metric that was to be kept on validation."""
    validation: float
    """What that speed keeps of it there."""
    validation_whole: float
    """What all layers have there."""
    plain_latency: tuple[Latency, ...]
    """Of the student's ONNX form without exits, timed together with the curve."""
    curve: tuple[ExitPoint, ...]
    """From speed 0 (all layers) on, the default among them."""

    @property
    def kept(self) -> bool:
        """Whether the default keeps the floor; else no speed does, and the default is 0."""
        return self.validation >= self.floor - 1e-9


class SubNetwork(Spec):
    """One size of a network that was trained at many (``dynabert``), as it was after the last step.

    Another job whose ``student`` names this size makes it the student.
    """

    layers: int
    neurons: int
    """In the feed-forward part of each layer."""
    width: float
    """The same as a share of the whole network's."""
    heads: int | None = None
    """In the attention of each layer; missing in scorecards from before these were of several numbers."""
    parameters: int
    """Whole vocabulary included, as in a :class:`ModelCard`."""
    validation: float
    """The main metric on the validation split."""
    flops: float
    """Floating-point operations of its layers on the test split, as a share of the whole network's; counted, not
    timed."""
    options: dict[str, Any] | None = None
    """The ``student`` of a job that makes this one, beside what this job's says of the vocabulary; missing in older
    scorecards."""
    student: bool
    """Whether it is the job's student; the best epoch of that one was kept, not the last step."""


class DatasetCard(Spec):
    """What was measured on."""

    source: str
    sha256: str
    """Of the normalised splits, so that the same data has the same hash wherever it lies."""
    train: int
    validation: int
    test: int
    labels: tuple[str, ...]
    """None for regression, question answering, embeddings and masked LM."""
    majority: float
    """What guessing gets on the test split, in the main metric: always the most common class or label, the mean number,
    no entity, no answer, the most frequent token, vectors that have nothing to do with the texts."""
    copies: int = 0
    """Training examples that augmentation made of these, for the student and the baseline."""
    unlabelled: int = 0
    """Texts without labels that the student learned the teacher's answers on."""
    notes: tuple[str, ...] = ()
    """What was done to the data on their way to these splits, in sentences: which were cut, which texts left out."""


class Hardware(Spec):
    """What was measured with."""

    cpu: str
    threads: int
    device: str
    precision: str
    torch: str
    transformers: str
    onnxruntime: str


class BatchTry(Spec):
    """Parts of one size, as the probe for ``training.gradient_accumulation: auto`` found them."""

    examples: int
    """In a part."""
    fits: bool
    bytes: int
    """The most memory that a process held, and what the optimizer adds at its first step; of a part that was not
    computed, because the process would have been ended, what the smaller ones let expect."""
    examples_per_second: float | None
    """Forwards and backwards, of middle length; none where that was not computed to its end."""


class BatchProbe(Spec):
    """Of how many examples the parts are that a training computes its batches in."""

    phase: str
    """``teacher``, ``distilling``, ``baseline``, or a trial."""
    part: str
    """Of the phase's method."""
    examples: int
    """At most, on each device: the chosen size."""
    memory: int | None
    """Bytes that a process might hold; none where the system does not tell."""
    tries: tuple[BatchTry, ...]
    """From small to large; none where a rerun took the size that the first run had found."""


class Verdict(Spec):
    """The gate's answer."""

    passed: bool
    reasons: tuple[str, ...] = ()


class ClassAnswers(Spec):
    """How the test examples of one class were answered."""

    label: str
    examples: int
    teacher: float
    """Share that the teacher has right."""
    student: float
    baseline: float | None
    lost: int
    """Examples that the teacher has right and the student wrong."""


class HardSample(Spec):
    """One example that the student finds hard."""

    row: int
    """Its place in the split as the job used it, from 1."""
    text: str
    """Cut at 200 characters."""
    text_pair: str | None
    label: str
    loss: float
    """The student's against the label."""
    teacher_loss: float


class Difficulty(Spec):
    """Where the student finds its task hard; every example is in ``hard_samples.parquet`` and ``.csv``."""

    classes: tuple[ClassAnswers, ...]
    """Of the test split; empty where an example has not one class."""
    lost: dict[str, int]
    """By split (``train``, ``validation``): examples that the teacher has right and the student wrong."""
    won: dict[str, int]
    """The other way round."""
    hardest: tuple[HardSample, ...]
    """The validation examples with the student's highest losses. None of the test split: what is looked at one by one
    is no longer a test."""


class Scorecard(Spec):
    """What a distillation was worth."""

    version: Literal[1] = 1
    task: str
    method: str
    """The one that the job named."""
    chosen_method: str | None = None
    """The one that trained the student, where ``method`` took another: by a race (``auto``'s ``race``), or for the task
    (``auto`` answers questions as ``kd`` does)."""
    main_metric: str
    """The metric that retention and gap recovery are of."""
    seed: int
    dataset: DatasetCard
    hardware: Hardware
    teacher: ModelCard
    """What the student has learned from: one model, or several together, whose ``layers``, ``parameters``, ``bytes``
    and latencies are then the sums of theirs."""
    teachers: tuple[ModelCard, ...] = ()
    """Each of several teachers alone, by its source; empty where there is one."""
    student: ModelCard
    baseline: ModelCard | None
    """The same student fine-tuned without a teacher: same start, same steps, same data.
    It does without texts that have no label."""
    retention: Estimate | None
    """Student / teacher, paired bootstrap; none where the teacher is worth 0 or less on the test split."""
    retention_note: str | None = None
    """Why retention and gap recovery mean nothing: on the test split the teacher is no better than guessing."""
    gap_recovery: Estimate | None
    """(student - baseline) / (teacher - baseline); none without a baseline, or where the gap is too small to divide
    by."""
    gap_recovery_note: str | None
    """Why there is no gap recovery, or why it should be read with care."""
    speedup: dict[str, float]
    """Teacher's p50 / student's p50, by batch size, e.g. ``{"1": 1.9, "32": 2.0}``."""
    compression: float
    """Teacher's bytes / student's bytes."""
    exports: tuple[ExportCard, ...]
    refused_exports: tuple[RefusedExport, ...] = ()
    """Forms that were asked for and failed their comparison with torch."""
    exits: ExitsCard | None = None
    """Of a student that the method ``fastbert`` trained."""
    sub_networks: tuple[SubNetwork, ...] = ()
    """Of the method ``dynabert``: every size that it trained, the largest first."""
    batch_probes: tuple[BatchProbe, ...] = ()
    """One for each training, where ``training.gradient_accumulation`` is ``auto``."""
    minutes: dict[str, float]
    """Wall-clock minutes by stage."""
    verdict: Verdict
    difficulty: Difficulty | None = None
    """Missing where the job was told not to measure it (``evaluation.hard_samples``)."""
