"""What a student of images is asked: encoded images as base64, bytes or paths, checked by place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import InvalidInput, Problem
from limbeck.runtime.images import Picture, Preparation, from_base64, opened
from limbeck.runtime.inputs import Question, TopK, check_top_k, require_time

#: Labels where a call names no number, as transformers' image-classification has it.
USUAL_TOP_K = 5
#: Images of one call: each may unpack to many times its size.
MOST_IMAGES = 64
_FORMS = "an image in base64 (PNG, JPEG, WebP, BMP or GIF), or a list of such"


def read_pictures(inputs: Any, preparation: Preparation, *, top_k: TopK = None, until: float = math.inf) -> Question:
    """Decode images and bring them to the student's size.

    Args:
        inputs: a text of base64, ``bytes``, or a ``Path`` (in the library alone), or a list of these.
        until: on the monotonic clock: then what is left is not decoded.

    Raises:
        InvalidInput: with a pointer (``/inputs/3``) for each image that cannot be read.
        TooSlow: ``until`` is past.
    """
    check_top_k(top_k)
    alone = isinstance(inputs, str | bytes | Path)
    if not alone and (not isinstance(inputs, Sequence) or isinstance(inputs, bytearray)):
        raise _invalid([Problem("/inputs", f"found {type(inputs).__name__}; allowed: {_FORMS}")])
    each = [inputs] if alone else list(inputs)
    if not 1 <= len(each) <= MOST_IMAGES:
        raise _invalid([Problem("/inputs", f"found {len(each)} images; allowed: 1 to {MOST_IMAGES}")])
    problems: list[Problem] = []
    pictures: list[Picture] = []
    table = preparation.table()
    for place, one in enumerate(each):
        require_time(until)
        try:
            pixels = preparation.pixels(opened(_bytes(one)))
            pictures.append(Picture(pixels, table, preparation.places))
        except InvalidInput as error:
            problems.append(Problem("/inputs" if alone else f"/inputs/{place}", error.message))
    if problems:
        raise _invalid(problems)
    return Question([""] * len(pictures), None, "text" if alone else "list", top_k or USUAL_TOP_K, pictures=pictures)


def _bytes(one: Any) -> bytes:
    if isinstance(one, bytes):
        return one
    if isinstance(one, Path):
        try:
            return one.read_bytes()
        except OSError as error:
            raise InvalidInput(f"{one} cannot be read: {error.strerror}") from error
    if not isinstance(one, str):
        raise InvalidInput(f"found {type(one).__name__}; allowed: {_FORMS}")
    return from_base64(one)


def _invalid(problems: list[Problem]) -> InvalidInput:
    shown = "; ".join(f"{p.pointer}: {p.detail}" for p in problems[:5])
    return InvalidInput(f"The inputs cannot be read: {shown}", problems)
