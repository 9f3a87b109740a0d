"""What a student's early exits are worth, and at which speed they are used unless a request says otherwise.

Every branch answers the validation and the test split once, without anybody leaving; what a speed makes of them follows
by counting. The default speed is chosen on validation alone, the curve is of the test split, and its seconds are those
of the ONNX graphs in which texts really leave.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck import evaluate, exits
from limbeck.batches import Collator, Encoded, forward_batches
from limbeck.errors import ExportFailed
from limbeck.exit_graph import write_exit_graphs
from limbeck.export import LABEL_AGREEMENT, check_batches, onnx_runner, require_equal
from limbeck.latency import Runner, measure_latency
from limbeck.progress import forward_work
from limbeck.runtime.encoding import Feeds, Row, pad
from limbeck.runtime.exits import ExitSession, found_graphs
from limbeck.scorecard import ExitPoint, ExitsCard, Latency
from limbeck.students import quiet_transformers
from limbeck.timing import timed_seconds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.methods.fastbert import FastBert
    from limbeck.preparation import Prepared
    from limbeck.run import Run

#: Speeds of the curve; the default speed comes between them.
CURVE = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
#: Among these the default is looked for: finer where branches are sure.
_CANDIDATES = tuple(sorted({*(k / 1000 for k in range(10)), *(k / 100 for k in range(1, 101))}))
#: Of the seconds that other models are timed: there are ten speeds.
_TIMED = 0.7
#: The speed at which the graphs are compared with torch where the default lets nobody leave.
_COMPARED = 0.3


@dataclass(frozen=True, slots=True)
class Answers:
    """What each layer's branch, and last the head, answers to a split when nobody leaves."""

    predictions: NDArray[np.int64]  # (layers, examples)
    uncertainty: NDArray[np.float32]  # (layers, examples)

    def at(self, speed: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Predictions, and through how many layers each example goes: (examples,) both."""
        sure = self.uncertainty <= speed if speed > 0 else np.zeros(self.uncertainty.shape, dtype=np.bool_)
        sure[-1] = True  # whoever was never sure gets the head's answer
        layers = sure.argmax(axis=0)
        return self.predictions[layers, np.arange(len(layers))], layers + 1


@torch.inference_mode()
def answers_of(model: PreTrainedModel, data: Encoded, device: torch.device, poll: Callable[[], None]) -> Answers:
    """Run every layer and branch over a split, in float32."""
    model.train(False)
    collate = Collator(data, model.config.pad_token_id or 0, device)
    shape = int(model.config.num_hidden_layers), len(data)
    found = Answers(np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float32))
    for rows in forward_batches(data.lengths):
        poll()
        logits = exits.every_answer(model, collate(rows).inputs)
        found.predictions[:, rows] = logits.argmax(dim=-1).cpu().numpy()
        found.uncertainty[:, rows] = exits.uncertainty(logits).cpu().numpy()
    return found


def calibrate(found: Answers, labels: NDArray[np.int64], metric: str, method: FastBert) -> tuple[float, float]:
    """The highest speed up to which the metric never falls below the floor, and the floor.

    It is 0, where all layers are used, when even the lowest speed costs more; a floor that the user named may then be
    missed all the same.
    """
    whole = evaluate.score(metric, found.at(0)[0], labels)
    floor = whole - method.max_loss / 100 if method.floor is None else method.floor
    speed = 0.0
    for candidate in _CANDIDATES:
        # A sum of whole answers: the floor itself counts as reached, whatever its last bit is.
        if evaluate.score(metric, found.at(candidate)[0], labels) < floor - 1e-9:
            break
        speed = candidate
    return speed, floor


def measure_exits(
    run: Run, job: Prepared, method: FastBert, model: PreTrainedModel, folder: Path, rows: Sequence[Row], pad_id: int
) -> ExitsCard:
    """Calibrate a student's exits, export them where it is exported, and measure both.

    Args:
        model: the student with its branches, over the compact vocabulary.
        folder: where it was written; ``limbeck.json`` gets the speed, ``onnx/exits`` the graphs.
        rows: the test split in the folder's vocabulary, with its ``pad_id``.

    Raises:
        ExportFailed: the graphs do not answer as torch does.
    """
    device, metric = run.device.torch, job.task.main_metric
    model = run.device.place(model)
    validation = answers_of(model, job.validation, device, run.poll)
    speed, floor = calibrate(validation, job.validation.labels, metric, method)
    _note(folder, validation.predictions.shape[0], speed)
    test = answers_of(model, job.test, device, run.poll)
    speeds = sorted({*CURVE, speed})
    plain: tuple[Latency, ...] = ()
    timed: Mapping[float, tuple[Latency, ...]] = {}
    if "onnx" in run.config.export:
        export_exits(folder, rows, speed or _COMPARED, run.config.training.seed, run.poll)
        plain, timed = _time(folder, speeds, rows, pad_id, run.poll)
    kept = evaluate.score(metric, validation.at(speed)[0], job.validation.labels)
    card = ExitsCard(
        layers=validation.predictions.shape[0],
        speed=speed,
        floor=floor,
        validation=kept,
        validation_whole=evaluate.score(metric, validation.at(0)[0], job.validation.labels),
        plain_latency=plain,
        curve=tuple(_point(one, test, job, model, timed.get(one, ()), run.config.training.seed) for one in speeds),
    )
    _say_exits(run, card, metric)
    return card


def _say_exits(run: Run, card: ExitsCard, metric: str) -> None:
    chosen = next(point for point in card.curve if point.speed == card.speed)
    shown = [f"{100 * point.metric.value:.1f} %" for point in (chosen, card.curve[0])]
    run.event(
        "student.exits",
        f"Early exit at speed {card.speed:g}: {chosen.mean_layers:.2f} of {card.layers} layers on the test split, "
        f"{metric.replace('_', ' ')} {shown[0]} (all layers: {shown[1]})"
        + ("" if card.kept else f"; no speed keeps {100 * card.floor:.1f} % on validation"),
        speed=card.speed,
        kept=card.kept,
        layers=chosen.mean_layers,
    )


def _note(folder: Path, layers: int, speed: float) -> None:
    path = folder / "limbeck.json"
    described = json.loads(path.read_text(encoding="utf-8")) | {"exits": {"layers": layers, "speed": speed}}
    path.write_text(json.dumps(described, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _point(
    speed: float, found: Answers, job: Prepared, model: PreTrainedModel, latency: tuple[Latency, ...], seed: int
) -> ExitPoint:
    predictions, layers = found.at(speed)
    count = found.predictions.shape[0]
    return ExitPoint(
        speed=speed,
        metric=evaluate.bootstrap(job.task.main_metric, predictions, job.test.labels, seed=seed),
        mean_layers=float(layers.mean()),
        leaving=tuple((np.bincount(layers, minlength=count + 1)[1:] / len(layers)).tolist()),
        flops=_work(speed, layers, job.test.lengths, model) / forward_work(model.config, count, job.test.lengths),
        latency=latency,
    )


def _work(speed: float, layers: NDArray[np.int64], lengths: NDArray[np.int64], model: PreTrainedModel) -> float:
    """Operations of the layers and branches that a split passes through."""
    total = 0.0
    for depth in range(1, int(layers.max()) + 1):
        here = lengths[layers >= depth]
        total += forward_work(model.config, 1, here)
        if speed > 0 and depth < int(model.config.num_hidden_layers):
            # Narrowing each token dominates; then scores and their mean in each head, and the matrices of one token.
            narrow, one = int(model.config.hidden_size) + 2 * exits.HEADS, (2 * exits.HEADS + 1) * exits.WIDTH
            total += 2.0 * exits.WIDTH * (narrow * float(here.sum()) + one * len(here))
    return total


def export_exits(folder: Path, rows: Sequence[Row], speed: float, seed: int, poll: Callable[[], None]) -> None:
    """Write the graphs of a student's folder, and hold them against torch.

    Raises:
        ExportFailed: at speed 0 the logits are not those of the plain student, or at ``speed`` texts leave elsewhere or
            with other labels than in torch. The graphs are gone then.
    """
    with quiet_transformers():
        model = exits.load(folder)
    poll()
    write_exit_graphs(model, folder)
    files = found_graphs(folder)
    try:
        pad_id = int(model.config.pad_token_id or 0)
        session = ExitSession(files, speed, pad_id=pad_id)
        feeds = [pad([rows[i] for i in places], pad_id) for places in check_batches(rows, seed)]
        _compare(session, model, feeds, speed, poll)
    except ExportFailed:
        for file in files:
            file.unlink()
        raise


def _compare(
    session: ExitSession, model: PreTrainedModel, feeds: Sequence[Feeds], speed: float, poll: Callable[[], None]
) -> None:
    from limbeck.graph import input_names

    same: list[NDArray[np.bool_]] = []
    found, expected = [], []
    for one in feeds:
        poll()
        inputs = {name: torch.from_numpy(one[name]) for name in input_names(model)}
        found.append(session.answer(one, 0)[0])
        with torch.inference_mode():
            expected.append(model(**inputs).logits.numpy())
        logits, layers = session.answer(one, speed)
        reference = exits.answer(model, inputs, speed)
        labels = logits.argmax(axis=1) == reference.logits.numpy().argmax(axis=1)
        same.append(labels & (layers == reference.layers.numpy()))
    require_equal(np.concatenate(found), np.concatenate(expected))
    agreement = float(np.concatenate(same).mean())
    if agreement < LABEL_AGREEMENT:
        raise ExportFailed(
            f"The ONNX student leaves early otherwise than the trained one: at speed {speed:g} only {agreement:.2%} of "
            f"the texts leave behind the same layer with the same label (needed: {LABEL_AGREEMENT:.1%})."
        )


def _time(
    folder: Path, speeds: Sequence[float], rows: Sequence[Row], pad_id: int, poll: Callable[[], None]
) -> tuple[tuple[Latency, ...], Mapping[float, tuple[Latency, ...]]]:
    """The plain graph's and each speed's, alternated."""
    session = ExitSession(found_graphs(folder), 0, pad_id=pad_id)
    runners: dict[Any, Runner] = {speed: partial(session.answer, speed=speed) for speed in speeds}
    runners["plain"] = onnx_runner(folder, "onnx")
    found: dict[Any, tuple[Latency, ...]] = dict(
        measure_latency(runners, rows, pad_id=pad_id, seconds=_TIMED * timed_seconds(), poll=poll)
    )
    return found.pop("plain"), found
