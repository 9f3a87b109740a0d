"""A backup that cannot be restored is none."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from limbeck.errors import Conflict, InvalidArchive, InvalidInput, NotFound
from models import maintenance
from models.attempt import Attempt
from models.backup import backup, restore
from models.db import Database
from models.job import JobStatus
from models.model import ModelKind
from models.repository import catalogue, jobs, telemetry
from models.repository.catalogue import StoredFile
from models.settings import Settings
from models.storage import open_storage
from tests.models.conftest import set_status, submit_to


@pytest.fixture
def live(tmp_path: Path) -> Settings:
    """An embedded folder with a model in it."""
    settings = Settings(data_dir=tmp_path / "live")
    _add_model(settings, "one", b"first")
    return settings


def _add_model(settings: Settings, name: str, content: bytes) -> str:
    with closing(_Open(settings)) as house:
        source = settings.data_dir / "source"
        source.write_bytes(content)
        stored = open_storage(settings).put_file(source, f"models/{name}/f", move=True)
        with house.database.session() as session:
            files = [StoredFile("f", stored.key, stored.bytes, stored.sha256)]
            return catalogue.add_model(session, kind=ModelKind.TEACHER, name=name, files=files).id


class _Open:
    def __init__(self, settings: Settings) -> None:
        self.database = Database(settings)
        self.database.migrate()

    def close(self) -> None:
        self.database.dispose()


def _models(settings: Settings) -> dict[str, bytes]:
    """What is there, by name."""
    storage = open_storage(settings)
    with closing(_Open(settings)) as house, house.database.reading() as session:
        found = catalogue.list_models(session, limit=100, cursor=None).items
        return {model.name: b"".join(storage.open(catalogue.model_file(session, model.id, "f").key)) for model in found}


def test_a_restored_folder_has_what_the_old_one_had(live: Settings, tmp_path: Path) -> None:
    """Also what is still in SQLite's write-ahead log, which a copy of the file alone would miss."""
    with closing(_Open(live)):  # the log is folded into the file when the last connection closes; this one stays open
        _add_model(live, "two", b"second")
        open_storage(live).put_file(_file(tmp_path, b"orphan"), "models/orphan/f")
        report = backup(live, tmp_path / "out" / "backup.tar")
    assert (report.objects, report.bytes, report.missing) == (2, 11, ())
    assert (tmp_path / "out" / "backup.tar").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["backup.tar"]
    fresh = Settings(data_dir=tmp_path / "fresh")
    assert restore(fresh, tmp_path / "out" / "backup.tar") == report
    assert _models(fresh) == {"one": b"first", "two": b"second"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "live", "out", "source"]


def test_a_backup_of_a_busy_folder_is_of_one_moment(live: Settings, tmp_path: Path) -> None:
    """Rows without their files, or half a transaction, show only when the backup is needed."""
    stop = threading.Event()

    def write() -> None:
        index = 0
        while not stop.is_set():
            _add_model(live, f"m{index}", b"x" * 1000)
            index += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reports = [backup(live, tmp_path / f"{index}.tar") for index in range(5)]
    finally:
        stop.set()
        writer.join()
    assert [report.missing for report in reports] == [()] * 5
    for index, report in enumerate(reports):
        fresh = Settings(data_dir=tmp_path / f"fresh{index}")
        restore(fresh, tmp_path / f"{index}.tar")
        assert len(_models(fresh)) == report.objects


def test_a_checkpoint_that_goes_while_the_backup_is_written_is_in_it(live: Settings, tmp_path: Path) -> None:
    """Guards backups while jobs run: their checkpoints are replaced every minute, and one that had gone when the
    archive came to it, behind all data sets, used to end the backup."""
    storage, out = open_storage(live), tmp_path / "out"
    large = storage.put_file(_file(tmp_path, bytes(100_000_000)), "datasets/d/train.parquet")
    state = storage.put_file(_file(tmp_path, b"state"), "jobs/x/checkpoints/1/a")
    files = {"a": {"sha256": state.sha256, "bytes": 5, "key": state.key}}
    with closing(_Open(live)) as house:
        job = submit_to(house.database)
        set_status(house.database, job.id, JobStatus.PAUSED, checkpoint={"step": 1, "files": files})
        with house.database.session() as session:
            splits = {"train": {"rows": 1, "bytes": large.bytes, "sha256": large.sha256, "key": large.key}}
            catalogue.add_dataset(session, name="d", splits=splits, profile={}, sha256="h")

    def replace() -> None:
        while not any(part.stat().st_size > 1_000_000 for part in out.glob(".*/backup.tar")):
            pass
        storage.delete([state.key])

    courier = threading.Thread(target=replace)
    courier.start()
    report = backup(live, out / "b.tar")
    courier.join()
    assert not storage.exists(state.key)
    assert (report.objects, report.missing) == (3, ())
    fresh = Settings(data_dir=tmp_path / "fresh")
    restore(fresh, out / "b.tar")
    assert b"".join(open_storage(fresh).open(state.key)) == b"state"
    assert [path.name for path in live.data_dir.iterdir() if path.name.startswith(".")] == []


