"""What a worker's child process gets from its worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.timing import SECONDS_VARIABLE
from models.settings import Settings
from worker.scratch import child_environment
from worker.slots import Place


def test_a_child_gets_no_settings_but_how_long_models_are_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Guards the passwords among the settings, and a setting that would change nothing."""
    monkeypatch.setenv("LIMBECK_DATABASE_URL", "postgresql+psycopg://me:secret@host/x")
    monkeypatch.setenv("LIMBECK_LATENCY_SECONDS", "2.5")
    found = child_environment(Settings(), Place((), 1), tmp_path)
    assert {name: value for name, value in found.items() if name.startswith("LIMBECK_")} == {SECONDS_VARIABLE: "2.5"}
