"""The base of everything that a user writes down: frozen, strict about names, and kind about shorthand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from limbeck.errors import InvalidConfig, Problem


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


def type_tag(value: Any) -> Any:
    """The ``type`` of a member of a union, given in full, as shorthand, or already built."""
    if isinstance(value, Mapping):
        return value.get("type")
    return value if isinstance(value, str) else getattr(value, "type", None)


def json_pointer(path: Sequence[str | int]) -> str:
    """``("method", "temperature")`` -> ``/method/temperature`` (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def problems_of(error: ValidationError, document: Any) -> tuple[Problem, ...]:
    """Pydantic's findings as problems whose pointers lead into ``document``, the input as it was given.

    Pydantic puts the tag of a union's chosen member into the path (``method.kd.temperature``); the user wrote no such
    key, so path parts that the input does not have are left out, except the last one, which may be a missing field.
    """
    return problems_in(error.errors(include_url=False), document)


def problems_in(findings: Iterable[Any], document: Any) -> tuple[Problem, ...]:
    """The same for the bare items of ``ValidationError.errors()``, as FastAPI passes them on."""
    found = []
    for item in findings:
        pointer = json_pointer(_within(document, item["loc"], missing=item["type"] in ("missing", "extra_forbidden")))
        found.append(Problem(pointer, _detail(item)))
    return tuple(dict.fromkeys(found))


def invalid_config(error: ValidationError, document: Any) -> InvalidConfig:
    """The same as an exception whose message lists every problem."""
    problems = problems_of(error, document)
    lines = "; ".join(f"{p.pointer or '/'}: {p.detail}" for p in problems)
    return InvalidConfig(f"The configuration is not valid: {lines}", problems)


def _within(document: Any, path: tuple[int | str, ...], *, missing: bool) -> list[str | int]:
    here, kept = document, []
    for index, part in enumerate(path):
        last = index == len(path) - 1
        if isinstance(here, Mapping) and part in here:
            here = here[part]
        elif isinstance(here, Sequence) and not isinstance(here, str) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif not (last and missing):
            continue
        kept.append(part)
    return kept


def _detail(item: Any) -> str:
    context = item.get("ctx", {})
    given = item.get("input")
    if item["type"] == "union_tag_invalid":
        return f"found {context['tag']!r}; allowed: {context['expected_tags']}"
    if item["type"] == "extra_forbidden":
        return "there is no such field"
    if item["type"] == "missing":
        return "this field is required"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if isinstance(given, str | int | float | bool) or given is None:
        shown = repr(given)
        return f"{message}; found {shown if len(shown) <= 80 else shown[:77] + '…'}"
    return message
