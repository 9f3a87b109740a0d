"""A teacher's pass over a split, offered in parts to whoever has time. A folder is all that the two sides share.

The run that needs the pass writes ``offer.json``: what is to be computed, and which parts are left. Whoever has started
the run may pass that on (``worker/offers.py``), lay finished parts beside it, and say in ``held.json`` which are being
computed elsewhere. The run waits for none of it: what nobody hands in it computes itself. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Where it lies in the folder of a run.
PARTS = "parts"
OFFERED = "offer.json"
HELD = "held.json"
SUFFIX = ".safetensors"
_NAME = re.compile(r"(\d{1,9})-(\d{1,9})" + re.escape(SUFFIX))


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Some batches of a pass, in the order of ``limbeck.batches.forward_batches``."""

    first: int
    end: int  #: the batch behind the last

    @property
    def name(self) -> str:
        """Of its file; below the pass' key it says all that the answers in it are computed from."""
        return f"{self.first}-{self.end}{SUFFIX}"

    @classmethod
    def named(cls, name: str) -> Part | None:
        """The part whose file has this name; None where it is no part's."""
        found = _NAME.fullmatch(name)
        return cls(int(found[1]), int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class Offer:
    """What a run would like to have computed."""

    key: str  #: ``limbeck.cache.answers_key`` of the whole pass
    teacher: str  #: the phase under whose name the run's state has the weights
    likeness: str  #: of the machine (``limbeck.machine.likeness``): another one rounds otherwise
    threads: int
    left: tuple[Part, ...]  #: parts that are not whole yet
    own: Part | None = None  #: the one of them that the run itself is at


class OfferFolder:
    """Where an offer lies: ``offer.json``, ``held.json``, and ``{key}/{first}-{end}.safetensors``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, offer: Offer) -> None:
        """Make this the offer, in place of the last one."""
        self._write(OFFERED, asdict(offer))

    def read(self) -> Offer | None:
        """The offer as it stands; None where there is none."""
        found = self._read(OFFERED)
        if found is None:
            return None
        left = tuple(Part(**part) for part in found.pop("left"))
        own = found.pop("own")
        return Offer(**found, left=left, own=None if own is None else Part(**own))

    def withdraw(self) -> None:
        """The pass is whole, or is not wanted any more."""
        (self.folder / OFFERED).unlink(missing_ok=True)

    def say_held(self, firsts: Iterable[int]) -> None:
        """Somebody else computes the parts that begin with these batches."""
        self._write(HELD, sorted(firsts))

    def held(self) -> set[int]:
        """First batches of the parts that somebody else computes, as far as is known."""
        return set(self._read(HELD) or ())

    def path(self, key: str, part: Part) -> Path:
        return self.folder / key / part.name

    def handed_in(self, key: str) -> list[Part]:
        """The parts whose files are there."""
        folder = self.folder / key
        if not folder.is_dir():
            return []
        return sorted(part for path in folder.iterdir() if (part := Part.named(path.name)) is not None)

    def _write(self, name: str, content: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{name}.partial"
        aside.write_text(json.dumps(content), encoding="utf-8")
        aside.replace(self.folder / name)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
