"""The command line without a server: what it does on its own machine, and how it shows things."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import limbeck
from limbeck.cli.output import duration, size
from limbeck.cli.tables import scorecard_table
from limbeck.config import DistillConfig
from limbeck.errors import InvalidInput
from limbeck.recipes import RECIPES, recipe
from limbeck.scorecard import Scorecard
from tests.limbeck.scripted_api import SCORECARD


def test_up_without_the_server_says_where_it_is(tmp_path: Path) -> None:
    """Guards against an import error where only the wheel is installed."""
    shutil.copytree(Path(limbeck.__file__).parent, tmp_path / "limbeck")
    script = "import sys; sys.argv = ['limbeck', 'up']; from limbeck.cli import app; app()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Only the library is installed here")
    assert "Traceback" not in result.stderr


def test_a_data_folder_is_saved_and_brought_back(tmp_path: Path) -> None:
    """Guards against options that the executed module does not know, and against a stranger's `models` nearby."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('not this one')")

    def execute(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "limbeck.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    checkout = Path(limbeck.__file__).parents[1]
    served = os.environ | {"LIMBECK_DATA_DIR": str(tmp_path / "data")}
    subprocess.run([sys.executable, "-m", "migrations"], cwd=checkout, env=served, check=True, capture_output=True)
    cleaned = execute("gc", "--data-dir", "data", "--dry-run")
    assert cleaned.returncode == 0, cleaned.stderr
    assert json.loads(cleaned.stdout)["dry_run"] is True
    assert execute("backup", "saved.tar", "--data-dir", "data").returncode == 0
    assert execute("restore", "saved.tar", "--data-dir", "again").returncode == 0
    assert (tmp_path / "again" / "limbeck.db").exists()
    refused = execute("restore", "saved.tar", "--data-dir", "again")
    assert refused.returncode == 1
    assert "is not empty" in refused.stderr


def test_a_scorecard_of_three_metrics_fits_a_narrow_terminal() -> None:
    """Guards against `0.786 (0.585–0.8…`: an estimate whose interval is cut, and layers and sizes with it."""
    card = Scorecard.model_validate(SCORECARD)
    value = {"value": 0.786, "low": 0.585, "high": 0.891}
    names = ("spearman", "pearson", "rmse")
    changes: dict[str, Any] = {"main_metric": "spearman"}
    for model in ("teacher", "baseline", "student"):
        changes[model] = getattr(card, model).model_dump() | {"metrics": dict.fromkeys(names, value)}
    three = Scorecard.model_validate(card.model_dump() | changes)
    console = Console(width=80, file=io.StringIO())
    console.print(scorecard_table(three, 80))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert re.search(r"teacher +0\.786 \(0\.585–0\.891\) +0\.786 +0\.786 +6 +22\.7 M", text)


def test_the_scorecard_shows_every_row_and_finding() -> None:
    console = Console(width=200, file=io.StringIO())
    console.print(scorecard_table(Scorecard.model_validate(SCORECARD)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for expected in (
        "teacher",
        "baseline",
        "student",
        "80.0% (79.0%–81.0%)",
        "22.7 M",
        "90.9 MB",
        "gap recovery  60.0%",
    ):
        assert expected in text
    assert "1.9× at batch 1, 2.0× at batch 32" in text
    assert "gate          not passed: retention 95.0 % is below 97.0 %" in text


def test_the_scorecard_of_a_teacher_that_guesses_says_so_and_shows_no_retention() -> None:
    note = "The teacher's accuracy on the test split is 0.0 %, …: retention and gap recovery mean nothing."
    console = Console(width=200, file=io.StringIO())
    console.print(scorecard_table(Scorecard.model_validate(SCORECARD | {"retention": None, "retention_note": note})))
    assert isinstance(console.file, io.StringIO)
    assert note in console.file.getvalue()
    assert "retention  " not in console.file.getvalue()


def test_the_scorecard_says_what_answers_at_the_default_speed_are_worth() -> None:
    """Guards the accuracy of all layers passing for that of the answers, which leave early unless a call forbids it."""

    def timed(each: float) -> list[dict[str, Any]]:
        return [{"batch_size": 1, "p50_ms": 1.0, "p95_ms": 1.0, "examples_per_second": each}]

    def point(speed: float, value: float, each: float) -> dict[str, Any]:
        shares = {"mean_layers": 6 * (1 - speed), "flops": 1 - speed, "leaving": [0.5, 0.5], "latency": timed(each)}
        return {"speed": speed, "metric": {"value": value, "low": value, "high": value}, **shares}

    curve = [point(0, 0.84, 100), point(0.5, 0.82, 200)]
    kept = {"floor": 0.8, "validation": 0.81, "validation_whole": 0.82, "plain_latency": timed(100), "curve": curve}
    card = SCORECARD | {"exits": {"layers": 6, "speed": 0.5, **kept}, "chosen_method": "none"}
    part = {"examples": 500, "max_logit_difference": 0, "label_agreement": 1, "latency": []}
    card["exports"] = [{"format": "onnx", "bytes": 1, "metrics": SCORECARD["student"]["metrics"], **part}]
    card["refused_exports"] = [{"format": "onnx-int8", "reason": "It answers otherwise."}]
    console = Console(width=100, file=io.StringIO())
    console.print(scorecard_table(Scorecard.model_validate(card)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert re.search(r"speed 0 +84\.0%.* 6\.00 +100% +1\.00 ×", text)
    assert re.search(r"speed 0\.5 \(default\) +82\.0%.* 3\.00 +50% +2\.00 ×", text)
    assert "calls are answered at speed 0.5" in text
    assert "student onnx on 500" in text
    assert "which chose none" in text
    assert "left out      onnx-int8: It answers otherwise." in text


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (64.2, "1:05"), (3600, "1:00:00")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(999, "999 B"), (90_900_000, "90.9 MB"), (1.5e9, "1.5 GB")])
def test_sizes(count: float, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_configuration(name: str) -> None:
    """Guards against a recipe that falls behind the configuration."""
    DistillConfig.parse(dict(recipe(name).document))


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="demo"):
        recipe("nothing")
