"""Jobs and scorecards as tables."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.cli.output import size
from limbeck.client import Job
from limbeck.scorecard import Estimate, ExportCard, Latency, ModelCard, Scorecard

_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def jobs_table(jobs: Iterable[Job]) -> Table:
    """One row a job."""
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "status", "method", "submitted", "name"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "name")
    for job in jobs:
        status = job.status + (f" {job.progress.percent:.0f} %" if job.progress and job.status == "running" else "")
        table.add_row(
            Text(job.id),
            Text(status, style=_COLOURS.get(job.status, "")),
            Text(str(job.config["method"]["type"])),
            f"{job.created_at.astimezone():%m-%d %H:%M}",
            Text(job.name),
        )
    return table


def scorecard_table(card: Scorecard) -> RenderableType:
    """Teacher, baseline and student, and below them what the student is worth."""
    data = card.dataset
    title = f"{data.source}: {data.test} test examples, {len(data.labels)} classes, guessing gets {data.majority:.1%}"
    table = Table(title=title, title_justify="left", title_style="", pad_edge=False)
    metrics = list(card.student.metrics)
    table.add_column("")
    for metric in metrics:
        table.add_column(metric.replace("_", " "), justify="right", no_wrap=True)
    for heading in ("layers", "parameters", "file", "p50 ms, batch 1", "p95 ms", "p50 ms, batch 32"):
        table.add_column(heading, justify="right")
    for name, model in (("teacher", card.teacher), ("baseline", card.baseline), ("student", card.student)):
        if model is not None:
            table.add_row(name, *_model_cells(model, metrics))
    for export in card.exports:
        table.add_row(f"student, {export.format}", *_export_cells(export, metrics))
    return Group(table, Text("\n".join(_findings(card))))


def _model_cells(model: ModelCard, metrics: list[str]) -> list[str]:
    shape = [str(model.layers), f"{model.parameters / 1e6:.1f} M", size(model.bytes)]
    return [_estimate(model.metrics.get(name)) for name in metrics] + shape + _latency_cells(model.latency)


def _export_cells(export: ExportCard, metrics: list[str]) -> list[str]:
    shape = ["", "", size(export.bytes)]
    return [_estimate(export.metrics.get(name)) for name in metrics] + shape + _latency_cells(export.latency)


def _latency_cells(latencies: Iterable[Latency]) -> list[str]:
    by_size = {one.batch_size: one for one in latencies}
    single, batch = by_size.get(1), by_size.get(32)
    return [
        f"{single.p50_ms:.1f}" if single else "",
        f"{single.p95_ms:.1f}" if single else "",
        f"{batch.p50_ms:.1f}" if batch else "",
    ]


def _estimate(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})"


def _findings(card: Scorecard) -> list[str]:
    lines = [f"retention     {_estimate(card.retention)} of the teacher's {card.main_metric.replace('_', ' ')}"]
    if card.gap_recovery is not None:
        lines.append(f"gap recovery  {_estimate(card.gap_recovery)} of what the baseline is behind the teacher")
    if card.gap_recovery_note:
        lines.append(f"              {card.gap_recovery_note}")
    speedup = ", ".join(f"{factor:.1f}× at batch {size}" for size, factor in card.speedup.items())
    lines.append(f"speed-up      {speedup}; file {card.compression:.1f}× smaller")
    lines.append(f"measured on   {card.hardware.cpu}, {card.hardware.threads} threads, {card.hardware.device}")
    for reason in card.verdict.reasons:
        lines.append(f"gate          {'passed' if card.verdict.passed else 'not passed'}: {reason}")
    lines.append("In brackets: 95 % intervals by bootstrap over the test examples.")
    return lines
