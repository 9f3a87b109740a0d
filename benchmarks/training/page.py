"""The run's tables for ``docs/performance.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, markdown_table, replace_part
from benchmarks.training.goals import verdicts
from benchmarks.training.measuring import EPOCHS
from benchmarks.training.systems import SYSTEMS
from benchmarks.training.workloads import TINY, WORKLOADS

PAGE = ROOT / "docs" / "performance.md"
_HEAD = (
    "trainer",
    "examples/s",
    f"with the teacher's pass over {EPOCHS} epochs",
    "Limbeck is",
    "useful GFLOP/s",
    "of sgemm",
    "peak memory",
)


def write_page(run: dict[str, Any], page: Path = PAGE) -> None:
    """Replace the page's generated part.

    Raises:
        ValueError: the page has no such part.
    """
    replace_part(page, "training", generated(run))


def generated(run: dict[str, Any]) -> str:
    """All tables of a run."""
    parts = [_about(run)]
    parts += [_workload(run, name) for name in WORKLOADS if any(_cells(run, name))]
    parts += [_accuracy(run), _scaling(run), _goals(run)]
    return "\n\n".join(part for part in parts if part)


def _about(run: dict[str, Any]) -> str:
    host, versions = run["machine"], ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    product = "sgemm" if run["device"] == "cpu" else "a dense bfloat16 product"
    return (
        f"```\n{run['command']}\n```\n\n{host['date']}, {host['cores']} cores of {host['cpu']}, {versions}. In turns, "
        f"{run['rounds']} rounds, medians; batch 32; the slowest and the fastest round in brackets. {product} did "
        f"{run['gemm'] / 1e9:,.0f} GFLOP/s in this run. Without dropout and on one batch, all trainers had the same "
        f"losses in the first {run['fairness']['steps']} steps, by this run."
        + "".join(f"\n\n{note}" for note in run.get("notes", ()))
    )


def _cells(run: dict[str, Any], workload: str) -> dict[str, dict[str, Any]]:
    return {name: run["cells"][f"{workload}/{name}"] for name in SYSTEMS if f"{workload}/{name}" in run["cells"]}


def _workload(run: dict[str, Any], workload: str) -> str:
    cells = _cells(run, workload)
    ours = cells.get("limbeck")
    rows = []
    for name, cell in cells.items():
        whole = cell["examples_per_second_with_pass"]
        ahead = "" if ours is None or name == "limbeck" else f"{ours['examples_per_second_with_pass'] / whole:.1f}×"
        low, high = cell["spread"]
        memory = cell["cuda_peak_bytes"] or cell["peak_bytes"]
        rows.append(
            [
                SYSTEMS[name].title,
                f"{cell['examples_per_second']:.1f} ({low:.1f}–{high:.1f})",
                f"{whole:.1f}",
                ahead,
                f"{cell['useful_flops'] / 1e9:.0f}",
                f"{100 * cell['share_of_sgemm']:.0f} %",
                f"{memory / 1e6:,.0f} MB",
            ]
        )
    tokens = next(iter(cells.values()))["tokens"]
    return f"{WORKLOADS[workload].title}; {tokens:.1f} tokens on average:\n\n" + markdown_table(_HEAD, rows)


def _accuracy(run: dict[str, Any]) -> str:
    found = run["accuracy"]
    if found is None:
        return ""
    rows = []
    for name, one in found["accuracy"].items():
        apart = found["difference"].get(name)
        rows.append([SYSTEMS[name].title, _points(one), "" if apart is None else _points(apart, sign="+")])
    return (
        f"Accuracy on {found['sentences']} validation sentences of SST-2 after {found['epochs']} epochs over "
        f"{found['examples']} others, and how far Limbeck's student is above, with the 95 % interval of the paired "
        "difference:\n\n" + markdown_table(("trainer", "accuracy", "Limbeck above it by"), rows)
    )


def _points(found: dict[str, float], sign: str = "") -> str:
    value, low, high = (format(100 * found[name], f"{sign}.1f") for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _scaling(run: dict[str, Any]) -> str:
    if run["scaling"] is None:
        return ""
    tables = []
    for what, of, title in (
        ("examples", "example", f"a whole job of one epoch, {TINY.title}, where the engine's own cost shows"),
        ("tokens", "token", "texts of one length, 6 layers of width 384 to 3"),
    ):
        rows = [
            [f"{point[what]:,}", *(f"{point[part]:.1f}" for part in ("prepare", "pass", "step"))]
            for point in run["scaling"][what]
        ]
        head = (what, "preparing", "the teacher's pass", "training")
        tables.append(f"Limbeck's µs for a{'n' * (of == 'example')} {of}; {title}:\n\n" + markdown_table(head, rows))
    return "\n\n".join(tables)


def _goals(run: dict[str, Any]) -> str:
    shown = {True: "met", False: "**missed**", None: "not measured"}
    rows = [
        [one.goal, one.found if one.met is not None else "", shown[one.met] + f": {one.found}" * one.elsewhere]
        for one in verdicts(run)
    ]
    return markdown_table(("goal", "found", ""), rows)
