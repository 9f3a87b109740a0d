"""The training benchmark: what it times, what it refuses to compare, and its page; nothing is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.differences import paired_difference
from benchmarks.peers.asking import OrderFailed, Worker
from benchmarks.peers.order import PeerOrder, Training, write_tokens
from benchmarks.report import ROOT
from benchmarks.training.__main__ import main, put_on_page
from benchmarks.training.fairness import Unfair, compared, require_equal
from benchmarks.training.files import spread
from benchmarks.training.goals import verdicts
from benchmarks.training.measuring import CELLS, pass_seconds, step_seconds, summary, useful_work
from benchmarks.training.page import generated
from benchmarks.training.scaling import growth
from benchmarks.training.systems import SYSTEMS
from benchmarks.training.workloads import WORKLOADS

_SERVER = """
import sys
sys.path.append({folder!r})
from forking import serve

def handle(order):
    if order.get("fail"):
        raise ValueError("no")
    print("noise on stdout")
    held = bytearray(order["bytes"])
    return {{"length": len(held)}}

serve(handle)
"""


def cell(step: float, passed: float = 0.0, memory: int = 900) -> dict[str, Any]:
    work = {"step": 4e8, "pass": 0.0}
    one = {"step_seconds": step, "pass_seconds": passed, "work": work, "tokens": 13.2}
    return summary([{**one, "peak_bytes": memory * 10**6, "cuda_peak_bytes": None}], 1e11)


def run(**changes: Any) -> dict[str, Any]:
    cells = {one.name: cell(0.04) for one in CELLS}
    cells |= {f"{name}/limbeck": cell(0.008, 0.003) for name in WORKLOADS}
    point = {"prepare": 1.0, "pass": 2.0, "step": 5.0}
    apart = {"value": -0.01, "low": -0.03, "high": 0.01}
    accurate = {"value": 0.9, "low": 0.88, "high": 0.92}
    return {
        "command": "python -m benchmarks.training",
        "machine": {"cores": 2, "cpu": "a CPU", "date": "2026-11-25"},
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "rounds": 1,
        "gemm": 1e11,
        "fairness": {"steps": 3, "losses": {}},
        "cells": cells,
        "accuracy": {
            "examples": 768,
            "epochs": 2,
            "sentences": 872,
            "accuracy": {"limbeck": accurate, "trainer": accurate},
            "difference": {"trainer": apart},
        },
        "scaling": {
            "examples": [{"examples": 1000, **point}, {"examples": 64000, **point}],
            "tokens": [{"tokens": 16, **point}, {"tokens": 128, **point}],
        },
        **changes,
    }


def test_a_step_is_timed_between_the_ends_of_steps() -> None:
    """Ten steps of 2 s behind a first one of 50: with it, or with one step too many, the rate would be another."""
    marks = [100.0, 150.0, *(150.0 + 2 * step for step in range(1, 11))]
    assert step_seconds(SYSTEMS["trainer"], {"marks": marks}, 4) == pytest.approx(0.5)
    ours = {"marks": marks[1:], "steps": [7, *range(8, 18)]}
    assert step_seconds(SYSTEMS["limbeck"], ours, 4) == pytest.approx(0.5)
    # On a card the losses of 16 steps are told together, when the last of them has ended.
    together = {"marks": [10.0, 10.0, 10.0, 13.0, 13.0, 13.0], "steps": [1, 2, 3, 4, 5, 6]}
    assert step_seconds(SYSTEMS["limbeck"], together, 1) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="too few steps"):
        step_seconds(SYSTEMS["trainer"], {"marks": marks[:2]}, 4)


def test_a_pass_that_was_answered_from_an_older_cache_is_no_measurement() -> None:
    """A teacher's cache shared with an earlier round would make the pass look free."""
    limbeck = SYSTEMS["limbeck"]
    cache = {"hits": 0, "misses": 32, "seconds": 1.6}
    assert pass_seconds(limbeck, {"cache": cache}, 32) == pytest.approx(0.05)
    for known in ({**cache, "hits": 30, "misses": 2}, None):
        with pytest.raises(ValueError, match="anew"):
            pass_seconds(limbeck, {"cache": known}, 32)
    assert pass_seconds(SYSTEMS["trainer"], {}, 32) == 0.0


