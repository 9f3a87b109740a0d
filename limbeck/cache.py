"""Running a model over a whole split; keeping the teacher's answers, so that it runs over the training split once.

They are kept twice: in the job's own state, from which an interrupted pass and a resumed job go on
(``limbeck/teacher_pass.py``), and, where there is one, in a folder that jobs share (``limbeck/teacher_cache.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.answer_files import LOGITS, STATES, Answers, Shapes, bytes_of, shapes_of
from limbeck.batches import FORWARD_TOKENS, Collator, Encoded, forward_batches
from limbeck.begun import Begun
from limbeck.checkpoint import mapped_tensors
from limbeck.errors import DamagedFile, LimbeckError
from limbeck.families import pad_id_of
from limbeck.losses import require_finite
from limbeck.run import Run
from limbeck.teacher_pass import ROLE, FirstTokens, Help, TeacherPass, answer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from limbeck.tasks.base import Task
    from limbeck.teacher_cache import Known

#: Of the way that answers are computed; to be raised when it changes, because their rounding does.
_VERSION = 1


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    data: Encoded,
    task: Task,
    run: Run,
    done: Callable[[int], None] = lambda examples: None,
    keep: str | None = None,
) -> NDArray[np.float32]:  # (rows, classes), in the split's order; where each token is answered (tokens, classes)
    """What the task keeps of the model's logits for every row of the split, on every rank; leaves the model in
    ``eval()``.

    Args:
        done: told how many examples more are answered.
        keep: where the state keeps the answers, so that an interrupted pass goes on; the caller drops them.
    """
    model.train(False)
    collate = Collator(data, pad_id_of(model.config), run.device.torch)
    begun, batches = Begun(run, keep), forward_batches(data.lengths)
    logits = begun.tensors.setdefault("logits", torch.zeros(data.answers, task.width(model.config))).numpy()
    for number, rows in enumerate(batches[begun.batches :], start=begun.batches):
        begun.between(number)
        if number % run.ranks.count == run.ranks.number:
            with run.device.autocast():
                places, answers = answer(model, collate, rows, task)
                logits[places] = answers.numpy()
        done(len(rows))
    begun.finish(len(batches))
    whole: NDArray[np.float32] = run.ranks.sum(torch.from_numpy(logits)).numpy()
    return whole


def answers_key(run: Run, config: PreTrainedConfig, weights: Mapping[str, Tensor], data: Encoded, task: Task) -> str:
    """Everything that one teacher's logits over a split are computed from, as a hash.

    Of the weights as they answer (fine-tuned, if they were) and the token ids as they are read: so that the data's
    splits, columns and limit, the tokenizer, the maximal length and what augmentation drew are all in it. Of the
    machine as well: another processor or number of threads rounds otherwise, and a job has to end with the same
    student whether it finds the answers or computes them.
    """
    hardware = run.device.hardware().model_dump(mode="json", exclude={"onnxruntime"})
    return _key(config, weights, data, task, {"hardware": hardware})


def content_key(config: PreTrainedConfig, weights: Mapping[str, Tensor], data: Encoded, task: Task) -> str:
    """The same without the machine: of what is answered, and by whom."""
    return _key(config, weights, data, task, {})


def _key(
    config: PreTrainedConfig, weights: Mapping[str, Tensor], data: Encoded, task: Task, where: Mapping[str, Any]
) -> str:
    digest = hashlib.sha256()
    parts: dict[str, Any] = {
        "keeps": "logits",
        "version": _VERSION,
        "task": task.model_dump(mode="json"),
        "config": {name: value for name, value in config.to_dict().items() if not name.startswith("_")},
        **where,
        "batch": FORWARD_TOKENS,
        "layout": [data.per_token, data.together],
    }
    if task.kind == "value":
        parts["exact"] = True  # earlier ones may have been rounded to bfloat16 (limbeck/exact.py)
    digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
    arrays = data.read()
    # Seen as bytes: numpy has no bfloat16.
    arrays |= {f"weights.{name}": _as_bytes(value) for name, value in sorted(weights.items())}
    for name, array in arrays.items():
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


@torch.inference_mode()
def teacher_logits(
    load: Callable[[], PreTrainedModel],
    data: Encoded,
    task: Task,
    key: str,
    classes: int,
    run: Run,
    role: str = ROLE,
    states: FirstTokens | None = None,
    content: str | None = None,
) -> Tensor:
    """The teacher's logits over the training split, float32, from the state or computed: (rows, classes), and where
    each token is answered (tokens, classes).

    An interrupted pass goes on where it stopped; a long one is offered to other workers.

    Args:
        load: the teacher; not called where its answers are known.
        key: :func:`answers_key`.
        role: where the state keeps them, and the item of the plan.
        states: what the same pass keeps beside them, for :func:`kept_states`.
        content: :func:`content_key`; a job that goes on elsewhere keeps the answers that it has learned from.

    Raises:
        Diverged: an answer is NaN or infinite.
        Interrupted: the part that was done is staged in the run's state.
    """
    work = TeacherPass(run, data, task, key, classes, role, states, content)
    run.meter.begin(role)
    if not work.whole and (known := _find(run, work.key, shapes_of(work.answers))) is not None:
        work.take(known.answers, known.seconds)
        work.stage()
        run.commit()
        _say_used(run, known, len(data))
    elif not work.whole:
        _compute(work, load, key, run, role, len(data))
    run.meter.finish(role)
    return work.answers[LOGITS]


def _compute(
    work: TeacherPass, load: Callable[[], PreTrainedModel], key: str, run: Run, role: str, examples: int
) -> None:
    """Ask the teacher what is not known yet, and keep it for this job and for later ones."""
    hits, before = work.examples, work.seconds
    work.fill(load())
    for name, found in work.answers.items():
        require_finite(found, f"the teacher's {name}")
    work.stage()
    run.commit()
    _say_built(run, role, work.answers, examples, hits, work.seconds - before)
    _say_helped(run, work.help)
    # For jobs that learn from the logits alone, too; first, as the folder may have room for nothing more.
    for one, answers in {key: {LOGITS: work.answers[LOGITS]}, work.key: work.answers}.items():
        _keep(run, one, answers, work.seconds)


def _find(run: Run, key: str, shapes: Shapes) -> Known | None:
    """The answers that an earlier job left in the shared folder, if it has them whole."""
    if run.teacher_cache is None:
        return None
    try:
        return run.teacher_cache.find(key, shapes)
    except DamagedFile as error:
        run.event("cache.damaged", f"{error.message} They are computed again.", key=key)
    except OSError as error:
        run.event("cache.failed", f"The folder of teachers' answers cannot be read: {error}.", key=key)
    return None


def _keep(run: Run, key: str, answers: Answers, seconds: float) -> None:
    """Leave the answers to later jobs; this one has them, whatever happens to the folder."""
    if run.teacher_cache is None:
        return
    try:
        if not run.teacher_cache.keep(key, answers, seconds):
            run.event("cache.failed", "The teacher's answers are larger than the folder that later jobs share may be.")
    except (LimbeckError, OSError) as error:
        run.event("cache.failed", f"The teacher's answers could not be kept for later jobs: {error}", key=key)


def cache_role(teacher: str) -> str:
    """Where the logits of a teacher are kept, by the name of its phase: ``teacher-2`` -> ``cache-2``."""
    return teacher.replace("teacher", ROLE, 1)


def kept_logits(run: Run, teachers: Sequence[str] = ("teacher",)) -> Tensor | None:
    """The finished logits over the training split of these teachers, side by side, where the state still has them."""
    roles = [cache_role(teacher) for teacher in teachers]
    if not all(run.store.has(role) for role in roles):
        return None
    return torch.cat([run.store.read_tensors(role)[0]["logits"] for role in roles], dim=-1)


def kept_states(run: Run) -> Tensor | None:
    """The states of the first teacher's first token over the training split, (rows, places, width): on every rank,
    mapped from the state; None where it has none."""
    path = run.path_everywhere(STATES)
    return None if path is None else mapped_tensors(path)[0][STATES]


def _say_used(run: Run, known: Known, examples: int) -> None:
    run.event(
        "cache.used",
        f"The teacher's answers to all {examples:,} training examples{_and_states(known.answers)} ({known.bytes:,} "
        f"bytes) are known from an earlier job, which saves the {known.seconds:.1f} s that they took.",
        hits=examples,
        misses=0,
        bytes=known.bytes,
        seconds_saved=known.seconds,
    )


def _say_built(run: Run, role: str, answers: Answers, examples: int, hits: int, seconds: float) -> None:
    who = "The teacher" if role == ROLE else role.replace(f"{ROLE}-", "Teacher ")
    size, misses = bytes_of(answers), examples - hits
    run.event(
        "cache.built",
        f"{who} answered {misses:,} training examples in {seconds:.1f} s ({hits:,} were known); "
        f"its answers{_and_states(answers)}, {size:,} bytes, serve every epoch.",
        hits=hits,
        misses=misses,
        bytes=size,
        seconds=seconds,
    )


def _and_states(answers: Answers) -> str:
    return " and the states of its first token" * (STATES in answers)


def _say_helped(run: Run, helped: Mapping[str, Help]) -> None:
    if not helped:
        return
    parts, examples = sum(one.parts for one in helped.values()), sum(one.examples for one in helped.values())
    seconds = sum(one.seconds for one in helped.values())
    shown = ", ".join(f"{worker} {one.parts}" for worker, one in sorted(helped.items()))
    run.event(
        "cache.helped",
        f"Other workers or slots answered {examples:,} of these examples, in {parts} parts ({shown}), which saves the "
        f"{seconds:.1f} s that they took.",
        parts={worker: one.parts for worker, one in helped.items()},
        examples=examples,
        seconds_saved=seconds,
    )
