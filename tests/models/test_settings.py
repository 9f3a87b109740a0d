"""What the environment may say, and what of it is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from limbeck.errors import InvalidInput
from models.engine import database_address
from models.settings import Settings


def test_a_variable_without_a_value_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against the lines of a template whose values nobody gave: with an empty key every call is refused."""
    for name in ("S3_ENDPOINT", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "SERVE_FOLDER", "KEEP_JOBS_DAYS", "SLOTS"):
        monkeypatch.setenv(f"LIMBECK_{name}", "")
    settings = Settings()
    assert settings.s3_endpoint is settings.s3_access_key_id is settings.s3_secret_access_key is None
    assert settings.serve_folder is settings.keep_jobs_days is None
    assert settings.slots == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lease_seconds", "inf", "less than or equal to"),
        ("predict_seconds", "1e10", "less than or equal to"),
        ("serve_drain_seconds", "inf", "less than or equal to"),
        ("teacher_cache_gb", "inf", "less than or equal to"),
        ("keep_jobs_days", "1000000", "less than or equal to"),
        ("s3_endpoint", "minio:9000", "LIMBECK_S3_ENDPOINT is no URL"),
        ("s3_endpoint", "http://a b:9000", "LIMBECK_S3_ENDPOINT is no URL"),
        ("s3_endpoint", "http://minio:port", "LIMBECK_S3_ENDPOINT is no URL"),
        ("s3_endpoint", "http://key:secret@minio:9000", "LIMBECK_S3_ENDPOINT is no URL"),
        ("s3_public_endpoint", "files.example.org", "LIMBECK_S3_PUBLIC_ENDPOINT is no URL"),
        ("s3_public_endpoint", "https://files.example.org?a=b", "LIMBECK_S3_PUBLIC_ENDPOINT is no URL"),
        ("s3_access_key_id", "id", "given together or not at all"),
    ],
)
def test_what_would_break_later_is_refused_now(name: str, value: str, said: str) -> None:
    """A lease without an end ended every claim with an error, on a server that said it was ready; the bucket's client
    panics at an address that is none."""
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate({name: value})


def test_a_home_that_no_shell_has_seen_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a folder called ``~``, as files of variables have it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings(data_dir=Path("~/limbeck"))
    assert (settings.data_dir, settings.scratch_dir) == (tmp_path / "limbeck", tmp_path / "limbeck/scratch")


def test_a_scratch_folder_is_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training process works in another folder than its worker, and would look for its order elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert Settings(scratch_dir=Path("scratch")).scratch_dir == tmp_path / "scratch"


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="names no file"):
        database_address(address)
