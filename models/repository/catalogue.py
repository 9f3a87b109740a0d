"""Data sets and models: what jobs learn from, and what they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from limbeck.errors import Conflict, NotFound
from models.base import db_now, new_id
from models.dataset import Dataset
from models.model import Model, ModelFile, ModelKind
from models.repository import aliases, pages, sources
from models.repository.pages import Page
from models.text import refuse_unstorable


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A model's file: its path within the model, and where the storage has it."""

    path: str
    key: str
    bytes: int
    sha256: str


def add_dataset(
    session: Session,
    *,
    name: str,
    splits: Mapping[str, Any],
    profile: Mapping[str, Any],
    sha256: str,
    dataset_id: str | None = None,
) -> Dataset:
    """Record a stored data set; ``splits`` is ``{"train": {"rows", "bytes", "sha256", "key"}, …}``.

    Args:
        dataset_id: where the keys were made with it before (``new_id("ds")``); else a new one.
    """
    refuse_unstorable({"name": name, "splits": splits, "profile": profile})
    values = {
        "id": dataset_id or new_id("ds"),
        "name": name,
        "created_at": db_now(),
        "splits": dict(splits),
        "profile": dict(profile),
        "bytes": sum(split["bytes"] for split in splits.values()),
        "sha256": sha256,
    }
    return session.scalars(insert(Dataset).values(values).returning(Dataset)).one()


def get_dataset(session: Session, dataset_id: str) -> Dataset:
    """Raises NotFound where there is none of this id."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise NotFound(f"There is no data set {dataset_id!r}.")
    return dataset


def list_datasets(session: Session, *, limit: int, cursor: str | None) -> Page[Dataset]:
    """Data sets, newest first. Raises InvalidInput where the cursor is not one of this list's."""
    return pages.fetch(session, select(Dataset), Dataset, limit=limit, cursor=cursor)


def delete_dataset(session: Session, dataset_id: str) -> list[str]:
    """Delete a data set that no unended job needs.

    Returns:
        The storage keys to delete after the commit.

    Raises:
        NotFound, Conflict: naming the jobs that need it.
    """
    dataset = _locked(session, Dataset, dataset_id, "data set")
    _refuse_while_used(session, "data set", dataset_id, reference=f"dataset:{dataset_id}")
    keys = dataset_keys(dataset)
    session.delete(dataset)
    session.flush()
    return keys


def dataset_keys(dataset: Dataset) -> list[str]:
    """Where the storage has the splits."""
    return [split["key"] for split in dataset.splits.values() if "key" in split]


def add_model(
    session: Session,
    *,
    kind: ModelKind,
    name: str,
    files: Sequence[StoredFile],
    model_id: str | None = None,
    job_id: str | None = None,
    teacher: str | None = None,
    dataset: str | None = None,
    method: str | None = None,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    architecture: str | None = None,
    layers: int | None = None,
    parameters: int | None = None,
) -> Model:
    """Record a stored model with its files and lineage.

    Args:
        model_id: where the keys were made with it before (``new_id("mdl")``); else a new one.
    """
    refuse_unstorable({"name": name, "labels": list(labels or ()), "files": [file.path for file in files]})
    values = {
        "id": model_id or new_id("mdl"),
        "kind": kind,
        "name": name,
        "created_at": db_now(),
        "job_id": job_id,
        "teacher": teacher,
        "dataset": dataset,
        "method": method,
        "task": task,
        "labels": None if labels is None else list(labels),
        "architecture": architecture,
        "layers": layers,
        "parameters": parameters,
        "bytes": sum(file.bytes for file in files),
    }
    model = session.scalars(insert(Model).values(values).returning(Model)).one()
    _add_files(session, model.id, files)
    return model


def _add_files(session: Session, model_id: str, files: Sequence[StoredFile]) -> None:
    rows = [
        {"model_id": model_id, "path": file.path, "key": file.key, "bytes": file.bytes, "sha256": file.sha256}
        for file in files
    ]
    if rows:
        session.execute(insert(ModelFile), rows)


def get_model(session: Session, model_id: str) -> Model:
    """The model of this id, or that this alias means. Raises NotFound where there is none."""
    model = session.get(Model, aliases.resolve(session, model_id))
    if model is None:
        raise NotFound(f"There is no model {model_id!r}.")
    return model


def list_models(
    session: Session, *, limit: int, cursor: str | None, kind: ModelKind | None = None, job_id: str | None = None
) -> Page[Model]:
    """Models, newest first. Raises InvalidInput where the cursor is not one of this list's."""
    query = select(Model)
    if kind is not None:
        query = query.where(Model.kind == kind)
    if job_id is not None:
        query = query.where(Model.job_id == job_id)
    return pages.fetch(session, query, Model, limit=limit, cursor=cursor)


def models_of_job(session: Session, job_id: str) -> list[Model]:
    """What the job left."""
    return list(session.scalars(select(Model).where(Model.job_id == job_id).order_by(Model.id)))


def model_files(session: Session, model_id: str) -> list[ModelFile]:
    """The model's files by path. Raises NotFound where there is no such model."""
    found = get_model(session, model_id).id
    return list(session.scalars(select(ModelFile).where(ModelFile.model_id == found).order_by(ModelFile.path)))


def model_file(session: Session, model_id: str, path: str) -> ModelFile:
    """One of the model's files. Raises NotFound where there is no such model, or file in it."""
    file = session.get(ModelFile, (get_model(session, model_id).id, path))
    if file is None:
        raise NotFound(f"Model {model_id} has no file {path!r}.")
    return file


def delete_model(session: Session, model_id: str) -> list[str]:
    """Delete a model that no unended job learns from.

    Returns:
        The storage keys to delete after the commit.

    Raises:
        NotFound, Conflict: naming the jobs that need it.
    """
    model = _locked(session, Model, model_id, "model")
    _refuse_while_used(session, "model", model_id, reference=f"model:{model_id}")
    if named := aliases.aliases_of(session, model_id):
        raise Conflict(f"The model {model_id} answers under the alias {', '.join(named)}; switch or delete that first.")
    keys = [file.key for file in model_files(session, model_id)]
    session.delete(model)
    session.flush()
    return keys


def _locked(session: Session, table: Any, row_id: str, what: str) -> Any:
    row = session.scalar(select(table).where(table.id == row_id).with_for_update())
    if row is None:
        raise NotFound(f"There is no {what} {row_id!r}.")
    return row


def _refuse_while_used(session: Session, what: str, row_id: str, *, reference: str) -> None:
    jobs = sources.users(session, reference=reference)
    if jobs:
        more = f" and {len(jobs) - 5} more" if len(jobs) > 5 else ""
        raise Conflict(f"The {what} {row_id} is needed by jobs that have not ended: {', '.join(jobs[:5])}{more}.")
