"""The table of ``benchmarks.methods``: what each row's gap recovery is measured against; nothing is trained."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.methods import baseline_of, gap_recovery, report
from benchmarks.report import RESULTS


def row(student: float) -> dict[str, Any]:
    each = {
        name: {"value": value, "low": value, "high": value} for name, value in (("teacher", 0.9), ("student", student))
    }
    return {**each, "retention": each["student"], "validation": 0.8, "minutes": 1.0}


def test_gap_recovery_is_over_the_baseline_of_the_same_start() -> None:
    """Theseus' student begins as other layers than the plain one: a quotient of both mixes the method and its start."""
    assert baseline_of("kd") == "none"
    assert baseline_of("theseus, additive") == "none, first layers"
    assert baseline_of("dynabert") == "none"
    assert baseline_of("kd, uniform") == "none, uniform"
    for name in ("none", "none, first layers", "none, uniform", "fastbert, 6 layers", "self, 6 layers"):
        assert baseline_of(name) is None
    rows = {"none": row(0.8), "kd": row(0.85), "theseus, additive": row(0.85)}
    assert gap_recovery("kd", rows) == pytest.approx(0.5)
    assert gap_recovery("theseus, additive", rows) is None
    rows["none, first layers"] = row(0.7)
    assert gap_recovery("theseus, additive", rows) == pytest.approx(0.75)
    assert gap_recovery("theseus, additive", rows | {"none, first layers": row(0.897)}) is None  # no gap


def test_the_table_says_whose_baseline_is_missing() -> None:
    """A blank would read as if there were no gap."""
    run = {
        "command": "python -m benchmarks.methods",
        "machine": {"date": "2026-11-26", "cores": 2, "cpu": "a CPU"},
        "rows": {"none": row(0.8), "kd": row(0.85), "kd, uniform": row(0.85)},
        "failed": {"auto": "not begun"},
    }
    text = report(run)
    assert "| kd | 85.0 (85.0–85.0) | 80.0 | 85.0 (85.0–85.0) | 50 % | 1.0 |" in text
    assert "| kd, uniform | 85.0 (85.0–85.0) | 80.0 | 85.0 (85.0–85.0) |  | 1.0 |" in text
    assert "was not measured: `kd, uniform`." in text
    assert "| auto | not begun |" in text
    del run["rows"]["kd, uniform"]
    assert "Without gap recovery" not in report(run)


def test_no_committed_result_says_where_its_machine_had_something() -> None:
    """Guards cards that are committed as they are, with the folders of whoever measured them."""
    found = [path.name for path in RESULTS.rglob("*.json") if '"path:/' in path.read_text(encoding="utf-8")]
    assert found == []
