"""What each paper claims of its method, beside what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.grid import Cell
from benchmarks.quality.paired import Difference, from_baseline
from benchmarks.quality.store import Store
from benchmarks.report import markdown_table


@dataclass(frozen=True)
class Claim:
    """A published row; figures in per cent."""

    method: str
    source: str  #: whose figure, on what, from how many layers to how many
    teacher: float
    student: float
    plain: float | None  #: the same student without a teacher, where that was published
    ours: Sequence[Cell]
    reason: str = ""  #: why ours may differ, where it does


_MRPC, _SST2, _BANKING = "mrpc", "sst2", "banking77"


def _cells(method: str, *datasets: str, layers: int = 3) -> tuple[Cell, ...]:
    return tuple(Cell(name, method, layers, 0) for name in datasets)


#: No published figure was found for ``dynabert`` at these sizes, and ``auto`` is Limbeck's own.
CLAIMS = (
    Claim(
        "kd",
        "the seed, IFLYTEK, 12 → 3",
        60.21,
        60.14,
        58.14,
        _cells("kd", _SST2, _BANKING),
        "119 classes there, 2 and 77 here; 12 layers there, 6 here",
    ),
    Claim("kd", "Sun et al. 2019, SST-2, 12 → 3", 92.6, 87.5, 87.5, _cells("kd", _SST2)),
    Claim(
        "patient",
        "Sun et al. 2019, SST-2, 12 → 3",
        92.6,
        88.1,
        87.5,
        _cells("patient", _SST2),
        "half of the teacher's layers are kept here, a quarter there",
    ),
    Claim(
        "distilbert",
        "Sanh et al. 2019, GLUE, 12 → 6",
        79.5,
        77.0,
        None,
        _cells("distilbert", _SST2, _MRPC),
        "there on a corpus, task-agnostic; here on the task's few thousand texts",
    ),
    Claim(
        "tinybert",
        "Jiao et al. 2020, GLUE, 12 → 4 of width 312",
        79.5,
        77.0,
        None,
        _cells("tinybert", _SST2, _MRPC),
        "the paper owes some 7 points to 20 and more augmented copies, and none are made here",
    ),
    Claim(
        "minilm",
        "Wang et al. 2021, MNLI, 12 → 6 of width 384",
        84.5,
        82.8,
        None,
        _cells("minilm", _SST2, _MRPC),
        "there on a corpus, before any task; here on the task's few thousand texts",
    ),
    Claim(
        "theseus",
        "Xu et al. 2020, SST-2, 12 → 6",
        91.5,
        91.5,
        None,
        _cells("theseus", _SST2),
        "all of SST-2's 67,000 texts there, 8,000 for two epochs here",
    ),
    Claim(
        "theseus",
        "Xu et al. 2020, MRPC, 12 → 6",
        89.5,
        89.0,
        None,
        (*_cells("theseus", _MRPC), *_cells("theseus-long", _MRPC)),
        "15 epochs there; `theseus` has 3 here, `theseus-long` 15",
    ),
    Claim(
        "theseus",
        "the seed, IFLYTEK, 12 → 3",
        60.7,
        59.5,
        57.9,
        _cells("theseus", _SST2, _BANKING),
        "some 500 steps on SST-2 and 1,130 on Banking77, where fine-tuning alone is as good as the teacher",
    ),
    Claim(
        "self",
        "the seed, IFLYTEK, 12 → 12",
        60.21,
        61.07,
        None,
        _cells("self", _SST2, _MRPC, _BANKING, layers=6),
        "a teacher of 60 % there leaves more to gain; MRPC's was fine-tuned at half of the student's learning rate, "
        "and six layers that are not held to it come further",
    ),
    Claim(
        "noise",
        "the seed, IFLYTEK, 12 → 3",
        60.21,
        58.4,
        58.14,
        _cells("noise", _SST2, _BANKING),
        "119 classes there, 2 and 77 here; 12 layers there, 6 here",
    ),
)
_YES, _NO = "yes", "**no**"
#: A published difference that is smaller says that the method adds nothing.
_NOTHING = 0.5
_HEAD = (
    "method",
    "published",
    "of its teacher",
    "over the same student alone",
    "here",
    "of its teacher",
    "over the same student alone",
    "same direction",
    "same size",
    "why not",
)
_INTRO = (
    "Published figures beside the cells of this page, as a share of each one's own teacher, in per cent. *Over the "
    "same student alone* is the difference from that student trained without a teacher, as a share of the teacher; of "
    "ours it is paired over the reported examples, with its 95 % interval. The direction is the same where that "
    "interval lies above 0 as the published difference does, or, where next to nothing was published, includes 0. "
    "Where no such difference was published, a method is taken to claim that it is above 0. An interval that includes "
    "0 elsewhere is *within the noise*. The size is the same where the published share of the teacher lies in our "
    "interval or below it. For `noise`, the control, the claim is that it helps no more than the labels alone do."
)


def papers(store: Store) -> str:
    """The table, and FastBERT's own claim, which is of layers saved."""
    rows = [_row(store, claim, cell) for claim in CLAIMS for cell in claim.ours]
    return f"{_INTRO}\n\n{markdown_table(_HEAD, rows)}\n\n{_fastbert(store)}"


