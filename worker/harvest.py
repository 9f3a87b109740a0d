"""Brings what an attempt made to the storage, ready for the one write that makes it the job's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.model_folder import model_facts
from models.base import new_id
from models.model import ModelKind
from models.repository.catalogue import StoredFile
from models.retention import attempt_prefix
from models.storage import Storage, Stored
from worker.endings import NewModel, Outcome
from worker.lease import Lease
from worker.patience import Patience


def harvest(storage: Storage, lease: Lease, workdir: Path, result: Mapping[str, Any], patiently: Patience) -> Outcome:
    """Store the student and the baseline, under the attempt's own prefix.

    Until the outcome is committed no row names the files. They are nobody's to sweep while the attempt holds its job,
    however long it takes; those of one that lost its lease meanwhile are.

    Args:
        lease: of the attempt.
        result: the trainer's last line.

    Raises:
        StorageFull, Unavailable; and what ``patiently`` raises to stop.
    """
    store = _Store(storage, attempt_prefix(lease.job_id, lease.fence), patiently)
    tables = [workdir / path for path in result["hard_samples"]]
    student = store.model(workdir / result["student"], ModelKind.STUDENT, tables)
    models = [student]
    summary = {"model_id": student.id, "verdict": result["scorecard"]["verdict"]}
    if result["baseline"]:
        baseline = store.model(workdir / result["baseline"], ModelKind.BASELINE)
        models.append(baseline)
        summary["baseline_id"] = baseline.id
    return Outcome(models, summary, result["scorecard"])


@dataclass(frozen=True, slots=True)
class _Store:
    storage: Storage
    prefix: str
    patiently: Patience

    def model(self, folder: Path, kind: ModelKind, beside: Sequence[Path] = ()) -> NewModel:
        """Store a folder as a model, and ``beside`` it single files of other places."""
        facts = model_facts(folder)
        card = json.loads((folder / "limbeck.json").read_text(encoding="utf-8"))
        model_id = new_id("mdl")
        files = []
        inside = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        for name, path in sorted((inside | {path.name: path for path in beside}).items()):
            stored = self._file(path, f"{self.prefix}{model_id}/{name}")
            files.append(StoredFile(name, stored.key, stored.bytes, stored.sha256))
        columns = {
            "task": card["task"],
            "labels": card["labels"],
            "architecture": facts.architecture,
            "layers": facts.layers,
            "parameters": facts.parameters,
        }
        return NewModel(model_id, kind, files, columns)

    def _file(self, path: Path, key: str) -> Stored:
        return self.patiently(lambda: self.storage.put_file(path, key, move=True, watch=self.patiently.check))
