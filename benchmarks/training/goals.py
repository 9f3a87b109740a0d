"""The goals of training, each judged by what one run measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.training.accuracy import PLAIN
from benchmarks.training.scaling import SLACK, growth
from benchmarks.training.workloads import WORKLOADS

_PASS = "examples_per_second_with_pass"


@dataclass(frozen=True)
class Verdict:
    """A goal; ``met`` is None where this run did not measure it."""

    goal: str
    found: str
    met: bool | None
    elsewhere: bool = False  #: it takes another kind of machine


def verdicts(run: dict[str, Any]) -> list[Verdict]:
    """Every goal of the run's kind of machine; on a CPU those of a card as well, not measured."""
    if run["device"] != "cpu":
        return list(_on_card(run))
    return [*_on_cpu(run), *(Verdict(one.goal, "no GPU", None, elsewhere=True) for one in _on_card({"cells": {}}))]


def _on_cpu(run: dict[str, Any]) -> Iterator[Verdict]:
    yield _ratio(run, "sst2", "trainer", 3.0)
    yield _ratio(run, "sst2", "textbrewer", 3.5)
    for workload in ("mrpc", "hidden"):
        for peer in ("trainer", "textbrewer"):
            yield _ratio(run, workload, peer, 2.5)
    yield _ratio(run, "sst2", "textbrewer-cached", 1.5)
    yield _share(run, "sst2", 0.4, "sgemm of this run")
    yield _memory(run)
    yield from _lines(run)
    yield _accuracy(run)


def _on_card(run: dict[str, Any]) -> Iterator[Verdict]:
    yield _share(run, "base", 0.5, "the dense bfloat16 rate of this run")
    yield _ratio(run, "base", "textbrewer", 3.0, "TextBrewer with AMP")
    # Nothing here times the batches apart from the steps on a card.
    yield Verdict("data never the bottleneck on a card", "not measured", None)


def _ratio(run: dict[str, Any], workload: str, peer: str, wanted: float, title: str = "") -> Verdict:
    goal = f"≥ {wanted:g}× {title or peer} on {WORKLOADS[workload].title}, three epochs with the teacher's pass counted"
    ours, theirs = (run["cells"].get(f"{workload}/{name}") for name in ("limbeck", peer))
    if ours is None or theirs is None:
        return Verdict(goal, "not measured", None)
    ratio = ours[_PASS] / theirs[_PASS]
    return Verdict(goal, f"{ratio:.2f}×", ratio >= wanted)


def _share(run: dict[str, Any], workload: str, wanted: float, of: str) -> Verdict:
    goal = f"≥ {100 * wanted:.0f} % of {of} in useful operations, on {WORKLOADS[workload].title}"
    ours = run["cells"].get(f"{workload}/limbeck")
    if ours is None:
        return Verdict(goal, "not measured", None)
    return Verdict(goal, f"{100 * ours['share_of_sgemm']:.0f} %", ours["share_of_sgemm"] >= wanted)


def _memory(run: dict[str, Any]) -> Verdict:
    goal = "peak memory at most the Trainer's, on SST-2"
    ours, theirs = (run["cells"].get(f"sst2/{name}") for name in ("limbeck", "trainer"))
    if ours is None or theirs is None:
        return Verdict(goal, "not measured", None)
    found = f"{ours['peak_bytes'] / 1e6:,.0f} MB against {theirs['peak_bytes'] / 1e6:,.0f} MB"
    return Verdict(goal, found, ours["peak_bytes"] <= theirs["peak_bytes"])


def _lines(run: dict[str, Any]) -> Iterator[Verdict]:
    for what, parts, named in (
        ("examples", ("prepare", "pass", "step"), "preparing, the pass and training each"),
        ("tokens", ("step",), "training"),
    ):
        goal = (
            f"time grows no faster than the {what}: at the largest size one costs at most {SLACK:g}× the least of any "
            f"size, {named}"
        )
        points = (run["scaling"] or {}).get(what)
        if not points or len(points) < 2:
            yield Verdict(goal, "not measured", None)
            continue
        found = growth(points, parts)
        yield Verdict(goal, f"{found:.2f}× at {points[-1][what]:,} {what}", found <= SLACK)


def _accuracy(run: dict[str, Any]) -> Verdict:
    goal = "accuracy equal to the plain loop's within the interval, on SST-2"
    apart = (run["accuracy"] or {}).get("difference", {}).get(PLAIN)
    if apart is None:
        return Verdict(goal, "not measured", None)
    value, low, high = (100 * apart[name] for name in ("value", "low", "high"))
    return Verdict(goal, f"{value:+.1f} points ({low:+.1f} to {high:+.1f})", high >= 0)
