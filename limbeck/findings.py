"""What pydantic finds wrong with an input, as problems that name the field, one for each thing to change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from limbeck.errors import InvalidConfig, Problem

#: The tag of what has no ``type`` (:func:`limbeck.spec.type_tag`).
UNTYPED = "(no type)"
#: What is asked for, in the words of JSON, by pydantic's name for what it misses.
_KINDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "an object"),
    "string_type": "a string",
    "tuple_type": "a list",
}
_ASKED = "Input should be "


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
    found = [_Finding.of(item, document) for item in findings if not _only_follows(item)]
    problems = {place: one.problem(model) for place, one in enumerate(found)}
    for union, members in _unions(found):
        meant = [places for places in members.values() if all(found[place].is_below(union) for place in places)]
        first, *others = [place for places in members.values() for place in places]
        if meant:  # the input has the form of these, and something in it is wrong
            told = {place for places in meant for place in places}
        else:
            told = {first}
            wanted = dict.fromkeys(_wanted(found[place].item) for place in (first, *others))
            detail = _ASKED + ", or ".join(wanted) + _given(found[first].item)
            problems[first] = Problem(problems[first].pointer, detail)
        for place in {first, *others} - told:
            problems.pop(place, None)
    return tuple(dict.fromkeys(problems.values()))


def invalid_config(error: ValidationError, document: Any, model: type[BaseModel], *, at: str = "") -> InvalidConfig:
    """The same as an exception whose message lists every problem; ``at`` points to ``document`` in what holds it."""
    problems = tuple(Problem(at + one.pointer, one.detail) for one in problems_of(error, document, model))
    lines = "; ".join(f"{p.pointer or '/'}: {p.detail}" for p in problems)
    return InvalidConfig(f"The configuration is not valid: {lines}", problems)


@dataclass(frozen=True, slots=True)
class _Finding:
    """One of pydantic's."""

    item: Any
    path: tuple[int | str, ...]  #: as pydantic has it
    kept: tuple[int, ...]  #: which parts of it lead into the document; the others name members of unions

    @classmethod
    def of(cls, item: Any, document: Any) -> _Finding:
        path, here, kept = tuple(item["loc"]), document, []
        missing = item["type"] in ("missing", "extra_forbidden")
        for index, part in enumerate(path):
            last = index == len(path) - 1
            if isinstance(here, Mapping) and part in here:
                here = here[part]
            elif _is_list(here) and isinstance(part, int) and part < len(here):
                here = here[part]
            elif not (last and missing):
                continue
            kept.append(index)
        return cls(item, path, tuple(kept))

    def problem(self, model: type[BaseModel] | None) -> Problem:
        pointer = json_pointer([self.path[index] for index in self.kept])
        return Problem(pointer, _detail(self.item) + (_instead(self.item, model) if model else ""))

    def is_below(self, place: tuple[int | str, ...]) -> bool:
        """Whether it is about a part of what stands there, rather than about the whole."""
        return any(index >= len(place) for index in self.kept)


def _unions(found: Sequence[_Finding]) -> Iterator[tuple[tuple[int | str, ...], dict[int | str, list[int]]]]:
    """Where something of one of several kinds is asked for, and which of the findings are of each kind: the input is
    none of them, and pydantic tells of each why."""
    members: dict[tuple[int | str, ...], dict[int | str, list[int]]] = {}
    for place, one in enumerate(found):
        for index in set(range(len(one.path))) - set(one.kept):
            members.setdefault(one.path[:index], {}).setdefault(one.path[index], []).append(place)
    return ((union, each) for union, each in members.items() if len(each) > 1)


def _only_follows(item: Any) -> bool:
    """Whether a list is called too short only because of items that are wrong, which are told themselves."""
    given = item.get("input")
    return item["type"] == "too_short" and _is_list(given) and len(given) >= item["ctx"]["min_length"]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _detail(item: Any) -> str:
    context = item.get("ctx", {})
    if item["type"] == "union_tag_invalid":
        tag = "no 'type'" if context["tag"] == UNTYPED else repr(context["tag"])
        return f"found {tag}; allowed: {context['expected_tags']}"
    if item["type"] == "extra_forbidden":
        return "there is no such field"
    if item["type"] == "missing":
        return "this field is required"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return (_ASKED + _KINDS[item["type"]] if item["type"] in _KINDS else message) + _given(item)


def _wanted(item: Any) -> str:
    """What was asked for, as the end of a sentence."""
    return _KINDS.get(item["type"]) or str(item["msg"]).removeprefix("Value error, ").removeprefix(_ASKED)


def _given(item: Any) -> str:
    given = item.get("input")
    if not isinstance(given, str | int | float | bool) and given is not None:
        return ""
    shown = repr(given)
    return f"; found {shown if len(shown) <= 80 else shown[:77] + '…'}"


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
    return [kind for kind in kinds_in(annotation) if issubclass(kind, BaseModel)]


def kinds_in(annotation: Any) -> list[type]:
    """The types that an annotation is made of."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in kinds_in(part)]
