"""The figures as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.report import markdown_table
from benchmarks.serving.goals import Goal
from benchmarks.serving.load import Load
from benchmarks.serving.many import Many, Times
from benchmarks.serving.servers import Start


def rates(loads: Sequence[Load], starts: Sequence[Start]) -> str:
    """One row for each server, number of layers and kind of texts."""
    clients = sorted({one.clients for one in loads})
    rows = []
    for key in sorted(dict.fromkeys((one.server, one.layers, one.texts) for one in loads), key=lambda key: key[1:]):
        mine = {one.clients: one for one in loads if (one.server, one.layers, one.texts) == key}
        last = mine[clients[-1]]
        begun = [one for one in starts if (one.server, one.layers) == key[:2]]
        timing = f"{last.p50_ms:.0f} / {last.p99_ms:.0f} ms" if last.p50_ms else ""
        each = [f"{mine[count].requests_per_second:.0f}" for count in clients]
        rows.append([key[0], str(key[1]), key[2], *each, timing, _start(begun)])
    head = ["server", "layers", "texts", *map(str, clients), "p50 / p99 at most clients", "first answer, memory"]
    return markdown_table(head, rows)


def of_many(many: Many) -> str:
    """What a hundred students took."""
    rows = (
        ("memory of the idle server, and at its highest (PSS)", f"{many.idle_mb:.0f}, {many.peak_mb:.0f} MB"),
        ("limit for students (`LIMBECK_PREDICT_MEMORY_BYTES`)", f"{many.limit_mb:.0f} MB"),
        ("first answer of a cold student", _times(many.cold)),
        ("a warm student beside one that 64 clients ask", _times(many.warm_beside_hot)),
        ("a cold student beside it", _times(many.cold_beside_hot)),
        ("the hot student itself", f"{many.hot.p50_ms:.0f} / {many.hot.p99_ms:.0f} ms (p50 / p99)"),
    )
    return markdown_table((f"{many.students} students, {many.form}", "measured"), rows)


def verdicts(goals: Sequence[Goal]) -> str:
    """Every goal with its verdict."""
    return markdown_table(("goal", "verdict"), [(one.name, one.verdict) for one in goals])


def _start(begun: Sequence[Start]) -> str:
    if not begun:
        return ""
    seconds = statistics.median(one.first_answer_seconds for one in begun)
    return f"{seconds:.1f} s, {statistics.median(one.memory_mb for one in begun):.0f} MB"


def _times(times: Times) -> str:
    return f"{times.p50:.0f} / {times.p99:.0f} ms (p50 / p99 of {times.count})"
