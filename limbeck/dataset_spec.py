"""What a job says about its data set, and about further texts without labels. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from limbeck.augmentation import BaseAugmentation
from limbeck.source_names import BUILTIN_DATASETS, BUILTIN_TEXTS, require_hub, source_name
from limbeck.spec import Spec, is_stored


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

    @property
    def has_labels(self) -> bool:
        return False