def test_a_job_that_ran_when_it_was_saved_has_lost_no_attempt(live: Settings, tmp_path: Path) -> None:
    """Guards a job in its last attempt: restored, it was failed as `worker_lost` before anybody went on with it."""
    with closing(_Open(live)) as house:
        job = submit_to(house.database)
        long_ago = datetime(2026, 11, 24, tzinfo=UTC)
        held = {"attempt": 3, "fence": 3, "worker": "w", "lease_expires_at": long_ago}
        set_status(house.database, job.id, JobStatus.RUNNING, **held)
        with house.database.session() as session:
            session.add(Attempt(job_id=job.id, fence=3, number=3, worker="w", host="h", started_at=long_ago))
        backup(live, tmp_path / "b.tar")
    fresh = Settings(data_dir=tmp_path / "fresh")
    restore(fresh, tmp_path / "b.tar")
    with closing(_Open(fresh)) as house, house.database.reading() as session:
        again = jobs.get(session, job.id)
        assert (again.status, again.attempt, again.worker, again.lease_expires_at) == (JobStatus.QUEUED, 2, None, None)
        assert [one.outcome for one in telemetry.attempts(session, job.id)] == ["handed_back"]
        assert telemetry.events_after(session, job.id, 1, 10)[0].message == "The job was restored from a backup."


def test_a_file_that_is_lost_is_named_and_the_rest_is_saved(live: Settings, tmp_path: Path) -> None:
    _add_model(live, "lost", b"lost")
    open_storage(live).delete(["models/lost/f"])
    assert backup(live, tmp_path / "b.tar").missing == ("models/lost/f",)
    restore(Settings(data_dir=tmp_path / "fresh"), tmp_path / "b.tar")


def test_a_folder_with_something_in_it_is_not_overwritten(live: Settings, tmp_path: Path) -> None:
    """The likeliest mistake: restoring over the folder that one wants to look at."""
    backup(live, tmp_path / "b.tar")
    with pytest.raises(Conflict, match="not empty"):
        restore(live, tmp_path / "b.tar")
    elsewhere = Settings(data_dir=tmp_path / "fresh", storage_url=(live.data_dir / "storage").as_uri())
    with pytest.raises(Conflict, match="not empty"):
        restore(elsewhere, tmp_path / "b.tar")
    assert _models(live) == {"one": b"first"}


@pytest.mark.parametrize("change", [{"schema": "9999"}, {"format": 2}])
def test_a_backup_of_a_newer_version_is_refused(live: Settings, tmp_path: Path, change: dict[str, object]) -> None:
    backup(live, tmp_path / "b.tar")
    _rewrite(tmp_path / "b.tar", change)
    fresh = Settings(data_dir=tmp_path / "fresh")
    with pytest.raises(Conflict, match="newer Limbeck"):
        restore(fresh, tmp_path / "b.tar")
    assert not fresh.data_dir.exists()


def test_a_cut_off_backup_is_refused_at_every_length(live: Settings, tmp_path: Path) -> None:
    """A copy that stopped at a full disk must leave the folder empty, not half filled."""
    _add_model(live, "two", b"y" * 3000)
    backup(live, tmp_path / "b.tar")
    whole = (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "b.tar") as archive:
        end = max(entry.offset_data + entry.size for entry in archive)
    fresh = Settings(data_dir=tmp_path / "fresh")
    for length in [0, 100, 512, 1500, *range(2048, end, end // 12), end - 1]:
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(InvalidArchive):
            restore(fresh, tmp_path / "cut.tar")
        assert not fresh.data_dir.exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "storage/../../evil", "evil"])
def test_a_backup_that_climbs_is_refused(live: Settings, tmp_path: Path, name: str) -> None:
    backup(live, tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar", "a") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    with pytest.raises((InvalidArchive, InvalidInput)):
        restore(Settings(data_dir=tmp_path / "fresh"), tmp_path / "b.tar")
    assert not list(tmp_path.rglob("evil"))


def test_only_an_embedded_folder_is_backed_up(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="pg_dump"):
        backup(Settings(database_url="postgresql://host/db"), tmp_path / "b.tar")
    with pytest.raises(InvalidInput, match="S3"):
        backup(Settings(data_dir=tmp_path, storage_url="s3://bucket"), tmp_path / "b.tar")
    with pytest.raises(NotFound):
        backup(Settings(data_dir=tmp_path / "none"), tmp_path / "b.tar")
    with pytest.raises(NotFound):
        restore(Settings(data_dir=tmp_path / "none"), tmp_path / "none.tar")


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "source"
    path.write_bytes(content)
    return path


def _rewrite(path: Path, change: dict[str, object]) -> None:
    with tarfile.open(path) as archive:
        names = archive.getnames()
        files = [archive.extractfile(name) for name in names]
        contents = {name: file.read() for name, file in zip(names, files, strict=True) if file is not None}
    contents["manifest.json"] = json.dumps(json.loads(contents["manifest.json"]) | change).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_a_backup_onto_a_full_disk_is_one_line_and_leaves_nothing(
    live: Settings, full_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (full_disk / "big").write_bytes(bytes(900_000))
    assert maintenance.main(["--data-dir", str(live.data_dir), "backup", str(full_disk / "b.tar")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("`limbeck backup` could not be done: ")
    assert said.count("\n") == 1
    assert [path.name for path in full_disk.iterdir()] == ["big"]
