"""Files of a teacher's answers: what a reader trusts is what was written, of the shapes that he expects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.checkpoint import storage_errors

Answers = dict[str, Tensor]
"""By name: the ``logits``, (answers, classes), and where a method learns from them the ``states`` of the first token,
(rows, places, width); in float32, on the CPU."""
Shapes = Mapping[str, tuple[int, ...]]

LOGITS, STATES = "logits", "states"


def bytes_of(answers: Answers) -> int:
    return sum(tensor.nbytes for tensor in answers.values())


def shapes_of(answers: Answers) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in answers.items()}


def write_answers(path: Path, answers: Answers, facts: Mapping[str, str]) -> None:
    """
    Raises:
        StorageFull, OSError
    """
    whole = {name: tensor.contiguous() for name, tensor in sorted(answers.items())}
    with storage_errors():
        save_file(whole, path, {"sha256": _sha256(whole.values()), **facts})


def read_answers(path: Path, shapes: Shapes) -> tuple[Answers, dict[str, str]]:
    """The answers, mapped and not read (the rows of a batch come from the disk when they are asked for), and the facts
    beside them.

    Raises:
        ValueError, KeyError, SafetensorError, OSError: they have other shapes, or are not what was written.
    """
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() or {}
        answers = {name: file.get_tensor(name) for name in sorted(shapes)}
    for name, tensor in answers.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"they have the shape {tuple(tensor.shape)} instead of {shapes[name]}")
    if _sha256(answers.values()) != facts["sha256"]:
        raise ValueError("their sha256 is not the one that was written")
    return answers, facts


def _sha256(tensors: Iterable[Tensor]) -> str:
    """Of the tensors' bytes, one behind the other."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