def _row(store: Store, claim: Claim, cell: Cell) -> list[str]:
    published = 100 * claim.student / claim.teacher
    gain = None if claim.plain is None else 100 * (claim.student - claim.plain) / claim.teacher
    shown = [f"`{cell.method}`", claim.source, f"{published:.1f}", "" if gain is None else f"{gain:+.1f}"]
    found = store.read(cell)
    if found is None or "failure" in found:
        state = "not run" if found is None else "failed"
        return [*shown, f"{cell.dataset}, 6 → {cell.layers}", state, "", "", "", ""]
    kept = {name: 100 * value for name, value in found["retention"].items()}
    apart = from_baseline(store, cell, found)
    control = claim.method == "noise"
    direction, size = _direction(gain, apart, control), kept["high"] >= published
    return [
        *shown,
        f"{cell.dataset}, 6 → {cell.layers}",
        f"{kept['value']:.1f} ({kept['low']:.1f}–{kept['high']:.1f})",
        _gain(found, apart),
        direction,
        _YES if size else _NO,
        claim.reason if direction not in ("", _YES) or not size else "",
    ]


def _gain(found: dict[str, Any], apart: Difference | None) -> str:
    """The difference from the baseline as a share of the teacher, which is taken as it is."""
    if found["baseline"] is None:
        return ""
    teacher = found["teacher"]["value"]
    if apart is None:
        return f"{100 * (found['student']['value'] - found['baseline']['value']) / teacher:+.1f} (no interval)"
    value, low, high = (100 * apart[part] / teacher for part in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _direction(published: float | None, apart: Difference | None, control: bool) -> str:
    """Whether our difference goes where theirs does: what its interval cannot tell from 0 is noise."""
    if apart is None:
        return ""
    if control:
        return _YES if apart["low"] <= 0 else _NO
    noise = apart["low"] <= 0 <= apart["high"]
    if published is not None and published < _NOTHING:
        return _YES if noise else _NO
    if noise:
        return "within the noise"
    return _YES if apart["low"] > 0 else _NO


def _fastbert(store: Store) -> str:
    published = (
        "FastBERT (Liu et al. 2020), Douban book reviews: 86.88 → 86.64 (99.7 %) with 4.21 times fewer operations."
    )
    cell = Cell("douban", "fastbert", 6, 0)
    found = store.read(cell)
    if found is None or "failure" in found or not found["exits"]:
        return f"{published} `{cell.name}`: not run."
    whole, chosen = exit_points(found)
    kept, fewer = 100 * chosen["metric"]["value"] / whole["metric"]["value"], 1 / chosen["flops"]
    return (
        f"{published} Here, on the same reviews with 6 layers: {kept:.1f} % with {fewer:.2f} times fewer at speed "
        f"{chosen['speed']:g}, which dev chose ({chosen['mean_layers']:.2f} of 6 layers)"
        + ("." if fewer >= 4.21 else ", which is less: there are half as many layers to save.")
    )


def exit_points(found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a student with early exits: where nobody leaves, and the speed that dev chose, on the reported split."""
    at = {point["speed"]: point for point in found["exits"]["curve"]}
    return at[0], at[found["exits"]["speed"]]
