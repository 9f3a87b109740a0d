"""The worker with the real engine: a job that was killed ends with the same student as one that was not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import update

from limbeck.config import DistillConfig
from limbeck.offer import OFFERED, PARTS
from models.db import Database
from models.job import Job, JobStatus
from models.model import ModelKind
from models.repository import catalogue, jobs, telemetry
from models.repository.catalogue import StoredFile
from models.settings import Settings
from models.storage import Storage
from tests.tiny import write_tiny_bert, write_tiny_dataset
from tests.worker.conftest import read, submit
from tests.worker.processes import alive, in_background, trainers, until
from worker import materials
from worker.queue import Bell
from worker.runner import TRAINER
from worker.service import Worker
from worker.slots import Slots

HELD = (sys.executable, str(Path(__file__).parent / "held_trainer.py"))


def uploaded(
    database: Database, storage: Storage, tmp_path: Path, *, rows: int = 120, hidden: int = 32
) -> dict[str, Any]:
    """A config over an uploaded teacher and data set."""
    teacher = write_tiny_bert(tmp_path / "teacher", hidden=hidden)
    data = write_tiny_dataset(tmp_path / "data", rows=rows)
    files = [storage.put_file(path, f"models/t/{path.name}") for path in sorted(teacher.iterdir())]
    splits = {path.stem: storage.put_file(path, f"datasets/d/{path.name}") for path in data.glob("*.parquet")}
    with database.session() as session:
        model = catalogue.add_model(
            session,
            kind=ModelKind.TEACHER,
            name="tiny",
            files=[StoredFile(Path(one.key).name, one.key, one.bytes, one.sha256) for one in files],
        )
        dataset = catalogue.add_dataset(
            session,
            name="tiny",
            splits={
                name: {"rows": 0, "bytes": one.bytes, "sha256": one.sha256, "key": one.key}
                for name, one in splits.items()
            },
            profile={},
            sha256="0" * 64,
        )
    document = {
        "teacher": {"source": f"model:{model.id}", "finetune": {"epochs": 5, "learning_rate": 5e-3}},
        "dataset": f"dataset:{dataset.id}",
        "student": 2,
        "evaluation": {"baseline": False},
        "training": {"epochs": 6, "learning_rate": 5e-3, "max_length": 32, "batch_size": 8},
        "export": [],
    }
    return DistillConfig.parse(document).model_dump(mode="json")


@pytest.fixture
def config(database: Database, storage: Storage, tmp_path: Path) -> dict[str, Any]:
    return uploaded(database, storage, tmp_path)


@pytest.fixture
def engine_worker(settings: Settings, database: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    patient = settings.model_copy(update={"lease_seconds": 20, "heartbeat_seconds": 5})
    return Worker(patient, database, storage, Bell(settings), Slots(1), command=TRAINER)


def weights(database: Database, job_id: str, path: str = "model.safetensors") -> Mapping[ModelKind, str]:
    with database.reading() as session:
        return {
            model.kind: catalogue.model_file(session, model.id, path).sha256
            for model in catalogue.models_of_job(session, job_id)
        }


def trainers_of_attempt(database: Database, job: Job, number: int) -> list[psutil.Process]:
    return trainers() if read(database, job.id).fence == number else []


def wait_for_event(database: Database, job: Job, kind: str, seconds: float = 60) -> None:
    def told() -> bool:
        with database.reading() as session:
            return kind in [event.kind for event in telemetry.events_after(session, job.id, 0, 1000)]

    until(told, seconds)


def test_a_students_own_model_is_fetched_as_the_teacher_is(
    database: Database, config: dict[str, Any], tmp_path: Path
) -> None:
    """Guards against a job that waits its turn and then finds no folder; one that is both is fetched once."""
    source = config["teacher"]["source"]
    sources, needed = materials.sources_of({**config, "student": {"source": source}}, database, tmp_path)
    before = materials.sources_of(config, database, tmp_path)
    assert (sources, needed) == before
    with database.session() as session:
        own = catalogue.add_model(
            session,
            kind=ModelKind.TEACHER,
            name="own",
            files=[StoredFile("config.json", "models/o/config.json", 1, "0")],
        )
    wanted = {**config, "student": {"source": f"model:{own.id}"}}
    sources, needed = materials.sources_of(wanted, database, tmp_path)
    assert sources[f"model:{own.id}"] == tmp_path / "student"
    assert [file.path for file in needed if file not in before[1]] == [tmp_path / "student" / "config.json"]
    more = [{"source": "org/hub"}, {"source": source}, {"source": f"model:{own.id}"}]
    several = {**config, "teacher": {**config["teacher"], "more": more}}
    sources, needed = materials.sources_of(several, database, tmp_path)
    assert sources == before[0] | {f"model:{own.id}": tmp_path / "teacher-more-2"}
    assert len(needed) == len(before[1]) + 1
    first = {"teacher": {"sha256": "a"}, "dataset": None, "more_teachers": [{"sha256": "b"}, {"revision": "c"}]}
    assert materials.expected_of({"rerun_of": first}) == {"teacher": "a", "teacher/more/0": "b"}
    extra = {"unlabelled": {"training/augmentation/1": {"source": "org/texts", "revision": None, "sha256": "d"}}}
    assert materials.expected_of({"rerun_of": extra}) == {"training/augmentation/1": "d"}
    assert materials.micro_batches_of({"rerun_of": first, "micro_batches": {"distilling/main": 4}}) == {}
    assert materials.micro_batches_of({"rerun_of": first | {"micro_batches": {"distilling/main": 8}}}) == {
        "distilling/main": 8
    }


def test_a_killed_job_ends_with_the_same_student_as_an_undisturbed_one(
    engine_worker: Worker, database: Database, config: dict[str, Any]
) -> None:
    """Guards against a resume that repeats or leaves out an update, in the teacher's training and in the student's."""
    undisturbed = submit(database, config=config)
    engine_worker.drain()
    ended = read(database, undisturbed.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    assert ended.result is not None
    assert set(weights(database, undisturbed.id)) == {ModelKind.STUDENT}

    disturbed = submit(database, config=config)
    running = in_background(engine_worker)
    for number, kind in enumerate(("checkpoint.saved", "teacher.evaluated"), 1):
        (trainer,) = until(partial(trainers_of_attempt, database, disturbed, number), 60)
        wait_for_event(database, disturbed, kind)
        trainer.kill()
    running.join(120)
    ended = read(database, disturbed.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    with database.reading() as session:
        assert [one.outcome for one in telemetry.attempts(session, disturbed.id)] == ["failed", "failed", "succeeded"]
    assert weights(database, disturbed.id) == weights(database, undisturbed.id)
    # The table of hard samples comes to the student's files, with the same numbers.
    assert weights(database, disturbed.id, "hard_samples.csv") == weights(database, undisturbed.id, "hard_samples.csv")


def test_another_machine_takes_the_teachers_answers_from_the_storage(
    settings: Settings,
    database: Database,
    storage: Storage,
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards the way there and back: a second machine, with an empty folder of its own, has to end with the same
    student without asking its teacher."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = {**config, "teacher": {**config["teacher"], "finetune": {**config["teacher"]["finetune"], "epochs": 3}}}
    config["training"]["epochs"] = 1
    said, done = [], []
    for number in range(2):
        job = submit(database, config=config)
        machine = settings.model_copy(update={"scratch_dir": tmp_path / f"machine-{number}", "lease_seconds": 20})
        Worker(machine, database, storage, Bell(machine), Slots(1), command=TRAINER).drain()
        done.append(job.id)
        assert read(database, job.id).status is JobStatus.SUCCEEDED, read(database, job.id).error
        with database.reading() as session:
            said.append([event.kind for event in telemetry.events_after(session, job.id, 0, 1000)])
    assert [("cache.built" in kinds, "cache.used" in kinds) for kinds in said] == [(1, 0), (0, 1)]
    assert len(list(storage.list("cache/teacher"))) == 1
    assert weights(database, done[0]) == weights(database, done[1])


def test_a_pass_that_another_worker_helps_with_gives_the_same_student(
    settings: Settings, database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the whole way from an offer to a student, bit for bit, with real processes: a helper that computes
    something else, or nothing, shows here. The job stands still meanwhile, so that help meets it at any speed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = uploaded(database, storage, tmp_path, rows=600, hidden=128)
    config["teacher"]["finetune"] = {"epochs": 2, "learning_rate": 1e-3}
    config["training"]["epochs"] = 1

    def worker(name: str, share: float) -> Worker:
        own = {"teacher_share_seconds": share, "scratch_dir": tmp_path / name, "lease_seconds": 60}
        return Worker(settings.model_copy(update=own), database, storage, Bell(settings), Slots(1), command=TRAINER)

    alone = submit(database, config=config)
    worker("alone", 0).drain()
    assert read(database, alone.id).status is JobStatus.SUCCEEDED, read(database, alone.id).error
    storage.delete([entry.key for entry in storage.list("cache/teacher")])

    job, helper = submit(database, config=config), worker("helper", 0)
    running = in_background(worker("helped", 1e-3))
    parts = tmp_path / "helped" / f"{job.id}-1" / "work" / PARTS
    until(lambda: (parts / OFFERED).exists(), 120)
    (trainer,) = trainers()
    trainer.suspend()
    until(lambda: helper.drain() or list(parts.glob("*/*.safetensors")), 60)
    trainer.resume()
    running.join(120)
    assert read(database, job.id).status is JobStatus.SUCCEEDED, read(database, job.id).error
    with database.reading() as session:
        events = {event.kind: event.data for event in telemetry.events_after(session, job.id, 0, 1000)}
    assert set(events["cache.helped"]["parts"]) == {helper.holder.worker}
    assert events["cache.helped"]["examples"] > 0
    assert weights(database, job.id) == weights(database, alone.id)


def test_a_rerun_whose_data_set_has_changed_says_so_and_trains_nothing(
    engine_worker: Worker, database: Database, config: dict[str, Any]
) -> None:
    """Guards against a hash that is kept and never compared."""
    old = submit(database, config=config)
    with database.session() as session:
        found = {"dataset": {"revision": None, "sha256": "f" * 64}}
        session.execute(update(Job).where(Job.id == old.id).values(status=JobStatus.FAILED, provenance=found))
        again, _ = jobs.rerun(session, old.id)
    engine_worker.drain()
    ended = read(database, again.id)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert (ended.error["code"], ended.error["retryable"]) == ("invalid_dataset", False)
    assert "f" * 64 in ended.error["message"]
    assert (ended.progress or {})["step"] == 0


def ranks_below(trainer: psutil.Process) -> dict[int, psutil.Process]:
    """A trainer's ranks by their number."""
    found = {}
    for process in trainer.children():
        with suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            found[int(words[words.index("limbeck.rank_process") + 1])] = process
    return found


