"""Storages that fail, are away or hang, for some of what workers bring there."""

from __future__ import annotations

import threading
from pathlib import Path

from limbeck.errors import Unavailable
from models.settings import Settings
from models.storage import Stored, Watch, unwatched
from models.storage.local import LocalStorage


class Failing(LocalStorage):
    """A storage that takes so many files of ``checkpoints`` or of ``attempts``, and then fails as it is told."""

    def __init__(self, root: Path, error: Exception, *, of: str, after: int) -> None:
        super().__init__(root)
        self._error, self._of, self._left = error, of, after

    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        if key.split("/")[2] == self._of:
            self._left -= 1
            if self._left < 0:
                raise self._error
        return super().put_file(path, key, move=move, watch=watch)


def failing(settings: Settings, error: Exception, *, of: str, after: int) -> Failing:
    return Failing(settings.data_dir / "storage", error, of=of, after=after)


class Once(LocalStorage):
    """A storage that is away for the next checkpoint, when told so, and then there again."""

    away = 0
    of = "checkpoints"

    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        self._answer(key)
        return super().put_file(path, key, move=move, watch=watch)

    def get_file(self, key: str, path: Path, *, watch: Watch = unwatched) -> None:
        self._answer(key)
        super().get_file(key, path, watch=watch)

    def _answer(self, key: str) -> None:
        if key.split("/")[2] == self.of and self.away:
            self.away -= 1
            raise Unavailable("The bucket does not answer.")


class Endless(LocalStorage):
    """A storage in which files of ``checkpoints`` or of ``attempts`` never come to an end."""

    of = ""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.begun = threading.Event()

    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        if key.split("/")[2] == self.of:
            self._go_on_for_ever(watch)
        return super().put_file(path, key, move=move, watch=watch)

    def get_file(self, key: str, path: Path, *, watch: Watch = unwatched) -> None:
        if key.split("/")[2] == self.of:
            self._go_on_for_ever(watch)
        super().get_file(key, path, watch=watch)

    def _go_on_for_ever(self, watch: Watch) -> None:
        self.begun.set()
        while True:
            watch()
            threading.Event().wait(0.02)


class Stuck(LocalStorage):
    """A storage that takes a checkpoint's bytes for as long as it likes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.begun, self.released = threading.Event(), threading.Event()

    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        if key.split("/")[2] == "checkpoints":
            self.begun.set()
            self.released.wait(60)
        return super().put_file(path, key, move=move, watch=watch)
