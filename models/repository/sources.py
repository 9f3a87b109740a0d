"""The data sets and models of this service that a job's config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import String, cast, select
from sqlalchemy.orm import Session

from limbeck.errors import InvalidInput, Problem
from models.dataset import Dataset
from models.job import TERMINAL, Job
from models.model import Model


def hold(session: Session, config: Mapping[str, Any]) -> None:
    """Make sure that they are there, and stay until the transaction ends.

    Raises:
        InvalidInput: one is not.
    """
    for pointer, source in model_sources(config).items():
        _hold(session, source, at=pointer, prefix="model:", table=Model)
    for pointer, source in data_sources(config).items():
        _hold(session, source, at=pointer, prefix="dataset:", table=Dataset)


def model_sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Every model that a stored config names, by the JSON pointer of its field; see
    :meth:`limbeck.config.DistillConfig.model_sources`. Names from the hub are among them."""
    teacher = config.get("teacher") or {}
    parts = {"/teacher": teacher, "/student": config.get("student") or {}}
    parts |= {f"/teacher/more/{index}": one for index, one in enumerate(teacher.get("more") or ())}
    return {f"{at}/source": part["source"] for at, part in parts.items() if part.get("source")}


def data_sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Every source of texts that a stored config names, by the JSON pointer of its field; see
    :meth:`limbeck.config.DistillConfig.data_sources`."""
    found = {"/dataset/source": (config.get("dataset") or {}).get("source") or ""}
    for index, one in enumerate((config.get("training") or {}).get("augmentation") or ()):
        if "source" in one:
            found[f"/training/augmentation/{index}/source"] = one["source"]
    return found


def users(session: Session, *, reference: str) -> list[str]:
    """Ids of the jobs that have not ended and whose config names ``reference`` anywhere."""
    # An augmentation stands in a list, which SQLite and PostgreSQL search in different ways: their text is the same.
    named = cast(Job.config, String).contains(f'"{reference}"', autoescape=True)
    return list(
        session.scalars(select(Job.id).where(Job.status.not_in(TERMINAL), named).order_by(Job.created_at, Job.id))
    )


def _hold(session: Session, source: str, *, at: str, prefix: str, table: Any) -> None:
    if not source.startswith(prefix):
        return
    wanted = source.removeprefix(prefix)
    found = session.scalar(select(table.id).where(table.id == wanted).with_for_update(read=True))
    if found is None:
        detail = f"found {source!r}, which does not exist or has been deleted"
        raise InvalidInput(f"{at}: {detail}", [Problem(at, detail)])
