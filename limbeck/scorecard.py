"""The scorecard: teacher, student and baseline on the same held-out data and the same machine.

Imports no torch: the API, the client and the command line read it.
"""

from __future__ import annotations

from typing import Literal

from limbeck.spec import Spec

#: Metrics that are not shares of 1, and not shown in per cent.
NO_SHARES = frozenset({"pearson", "rmse", "spearman"})


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
    layers: int
    hidden_size: int
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

    format: Literal["onnx", "onnx-int8"]
    bytes: int
    examples: int
    """How many test examples the check compared."""
    max_logit_difference: float
    label_agreement: float
    """Share of the predictions that are the same: of labels, of yes or no for each label, of tokens' tags, of answers.
    Numbers are the same where they are within a hundredth of their spread."""
    metrics: dict[str, Estimate]
    latency: tuple[Latency, ...]


class DatasetCard(Spec):
    """What was measured on."""

    source: str
    sha256: str
    """Of the normalised splits, so that the same data has the same hash wherever it lies."""
    train: int
    validation: int
    test: int
    labels: tuple[str, ...]
    """None for regression and question answering."""
    majority: float
    """What guessing gets on the test split, in the main metric: always the most common class or label, the mean number,
    no entity, no answer."""


class Hardware(Spec):
    """What was measured with."""

    cpu: str
    threads: int
    device: str
    precision: str
    torch: str
    transformers: str
    onnxruntime: str


class Verdict(Spec):
    """The gate's answer."""

    passed: bool
    reasons: tuple[str, ...] = ()


class Scorecard(Spec):
    """What a distillation was worth."""

    version: Literal[1] = 1
    task: str
    method: str
    main_metric: str
    """The metric that retention and gap recovery are of."""
    seed: int
    dataset: DatasetCard
    hardware: Hardware
    teacher: ModelCard
    student: ModelCard
    baseline: ModelCard | None
    """The same student fine-tuned without a teacher: same start, same steps, same data."""
    retention: Estimate
    """Student / teacher, paired bootstrap."""
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
    minutes: dict[str, float]
    """Wall-clock minutes by stage."""
    verdict: Verdict
