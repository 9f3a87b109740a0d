"""What a job says about its teacher. Imports no torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from limbeck.source_names import BUILTIN_TEACHERS, source_name
from limbeck.spec import Spec


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
        return source_name(value, what="teacher", builtins=BUILTIN_TEACHERS, reference="model:mdl_")
