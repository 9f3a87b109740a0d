"""The interface to stored files. An object is written once, whole, and never changed."""

from __future__ import annotations

import errno
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from limbeck.errors import InvalidInput, NotFound, StorageFull

CHUNK = 1024 * 1024
Watch = Callable[[], None]

#: Kept to what every file system and bucket takes as it is.
_PART = re.compile(r"[A-Za-z0-9._+=@, -]{1,255}")
_LONGEST_KEY = 500


def unwatched() -> None:
    """Nobody wants to end the transfer."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What was written."""

    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing."""

    key: str
    bytes: int
    modified: datetime


class Storage(ABC):
    """Files under keys such as ``models/mdl_…/model.safetensors``.

    Every method raises InvalidInput for a key that :func:`checked` refuses, and Unavailable while the store is away.
    """

    @abstractmethod
    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        """Store a file, hashed on the way. A reader sees all of it or nothing, also after a power failure.

        Args:
            move: the file at ``path`` is not needed any more; it is gone afterwards, and where it can be is renamed.
            watch: called between pieces of the file. What it raises ends the transfer, and nothing is stored.

        Raises:
            StorageFull: there is no room; nothing is left behind.
        """

    @abstractmethod
    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from ``start`` up to, without, ``end``, in pieces.

        Raises:
            NotFound: at the call, not at the first piece.
        """

    @abstractmethod
    def local_path(self, key: str) -> Path | None:
        """The stored file itself where it is one of this machine's; for reading only."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes of the object. Raises NotFound."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are passed over."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below a prefix of whole parts: ``jobs`` has ``jobs/a`` in it and not ``jobs2/a``."""

    @abstractmethod
    def signed_url(self, key: str, seconds: float) -> str | None:
        """A URL that anybody may GET for so long; ``None`` where the store has no HTTP of its own."""

    @abstractmethod
    def discard_unfinished(self, before: datetime) -> int:
        """Remove what writes that were cut off before that moment left behind; returns its bytes."""

    def ping(self) -> None:
        """Return if objects can be had from it and put into it, as far as a look can tell; else raise Unavailable."""
        next(iter(self.list("ready")), None)  # of a bucket that is not there a single object is only missing

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def get_file(self, key: str, path: Path, *, watch: Watch = unwatched) -> None:
        """Copy an object to a file, which appears only once it is whole.

        Args:
            watch: called between pieces of the object. What it raises ends the transfer.

        Raises:
            NotFound, StorageFull: this machine's disk has no room.
        """
        part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                for piece in self.open(key):
                    watch()
                    file.write(piece)
            part.replace(path)
        except OSError as error:
            raise out_of_room(error, f"fetching {key}") from error
        finally:
            part.unlink(missing_ok=True)


def checked(key: str) -> str:
    """The key, if it is one.

    Raises:
        InvalidInput: it climbs (``..``), is absolute, too long, or has characters that not every store takes.
    """
    parts = key.split("/")
    good = all(_PART.fullmatch(part) and part not in (".", "..") for part in parts) and not key.startswith(".")
    if not good or len(key) > _LONGEST_KEY:
        shown = key if len(key) <= 80 else key[:77] + "…"
        raise InvalidInput(
            f"{shown!r} cannot be stored under this name: allowed are letters, digits, spaces and ._+=@,- between "
            f"slashes, no part '.' or '..', at most {_LONGEST_KEY} characters"
        )
    return key


def read_hashed(path: Path, digest: hashlib._Hash, watch: Watch = unwatched) -> Iterator[bytes]:
    """The file in pieces, each also fed to ``digest``; ``watch`` is called before each."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            watch()
            digest.update(piece)
            yield piece


def out_of_room(error: OSError, doing: str) -> Exception:
    """StorageFull where the disk is full or the quota used up, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"There is no room left on the disk ({doing}).")
    return error
