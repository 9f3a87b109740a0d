"""What an attempt needs from the storage before it starts: teachers, data sets, and the checkpoint it goes on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from limbeck.errors import DamagedFile, NotFound
from models.db import Database
from models.repository import catalogue
from models.repository.sources import data_sources, model_sources
from models.storage import Storage
from worker.patience import Patience


@dataclass(frozen=True, slots=True)
class Needed:
    """A stored file, and where it has to lie."""

    key: str
    path: Path
    sha256: str


def sources_of(
    config: Mapping[str, Any], database: Database, folder: Path, *, texts: bool = True
) -> tuple[dict[str, Path], list[Needed]]:
    """The service's own models, and with ``texts`` the data sets, that a config names: reference to folder, and the
    files to fetch.

    Raises:
        NotFound: one has been deleted.
    """
    named = set(data_sources(config).values()) if texts else set()
    sources: dict[str, Path] = {}
    needed: list[Needed] = []
    with database.reading() as session:
        for pointer, reference in model_sources(config).items():
            if not reference.startswith("model:") or reference in sources:
                continue
            place = sources[reference] = folder / pointer.strip("/").removesuffix("/source").replace("/", "-")
            files = catalogue.model_files(session, reference.removeprefix("model:"))
            needed += [Needed(file.key, place / file.path, file.sha256) for file in files]
        for number, reference in enumerate(sorted(one for one in named if one.startswith("dataset:"))):
            place = sources[reference] = folder / f"dataset-{number}"
            splits = catalogue.get_dataset(session, reference.removeprefix("dataset:")).splits
            needed += [Needed(at["key"], place / f"{name}.parquet", at["sha256"]) for name, at in splits.items()]
    return sources, needed


def expected_of(provenance: Mapping[str, Any]) -> dict[str, str]:
    """``dataset`` and ``teacher`` (of several also ``teacher/more/0`` …; of texts without labels
    ``training/augmentation/0`` …) to the sha256 that the repeated job had found; empty for a first run."""
    first = provenance.get("rerun_of") or {}
    found = {part: (first.get(part) or {}).get("sha256") for part in ("dataset", "teacher")}
    found |= {f"teacher/more/{place}": one.get("sha256") for place, one in enumerate(first.get("more_teachers") or ())}
    found |= {part: one.get("sha256") for part, one in (first.get("unlabelled") or {}).items()}
    return {part: sha256 for part, sha256 in found.items() if sha256 is not None}


def micro_batches_of(provenance: Mapping[str, Any]) -> dict[str, int]:
    """What the repeated job's probe for ``training.gradient_accumulation: auto`` found; empty for a first run."""
    found: dict[str, int] = (provenance.get("rerun_of") or {}).get("micro_batches") or {}
    return found


def fetch(storage: Storage, needed: list[Needed], patiently: Patience) -> None:
    """Bring the files here, each checked.

    Raises:
        NotFound, DamagedFile, StorageFull, Unavailable; and what ``patiently`` raises to stop.
    """
    for file in needed:
        patiently(partial(storage.get_file, file.key, file.path, watch=patiently.check))
        with file.path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != file.sha256:
            raise DamagedFile(
                f"The stored file {file.key} is not what was stored: its sha256 is {found}, not {file.sha256}."
            )


def fetch_checkpoint(storage: Storage, checkpoint: Mapping[str, Any], state: Path, patiently: Patience) -> str | None:
    """Lay the checkpoint out as ``limbeck.checkpoint`` left it; what is wrong where it cannot be used.

    Raises:
        StorageFull, Unavailable; and what ``patiently`` raises to stop.
    """
    needed = [Needed(file["key"], state / name, file["sha256"]) for name, file in checkpoint["files"].items()]
    try:
        fetch(storage, needed, patiently)
    except (NotFound, DamagedFile) as error:
        return error.message
    files = {name: {"sha256": file["sha256"], "bytes": file["bytes"]} for name, file in checkpoint["files"].items()}
    state.mkdir(parents=True, exist_ok=True)
    manifest = json.dumps({**checkpoint, "files": files})
    (state / "manifest.json").write_text(manifest, encoding="utf-8")
    return None
