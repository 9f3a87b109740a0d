"""The README that travels with a student: what it is, what it was measured at, how to use it, and what it cannot do."""

from __future__ import annotations

import json
import re
from string import Template

from limbeck.card_usage import TASKS, usage
from limbeck.formats import FILES
from limbeck.scorecard import NO_SHARES, Estimate, ExitsCard, ExportCard, Latency, ModelCard, Scorecard

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LABELS_SHOWN = 30


def model_card(
    card: Scorecard,
    name: str,
    *,
    teacher: str,
    dataset: str,
    pair: bool = False,
    pooling: str = "mean",
    mask: str = "",
) -> str:
    """The model card, in Markdown, of the scorecard's ``name``: ``student`` or ``baseline``.

    Args:
        teacher: the source that the job named, e.g. a hub name; of several the first one's.
        dataset: likewise.
        pair: whether an example is two texts.
        pooling: of a student that gives vectors.
        mask: how the tokenizer of a student that finds masked tokens writes one.
    """
    is_student = name == "student"
    parts = [
        _front_matter(card, teacher, dataset),
        f"# A {card.student.layers}-layer {name} of {_teachers(card, teacher)}",
        _origin(card, is_student, teacher, dataset),
        "## What it is worth",
        _quality(card, name),
        _worth(card),
    ]
    if is_student and card.exports:
        parts += [_exports(card)]
    if is_student and card.refused_exports:
        reasons = "\n".join(f"- {one.format}: {one.reason}" for one in card.refused_exports)
        parts += [f"Forms that were asked for and did not pass:\n\n{reasons}"]
    if is_student and card.exits:
        parts += ["## Early exit", _exits(card.exits, card.main_metric)]
    if is_student and card.sub_networks:
        parts += ["## Other sizes", _sizes(card)]
    parts += ["## How to use it", usage(card, is_student, pair, pooling, mask), "## What to mind", _limits(card)]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: Scorecard, teacher: str, dataset: str) -> str:
    lines = ["library_name: transformers", f"pipeline_tag: {TASKS[card.task].tag}"]
    named = [one.name for one in card.teachers] or [teacher]
    bases = [one for one in dict.fromkeys(named) if _HUB_NAME.fullmatch(one)]
    if bases:
        lines += [f"base_model: {bases[0] if len(bases) == 1 else '[' + ', '.join(bases) + ']'}"]
    if _HUB_NAME.fullmatch(dataset):
        lines += [f"datasets: [{dataset}]"]
    return "\n".join(["---", *lines, "tags: [limbeck, distillation]", "---"])


def _teachers(card: Scorecard, teacher: str) -> str:
    """The one, or all of several: `` `a` and `b` ``."""
    return " and ".join(f"`{one.name}`" for one in card.teachers) or f"`{teacher}`"


def _origin(card: Scorecard, is_student: bool, teacher: str, dataset: str) -> str:
    chosen = "" if card.chosen_method is None else f", which chose `{card.chosen_method}`"
    how = (
        f"Distilled from {_teachers(card, teacher)} by Limbeck with the method `{card.method}`{chosen}."
        if is_student
        else f"The baseline of a distillation from {_teachers(card, teacher)}: the student's twin, from the same "
        "start, with the same steps and data, trained without the teacher's answers. It is here to be compared with; "
        "the student is the one to use, where it is better."
    )
    labels = [f"`{label}`" for label in card.dataset.labels[:_LABELS_SHOWN]]
    if len(card.dataset.labels) > _LABELS_SHOWN:
        labels.append(f"and {len(card.dataset.labels) - _LABELS_SHOWN} more")
    return (
        f"{how}\n\nIt was trained on {card.dataset.train:,} examples of `{dataset}` "
        f"(sha256 `{card.dataset.sha256[:12]}…`, seed {card.seed}){_more(card, is_student)}; "
        f"{card.dataset.validation:,} others chose the "
        "epoch that was kept. "
        + Template(TASKS[card.task].answers).substitute(count=len(card.dataset.labels), labels=", ".join(labels))
        + (f"\n\nOf these data: {' '.join(card.dataset.notes)}" if card.dataset.notes else "")
    )


def _more(card: Scorecard, is_student: bool) -> str:
    """What augmentation added."""
    parts = [f"{card.dataset.copies:,} altered copies of them"] if card.dataset.copies else []
    if card.dataset.unlabelled and is_student:
        parts.append(f"{card.dataset.unlabelled:,} texts without a label, to which the teacher alone gave the answers")
    return "".join(f", and {part}" for part in parts)


def _quality(card: Scorecard, name: str) -> str:
    rows = {
        "teacher": card.teacher,
        **{f"— `{one.name}` alone": one for one in card.teachers},
        "student": card.student,
        "baseline": card.baseline,
    }
    metrics = list(card.student.metrics)
    batches = [latency.batch_size for latency in card.student.latency]
    head = ["", "layers", "parameters", *(_words(metric) for metric in metrics), *(f"ms for {n}" for n in batches)]
    lines = [_line(head), _line(["---"] * len(head))]
    for row, model in rows.items():
        if model is not None:
            lines.append(_line(_model_cells(f"**{row}** (this)" if row == name else row, model, metrics)))
    hardware = card.hardware
    return (
        f"On the {card.dataset.test:,} examples of the test split, which chose nothing, with 95 % intervals; times are "
        f"medians in torch on {hardware.cpu}, {hardware.threads} threads, {hardware.device}, {hardware.precision}, "
        "tokenising left out: on another machine only their ratios hold.\n\n" + "\n".join(lines)
    )


