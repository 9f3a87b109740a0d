"""The base of everything that a user writes down: frozen, strict about names, and kind about shorthand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from limbeck.errors import InvalidConfig, Problem

_UNTYPED = "(no type)"
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
            kinds = set(_kinds_in(cls.model_fields[str(info.field_name)].annotation))
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
    return _UNTYPED if tag is None else tag


def json_pointer(path: Sequence[str | int]) -> str:
    """``("method", "temperature")`` -> ``/method/temperature`` (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def problems_of(error: ValidationError, document: Any, model: type[BaseModel] | None = None) -> tuple[Problem, ...]:
    """Pydantic's findings as problems whose pointers lead into ``document``, the input as it was given.

    Where ``model``, whose input it is, is given, a field that it has not is told with those that it has. Pydantic puts
    the tag of a union's chosen member into the path (``method.kd.temperature``); the user wrote no such key, so path
    parts that the input does not have are left out, except the last one, which may be a missing field.
    """
    return problems_in(error.errors(include_url=False), document, model)


def problems_in(findings: Iterable[Any], document: Any, model: type[BaseModel] | None = None) -> tuple[Problem, ...]:
    """The same for the bare items of ``ValidationError.errors()``, as FastAPI passes them on."""
    found = []
    for item in findings:
        pointer = json_pointer(_within(document, item["loc"], missing=item["type"] in ("missing", "extra_forbidden")))
        found.append(Problem(pointer, _detail(item) + (_instead(item, model) if model else "")))
    return tuple(dict.fromkeys(found))


def invalid_config(error: ValidationError, document: Any, model: type[BaseModel]) -> InvalidConfig:
    """The same as an exception whose message lists every problem."""
    problems = problems_of(error, document, model)
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
        tag = "no 'type'" if context["tag"] == _UNTYPED else repr(context["tag"])
        return f"found {tag}; allowed: {context['expected_tags']}"
    if item["type"] == "extra_forbidden":
        return "there is no such field"
    if item["type"] == "missing":
        return "this field is required"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if isinstance(given, str | int | float | bool) or given is None:
        shown = repr(given)
        return f"{message}; found {shown if len(shown) <= 80 else shown[:77] + '…'}"
    return message


def _instead(item: Any, model: type[BaseModel]) -> str:
    """For a field that there is not: the one that is probably meant, or else all of them."""
    if item["type"] != "extra_forbidden":
        return ""
    *path, name = item["loc"]
    allowed = list(dict.fromkeys(field for owner in _models_at(model, path) for field in owner.model_fields))
    near = get_close_matches(str(name), allowed, n=1)
    if near:
        return f"; is {near[0]!r} meant?"
    return f"; allowed: {', '.join(map(repr, allowed))}" if allowed else ""


def _models_at(model: type[BaseModel], path: Sequence[str | int]) -> list[type[BaseModel]]:
    """Whose fields stand there; of a union the member whose tag, or name, is in the path."""
    here = [model]
    for part in path:
        fields = [one.model_fields[str(part)] for one in here if str(part) in one.model_fields]
        tagged = [one for one in here if part in (one.__name__, _type_of(one))]
        if fields and not tagged:
            here = [below for field in fields for below in _models_in(field.annotation)]
        elif not isinstance(part, int):  # the index into a list is of what the list is of
            here = tagged
    return here


def _type_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("type")
    return None if field is None else field.default


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    return [kind for kind in _kinds_in(annotation) if issubclass(kind, BaseModel)]


def _kinds_in(annotation: Any) -> list[type]:
    """The types that an annotation is made of."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds_in(part)]
