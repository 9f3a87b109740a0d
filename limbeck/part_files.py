"""The file of a part of a teacher's pass: the answers, and what tells whether they are those that were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from limbeck.answer_files import Answers, Shapes, read_answers, write_answers
from limbeck.errors import DamagedFile
from limbeck.offer import Part


@dataclass(frozen=True, slots=True)
class Computed:
    """What a part's file holds."""

    answers: Answers  #: of the part's batches, one behind the other
    seconds: float  #: that computing them took
    worker: str  #: who did


def write_part(path: Path, key: str, part: Part, computed: Computed) -> None:
    """Write the file of a part.

    Args:
        key: of the whole pass.

    Raises:
        StorageFull, OSError
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"key": key, "part": part.name, "seconds": repr(computed.seconds), "worker": computed.worker}
    write_answers(path, computed.answers, facts)


def read_part(path: Path, key: str, part: Part, shapes: Shapes) -> Computed:
    """The answers in a file, which have to be this part's, of this pass and these shapes.

    Raises:
        DamagedFile: they are not, or not what was written.
    """
    try:
        answers, facts = read_answers(path, shapes)
        if (facts["key"], facts["part"]) != (key, part.name):
            raise ValueError("they are those of another part")
        return Computed(answers, float(facts["seconds"]), facts["worker"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"The answers in {path.name} are damaged: {error}.") from error
