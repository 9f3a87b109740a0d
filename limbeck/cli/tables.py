"""Jobs and scorecards as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.cli.output import size
from limbeck.client import Alias, Job
from limbeck.scorecard import NO_SHARES, Estimate, ExitsCard, Latency, ModelCard, Scorecard

#: Columns of text with room for a job's method beside its name.
_WIDE = 100
_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def jobs_table(jobs: Iterable[Job], width: int) -> Table:
    """One row a job. Where the terminal is narrow, the method is left out and the name is cut."""
    table = Table(box=None, pad_edge=False, expand=True)
    headings = ("id", "status", "submitted", "method")[: 4 if width >= _WIDE else 3]
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    table.add_column("name", no_wrap=True, overflow="ellipsis", ratio=1)
    for job in jobs:
        table.add_row(*_job_cells(job)[: len(headings)], Text(job.name))
    return table


def _job_cells(job: Job) -> list[Text]:
    percent = f" {job.progress.percent:.0f} %" if job.progress and job.status == "running" else ""
    return [
        Text(job.id),
        Text(job.status + percent, style=_COLOURS.get(job.status, "")),
        Text(f"{job.created_at.astimezone():%m-%d %H:%M}"),
        Text(str(job.config["method"]["type"])),
    ]


def aliases_table(aliases: Iterable[Alias]) -> Table:
    """One row a name."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "model", "version", "since"):
        table.add_column(heading, no_wrap=True)
    for one in aliases:
        table.add_row(Text(one.name), Text(one.model), str(one.version), f"{one.updated_at.astimezone():%m-%d %H:%M}")
    return table


def scorecard_table(card: Scorecard, width: int = _WIDE) -> RenderableType:
    """Teacher, baseline and student, and below them what the student is worth.

    Where the terminal is narrow, of more than two metrics the main one alone has its interval: cut numbers say nothing.
    """
    data = card.dataset
    classes = f", {len(data.labels)} labels" if data.labels else ""
    guess = f"{data.majority:.3f}" if card.main_metric in NO_SHARES else f"{data.majority:.1%}"
    about = f"{data.source}: {data.test} test examples{classes}, guessing gets {guess}"
    special = [_sizes(card)] if card.sub_networks else []
    if card.exits is not None:
        special.append(_exits(card.exits, card.main_metric))
    intervals = len(card.student.metrics) <= 2 or width >= _WIDE
    findings = Text("\n" + "\n".join(_findings(card)))
    return Group(Text(about), _quality(card, intervals), _speed(card), *special, findings)


