"""After a job: how hard each training and validation example is for the student, and where it falls behind its teacher.

The numbers come from one pass of the finished student over both splits, beside the teacher's logits that training kept.
They go into the scorecard (the hardest, counts, classes) and, one row an example, into ``hard_samples.parquet`` and
``.csv``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.batches import Collator, Encoded, forward_batches
from limbeck.begun import Begun
from limbeck.cache import cache_role, kept_logits, predict
from limbeck.difficulty import entropies, example_means, right_rows
from limbeck.families import pad_id_of
from limbeck.phases import ensemble_of, panel_of
from limbeck.scorecard import HARD_SAMPLES, ClassAnswers, Difficulty, HardSample
from limbeck.teaching import panel_answers
from limbeck.texts import Shown, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.phases import Weights
    from limbeck.preparation import Prepared
    from limbeck.run import Run
    from limbeck.tasks.base import Task

#: The splits that are measured. The test split is not: whoever studies it example by example has no test left.
SPLITS = ("train", "validation")
_HARDEST = 10
_LONGEST = 200  # characters of a text in the scorecard

Measured = dict[str, Tensor]
"""By column, (examples,): see :func:`measure`."""


@torch.inference_mode()
def measure(
    student: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    data: Encoded,
    examples: int,
    task: Task,
    run: Run,
    logits: Tensor | None = None,
    done: Callable[[int], None] = lambda examples: None,
    keep: str | None = None,
) -> Measured:
    """How hard the first ``examples`` of a split are.

    Args:
        teacher: loads it; not called where its ``logits`` are known.
        done: told how many examples more are done.
        keep: where the state keeps what is measured, so that an interrupted pass goes on; the caller drops it.

    Returns:
        ``loss``, ``teacher_loss`` (against the labels), ``disagreement`` (the divergence at temperature 1); where the
        answers are no numbers also ``entropy`` (the teacher's), ``student_right`` and ``teacher_right``. Of an example
        with several rows, such as tokens, the means over them; right is one of which every row is.
    """
    student.train(False)
    collate = Collator(data, pad_id_of(student.config), run.device.torch, logits)
    answering = teacher().train(False) if logits is None else None
    count = examples if data.owners is None else int((data.owners < examples).sum())
    begun, batches = Begun(run, keep), forward_batches(data.lengths[:count])
    found: Measured = begun.tensors
    for number, rows in enumerate(batches[begun.batches :], start=begun.batches):
        begun.between(number)
        batch = collate(rows)
        with run.device.autocast():
            own = task.rows(task.answer(student, batch).float(), batch)
            given = batch.teacher_logits if answering is None else task.answer(answering, batch).float()
        assert given is not None
        owners = task.owners(batch)
        for name, values in _columns(task, own, task.rows(given, batch), task.targets(batch)).items():
            column = found.setdefault(name, torch.zeros(count))
            column[torch.from_numpy(rows)] = example_means(values, owners, len(rows)).cpu()
        done(len(rows))
    begun.finish(len(batches))
    return _by_example(found, data, examples, count)


def _by_example(found: Measured, data: Encoded, examples: int, count: int) -> Measured:
    """From columns over the first ``count`` rows to columns over the examples that these are of."""
    if data.owners is not None:
        owners = torch.tensor(data.owners[:count])  # mapped, and torch takes no read-only memory
        found = {name: example_means(column, owners, examples) for name, column in found.items()}
    for name in ("student_right", "teacher_right"):
        if name in found:
            found[name] = (found[name] == 1).float()
    return found


def _columns(task: Task, student: Tensor, teacher: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of each row, (units,)."""
    columns = {
        "loss": task.hard_losses(student, targets),
        "teacher_loss": task.hard_losses(teacher, targets),
        "disagreement": task.soft_losses(student, teacher, 1.0),
    }
    if task.kind != "value":
        columns |= {
            "entropy": entropies(task, teacher),
            "student_right": right_rows(task, student, targets).float(),
            "teacher_right": right_rows(task, teacher, targets).float(),
        }
    return columns


def summary(
    measured: Mapping[str, Measured],
    texts: Mapping[str, Sequence[Shown]],
    answers: Mapping[str, Sequence[int]],
    labels: NDArray[np.int64] | None,
    names: Sequence[str],
) -> Difficulty:
    """The scorecard's section.

    Args:
        measured: by split.
        texts: by split.
        answers: the classes that each model (``teacher``, ``student``, perhaps ``baseline``) gave to the test split.
        labels: the test split's true classes; ``None`` where an example has not one class.
    """
    lost, won = {}, {}
    for split, columns in measured.items():
        if "student_right" in columns:
            teacher, student = columns["teacher_right"] == 1, columns["student_right"] == 1
            lost[split], won[split] = int((teacher & ~student).sum()), int((student & ~teacher).sum())
    return Difficulty(
        classes=() if labels is None else tuple(_classes(answers, labels, names)),
        lost=lost,
        won=won,
        hardest=tuple(_hardest(measured["validation"], texts["validation"])),
    )


def _classes(
    answers: Mapping[str, Sequence[int]], labels: NDArray[np.int64], names: Sequence[str]
) -> list[ClassAnswers]:
    right = {model: np.asarray(found) == labels for model, found in answers.items()}
    found = []
    for index, name in enumerate(names):
        inside = labels == index
        if not inside.any():
            continue
        shares = {model: float(hits[inside].mean()) for model, hits in right.items()}
        lost = int((inside & right["teacher"] & ~right["student"]).sum())
        found.append(
            ClassAnswers(
                label=name,
                examples=int(inside.sum()),
                teacher=shares["teacher"],
                student=shares["student"],
                baseline=shares.get("baseline"),
                lost=lost,
            )
        )
    return found


def _hardest(columns: Measured, texts: Sequence[Shown]) -> list[HardSample]:
    order = torch.argsort(columns["loss"], descending=True, stable=True)[:_HARDEST].tolist()
    return [
        HardSample(
            row=row + 1,
            text=shorten(texts[row].text, _LONGEST),
            text_pair=None if (other := texts[row].text_pair) is None else shorten(other, _LONGEST),
            label=shorten(texts[row].label, _LONGEST),
            loss=columns["loss"][row].item(),
            teacher_loss=columns["teacher_loss"][row].item(),
        )
        for row in order
    ]


def write(folder: Path, measured: Mapping[str, Measured], texts: Mapping[str, Sequence[Shown]]) -> None:
    """The table as :data:`~limbeck.scorecard.HARD_SAMPLES`, hardest first in each split.

    ``row`` is the example's place in the split as the job used it, from 1. ``teacher_p`` and ``student_p`` are the
    probabilities of the truth, of an example with several rows their geometric mean.
    """
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    tables = [pyarrow.table(_rows(split, columns, texts[split])) for split, columns in measured.items()]
    table = pyarrow.concat_tables(tables)
    pyarrow.parquet.write_table(table, folder / HARD_SAMPLES[0], compression="zstd")
    pyarrow.csv.write_csv(table, folder / HARD_SAMPLES[1])


def _rows(split: str, columns: Measured, texts: Sequence[Shown]) -> dict[str, Any]:
    order = torch.argsort(columns["loss"], descending=True, stable=True)
    places = order.tolist()
    table: dict[str, Any] = {"split": [split] * len(places), "row": [place + 1 for place in places]}
    table["text"] = [texts[place].text for place in places]
    if texts and texts[0].text_pair is not None:
        table["text_pair"] = [texts[place].text_pair for place in places]
    table["label"] = [texts[place].label for place in places]
    numbers = {name: values[order] for name, values in columns.items()}
    if "entropy" in numbers:
        table["teacher_p"], table["student_p"] = ((-numbers[name]).exp().numpy() for name in ("teacher_loss", "loss"))
    for name in ("loss", "teacher_loss", "entropy", "disagreement"):
        if name in numbers:
            table[name] = numbers[name].numpy()
    for name in ("teacher_right", "student_right"):
        if name in numbers:
            table[name] = (numbers[name] == 1).numpy()
    return table


def measure_difficulty(run: Run, job: Prepared, weights: Mapping[str, Weights]) -> None:
    """How hard each training and validation example is for the student; kept in the state, read by the export."""
    if run.store.has("difficulty"):
        return
    run.meter.begin("difficulty")
    student = run.device.place(job.build("student", weights["student"]))
    first = next(iter(job.members))
    panel = panel_of(run, job, weights)

    def teacher() -> Any:
        return run.device.place(job.build(first, weights[first])) if panel is None else panel()

    trained, answers = _known_answers(run, job, weights, teacher, panelled=panel is not None)
    splits = {
        "train": (job.train, job.card.train, trained),
        "validation": (job.validation, job.validation.examples, answers),
    }
    examples = sum(count for _, count, _ in splits.values())
    tensors: dict[str, Tensor] = {}
    for name, (data, count, logits) in splits.items():
        columns = measure(
            student,
            teacher,
            data,
            count,
            job.task,
            run,
            logits,
            done=lambda more: run.meter.advance(more / examples, examples=more),
            keep=f"difficulty-{name}",
        )
        tensors |= {f"{name}.{column}": values for column, values in columns.items()}
    run.store.write_tensors("difficulty", tensors, {})
    for name in splits:
        run.store.drop(f"difficulty-{name}")
    for member in job.members:
        run.store.drop(cache_role(member))
    run.meter.finish("difficulty")
    run.commit()


def _known_answers(
    run: Run, job: Prepared, weights: Mapping[str, Weights], teacher: Callable[[], Any], *, panelled: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The teacher's logits over the training and the validation split; None where it is asked batch by batch."""
    ensemble = ensemble_of(run.config)
    answers, trained = None, kept_logits(run, tuple(job.members))
    if ensemble is not None and not panelled:
        assert trained is not None  # kept because hard samples are measured
        answers, trained = panel_answers(run, job, weights), ensemble.over(job.task, trained, job.train)
    elif job.teachers is not None:
        # The teacher reads other tokens than the batches that the student answers.
        answers = torch.from_numpy(predict(teacher(), job.for_teacher.validation, job.task, run))
    return trained, answers
