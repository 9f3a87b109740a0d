"""Running a model over a whole split; keeping the teacher's answers, so that it runs over the training split once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.batches import Collator, Encoded, forward_batches
from limbeck.errors import Interrupted
from limbeck.losses import require_finite
from limbeck.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.tasks.base import Task

_ROLE = "cache"


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    data: Encoded,
    task: Task,
    run: Run,
    done: Callable[[int], None] = lambda examples: None,
) -> NDArray[np.float32]:  # (rows, classes), in the split's order; where each token is answered (tokens, classes)
    """What the task keeps of the model's logits for every row of the split; leaves the model in ``eval()``."""
    model.train(False)
    collate = Collator(data, model.config.pad_token_id or 0, run.device.torch)
    logits = np.empty((data.answers, task.width(model.config)), dtype=np.float32)
    for rows in forward_batches(data.lengths):
        run.poll()
        with run.device.autocast():
            places, answers = _answers(model, collate, rows, task)
            logits[places] = answers.numpy()
        done(len(rows))
    return logits


def _answers(
    model: PreTrainedModel, collate: Collator, rows: NDArray[np.int64], task: Task
) -> tuple[NDArray[np.int64], Tensor]:
    """Where the answers to these rows go, and the answers, (places, classes) in float32 on the CPU."""
    batch = collate(rows)
    found = task.kept(model, batch)
    if collate.data.per_token and not collate.data.cloze:
        found = found[batch.inputs["attention_mask"].bool()]
    return collate.data.answer_places(rows), found.cpu()


def cache_key(run: Run, teacher_weights: str, data_sha256: str) -> str:
    """What the teacher's logits depend on, as a hash."""
    training = run.config.training
    # Copies are drawn by the seed.
    added = [one.model_dump(mode="json") for one in training.augmentation]
    drawn = [added, training.seed] if added else []
    parts = [teacher_weights, data_sha256, training.max_length, run.device.precision, str(torch.__version__), *drawn]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@torch.inference_mode()
def teacher_logits(
    load: Callable[[], PreTrainedModel], data: Encoded, task: Task, key: str, classes: int, run: Run
) -> Tensor:
    """The teacher's logits over the training split, float32, from the state or computed: (rows, classes), and where
    each token is answered (tokens, classes).

    An interrupted pass goes on where it stopped.

    Raises:
        Diverged: a logit is NaN or infinite.
        Interrupted: the part that was done is staged in the run's state.
    """
    logits, done = torch.zeros(len(data.ids) if data.per_token else len(data), classes), 0
    if run.store.has(_ROLE):
        tensors, facts = run.store.read_tensors(_ROLE)
        if facts["key"] == key:
            logits, done = tensors["logits"], facts["batches"]
    hits = sum(len(rows) for rows in forward_batches(data.lengths)[:done])
    started = time.monotonic()
    run.meter.begin("cache")
    if hits < len(data):
        _fill(load(), data, task, logits, done, key, run)
        require_finite(logits, "the teacher's logits")
        _stage(run, logits, len(forward_batches(data.lengths)), key)
        run.commit()
        _say_built(run, logits, len(data), hits, time.monotonic() - started)
    run.meter.finish("cache")
    return logits


def kept_logits(run: Run) -> Tensor | None:
    """The teacher's finished logits over the training split, where the state still has them."""
    return run.store.read_tensors(_ROLE)[0]["logits"] if run.store.has(_ROLE) else None


def _say_built(run: Run, logits: Tensor, examples: int, hits: int, seconds: float) -> None:
    size, misses = logits.numel() * logits.element_size(), examples - hits
    run.event(
        "cache.built",
        f"The teacher answered {misses:,} training examples in {seconds:.1f} s ({hits:,} were known); "
        f"its answers, {size:,} bytes, serve every epoch.",
        hits=hits,
        misses=misses,
        bytes=size,
        seconds=seconds,
    )


def _fill(model: PreTrainedModel, data: Encoded, task: Task, logits: Tensor, done: int, key: str, run: Run) -> None:
    model.train(False)
    collate = Collator(data, model.config.pad_token_id or 0, run.device.torch)
    tokens = data.lengths
    for number, rows in enumerate(forward_batches(tokens)[done:], start=done):
        try:
            run.poll()
        except Interrupted:
            _stage(run, logits, number, key)
            raise
        if run.save_due():
            _stage(run, logits, number, key)
            run.commit()
        with run.device.autocast():
            places, answers = _answers(model, collate, rows, task)
            logits[torch.from_numpy(places)] = answers
        run.meter.advance(float(tokens[rows].sum() / tokens.sum()), examples=len(rows))


def _stage(run: Run, logits: Tensor, batches: int, key: str) -> None:
    facts: dict[str, Any] = {"key": key, "batches": batches}
    run.store.write_tensors(_ROLE, {"logits": logits}, facts)
