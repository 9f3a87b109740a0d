"""What a distillation leaves behind. Imports no torch: who has ranks do the work has no need of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.scorecard import Scorecard


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What is known of the teacher."""

    source: str
    revision: str | None  #: the hub's commit
    sha256: str  #: of its weights as they came
    finetuned: bool
    epoch: int | None  #: the fine-tuning epoch whose weights were kept
    validation: float  #: main metric on validation


@dataclass(frozen=True, slots=True)
class DistillResult:
    """What a distillation leaves behind."""

    student: Path  #: a Hugging Face folder, with ``limbeck.json`` and ``onnx/``
    baseline: Path | None
    teacher: TeacherFacts
    scorecard: Scorecard
    provenance: dict[str, Any]  #: revisions, hashes, versions, device: what repeating the run needs
    hard_samples: tuple[Path, ...] = ()  #: the same table in two forms
    more_teachers: tuple[TeacherFacts, ...] = ()  #: of several, in the order of ``teacher.more``
