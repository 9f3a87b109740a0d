"""The answers of teachers that earlier jobs asked, in a folder that jobs share: one file for each key.

A key is a hash of all that the answers are computed from (``limbeck.cache.answers_key``), so that a file is right or
damaged and never out of date. Nothing here is needed: whatever is missing is computed again.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from limbeck.answer_files import Answers, Shapes, bytes_of, read_answers, write_answers
from limbeck.checkpoint import storage_errors
from limbeck.errors import DamagedFile
from limbeck.launching import AnswersPlace

SUFFIX = ".safetensors"
_PARTIAL = ".partial"
#: A file that is still being written is younger.
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Known:
    """What a file holds."""

    answers: Answers  #: mapped
    seconds: float  #: that computing them took

    @property
    def bytes(self) -> int:
        return bytes_of(self.answers)


class TeacherCache:
    """A folder of answers.

    Args:
        limit: bytes that the folder may take; the files that were not used for longest go first.
        fetch: called with a key that the folder does not have; may bring its file there.
        used: called with a key whose file was found or has just been written.
        share_seconds: a pass that takes longer than this is offered in parts (``limbeck/offer.py``), in
            ``workdir/parts``; None: none is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit: int | None = None,
        fetch: Callable[[str], None] = lambda key: None,
        used: Callable[[str], None] = lambda key: None,
        share_seconds: float | None = None,
    ) -> None:
        self.folder = folder
        self.limit = limit
        self._fetch = fetch
        self._used = used
        self.share_seconds = share_seconds

    @classmethod
    def at(cls, place: AnswersPlace) -> TeacherCache:
        return cls(
            place.folder, limit=place.limit, fetch=place.fetch, used=place.used, share_seconds=place.share_seconds
        )

    @property
    def place(self) -> AnswersPlace:
        """What it was made of, for whoever has no torch."""
        return AnswersPlace(self.folder, self.limit, self._fetch, self._used, self.share_seconds)

    def path(self, key: str) -> Path:
        return self.folder / (key + SUFFIX)

    def find(self, key: str, shapes: Shapes) -> Known | None:
        """The answers, which have to be of these shapes; from now on the file counts as just used.

        Raises:
            DamagedFile: the file is not what was written; it is gone now.
            OSError: the folder cannot be read.
        """
        path = self.path(key)
        if not path.exists():
            self._fetch(key)
            if path.exists():
                self._evict(keep=path)
        if not path.exists():
            return None
        try:
            os.utime(path)  # first: while it is read, another job may make room
            answers, facts = read_answers(path, shapes)
            known = Known(answers, float(facts["seconds"]))
        except FileNotFoundError:  # it has, in this moment
            return None
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            path.unlink(missing_ok=True)
            raise DamagedFile(f"The teacher's answers in {path.name} are damaged: {error}.") from error
        self._used(key)
        return known

    def keep(self, key: str, answers: Answers, seconds: float) -> bool:
        """Write a file; whether it fits into the limit at all.

        Raises:
            StorageFull, OSError: nothing is left behind.
        """
        if self.limit is not None and bytes_of(answers) > self.limit:
            return False
        aside = self.folder / f"{key}.{uuid.uuid4().hex}{_PARTIAL}"
        with storage_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                write_answers(aside, answers, {"seconds": repr(seconds)})
                aside.replace(self.path(key))
            finally:
                aside.unlink(missing_ok=True)
        self._evict(keep=self.path(key))
        self._used(key)
        return True

    def _evict(self, keep: Path) -> None:
        """Whoever has a file mapped keeps it until it lets go."""
        files = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another job evicts as well
                facts = path.stat()
                if path.suffix == SUFFIX:
                    files.append((facts.st_mtime, facts.st_size, path))
                elif path.suffix == _PARTIAL and facts.st_mtime < time.time() - _ABANDONED_SECONDS:
                    path.unlink()
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if self.limit is None or total <= self.limit:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
