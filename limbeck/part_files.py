"""The file of a part of a teacher's pass: the answers, and what tells whether they are those that were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.checkpoint import storage_errors
from limbeck.errors import DamagedFile
from limbeck.offer import Part
from limbeck.teacher_cache import sha256_of


@dataclass(frozen=True, slots=True)
class Computed:
    """What a part's file holds."""

    logits: Tensor  # (answers, classes): of the part's batches, one behind the other
    seconds: float  #: that computing them took
    worker: str  #: who did


def write_part(path: Path, key: str, part: Part, computed: Computed) -> None:
    """Write the file of a part.

    Args:
        key: of the whole pass.

    Raises:
        StorageFull, OSError
    """
    logits = computed.logits.contiguous()
    facts = {
        "key": key,
        "part": part.name,
        "sha256": sha256_of(logits),
        "seconds": repr(computed.seconds),
        "worker": computed.worker,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage_errors():
        save_file({"logits": logits}, path, facts)


def read_part(path: Path, key: str, part: Part, shape: tuple[int, ...]) -> Computed:
    """The answers in a file, which have to be this part's, of this pass and this shape.

    Raises:
        DamagedFile: they are not, or not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            logits = file.get_tensor("logits").clone()
        if (facts["key"], facts["part"]) != (key, part.name):
            raise ValueError("they are those of another part")
        if tuple(logits.shape) != shape:
            raise ValueError(f"they have the shape {tuple(logits.shape)} instead of {shape}")
        if sha256_of(logits) != facts["sha256"]:
            raise ValueError("their sha256 is not the one that was written")
        return Computed(logits, float(facts["seconds"]), facts["worker"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"The answers in {path.name} are damaged: {error}.") from error
