"""What a student is asked: the inputs of transformers' pipelines, checked by name and place."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from limbeck.errors import InvalidInput, Problem, TooSlow
from limbeck.runtime.words import Span, as_text

if TYPE_CHECKING:
    from limbeck.runtime.images import Picture
    from limbeck.runtime.windows import Window

TopK = int | Literal["all"] | None

#: Of surrogate pairs.
_HALVES = re.compile("[\ud800-\udfff]")
_FORMS = 'a text, {"text": …, "text_pair": …}, or a list of either'
_TAGGED_FORMS = 'a text, {"text": …}, {"tokens": […]}, or a list of these'


@dataclass(frozen=True, slots=True)
class Question:
    """Checked inputs."""

    texts: list[str]  #: of tokens: these with a blank between them
    pairs: list[str] | None
    #: How they were given: one text, one object, or a list; or as a sentence and those that it is compared with.
    form: Literal["text", "object", "list", "compared"]
    top_k: TopK = None
    speed: float | None = None  #: of a student with early exits; None: its own
    #: Of a student that tags tokens: where these stand in each text, None where it has to be cut into words.
    tokens: list[list[Span] | None] | None = None
    pictures: list[Picture] | None = None  #: of a student of images, whose ``texts`` are empty
    windows: list[list[Window]] | None = None  #: of a student that answers questions: of each, with its context
    #: Of one question with some windows of its context (``limbeck/runtime/parts.py``): it is answered with their spans;
    #: of some of the sentences of a comparison: with their vectors.
    piece: Literal["more follow", "last"] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def rows(self) -> int:
        """What a model computes for it: texts, or windows of contexts."""
        return len(self.texts) if self.windows is None else sum(map(len, self.windows))


def read_question(
    inputs: Any, *, pair: bool, tags: bool = False, top_k: TopK = None, speed: float | None = None
) -> Question:
    """Check inputs.

    Args:
        pair: whether the student reads pairs of texts.
        tags: whether it tags tokens, and so takes lists of these.

    Raises:
        InvalidInput: with a pointer (``/inputs/3/text_pair``, ``/parameters/top_k``) for each thing that is wrong.
    """
    check_top_k(top_k)
    alone = isinstance(inputs, str | Mapping)
    if not alone and not (isinstance(inputs, Sequence) and not isinstance(inputs, bytes | bytearray)):
        forms = _TAGGED_FORMS if tags else _FORMS
        raise _invalid([Problem("/inputs", f"found {_kind(inputs)}; allowed: {forms}")])
    if not alone and not inputs:
        raise _invalid([Problem("/inputs", "the list is empty; give at least one text")])
    problems: list[Problem] = []
    read = [
        _read_one(one, "/inputs" if alone else f"/inputs/{place}", pair, tags, problems)
        for place, one in enumerate([inputs] if alone else inputs)
    ]
    if problems:
        raise _invalid(problems)
    form: Literal["text", "object", "list"] = "list"
    if alone:
        form = "text" if isinstance(inputs, str) else "object"
    texts, seconds = [text for text, _, _ in read], [second for _, second, _ in read]
    tokens = [spans for _, _, spans in read]
    return Question(texts, seconds if pair else None, form, top_k, speed, tokens=tokens if tags else None)


def read_asked(inputs: Any, *, top_k: TopK = None) -> Question:
    """Check ``{"question": …, "context": …}``, or a list of such objects; the contexts are the second texts.

    Raises:
        InvalidInput: with a pointer (``/inputs/3/context``) for each input that is wrong.
    """
    check_top_k(top_k)
    alone = isinstance(inputs, Mapping)
    form = '{"question": …, "context": …}'
    if not alone and (not isinstance(inputs, Sequence) or isinstance(inputs, str | bytes | bytearray)):
        raise _invalid([Problem("/inputs", f"found {_kind(inputs)}; allowed: {form}, or a list of such objects")])
    if not alone and not inputs:
        raise _invalid([Problem("/inputs", "the list is empty; give at least one question")])
    problems: list[Problem] = []
    found: dict[str, list[str]] = {"question": [], "context": []}
    for place, one in enumerate([inputs] if alone else inputs):
        pointer = "/inputs" if alone else f"/inputs/{place}"
        if not isinstance(one, Mapping):
            problems.append(Problem(pointer, f"found {_kind(one)}; allowed: {form}"))
            continue
        problems += [
            Problem(f"{pointer}/{name}", "there is no such field; allowed: question, context")
            for name in one
            if name not in found
        ]
        for name, texts in found.items():
            before = len(problems)
            texts.append(_read_text(one.get(name), f"{pointer}/{name}", problems))
            if len(problems) == before and not texts[-1].strip():
                problems.append(Problem(f"{pointer}/{name}", "the text is empty"))
    if problems:
        raise _invalid(problems)
    return Question(found["question"], found["context"], "object" if alone else "list", top_k)


def is_comparison(inputs: Any) -> bool:
    """Whether it is meant as :func:`read_compared` has it."""
    return isinstance(inputs, Mapping) and ("source_sentence" in inputs or "sentences" in inputs)


def read_compared(inputs: Mapping[str, Any]) -> Question:
    """Check ``{"source_sentence": …, "sentences": […]}``; the first text is the one that the others are compared with.

    Raises:
        InvalidInput: with a pointer (``/inputs/sentences/3``) for each thing that is wrong.
    """
    problems = [
        Problem(f"/inputs/{name}", "there is no such field; allowed: source_sentence, sentences")
        for name in inputs
        if name not in ("source_sentence", "sentences")
    ]
    texts = [_read_text(inputs.get("source_sentence"), "/inputs/source_sentence", problems)]
    others = inputs.get("sentences")
    if not isinstance(others, list) or not others:
        found = "an empty list" if others == [] else _kind(others)
        problems.append(Problem("/inputs/sentences", f"found {found}; allowed: a list of at least one text"))
    else:
        texts += [_read_text(one, f"/inputs/sentences/{place}", problems) for place, one in enumerate(others)]
    if problems:
        raise _invalid(problems)
    return Question(texts, None, "compared")


def require_contexts(question: Question, read: Sequence[bool]) -> None:
    """
    Args:
        read: for each context whether it has a token.

    Raises:
        InvalidInput: at the contexts without one: of spaces that take no room, say, or of control characters.
    """
    pointers = [f"/inputs/{place}" if question.form == "list" else "/inputs" for place in range(len(read))]
    problems = [
        Problem(f"{pointer}/context", "the student's tokenizer reads nothing of this text, so nothing in it can answer")
        for pointer, any_token in zip(pointers, read, strict=True)
        if not any_token
    ]
    if problems:
        raise _invalid(problems)


def check_top_k(top_k: Any) -> None:
    """
    Raises:
        InvalidInput: at ``/parameters/top_k``.
    """
    if top_k is None or top_k == "all" or (isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 1):
        return
    raise _invalid([Problem("/parameters/top_k", f"found {top_k!r}; allowed: a whole number from 1 on, or 'all'")])


def require_time(until: float) -> None:
    """
    Raises:
        TooSlow: it is later than that, on the monotonic clock.
    """
    if until < math.inf and time.monotonic() > until:
        raise TooSlow("The inputs were not read in time: too much is asked.")


def refuse_top_k(why: str) -> None:
    """
    Raises:
        InvalidInput: at ``/parameters/top_k``.
    """
    raise _invalid([Problem("/parameters/top_k", why)])


def _read_one(
    value: Any, pointer: str, pair: bool, tags: bool, problems: list[Problem]
) -> tuple[str, str, list[Span] | None]:
    """Text, second text (empty where the student reads one), and where its tokens are if it came as these; what is
    wrong is added to ``problems``."""
    if isinstance(value, str):
        value = {"text": value}
        place = pointer
    elif isinstance(value, Mapping):
        place = f"{pointer}/text"
    else:
        fields = "text or tokens" if tags else "text"
        problems.append(
            Problem(pointer, f"found {_kind(value)}; allowed: a text, or an object with the field {fields}")
        )
        return "", "", None
    if "tokens" in value:
        return _read_tokens(value, pointer, tags, problems)
    fields = "text, or tokens" if tags else "text, text_pair"
    problems += [
        Problem(f"{pointer}/{name}", f"there is no such field; allowed: {fields}")
        for name in value
        if name not in ("text", "text_pair")
    ]
    text = _read_text(value.get("text"), place, problems)
    second = value.get("text_pair")
    if pair:
        return text, _read_text(second, f"{pointer}/text_pair", problems, "this student compares two texts; "), None
    if second is not None:
        problems.append(Problem(f"{pointer}/text_pair", "this student reads one text; leave text_pair out"))
    return text, "", None


def _read_tokens(
    value: Mapping[str, Any], pointer: str, tags: bool, problems: list[Problem]
) -> tuple[str, str, list[Span]]:
    """As :func:`_read_one`, of an object with the field ``tokens``."""
    given, place = value["tokens"], f"{pointer}/tokens"
    if not tags:
        problems.append(Problem(place, "this student does not tag tokens; it takes texts, not lists of tokens"))
        return "", "", []
    problems += [
        Problem(f"{pointer}/{name}", "there is no such field beside tokens; allowed: tokens alone, or text")
        for name in value
        if name != "tokens"
    ]
    if not isinstance(given, Sequence) or isinstance(given, str | bytes | bytearray):
        problems.append(Problem(place, f"found {_kind(given)}; allowed: a list of texts"))
        return "", "", []
    if not given:
        problems.append(Problem(place, "the list is empty; give at least one token"))
    problems += [Problem(f"{place}/{number}", "the token is empty") for number, one in enumerate(given) if one == ""]
    text, spans = as_text([_read_text(one, f"{place}/{number}", problems) for number, one in enumerate(given)])
    return text, "", spans


def _read_text(value: Any, pointer: str, problems: list[Problem], why: str = "") -> str:
    if value is None:
        problems.append(Problem(pointer, f"{why}this field is required"))
    elif not isinstance(value, str):
        problems.append(Problem(pointer, f"found {_kind(value)}; allowed: a text"))
    elif not value.isascii() and _HALVES.search(value):
        problems.append(Problem(pointer, "the text holds half of a surrogate pair, which is no character"))
    else:
        return value
    return ""


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _invalid(problems: list[Problem]) -> InvalidInput:
    shown = "; ".join(f"{p.pointer}: {p.detail}" for p in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return InvalidInput(f"The inputs cannot be read: {shown}{more}", problems)
