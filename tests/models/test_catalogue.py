"""Data sets and models, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import Conflict, InvalidInput, NotFound
from models.dataset import Dataset
from models.db import Database
from models.job import JobStatus
from models.model import Model, ModelKind
from models.repository import aliases, catalogue
from models.repository.catalogue import StoredFile
from tests.models.conftest import Submit, config, set_status
from worker.materials import sources_of


def _dataset(database: Database) -> Dataset:
    splits = {
        name: {"rows": 3, "bytes": 10, "sha256": "s", "key": f"datasets/x/{name}.parquet"} for name in ("train", "test")
    }
    with database.session() as session:
        return catalogue.add_dataset(session, name="d", splits=splits, profile={"labels": {}}, sha256="h")


def _model(database: Database, name: str = "m") -> Model:
    files = [
        StoredFile("onnx/model.onnx", "models/x/onnx", 5, "b"),
        StoredFile("config.json", "models/x/config", 2, "a"),
    ]
    with database.session() as session:
        return catalogue.add_model(session, kind=ModelKind.TEACHER, name=name, files=files, labels=["a", "b"], layers=6)


def test_a_data_set_is_kept_while_a_job_needs_it(database: Database, submit: Submit) -> None:
    """Deleted under a queued job it would fail hours later, with a message about a missing file."""
    dataset = _dataset(database)
    assert dataset.bytes == 20
    job = submit(config=config(dataset=f"dataset:{dataset.id}"))
    with pytest.raises(Conflict, match=job.id), database.session() as session:
        catalogue.delete_dataset(session, dataset.id)
    set_status(database, job.id, JobStatus.SUCCEEDED)
    with database.session() as session:
        keys = catalogue.delete_dataset(session, dataset.id)
    assert sorted(keys) == ["datasets/x/test.parquet", "datasets/x/train.parquet"]
    with pytest.raises(NotFound, match=dataset.id), database.reading() as session:
        catalogue.get_dataset(session, dataset.id)


def test_a_data_set_of_extra_texts_is_held_kept_and_fetched(database: Database, submit: Submit, tmp_path: Path) -> None:
    """Guards what stands deeper in a config than its two main sources do."""

    def enlarged(source: str) -> dict[str, Any]:
        more = {"type": "unlabelled", "source": source, "split": "train"}
        return config() | {"training": {"augmentation": [{"type": "mask_replace"}, more]}}

    dataset = _dataset(database)
    with pytest.raises(InvalidInput, match="/training/augmentation/1/source"):
        submit(config=enlarged("dataset:ds_none"))
    job = submit(config=enlarged(f"dataset:{dataset.id}"))
    with pytest.raises(Conflict, match=job.id), database.session() as session:
        catalogue.delete_dataset(session, dataset.id)
    sources, needed = sources_of(job.config, database, tmp_path)
    (folder,) = (place for reference, place in sources.items() if reference == f"dataset:{dataset.id}")
    assert {one.path for one in needed} == {folder / "test.parquet", folder / "train.parquet"}


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_a_model_is_kept_while_a_job_needs_it(database: Database, submit: Submit, part: str) -> None:
    model = _model(database)
    source = f"model:{model.id}"
    document = config(teacher=source) if part == "teacher" else {**config(), "student": {"source": source}}
    job = submit(config=document)
    set_status(database, job.id, JobStatus.PAUSED)
    with pytest.raises(Conflict, match=job.id), database.session() as session:
        catalogue.delete_model(session, model.id)
    set_status(database, job.id, JobStatus.FAILED)
    with database.session() as session:
        assert sorted(catalogue.delete_model(session, model.id)) == ["models/x/config", "models/x/onnx"]


def test_an_alias_of_a_model_that_was_deleted_meanwhile_is_refused(database: Database) -> None:
    """A foreign key's error would be a 500, or blame somebody who made the alias at the same time."""
    with database.session() as session:
        model = catalogue.add_model(session, kind=ModelKind.STUDENT, name="m", files=[])
        aliases.put_alias(session, "old", model.id)
    for name in ("old", "new"):
        with pytest.raises(NotFound, match="mdl_gone"), database.session() as session:
            aliases.put_alias(session, name, "mdl_gone")
    with database.reading() as session:
        assert aliases.resolve(session, "old") == model.id


def test_of_those_who_set_an_alias_at_once_nobody_is_refused(database: Database) -> None:
    """Guards against a 412 for a caller who has named no version: the last one wins."""
    with database.session() as session:
        models = [catalogue.add_model(session, kind=ModelKind.STUDENT, name="s", files=[]).id for _ in range(4)]

    def put(name: str, gate: threading.Barrier, model: str) -> int:
        gate.wait(10)
        with database.session() as session:
            return aliases.put_alias(session, name, model).version

    for name in ("a", "b", "c"):
        gate = threading.Barrier(len(models))
        with ThreadPoolExecutor(len(models)) as pool:
            versions = sorted(pool.map(partial(put, name, gate), models))
        assert versions == list(range(versions[0], versions[0] + len(models))), "a switch was lost"


def test_a_job_that_names_what_is_not_there_is_refused(database: Database, submit: Submit) -> None:
    """Checked in the transaction that submits: a check before it could be overtaken by a delete."""
    with pytest.raises(InvalidInput, match="ds_gone") as caught:
        submit(config=config(dataset="dataset:ds_gone"))
    assert [problem.pointer for problem in caught.value.problems] == ["/dataset/source"]
    with pytest.raises(InvalidInput, match="mdl_gone"):
        submit(config=config(teacher="model:mdl_gone"))
    with pytest.raises(InvalidInput, match=r"/student/source.*mdl_gone"):
        submit(config={**config(), "student": {"source": "model:mdl_gone"}})


def test_a_model_has_its_files_by_path(database: Database) -> None:
    model = _model(database)
    with database.reading() as session:
        assert catalogue.get_model(session, model.id).kind is ModelKind.TEACHER
        assert [file.path for file in catalogue.model_files(session, model.id)] == ["config.json", "onnx/model.onnx"]
        assert catalogue.model_file(session, model.id, "config.json").key == "models/x/config"
        with pytest.raises(NotFound, match=r"no\.bin"):
            catalogue.model_file(session, model.id, "no.bin")
        with pytest.raises(NotFound, match="mdl_none"):
            catalogue.model_files(session, "mdl_none")
    assert (model.bytes, model.labels) == (7, ["a", "b"])


def test_lists_go_by_pages_and_kind(database: Database) -> None:
    made = [_model(database, str(index)).id for index in range(3)]
    _dataset(database)
    with database.reading() as session:
        first = catalogue.list_models(session, limit=2, cursor=None, kind=ModelKind.TEACHER)
        rest = catalogue.list_models(session, limit=2, cursor=first.next_cursor)
        assert [model.id for model in [*first.items, *rest.items]] == made[::-1]
        assert first.has_more
        assert not rest.has_more
        assert catalogue.list_models(session, limit=2, cursor=None, kind=ModelKind.STUDENT).items == []
        assert len(catalogue.list_datasets(session, limit=2, cursor=None).items) == 1
