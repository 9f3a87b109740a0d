"""What several seeds of one cell say together: means, and intervals over the seeds by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.quality.grid import SEEDS, WIDE, Cell, cells
from benchmarks.quality.store import Store
from benchmarks.report import markdown_table
from limbeck.evaluate import SMALLEST_GAP

#: 97.5 % quantile of Student's t with n - 1 degrees of freedom, by n.
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
_HEAD = ("data", "method", "layers", "seeds", "student", "retention", "over the baseline", "gap recovery")
_INTRO = (
    "Mean ± half the 95 % interval over seeds (Student's t). *Over the baseline*, in points, and gap recovery are of "
    "the seeds that have a baseline of the same seed; gap recovery is mean(student − baseline) / mean(teacher − "
    "baseline), its interval Fieller's for a quotient of paired means. Where that does not tell the gap itself from 0, "
    "the quotient may be anything."
)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t)."""
    return mean(values), _T[len(values)] * stdev(values) / math.sqrt(len(values))


def fieller(won: Sequence[float], gaps: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of mean(won) / mean(gaps), paired (Fieller 1954): every quotient r for which the mean of
    won - r · gap cannot be told from 0 by Student's t. None where those are not between two bounds."""
    count = len(won)
    share = _T[count] ** 2 / count
    x, y = mean(won), mean(gaps)
    squares = [(one - x, other - y) for one, other in zip(won, gaps, strict=True)]
    of_won, of_gaps, of_both = (
        sum(pair[a] * pair[b] for pair in squares) / (count - 1) for a, b in ((0, 0), (1, 1), (0, 1))
    )
    # (x - r y)² <= t² / n · s²(won - r · gap), as a quadratic in r
    top = y * y - share * of_gaps
    if top <= 0:
        return None
    half, rest = x * y - share * of_both, x * x - share * of_won
    root = math.sqrt(max(0.0, half * half - top * rest))
    return (half - root) / top, (half + root) / top


def pairs(store: Store, dataset: str, method: str, layers: int) -> list[tuple[float, float]]:
    """What the student won over the baseline of its own seed, and what the teacher is above that, for each seed."""
    found = []
    for seed, student in seeds_of(store, dataset, method, layers).items():
        baseline = finished(store, Cell(dataset, method, layers, seed).baseline)
        if baseline is not None:
            start = baseline["student"]["value"]
            found.append((student["student"]["value"] - start, student["teacher"]["value"] - start))
    return found


def seeds_of(store: Store, dataset: str, method: str, layers: int) -> dict[int, dict[str, Any]]:
    """The results that are there, by seed."""
    each = {seed: finished(store, Cell(dataset, method, layers, seed)) for seed in SEEDS}
    return {seed: one for seed, one in each.items() if one is not None}


def finished(store: Store, cell: Cell | None) -> dict[str, Any] | None:
    """A cell's result, where it has one that did not fail."""
    found = None if cell is None else store.read(cell)
    return None if found is None or "failure" in found else found


def over_seeds(store: Store) -> str:
    """The table of every student of ours that is measured with several seeds."""
    several = dict.fromkeys((one.dataset, one.layers, one.method) for one in cells() if one.seed and not one.is_peer)
    ordered = sorted(several, key=lambda one: (WIDE.index(one[0]), -one[1]))
    rows = [_row(store, dataset, method, layers) for dataset, layers, method in ordered]
    return f"{_INTRO}\n\n{markdown_table(_HEAD, rows)}"


def _row(store: Store, dataset: str, method: str, layers: int) -> list[str]:
    found = list(seeds_of(store, dataset, method, layers).values())
    name = [dataset, method, str(layers)]
    if len(found) < 2:
        return [*name, f"{len(found)} of {len(SEEDS)} seeds", "", "", "", ""]
    student, retention = (_plus_minus([one[part]["value"] for one in found]) for part in ("student", "retention"))
    paired = pairs(store, dataset, method, layers)
    if len(paired) < 2:
        return [*name, str(len(found)), student, retention, "", ""]
    seeds = str(len(found)) if len(paired) == len(found) else f"{len(found)}, {len(paired)} with a baseline"
    return [*name, seeds, student, retention, _plus_minus([won for won, _ in paired]), _gap(paired)]


def _gap(paired: Sequence[tuple[float, float]]) -> str:
    won, gaps = zip(*paired, strict=True)
    if mean(gaps) <= SMALLEST_GAP:
        return "– (no gap)"
    bounds = fieller(won, gaps)
    value = f"{100 * mean(won) / mean(gaps):.0f}"
    return f"{value} (anything)" if bounds is None else f"{value} ({100 * bounds[0]:.0f} to {100 * bounds[1]:.0f})"


def _plus_minus(values: Sequence[float]) -> str:
    centre, half = interval(values)
    return f"{100 * centre:.1f} ± {100 * half:.1f}"
