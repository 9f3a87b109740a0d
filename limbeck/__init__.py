"""Limbeck distils BERT-family models into small students.

The public names are loaded when they are first used: ``import limbeck`` costs nothing, and only ``distill`` brings
torch along.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.callbacks import Callbacks, CheckpointInfo, Progress, Stage
    from limbeck.client import Client
    from limbeck.config import DistillConfig
    from limbeck.engine import distill
    from limbeck.errors import LimbeckError
    from limbeck.result import DistillResult
    from limbeck.runtime import Predictor
    from limbeck.scorecard import Scorecard
    from limbeck.teacher_cache import TeacherCache

__version__ = "0.1.0"

_HOMES = {
    "Callbacks": "limbeck.callbacks",
    "CheckpointInfo": "limbeck.callbacks",
    "Client": "limbeck.client",
    "DistillConfig": "limbeck.config",
    "DistillResult": "limbeck.result",
    "LimbeckError": "limbeck.errors",
    "Predictor": "limbeck.runtime",
    "Progress": "limbeck.callbacks",
    "Scorecard": "limbeck.scorecard",
    "Stage": "limbeck.callbacks",
    "TeacherCache": "limbeck.teacher_cache",
    "distill": "limbeck.engine",
}

__all__ = [
    "Callbacks",
    "CheckpointInfo",
    "Client",
    "DistillConfig",
    "DistillResult",
    "LimbeckError",
    "Predictor",
    "Progress",
    "Scorecard",
    "Stage",
    "TeacherCache",
    "distill",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
