"""The goals of early exit, judged by one run, and its part of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.report import markdown_table

#: Of what the layers that are saved could give.
IDEAL = 0.85
#: Over the plain student's time, where no text leaves.
SLOWER = 1.10
_HEAD = ("batch", "speed", "mean layers", "ms a text", "times as fast (lowest, highest)", "of the ideal")


def share_of_ideal(point: dict[str, Any], layers: int) -> float:
    """Of a speed-up by as much as there are fewer layers; branches and calls keep it from that."""
    share: float = point["ratio"] * point["mean_layers"] / layers
    return share


def verdicts(run: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Each goal, what was found, and whether it is met."""
    for batch in run["batches"]:
        for point in batch["points"]:
            where = f"batch {batch['batch_size']}, {point['name']}"
            if point["leaves"]:
                share = share_of_ideal(point, run["layers"])
                goal = f"{where}: ≥ {100 * IDEAL:.0f} % of the ideal"
                yield goal, f"{100 * share:.0f} % at {point['mean_layers']:.2f} layers", share >= IDEAL
            else:
                took = 1 / point["ratio"]
                goal = f"{where}: at most {SLOWER:.2f} of the plain student's time"
                yield goal, f"{took:.2f}", took <= SLOWER


def generated(run: dict[str, Any]) -> str:
    """The tables of a run."""
    host, rows = run["machine"], []
    for batch in run["batches"]:
        size = str(batch["batch_size"])
        rows.append([size, "plain student", str(run["layers"]), f"{batch['plain_ms']:.2f}", "", ""])
        for point in batch["points"]:
            share = f"{100 * share_of_ideal(point, run['layers']):.0f} %" if point["leaves"] else ""
            ratio = f"{point['ratio']:.2f} ({point['low']:.2f}, {point['high']:.2f})"
            rows.append([size, point["name"], f"{point['mean_layers']:.2f}", f"{point['ms']:.2f}", ratio, share])
    goals = [[goal, found, "met" if met else "**missed**"] for goal, found, met in verdicts(run)]
    return (
        f"`{run['command']}`, {host['date']}, {host['cores']} cores of {host['cpu']}. {run['layers']} layers of width "
        f"{run['width']}, {run['texts']} sentences of SST-2 ({run['tokens']:.1f} tokens on average), ONNX in float32, "
        f"tokenising left out; in turns, medians of {run['rounds']} rounds. The branches are random, and a speed is "
        f"chosen at which the texts leave behind so many layers on average.\n\n"
        f"{markdown_table(_HEAD, rows)}\n\n{markdown_table(('goal', 'found', ''), goals)}"
    )