@pytest.mark.timeout(600)
def test_a_job_on_two_devices_outlives_its_ranks_its_pause_and_its_trainer(
    engine_worker: Worker, database: Database, config: dict[str, Any]
) -> None:
    """Guards against ranks that are left behind, a stop that does not reach them, and a resume that is not exact."""
    config["training"]["devices"] = 2
    undisturbed = submit(database, config=config)
    engine_worker.drain()
    assert read(database, undisturbed.id).status is JobStatus.SUCCEEDED, read(database, undisturbed.id).error

    job = submit(database, config=config)
    running = in_background(engine_worker)
    (trainer,) = until(partial(trainers_of_attempt, database, job, 1), 60)
    wait_for_event(database, job, "checkpoint.saved", 120)
    first = ranks_below(trainer)
    assert set(first) == {0, 1}
    first[1].kill()
    wait_for_event(database, job, "rank.lost", 120)
    with database.session() as session:
        jobs.request_pause(session, job.id)
    running.join(240)
    assert read(database, job.id).status is JobStatus.PAUSED
    assert alive([trainer, *first.values()]) == []

    with database.session() as session:
        jobs.resume(session, job.id)
    running = in_background(engine_worker)
    (trainer,) = until(partial(trainers_of_attempt, database, job, 2), 60)
    wait_for_event(database, job, "teacher.evaluated", 120)
    second = ranks_below(trainer)
    trainer.kill()
    gone, left = psutil.wait_procs(list(second.values()), timeout=10)
    assert (len(gone), left) == (2, [])
    running.join(240)
    ended = read(database, job.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    with database.reading() as session:
        assert [one.outcome for one in telemetry.attempts(session, job.id)] == ["paused", "failed", "succeeded"]
    assert weights(database, job.id) == weights(database, undisturbed.id)


@pytest.mark.parametrize(("stage", "devices"), [("preparing", 1), ("preparing", 2), ("evaluating", 1)])
def test_a_cancel_is_obeyed_where_nothing_is_trained(
    settings: Settings,
    database: Database,
    storage: Storage,
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    devices: int,
) -> None:
    """Guards the stop button in the engine's own stages, which the stand-in of other tests does not have."""
    mark = tmp_path / "mark"
    for name, value in {"OMP_NUM_THREADS": "1", "HELD_STAGE": stage, "HELD_MARK": str(mark)}.items():
        monkeypatch.setenv(name, value)
    config["training"] |= {"devices": devices, "epochs": 1}
    job = submit(database, config=config)
    patient = settings.model_copy(update={"lease_seconds": 20, "heartbeat_seconds": 5})
    running = in_background(Worker(patient, database, storage, Bell(settings), Slots(1), command=HELD))
    until(lambda: mark.exists() or read(database, job.id).status.terminal, 120)
    assert mark.exists(), read(database, job.id).error
    with database.session() as session:
        jobs.request_cancel(session, job.id)
    running.join(60)
    ended = read(database, job.id)
    assert (ended.status, ended.checkpoint) == (JobStatus.CANCELLED, None)
    assert trainers() == []
    with database.reading() as session:
        assert catalogue.models_of_job(session, job.id) == []