def _model_cells(name: str, model: ModelCard, metrics: list[str]) -> list[str]:
    quality = [_figure(model.metrics[metric], metric) for metric in metrics]
    return [name, str(model.layers), f"{model.parameters:,}", *quality, *(_ms(time) for time in model.latency)]


def _worth(card: Scorecard) -> str:
    metric = _words(card.main_metric)
    majority = f"{card.dataset.majority:.3f}" if card.main_metric in NO_SHARES else f"{card.dataset.majority:.1%}"
    kept = "none" if card.retention is None else _percent(card.retention)
    lines = [
        f"- Retention ({metric} of the student / of the teacher): {kept}",
        f"- {Template(TASKS[card.task].guess).substitute(majority=majority)}",
    ]
    if card.gap_recovery is not None:
        lines.insert(
            1,
            "- Gap recovery (how much of what the baseline lacks the teacher's answers brought): "
            f"{_percent(card.gap_recovery)}",
        )
    for note in (card.retention_note, card.gap_recovery_note):
        if note is not None:
            lines.insert(-1, f"- {note}")
    if card.verdict.reasons:
        lines += [f"- The job's gate was missed: {reason}" for reason in card.verdict.reasons]
    return "\n".join(lines)


def _exports(card: Scorecard) -> str:
    metrics = list(card.student.metrics)
    batches = [latency.batch_size for latency in card.exports[0].latency]
    head = [
        "form",
        "file",
        "MB",
        "same answer as torch",
        "logits within",
        *(_words(metric) for metric in metrics),
        *(f"ms for {n}" for n in batches),
    ]
    lines = [_line(head), _line(["---"] * len(head)), *(_line(_export_cells(one, metrics)) for one in card.exports)]
    return f"Without torch, compared with it on {card.exports[0].examples:,} of the test examples:\n\n" + "\n".join(
        lines
    )


def _exits(exits: ExitsCard, metric: str) -> str:
    plain = {latency.batch_size: latency.examples_per_second for latency in exits.plain_latency}
    head = ["speed", _words(metric), "layers", "operations", *(f"texts/s for {size}" for size in plain)]
    lines = [_line(head), _line(["---"] * len(head))]
    for point in exits.curve:
        shown = f"**{point.speed:g}**" if point.speed == exits.speed else f"{point.speed:g}"
        times = [f"{one.examples_per_second / plain[one.batch_size]:.2f} ×" for one in point.latency]
        lines.append(_line([shown, _percent(point.metric), f"{point.mean_layers:.2f}", f"{point.flops:.0%}", *times]))
    which = "the highest that keeps" if exits.kept else "no speed keeps"
    return (
        f"A text leaves behind the first of the {exits.layers} layers whose classifier is sure of it: the entropy of "
        "its answer, as a share of the largest, is not above the speed. 0 sends every text through all layers. The "
        f"speed unless a call names another is {exits.speed:g}: {which} {exits.floor:.1%} on "
        f"validation, where all layers have {exits.validation_whole:.1%}. On the test split, operations and texts per "
        "second against the same student in one piece, as ONNX:\n\n" + "\n".join(lines) + "\n\n"
        "`student.predict(…, speed=0.3)` names a speed of your own. In torch: `from early_exit import answer, load` "
        "(the file lies beside this one), then `answer(load(folder), inputs, speed=0.3)`."
    )


def _sizes(card: Scorecard) -> str:
    metric = card.main_metric
    head = ["layers", "heads", "neurons", "parameters", "operations", f"{_words(metric)} on validation", "`student`"]
    lines = [_line(head), _line(["---"] * len(head))]
    for one in card.sub_networks:
        layers = f"**{one.layers}** (this)" if one.student else str(one.layers)
        shown = f"{one.validation:.3f}" if metric in NO_SHARES else f"{one.validation:.1%}"
        heads = "all" if one.heads is None else str(one.heads)
        options = "" if one.options is None else f"`{json.dumps(one.options)}`"
        sizes = [layers, heads, f"{one.neurons:,}", f"{one.parameters:,}"]
        lines.append(_line([*sizes, f"{one.flops:.0%}", shown, options]))
    return (
        "It was cut from one network that was trained at all these sizes. On validation after the last step, with the "
        "operations of the layers as a share of the whole network's (counted, not timed); a job whose `student` names "
        "another size makes that one:\n\n" + "\n".join(lines)
    )


def _export_cells(export: ExportCard, metrics: list[str]) -> list[str]:
    return [
        export.format,
        f"`{FILES[export.format]}`",
        f"{export.bytes / 1e6:.1f}",
        f"{export.label_agreement:.1%}",
        f"{export.max_logit_difference:.1g}",
        *(_figure(export.metrics[metric], metric) for metric in metrics),
        *(_ms(time) for time in export.latency),
    ]


def _limits(card: Scorecard) -> str:
    tested = "texts like those of its data set. Other kinds of text, other languages and later times were not"
    if card.task == "image_classification":
        tested = "images like those of its data set. Other kinds of image, other cameras and later times were not"
    return f"""\
- {TASKS[card.task].limit}
- The figures are of {tested}
  tested.
- What its teacher and its data have wrong, or weigh unfairly, it has learned as well; that was not examined.
- This is one run with one seed ({card.seed}). The intervals say how far another draw of test examples may move the
  figures, not how far another seed may."""


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _figure(estimate: Estimate, metric: str) -> str:
    if metric in NO_SHARES:
        return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
    return _percent(estimate)


def _ms(latency: Latency) -> str:
    return f"{latency.p50_ms:.1f}"


def _words(metric: str) -> str:
    return metric.replace("_", " ").replace("f1", "F1")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
