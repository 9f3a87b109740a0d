"""What a job says about its teacher, or its several teachers. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from limbeck.source_names import BUILTIN_TEACHERS, require_hub, source_name
from limbeck.spec import Spec, is_stored


class FineTune(Spec):
    """How a bare encoder is made a teacher."""

    epochs: int = Field(default=3, ge=1, le=50)
    """Passes over the training split."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1e-2)
    """Peak learning rate of AdamW."""


#: What a teacher that has learned nothing needs where the user does not say.
FROM_SCRATCH = {"builtin:vit-digits": FineTune(epochs=40, learning_rate=1e-3)}


class TeacherModel(Spec):
    """A model whose knowledge is passed on."""

    shorthand: ClassVar[str | None] = "source"

    source: str
    """A hub name, ``builtin:minilm-l6``, ``builtin:vit-digits`` (an untrained ViT of 6 layers for images of 8 × 8,
    which the job trains from scratch), ``model:mdl_…``, or (library only) ``path:/folder``."""
    revision: str | None = None
    """A commit, tag or branch of the hub; the commit that it meant is recorded."""
    finetune: FineTune | bool | None = None
    """``None``: fine-tune where the teacher has no head for the task. ``true`` and ``false`` force it."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        return source_name(value, what="teacher", builtins=BUILTIN_TEACHERS, reference="model:mdl_")

    @model_validator(mode="after")
    def _revision_of_the_hub(self, info: ValidationInfo) -> Self:
        if not is_stored(info):
            require_hub(self.source, revision=self.revision)
        return self


class Teacher(TeacherModel):
    """The model whose knowledge is passed on; with ``more``, the first of several.

    The student starts from the layers of this one, and reads texts with its tokenizer.
    """

    more: tuple[TeacherModel, ...] = Field(default=(), max_length=7)
    """Further teachers, of any size and family, each as ``source``, ``revision`` and ``finetune``, or its source alone.
    They give answers only: what a method looks up inside a teacher is the first one's. Their tokenizers may be others
    where a text is answered as a whole (``sequence_classification``, ``multi_label``, ``regression``), without
    ``training.augmentation``."""
    combine: Literal["mean", "confidence"] = "mean"
    """How the answers of several teachers become one. ``mean``: the mean of their softened distributions (of
    regression the mean of their numbers, of embeddings that of their vectors, at length 1). ``confidence``: each counts
    by how sure it is of the text, 1 - entropy / ln classes of its answer; not for regression and embeddings."""

    @property
    def models(self) -> tuple[TeacherModel, ...]:
        """All teachers, this one first."""
        return (self, *self.more)

    @property
    def pointers(self) -> tuple[str, ...]:
        """The JSON pointer of each of :attr:`models`."""
        return ("/teacher", *(f"/teacher/more/{index}" for index in range(len(self.more))))

    @field_validator("more", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping | TeacherModel) else value

    @model_validator(mode="after")
    def _fields_that_go_together(self) -> Teacher:
        if self.combine != "mean" and not self.more:
            raise ValueError("combine says how several teachers' answers become one: name the others in more")
        named = [(one.source, one.revision, repr(one.finetune)) for one in self.models]
        if len(set(named)) < len(named):
            raise ValueError("name each teacher once: the same model answers the same a second time")
        return self
