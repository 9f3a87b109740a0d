"""How a configuration names where a model or a data set comes from. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

BUILTIN_TEACHERS = ("builtin:minilm-l6", "builtin:vit-digits")
BUILTIN_TEXTS = ("builtin:stdlib-docstrings",)
BUILTIN_DATASETS = (*BUILTIN_TEXTS, "builtin:digits")
#: The ``type`` of the task that each built-in data set is of.
TASKS_OF_BUILTINS = {"builtin:stdlib-docstrings": "sequence_classification", "builtin:digits": "image_classification"}

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def of_hub(source: str) -> bool:
    """Whether a source has revisions that can be chosen."""
    return not source.startswith(("builtin:", "path:", "model:", "dataset:"))


def require_hub(source: str, **fields: Any) -> None:
    """
    Raises:
        ValueError: a field is given that means something on the hub alone, and the source is not from there.
    """
    for name, value in fields.items():
        if value is not None and not of_hub(source):
            raise ValueError(f"{name} is of sources on the hub, and {source!r} is none: leave it out")


def source_name(value: str, *, what: str, builtins: tuple[str, ...], reference: str) -> str:
    """Check the form of a source; ``reference`` is how the service's own things are named, e.g. ``model:mdl_``."""
    if value.startswith("builtin:") and value not in builtins:
        raise ValueError(f"there is no such built-in {what}; allowed: {', '.join(builtins)}")
    known = value in builtins or value.startswith(("path:", reference)) or _HUB_NAME.fullmatch(value)
    if not known:
        raise ValueError(
            f"a {what} is a hub name such as 'org/name', {' or '.join(map(repr, builtins))}, or '{reference}…'"
        )
    return value
