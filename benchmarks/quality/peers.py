"""A cell of another trainer: TextBrewer's student of the same teacher, start, token ids, steps and seed as ours.

It trains in the peers' environment (``benchmarks/peers``) and answers dev and test after every epoch; dev selects the
epoch, as in ours, and the answers to the reported split are judged by the same code.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.asking import Worker
from benchmarks.peers.order import PeerOrder, Training, write_tokens
from benchmarks.quality.grid import PEERS, Cell
from benchmarks.quality.running import Bench, against_baseline, ensure_teacher, prepared, sha256_of
from benchmarks.quality.store import packed, unpacked
from benchmarks.report import machine
from limbeck import evaluate
from limbeck.batches import Encoded
from limbeck.errors import TeacherUnfit
from limbeck.matching import uniform_map
from limbeck.preparation import Prepared
from limbeck.students import read_config


def measure_peer(bench: Bench, cell: Cell) -> None:
    """Measure a peer's cell and record it.

    Raises:
        PeersUnavailable: the other trainer could not be installed, or ended with an error.
    """
    folder = ensure_teacher(bench, cell)
    config = bench.config(cell)
    workdir = bench.workdir(cell, config)
    with prepared(config, workdir, cell.name) as (_, job):
        order = _order(cell, job, folder, workdir / "tokens", config.training)
        print(f"[{cell.name}] TextBrewer trains", file=sys.stderr, flush=True)
        with Worker.of_peers() as worker:
            answered = worker.ask(order.as_json())
        found = _judged(bench, cell, job, folder, answered)
    bench.store.write(cell, bench.hash_of(cell), found)
    shutil.rmtree(workdir)


def matches(layers: int, of: int, loss: str, weight: float = 1.0) -> list[dict[str, Any]]:
    """The embeddings, and each of the student's layers with every n-th of the teacher's, the last with the last, as
    TextBrewer's examples have it."""
    pairs = [(0, 0), *((place, layer + 1) for place, layer in enumerate(uniform_map(layers, of), start=1))]
    return [{"layer_S": ours, "layer_T": theirs, "loss": loss, "weight": weight} for ours, theirs in pairs]


def _order(cell: Cell, job: Prepared, teacher: Path, folder: Path, training: Any) -> PeerOrder:
    named = read_config(teacher).id2label
    if tuple(named[place] for place in range(len(named))) != job.card.labels:
        raise ValueError(f"{teacher} answers in another order of the labels than the data's {job.card.labels}")
    options = PEERS[cell.method]
    files = {name: _tokens(job, name, folder) for name in ("train", "validation", "test")}
    return PeerOrder(
        trainer="textbrewer",
        teacher=teacher,
        layers=job.layers,
        train=files.pop("train"),
        held=files,
        every_epoch=True,
        matches=matches(len(job.layers), job.blueprint.layers, options["hidden"]) if "hidden" in options else (),
        fused=True,  # the same steps in less time
        training=Training(
            epochs=training.epochs,
            batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            warmup_ratio=training.warmup_ratio,
            weight_decay=training.weight_decay,
            temperature=options["temperature"],
            alpha=options["alpha"],
            seed=training.seed,
        ),
    )


def _tokens(job: Prepared, split: str, folder: Path) -> Path:
    data: Encoded = getattr(job, split)
    ids = job.blueprint.vocabulary.kept[data.ids].astype(np.int32)  # as the whole vocabulary numbers them
    return write_tokens(folder / f"{split}.npz", ids, data.segments, data.starts, data.labels)


def _judged(bench: Bench, cell: Cell, job: Prepared, folder: Path, answered: dict[str, Any]) -> dict[str, Any]:
    metric, truth = job.task.main_metric, job.task.truth(job.test)
    teacher = bench.store.read(cell.needs[0], bench.hash_of(cell))
    assert teacher is not None

    def dev(epoch: dict[str, Any]) -> float:
        answers = job.task.predictions(np.asarray(epoch["validation"], np.float32), job.validation)
        return evaluate.score(metric, answers, job.task.truth(job.validation))

    scores = [dev(epoch) for epoch in answered["epochs"]]
    best = int(np.argmax(scores))
    predictions = job.task.predictions(np.asarray(answered["epochs"][best]["test"], np.float32), job.test)
    predictions = np.asarray(predictions).tolist()
    known = json.loads((folder / "truth.json").read_text())
    if known != np.asarray(truth).tolist():
        raise ValueError(f"{folder} was measured on other test examples than these")
    minutes = (answered["marks"][-1] - answered["marks"][0]) / 60
    return {
        "metric": metric,
        "task": job.task.type,
        "teacher": teacher["teacher"],
        "teacher_sha256": sha256_of(folder / "model.safetensors"),
        "student": evaluate.bootstrap(metric, predictions, truth, seed=cell.seed).model_dump(),
        "validation": scores[best],
        "epochs": scores,
        "retention": _retention(metric, predictions, teacher, known, cell.seed),
        "speedup": None,
        "total_minutes": round(minutes, 2),
        "exits": None,
        "machine": machine(),
        "predictions": packed(predictions),
        "truth": packed(known),
    } | against_baseline(bench, cell, metric, predictions, known)


def _retention(metric: str, predictions: Any, teacher: dict[str, Any], truth: Any, seed: int) -> dict[str, Any]:
    taught = unpacked(teacher["predictions"])
    found = evaluate.retention(metric, student=predictions, teacher=taught, labels=truth, seed=seed)
    if found is None:
        raise TeacherUnfit("on the test split the teacher is worth nothing")
    return found.model_dump()