def hard_samples_table(rows: Iterable[Mapping[str, str]]) -> Table:
    """One example a line: where it stands, what it is, what student and teacher lose on it, and its text, cut."""
    table = Table(box=None, pad_edge=False, expand=True)
    for heading in ("row", "student", "teacher"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("label", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        losses = (f"{float(row[name]):.2f}" for name in ("loss", "teacher_loss"))
        words = " / ".join(" ".join(row[name].split()) for name in ("text", "text_pair") if row.get(name))
        table.add_row(row["row"], *losses, Text(row["label"]), Text(words))
    table.caption = "student and teacher: the loss of each against the label"
    return table


def _models(card: Scorecard) -> list[tuple[str, ModelCard]]:
    alone = ((f"  {one.name} alone", one) for one in card.teachers)
    rows = (("teacher", card.teacher), *alone, ("baseline", card.baseline), ("student", card.student))
    return [(name, model) for name, model in rows if model is not None]


def _quality(card: Scorecard, intervals: bool) -> Table:
    metrics = list(card.student.metrics)

    def cells(found: Mapping[str, Estimate]) -> list[str]:
        return [_estimate(found.get(name), name, intervals or name == card.main_metric) for name in metrics]

    table = _table(*(name.replace("_", " ") for name in metrics), "layers", "params")
    for name, model in _models(card):
        shape = (str(model.layers), f"{model.parameters / 1e6:.1f} M")
        table.add_row(name, *cells(model.metrics), *shape)
    for export in card.exports:
        # Of a part of the split its figures are others than torch's of all, also where each answer is the same.
        part = f" on {export.examples:,}" if export.examples < card.dataset.test else ""
        table.add_row(f"student {export.format}{part}", *cells(export.metrics))
    return table


def _speed(card: Scorecard) -> Table:
    table = _table("file", "1 text: p50", "p95", "32 texts: p50", "texts/s")
    for name, model in _models(card):
        table.add_row(name, size(model.bytes), *_latency_cells(model.latency))
    for export in card.exports:
        table.add_row(f"student {export.format}", size(export.bytes), *_latency_cells(export.latency))
    return table


def _sizes(card: Scorecard) -> Table:
    """What the network was trained at beside the student's size."""
    metric = card.main_metric
    table = _table("heads", "neurons", "params", "operations", f"{metric.replace('_', ' ')} on validation")
    for one in card.sub_networks:
        name = f"{one.layers} layers" + " (student)" * one.student
        shown = f"{one.validation:.3f}" if metric in NO_SHARES else f"{one.validation:.1%}"
        heads = "" if one.heads is None else f"{one.heads}"
        table.add_row(name, heads, f"{one.neurons}", f"{one.parameters / 1e6:.1f} M", f"{one.flops:.0%}", shown)
    return table


def _exits(exits: ExitsCard, metric: str) -> Table:
    """What early exit costs and saves: the rows of the student above are without it, and calls are answered with it."""
    plain = {one.batch_size: one.examples_per_second for one in exits.plain_latency}
    table = _table(metric.replace("_", " "), "layers", "operations", *(f"texts/s for {size}" for size in plain))
    for point in exits.curve:
        name = f"speed {point.speed:g}" + " (default)" * (point.speed == exits.speed)
        times = (f"{one.examples_per_second / plain[one.batch_size]:.2f} ×" for one in point.latency)
        table.add_row(name, _estimate(point.metric), f"{point.mean_layers:.2f}", f"{point.flops:.0%}", *times)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=" ")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _latency_cells(latencies: Iterable[Latency]) -> list[str]:
    by_size = {one.batch_size: one for one in latencies}
    single, batch = by_size.get(1), by_size.get(32)
    cells = [f"{single.p50_ms:.1f} ms", f"{single.p95_ms:.1f} ms"] if single else ["", ""]
    return cells + ([f"{batch.p50_ms:.1f} ms", f"{batch.examples_per_second:.0f}"] if batch else ["", ""])


def _estimate(found: Estimate | None, metric: str = "", interval: bool = True) -> str:
    if found is None:
        return ""
    form = ".3f" if metric in NO_SHARES else ".1%"
    return f"{found.value:{form}}" + (f" ({found.low:{form}}–{found.high:{form}})" if interval else "")


def _findings(card: Scorecard) -> list[str]:
    lines = [f"method        {card.method}, which chose {card.chosen_method}"] if card.chosen_method is not None else []
    if card.retention is not None:
        lines.append(f"retention     {_estimate(card.retention)} of the teacher's {card.main_metric.replace('_', ' ')}")
    if card.gap_recovery is not None:
        lines.append(f"gap recovery  {_estimate(card.gap_recovery)} of what the baseline is behind the teacher")
    lines += [note for note in (card.retention_note, card.gap_recovery_note) if note]
    speedup = ", ".join(f"{factor:.1f}× at batch {size}" for size, factor in card.speedup.items())
    lines.append(f"speed-up      {speedup}; file {card.compression:.1f}× smaller")
    lines.append(f"measured on   {card.hardware.cpu}, {card.hardware.threads} threads, {card.hardware.device}")
    lines += [f"left out      {one.format}: {one.reason}" for one in card.refused_exports]
    if card.exits is not None:
        lines.append(f"early exit    calls are answered at speed {card.exits.speed:g}, unless they name another")
    if card.difficulty is not None and (lost := card.difficulty.lost.get("validation")) is not None:
        lines.append(f"hard samples  the teacher is right and the student wrong on {lost} of validation")
    for reason in card.verdict.reasons:
        lines.append(f"gate          {'passed' if card.verdict.passed else 'not passed'}: {reason}")
    lines.append("In brackets: 95 % intervals by bootstrap over the test examples.")
    return lines
