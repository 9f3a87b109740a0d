"""The student in forms that need no torch, each checked against torch before anybody gets it.

``onnx``: float32, by ``limbeck/graph.py``. It has to answer as torch does: logits within 1e-3 of the largest logit (and
of 1), and the same label for 99.9 % of the examples.

The other forms (``limbeck/export_forms.py``) do differ, so they are judged by what they get right: one is refused when
it surely loses more of the main metric than it may (:data:`LOSS`), that is, when the paired 95 % interval of (torch -
form) lies beyond that as a whole, or when a logit is not finite. A refused form's file goes, and the job goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck import fewer_heads
from limbeck.batches import Encoded
from limbeck.errors import ExportFailed, InvalidModel
from limbeck.evaluate import Resamples
from limbeck.export_forms import write_form
from limbeck.families import pad_id_of
from limbeck.formats import FILES, Format
from limbeck.graph import input_names, write_graph
from limbeck.latency import Runner
from limbeck.pictures import Pictures
from limbeck.runtime.encoding import Feeds, Row, chunks
from limbeck.runtime.feeding import feeds_of
from limbeck.runtime.images import Picture
from limbeck.runtime.session import Session
from limbeck.scorecard import ExportCard, RefusedExport

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.tasks.base import Task

#: Examples that an export is checked on: at most so many, and about so many tokens.
CHECKED_EXAMPLES = 1_000
_CHECKED_TOKENS = 50_000
_FEWEST_CHECKED = 100
#: Where tokens are hidden, so many logits of all that are; each has as many as there are tokens in the vocabulary.
_CHECKED_LOGITS = 30_000_000
#: The first so many in batches of these sizes in turn, unsorted, so that there is padding; the rest sorted by length.
_MIXED_EXAMPLES = 100
_SIZES = (1, 2, 7, 16)

LOGIT_TOLERANCE = 1e-3
LABEL_AGREEMENT = 0.999
#: Of the main metric, as a share of 1.
LOSS: Mapping[Format, float] = {"onnx-int8": 0.02, "onnx-int8-static": 0.02, "onnx-fp16": 0.005}
#: Of the spread of answers that are numbers, what those of a form may be off, as the root of the mean square.
ASTRAY = 0.2
#: Training examples that fixed scales are measured on.
CALIBRATED_EXAMPLES = 128
#: A protobuf file cannot be larger.
_LARGEST_FILE = 2**31


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of the forms that were asked for, each part in their order."""

    cards: tuple[ExportCard, ...]  #: ``latency`` is empty, see ``limbeck.latency``
    refused: tuple[RefusedExport, ...]


