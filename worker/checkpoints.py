"""Brings an attempt's checkpoints to the storage while it trains on, and makes each the row's by one fenced write."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.errors import LeaseLost, LimbeckError, StorageFull
from models.db import Database
from models.storage import Storage
from worker.lease import Lease, commit_checkpoint

_log = logging.getLogger(__name__)
_TRIES = 5
#: Until a checkpoint that the storage or the database did not take is offered again.
_AGAIN_SECONDS = 2.0
#: The same for the last one, for which the job's end waits.
_LAST_AGAIN_SECONDS = 0.5
_LOOK_SECONDS = 0.1


class Courier:
    """Uploads the newest checkpoint that the trainer's ``state`` folder holds, one at a time.

    Objects lie under the attempt's fence, and each attempt deletes only what its own committed checkpoint has replaced:
    a worker that was stopped and wakes up late cannot delete what its successor's checkpoint names.

    Args:
        known: the checkpoint that the attempt goes on from; its files are not uploaded again.
    """

    def __init__(
        self, storage: Storage, database: Database, lease: Lease, state: Path, known: dict[str, Any] | None
    ) -> None:
        self._storage = storage
        self._database = database
        self._lease = lease
        self._state = state
        self._committed = known
        self._uploaded: dict[str, str] = {
            file["sha256"]: file["key"] for file in (known or {}).get("files", {}).values()
        }
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"courier-{lease.job_id}", daemon=True)
        #: The storage took no more; the attempt cannot go on.
        self.full: StorageFull | None = None

    def start(self) -> None:
        self._thread.start()

    def notice(self) -> None:
        """There is a new checkpoint."""
        self._wanted.set()

    def forget(self) -> None:
        """Nothing of what the attempt should have gone on from is good: store all anew."""
        self._uploaded.clear()

    def finish(self, go_on: Callable[[], bool] = lambda: False, overdue: Callable[[], bool] = lambda: False) -> None:
        """Wait for an upload under way, and bring the last checkpoint of a trainer that has ended.

        Args:
            go_on: asked after a try that failed for a reason that may pass: whether another one is worth the time.
            overdue: whether even an upload that hangs has to be left to itself; its commit is fenced.
        """
        self._stopping.set()
        self._wanted.set()
        last = threading.Thread(target=self._bring_last, args=(go_on,), name=f"{self._thread.name}-last", daemon=True)
        for thread in (self._thread, last):
            if thread is last:
                last.start()
            while thread.is_alive():
                if overdue():
                    return
                thread.join(_LOOK_SECONDS)

    def abandon(self) -> None:
        """Bring nothing more: the attempt is over, and so is the thread."""
        self._stopping.set()
        self._wanted.set()

    def _run(self) -> None:
        pause: float | None = None
        while True:
            self._wanted.wait(pause)
            self._wanted.clear()
            if self._stopping.is_set():
                return
            pause = None if self._bring() else _AGAIN_SECONDS

    def _bring_last(self, go_on: Callable[[], bool]) -> None:
        while self.full is None and not self._bring() and go_on():
            time.sleep(_LAST_AGAIN_SECONDS)

    def _bring(self) -> bool:
        """Bring the newest checkpoint; False where it is worth another try."""
        try:
            checkpoint = self._upload()
            if checkpoint is None or checkpoint == self._committed:
                return True
            with self._database.session() as session:
                moved = checkpoint["step"] != (self._committed or {}).get("step")
                commit_checkpoint(session, self._lease, checkpoint, tell=moved)
            replaced = _keys(self._committed) - _keys(checkpoint)
            self._committed = checkpoint
            self._storage.delete(replaced)
            self._uploaded = {file["sha256"]: file["key"] for file in checkpoint["files"].values()}
        except LeaseLost as loss:
            _log.warning("%s", loss)
        except StorageFull as error:
            self.full = error
        except (LimbeckError, OSError) as error:
            # The last one that was committed stays good. Waiting for the next would double what a fault costs.
            _log.warning("%s: a checkpoint could not be stored yet: %s", self._lease.job_id, error)
            return False
        except Exception:  # the boundary: the thread has to be there for the next one
            _log.exception("%s: a checkpoint could not be stored", self._lease.job_id)
        return True

    def _upload(self) -> dict[str, Any] | None:
        """Store what the manifest names and is not stored yet; the checkpoint with its keys."""
        for _ in range(_TRIES):
            manifest = self._read_manifest()
            if manifest is None:
                return None
            try:
                files = {name: self._upload_file(name, facts) for name, facts in manifest["files"].items()}
            except FileNotFoundError:
                continue  # the trainer has moved on by two checkpoints: read what it has now
            return {**manifest, "files": files}
        return None

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            manifest: dict[str, Any] = json.loads((self._state / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return manifest

    def _upload_file(self, name: str, facts: dict[str, Any]) -> dict[str, Any]:
        digest = facts["sha256"]
        if digest not in self._uploaded:
            key = f"{checkpoint_prefix(self._lease.job_id)}/{self._lease.fence}/{digest}"
            stored = self._storage.put_file(self._state / name, key)
            if stored.sha256 != digest:
                raise OSError(f"{name} is not what its manifest says")
            self._uploaded[digest] = key
        return {"sha256": digest, "bytes": facts["bytes"], "key": self._uploaded[digest]}


def checkpoint_prefix(job_id: str) -> str:
    """Where the storage has a job's checkpoints."""
    return f"jobs/{job_id}/checkpoints"


def delete_checkpoints(storage: Storage, job_id: str) -> None:
    """Delete everything that was ever stored for a job to go on from."""
    storage.delete([entry.key for entry in storage.list(checkpoint_prefix(job_id))])


def _keys(checkpoint: dict[str, Any] | None) -> set[str]:
    return {file["key"] for file in (checkpoint or {}).get("files", {}).values()}