def test_the_pass_is_spread_over_three_epochs() -> None:
    found = cell(0.01, passed=0.015)
    assert found["examples_per_second"] == pytest.approx(100)
    assert found["examples_per_second_with_pass"] == pytest.approx(1 / 0.015)
    assert found["share_of_sgemm"] == pytest.approx(4e8 / 0.01 / 1e11)


def test_useful_work_counts_the_teacher_where_it_is_asked(tmp_path: Path) -> None:
    """One token, one layer, width 2, inner 4: 2 · (4 · 4 + 2 · 2 · 4) + 4 · 2 = 72 operations; learning costs three."""
    (tmp_path / "config.json").write_text('{"hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 6}')
    lengths = np.array([1, 1])
    for name, workload, step, passed in (
        ("limbeck", "sst2", 3 * 3, 6),
        ("trainer", "sst2", 3 * 3 + 6, 0),
        ("limbeck", "hidden", 3 * 3, 6),
    ):
        found = useful_work(WORKLOADS[workload], SYSTEMS[name], tmp_path, lengths)
        assert found == {"step": 72 * step, "pass": 72 * passed}


def test_products_that_are_left_out_are_no_useful_work(tmp_path: Path) -> None:
    """Three tokens, as above: a layer is 3 · 64 + 4 · 2 · 3² = 264 operations. From the first token alone it is keys
    and values, 3 · 16, the rest of one token, 48, and a row of the attention, 4 · 2 · 3: 120. Others compute it all."""
    (tmp_path / "config.json").write_text('{"hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 6}')
    lengths = np.array([3, 3])
    for name, workload, step, passed in (
        ("limbeck", "sst2", 3 * (2 * 264 + 120), 5 * 264 + 120),
        ("limbeck", "hidden", 3 * (2 * 264 + 120), 5 * 264 + 120),
        ("trainer", "sst2", 3 * 3 * 264 + 6 * 264, 0),
    ):
        assert useful_work(WORKLOADS[workload], SYSTEMS[name], tmp_path, lengths) == {"step": step, "pass": passed}


def test_trainers_that_do_not_do_the_same_are_refused() -> None:
    """Another start, loss or schedule would be compared as if it were a quicker loop."""
    ours = [0.7, 0.5, 0.3]
    require_equal("sst2", {"limbeck": ours, "trainer": [0.70001, 0.5, 0.3]})
    for theirs in ([0.71, 0.5, 0.3], [0.7, 0.5, 0.29], [0.7, 0.5], [float("nan")] * 3):
        with pytest.raises(Unfair, match="trainer"):
            require_equal("sst2", {"limbeck": ours, "trainer": theirs})


def test_a_cross_entropy_is_brought_to_a_divergence() -> None:
    training = Training(epochs=1, temperature=2.0, alpha=0.5)
    found = {"losses": [3.0], "entropy": 0.6}
    assert compared(SYSTEMS["textbrewer"], training, found) == pytest.approx([3.0 - 0.5 * 4 * 0.6])
    assert compared(SYSTEMS["trainer"], training, found) == [3.0]


def test_chosen_examples_have_the_lengths_of_all() -> None:
    """Fewer batches for the slow trainers must not be shorter texts."""
    lengths = np.random.default_rng(0).geometric(0.1, 5000)
    for count in (96, 2048):
        chosen = spread(lengths, count, seed=1)
        assert len(set(chosen.tolist())) == count
        assert lengths[chosen].mean() == pytest.approx(lengths.mean(), rel=0.03)
    assert not np.array_equal(spread(lengths, 96, seed=1), spread(lengths, 96, seed=2))


def test_growth_is_that_of_the_worst_part() -> None:
    """In a sum, preparing that gets cheaper would hide steps that get dearer."""
    points = [{"step": 9.0, "pass": 8.0}, {"step": 4.0, "pass": 4.0}, {"step": 8.0, "pass": 1.0}]
    assert growth(points, ("step", "pass")) == pytest.approx(2.0)
    assert growth(points, ("pass",)) == pytest.approx(1.0)


