"""The base of everything that a user writes down: frozen, strict about names, and kind about shorthand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from limbeck.findings import UNTYPED, kinds_in

#: What a configuration is parsed with that was accepted before.
STORED = {"stored": True}


def is_stored(info: ValidationInfo) -> bool:
    """Whether a configuration was accepted before. Then an option that nobody reads stays what it was: nothing; a later
    version that refuses it must not lose the job."""
    return bool((info.context or {}).get("stored"))


class Spec(BaseModel):
    """A part of a :class:`~limbeck.config.DistillConfig`.

    ``shorthand`` names the field that a bare value stands for: with ``shorthand = "type"`` the string ``"kd"`` is
    read as ``{"type": "kd"}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    shorthand: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, value: Any) -> Any:
        if cls.shorthand is None or value is None or isinstance(value, Mapping | BaseModel):
            return value
        return {cls.shorthand: value}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``"layers": true`` would be one layer to pydantic, as ``True == 1``."""
        if isinstance(value, bool) and not is_stored(info):
            kinds = set(kinds_in(cls.model_fields[str(info.field_name)].annotation))
            if kinds & {int, float} and bool not in kinds:
                raise ValueError("a number is asked for")
        return value


def type_tag(value: Any) -> Any:
    """The ``type`` of a member of a union, given in full, as shorthand, or already built.

    What has none gets a tag that no member has: pydantic then tells those that there are.
    """
    if isinstance(value, str):
        return value
    tag = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return UNTYPED if tag is None else tag
