"""The state of a run on disk: a manifest and the immutable files that it names.

A file's name carries the start of its hash, so that new content is a new file; the manifest is replaced by a rename.
Whoever reads the state while a run goes on (the worker copies it) takes the manifest first and then its files; files
that a manifest no longer names outlive it by one generation, and a reader that misses one reads the manifest again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.callbacks import CheckpointInfo
from limbeck.errors import StorageFull
from limbeck.full_disk import FULL, disk_errors

VERSION = 1
MANIFEST = "manifest.json"


class CheckpointStore:
    """Files by role (``"journal"``, ``"teacher"``, ``"training"`` …), changed together by :meth:`commit`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.step = 0
        #: Why a state that was found could not be used; the store is empty then.
        self.damage: str | None = None
        self._files: dict[str, dict[str, Any]] = {}
        self._roles: dict[str, str] = {}
        self._previous: set[str] = set()
        self._open()

    @property
    def committed(self) -> list[str]:
        """The manifest and the files that it names; empty before the first commit."""
        return sorted([*self._previous, MANIFEST]) if self._previous else []

    def has(self, role: str) -> bool:
        return role in self._roles

    def path(self, role: str) -> Path:
        """Of a role's file, which no later content changes."""
        return self.folder / self._roles[role]

    def read_tensors(self, role: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A role's tensors, each in memory of its own, and the facts beside them."""
        tensors, facts = mapped_tensors(self.path(role))
        # A tensor of the mapped file starts wherever its bytes lie; kernels may round otherwise on such addresses.
        return {name: tensor.clone() for name, tensor in tensors.items()}, facts

    def read_json(self, role: str) -> Any:
        return json.loads((self.folder / self._roles[role]).read_text(encoding="utf-8"))

    def write_tensors(self, role: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Stage new content for a role; it counts from the next :meth:`commit` on."""
        owned = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        self._write(role, ".safetensors", lambda path: save_file(owned, path, {"facts": json.dumps(facts)}))

    def write_json(self, role: str, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False)
        self._write(role, ".json", lambda path: path.write_text(text, encoding="utf-8"))

    def drop(self, role: str) -> None:
        """Leave a role out from the next commit on."""
        self._roles.pop(role, None)

    def commit(self, step: int) -> CheckpointInfo:
        """Make what was staged the state, all at once."""
        files = {name: self._files[name] for name in sorted(self._roles.values())}
        document = {"version": VERSION, "step": step, "files": files}
        self._replace(self.folder / MANIFEST, lambda path: path.write_text(json.dumps(document), encoding="utf-8"))
        self._sweep(self._previous | files.keys())
        self._previous, self._files, self.step = set(files), dict(files), step
        return CheckpointInfo(step, self.folder / MANIFEST)

    def _open(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            return
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["version"] != VERSION:
                raise ValueError(f"it has the version {document['version']}, this Limbeck writes {VERSION}")
            for name, known in document["files"].items():
                if _sha256(self.folder / name) != known["sha256"]:
                    raise ValueError(f"{name} is not what the manifest says")
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.damage = str(error)
            return
        self._files = document["files"]
        self._roles = {name.split(".", 1)[0]: name for name in self._files}
        self._previous = set(self._files)
        self.step = document["step"]

    def _write(self, role: str, suffix: str, write: Callable[[Path], Any]) -> None:
        aside = self.folder / f"{role}{suffix}.partial"
        with storage_errors():
            try:
                write(aside)
                digest = _sha256(aside)
                name = f"{role}.{digest[:16]}{suffix}"
                self._files[name] = {"sha256": digest, "bytes": aside.stat().st_size}
                _to_disk(aside)
                aside.replace(self.folder / name)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
        self._roles[role] = name

    def _replace(self, path: Path, write: Callable[[Path], Any]) -> None:
        aside = path.with_suffix(".partial")
        with storage_errors():
            write(aside)
            _to_disk(aside)
            aside.replace(path)
            _to_disk(self.folder)

    def _sweep(self, keep: set[str]) -> None:
        for file in self.folder.iterdir():
            if file.name != MANIFEST and file.name not in keep:
                file.unlink(missing_ok=True)


class Follower(CheckpointStore):
    """The state as a rank other than the first has it: it is read, and written by rank 0 alone."""

    def write_tensors(self, role: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Rank 0 stages the same."""

    def write_json(self, role: str, value: Any) -> None:
        """Rank 0 stages the same."""


def mapped_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :meth:`CheckpointStore.write_tensors` has written, mapped and not read. It outlives the file, and nobody
    writes into it."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads((file.metadata() or {})["facts"])


@contextmanager
def storage_errors() -> Iterator[None]:
    """A full disk, however a library words it, becomes :class:`StorageFull`."""
    try:
        with disk_errors():
            yield
    except SafetensorError as error:
        if any(f"os error {number}" in str(error) for number in FULL):
            raise StorageFull("The disk took no more bytes while a checkpoint was written.") from error
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