def export_onnx(
    folder: Path,
    formats: Sequence[Format],
    rows: Sequence[Row] | Sequence[Picture],
    data: Encoded,
    *,
    task: Task,
    seed: int,
    calibration: Sequence[Row] = (),
    judge: tuple[Sequence[Row] | Sequence[Picture], Encoded] | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Exported:
    """Write ``onnx/…`` into a student's folder and compare it with torch.

    Args:
        folder: a Hugging Face folder with the student's weights.
        formats: which forms.
        rows: the test split as tokens of the folder's vocabulary (see :func:`rows_of`).
        data: the same with its labels; its ids are not looked at.
        task: its metrics judge; the main one judges all forms but ``onnx``.
        seed: draws the examples that are compared where the split is large, and the bootstrap.
        calibration: training texts, for ``onnx-int8-static``.
        judge: the validation split as ``rows`` and ``data``, on which it is decided whether a form is good enough: the
            figures of the test split have chosen nothing then. Default: the test split itself.
        poll: called between steps; may raise to stop.

    Raises:
        ExportFailed: ``onnx`` does not answer as torch does; its file is gone.
    """
    if not formats:
        return Exported((), ())
    model = _load(folder, task)
    pad_id = pad_id_of(model.config)
    whole = folder / FILES["onnx"]
    poll()
    _write_whole(model, task, whole)
    checked = _checked(model, task, rows, data, seed, poll)
    lossy = judge is not None and set(formats) != {"onnx"}
    judged = _checked(model, task, *judge, seed, poll) if judge is not None and lossy else checked
    known = [feeds_of([calibration[i] for i in places], pad_id) for places in chunks([len(row) for row in calibration])]
    cards, refused = [], []
    for name in formats:
        path = folder / FILES[name]
        poll()
        try:
            if name != "onnx":
                write_form(name, whole, path, known)
            cards.append(_compared(name, path, checked, judged, task, seed, poll))
        except (ExportFailed, InvalidModel) as error:
            path.unlink(missing_ok=True)
            if name == "onnx":
                raise
            refused.append(RefusedExport(format=name, reason=error.message))
    if "onnx" not in formats:
        whole.unlink()
    return Exported(tuple(cards), tuple(refused))


def _compared(
    name: Format, path: Path, checked: Checked, judged: Checked, task: Task, seed: int, poll: Callable[[], None]
) -> ExportCard:
    """A form's figures on ``checked``; whether it is good enough is decided on ``judged``, but for ``onnx``, which has
    to answer as torch does."""
    session = _checked_session(name, path)
    logits = _answer(session, checked.data, checked.feeds, poll)
    held = None
    if name != "onnx" and judged is not checked:
        held = _answer(session, judged.data, judged.feeds, poll), judged.expected, judged.data
    return compare(name, path, logits, checked.expected, checked.data, task, seed, held)


@dataclass(frozen=True, slots=True)
class Checked:
    """Examples of a split, on which forms are compared with torch."""

    data: Encoded
    feeds: Sequence[tuple[NDArray[np.int64], Feeds]]  #: places of its rows, batch by batch
    expected: NDArray[np.float32]  #: torch's logits over all of it


def _checked(
    model: PreTrainedModel,
    task: Task,
    rows: Sequence[Row] | Sequence[Picture],
    data: Encoded,
    seed: int,
    poll: Callable[[], None],
) -> Checked:
    pad_id = pad_id_of(model.config)
    chosen = _drawn(rows, data, seed, task.width(model.config) if not task.of_words else int(model.config.vocab_size))
    taken = data.take(chosen)
    feeds = [
        (places, feeds_of([rows[i] for i in data.rows_of(chosen)[places]], pad_id))
        for places in _batches(taken.lengths)
    ]
    return Checked(taken, feeds, _answer(torch_runner(model, task), taken, feeds, poll))


def _checked_session(name: Format, path: Path) -> Session:
    """torch computes its answers on the CPU, so that a form has to do as well there; half precision is for GPUs."""
    return Session(path, providers=None if name == "onnx-fp16" else ["cpu"])


def rows_of(data: Encoded, kept: NDArray[np.int64] | None = None) -> list[Row] | list[Picture]:
    """A split as the rows that this module and ``limbeck.latency`` take.

    ``kept`` are the original ids of a compact vocabulary (``limbeck.vocabulary.Vocabulary.kept``).
    """
    if isinstance(data, Pictures):
        return data.rows()
    ids = data.ids if kept is None else kept[data.ids]
    types = np.zeros(len(ids), dtype=np.int64) if data.segments is None else data.segments
    spans = [slice(start, end) for start, end in zip(data.starts[:-1], data.starts[1:], strict=True)]
    return [Row(ids[span].tolist(), types[span].tolist()) for span in spans]


def torch_runner(
    model: PreTrainedModel,
    task: Task,
    *,
    kept: NDArray[np.int64] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Runner:
    """The model where it is, as a function of padded batches; puts it into ``eval()``.

    ``kept`` as for :func:`rows_of`: the batches come in original ids, the model has only these.
    """
    model.train(False)
    names = input_names(model)

    @torch.inference_mode()
    def run(feeds: Feeds) -> NDArray[np.float32]:
        if kept is not None and "input_ids" in feeds:
            feeds = {**feeds, "input_ids": np.searchsorted(kept, feeds["input_ids"])}
        inputs = {name: torch.from_numpy(feeds[name]).to(model.device) for name in names}
        with autocast():
            logits: NDArray[np.float32] = task.logits(model(**inputs)).float().cpu().numpy()
        return logits

    return run


def onnx_runner(folder: Path, format: Format, *, threads: int | None = None) -> Runner:
    """An exported form as a function of padded batches."""
    return Session(folder / FILES[format], threads=threads)


def _load(folder: Path, task: Task) -> PreTrainedModel:
    import limbeck.recurrent  # noqa: F401  # so that transformers knows of it
    from limbeck.students import quiet_transformers

    with quiet_transformers():
        if (folder / fewer_heads.LOADER).exists():
            return fewer_heads.load(folder, task.model_class())
        model: PreTrainedModel = task.model_class().from_pretrained(
            folder, dtype="float32", use_safetensors=True, local_files_only=True
        )
    return model


def _write_whole(model: PreTrainedModel, task: Task, path: Path) -> None:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size >= _LARGEST_FILE:
        raise ExportFailed(f"The student has {size:,} bytes of weights; an ONNX file holds {_LARGEST_FILE:,} at most.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_graph(model, task, path)


def check_batches(rows: Sequence[Row] | Sequence[Picture], seed: int) -> list[NDArray[np.int64]]:
    """Places of the rows to compare, batch by batch, where every example is one row."""
    order = _within_tokens(np.random.default_rng(seed).permutation(len(rows)), [len(row) for row in rows])
    return [order[places] for places in _batches(np.array([len(rows[place]) for place in order]))]


def _drawn(rows: Sequence[Row] | Sequence[Picture], data: Encoded, seed: int, width: int) -> NDArray[np.int64]:
    """The examples to compare: drawn at random where there are many."""
    if data.cloze:
        order = np.random.default_rng(seed).permutation(len(data))[:CHECKED_EXAMPLES]
        hidden = np.add.reduceat(data.labels != -100, data.starts[:-1])
        return order[: max(1, int(np.searchsorted(np.cumsum(hidden[order]), _CHECKED_LOGITS // width)))]
    lengths = [sum(len(rows[row]) for row in data.rows_of([one])) for one in range(data.examples)]
    return _within_tokens(np.random.default_rng(seed).permutation(data.examples), lengths)


def _within_tokens(order: NDArray[np.int64], lengths: Sequence[int]) -> NDArray[np.int64]:
    order = order[:CHECKED_EXAMPLES]
    tokens = np.cumsum([lengths[one] for one in order])
    return order[: max(_FEWEST_CHECKED, int(np.searchsorted(tokens, _CHECKED_TOKENS)))]


def _batches(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The places of rows of these lengths, each once, batch by batch."""
    batches: list[NDArray[np.int64]] = []
    order = np.arange(len(lengths))
    start = 0
    while start < min(_MIXED_EXAMPLES, len(order)):
        size = _SIZES[len(batches) % len(_SIZES)]
        batches.append(order[start : start + size])
        start += size
    rest = order[start:]
    return batches + [rest[places] for places in chunks([int(lengths[i]) for i in rest])]


def _answer(
    run: Runner, data: Encoded, feeds: Sequence[tuple[NDArray[np.int64], Feeds]], poll: Callable[[], None]
) -> NDArray[np.float32]:
    """The logits over all of ``data``, (rows, classes); where each token is answered (tokens, classes), where some are
    hidden (hidden, vocabulary)."""
    logits: NDArray[np.float32] | None = None
    for places, batch in feeds:
        poll()
        found = run(batch)
        if data.per_token:
            found = found[batch["attention_mask"].astype(bool)]
        if data.cloze:
            found = found[data.labels[data.tokens_of(places)] != -100]
        if logits is None:
            logits = np.empty((data.answers, found.shape[-1]), dtype=np.float32)
        logits[data.answer_places(places)] = found
    assert logits is not None
    return logits


def compare(
    name: Format,
    path: Path,
    logits: NDArray[np.float32],  # over all of data
    expected: NDArray[np.float32],  # torch's
    data: Encoded,
    task: Task,
    seed: int,
    judged: tuple[NDArray[np.float32], NDArray[np.float32], Encoded] | None = None,
) -> ExportCard:
    """Judge the answers of the form at ``path`` by those of torch.

    Args:
        judged: other logits, torch's, and their data, by which it is decided whether a form that is not exact is good
            enough, except that no logit may be infinite or NaN in either. Default: the same.

    Raises:
        ExportFailed: they are not as good.
    """
    if name != "onnx":
        _require_finite(name, logits)
    answers = {"export": task.predictions(logits, data), "torch": task.predictions(expected, data)}
    difference = float(np.abs(logits - expected).max())
    agreement = task.agreement(answers["torch"], answers["export"], task.truth(data))
    drawn = Resamples(task.truth(data), answers, seed=seed)
    if name == "onnx":
        require_equal(logits, expected)
    else:
        _require_quality(name, *(judged or (logits, expected, data)), task, seed)
    return ExportCard(
        format=name,
        bytes=path.stat().st_size,
        examples=data.examples,
        max_logit_difference=difference,
        label_agreement=agreement,
        metrics={metric: drawn.estimate(metric, "export") for metric in task.metrics},
        latency=(),
    )


def require_equal(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """
    Raises:
        ExportFailed: logits, (examples, classes), are not the expected ones within the tolerance of float32.
    """
    difference, scale = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
    agreement = float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean())
    allowed = LOGIT_TOLERANCE * max(1.0, scale)
    if not difference <= allowed or agreement < LABEL_AGREEMENT:  # "not <=": NaN is refused as well
        raise ExportFailed(
            f"The ONNX student does not answer as the trained one: its logits differ by up to {difference:.2g} "
            f"(allowed: {allowed:.2g}) and {agreement:.2%} of its answers are the same (needed: {LABEL_AGREEMENT:.1%})."
        )


def _require_finite(name: Format, logits: NDArray[np.float32]) -> None:
    if not np.isfinite(logits).all():
        raise ExportFailed(f"The student's logits hold NaN or infinite values as {name}.")


def _require_quality(
    name: Format, logits: NDArray[np.float32], expected: NDArray[np.float32], data: Encoded, task: Task, seed: int
) -> None:
    _require_finite(name, logits)
    answers, metric = (
        {"export": task.predictions(logits, data), "torch": task.predictions(expected, data)},
        task.main_metric,
    )
    drawn, agreement = (
        Resamples(task.truth(data), answers, seed=seed),
        task.agreement(answers["torch"], answers["export"], task.truth(data)),
    )
    each = drawn.values(metric, ("torch", "export"))
    surely = float(np.quantile(each["torch"] - each["export"], 0.025))
    if surely > LOSS[name]:
        lost = drawn.value(metric, "torch") - drawn.value(metric, "export")
        raise ExportFailed(
            f"The student loses {100 * lost:.1f} points of {metric} as {name} (at least {100 * surely:.1f} with 97.5 % "
            f"certainty; allowed: {100 * LOSS[name]:g}), and only {agreement:.1%} of its answers stay the same."
        )
    if (astray := task.astray(answers["torch"], answers["export"])) > ASTRAY:
        raise ExportFailed(
            f"The student's answers as {name} are off by {astray:.1%} of their spread (allowed: {ASTRAY:.0%})."
        )
