"""How a configuration names where a model or a data set comes from. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

BUILTIN_TEACHERS = ("builtin:minilm-l6", "builtin:vit-digits")
BUILTIN_TEXTS = ("builtin:stdlib-docstrings",)
BUILTIN_DATASETS = (*BUILTIN_TEXTS, "builtin:digits")
#: The ``type`` of the task that each built-in data set is of.
TASKS_OF_BUILTINS = {"builtin:stdlib-docstrings": "sequence_classification", "builtin:digits": "image_classification"}

#: Ids that the service gives out: what they are of, and a UUID.
_ID = re.compile(r"(ds|mdl|job)_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Endings of files that are uploaded.
_FILES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".gz", ".zip", ".safetensors")
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
    # The hub allows such names, but an id or a file that is taken for one would only fail when the job runs.
    if _ID.fullmatch(value):
        kind, prefix = reference.split(":")
        meant = f"is '{kind}:{value}' meant?" if value.startswith(prefix) else f"a {what} is named '{reference}…'"
        raise ValueError(f"this is an id of the service; {meant}")
    if "/" not in value and value.lower().endswith(_FILES):
        raise ValueError(f"this is the name of a file: upload it, and name it as '{reference}…'")
    return value