def test_goals_are_judged_and_what_was_not_measured_is_not_met() -> None:
    found = {one.goal: one for one in verdicts(run())}
    here = [one for one in found.values() if not one.elsewhere]
    assert len(here) == 12
    assert all(one.met for one in here)
    card = [one for one in found.values() if one.elsewhere]
    assert [one.met for one in card] == [None] * 3
    assert not any(one.elsewhere for one in verdicts(run(device="cuda")))
    slow = run()["cells"] | {"sst2/trainer": cell(0.02), "sst2/limbeck": cell(0.008, 0.003, memory=901)}
    missed = [
        one for one in verdicts(run(cells=slow, scaling=None, accuracy=None)) if not one.met and not one.elsewhere
    ]
    assert [one.met for one in missed] == [False, False, None, None, None]
    assert missed[0].found == "2.22×"
    worse = run()["accuracy"] | {"difference": {"trainer": {"value": -0.03, "low": -0.05, "high": -0.01}}}
    assert [one.met for one in verdicts(run(accuracy=worse))].count(False) == 1


def test_the_page_has_every_row_and_verdict() -> None:
    text = generated(run())
    for name in WORKLOADS:
        assert WORKLOADS[name].title in text
    assert text.count("| HF Trainer") == 5  # four workloads, and the accuracy
    assert "| Limbeck | 125.0 (125.0–125.0) | 111.1 |  | 50 | 50 % | 900 MB |" in text
    assert "| 64,000 | 1.0 | 2.0 | 5.0 |" in text
    assert text.count("not measured") == text.count("not measured: no GPU") == 3
    assert "at the largest size one costs at most 1.25× the least" in text
    assert "recomputed" not in text
    assert "so many of them were recomputed" in generated(run(notes=["so many of them were recomputed"]))
    assert "**missed**" in generated(run(cells=run()["cells"] | {"sst2/trainer": cell(0.02)}))


def test_differences_are_paired() -> None:
    """Two models that err on the same examples are equal, however wide each one's own interval is."""
    truth = np.array([0, 1] * 20)
    model = np.where(np.arange(40) < 10, 1 - truth, truth)
    same = paired_difference("accuracy", ours=model, theirs=model, truth=truth)
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}
    better = paired_difference("accuracy", ours=truth, theirs=model, truth=truth)
    assert better["value"] == pytest.approx(0.25)
    assert 0 < better["low"] < 0.25 < better["high"]


def test_each_order_is_done_in_a_process_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A large training's memory must not be counted for the small one that follows it."""
    script = tmp_path / "server.py"
    script.write_text(_SERVER.format(folder=str(ROOT / "benchmarks" / "peers")))
    with Worker([sys.executable, str(script)]) as worker:
        large = worker.ask({"bytes": 200 * 10**6})
        small = worker.ask({"bytes": 1})
        with pytest.raises(OrderFailed, match="limbeck ended with 1"):
            worker.ask({"bytes": 1, "fail": True})
        assert worker.ask({"bytes": 2})["length"] == 2
    assert large["peak_bytes_whole"] - small["peak_bytes_whole"] > 150 * 10**6
    assert "ValueError: no" in capfd.readouterr().err


def test_an_order_names_every_number_of_the_training(tmp_path: Path) -> None:
    """A number that stays behind would be the other trainer's own default."""
    tokens = write_tokens(tmp_path / "t.npz", np.arange(3, dtype=np.int32), None, np.array([0, 1, 3]), np.zeros(2, int))
    order = PeerOrder("trainer", tmp_path, (1, 3), tokens, Training(epochs=2)).as_json()
    assert vars(Training(epochs=2)).items() <= order.items()
    with np.load(tokens) as found:
        assert found["segments"].tolist() == [0, 0, 0]


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMBECK_TEST_DATA", str(tmp_path / "none"))
    assert main([]) == 2
    monkeypatch.setenv("LIMBECK_TEST_DATA", str(tmp_path))
    assert main(["--only", "no-such/*"]) == 2


def test_the_page_is_written_from_the_last_run_and_nothing_is_measured(tmp_path: Path) -> None:
    """Guards against an hour of training that was asked for as a page."""
    result, page = tmp_path / "training.json", tmp_path / "page.md"
    page.write_text("before <!-- training:begin -->\nold\n<!-- training:end --> after")
    assert put_on_page(result, page) == 2
    result.write_text(json.dumps(run()))
    assert put_on_page(result, page) == 0
    assert page.read_text() == f"before <!-- training:begin -->\n{generated(run())}\n<!-- training:end --> after"


def test_gpu_is_refused_without_a_card(tmp_path: Path) -> None:
    """A CPU's figures under the name of a card's."""
    command = [sys.executable, "-m", "benchmarks.training", "--gpu"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "LIMBECK_TEST_DATA": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "torch sees none here" in ended.stderr
