"""Computes parts of another run's teacher pass, from that run's state."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from limbeck.answer_files import Answers
from limbeck.batches import Collator, forward_batches
from limbeck.cache import answers_key
from limbeck.callbacks import Callbacks
from limbeck.config import DistillConfig
from limbeck.errors import Conflict
from limbeck.families import pad_id_of
from limbeck.offer import Part
from limbeck.part_files import Computed, write_part
from limbeck.phases import states_wanted, teacher_of
from limbeck.preparation import prepare
from limbeck.run import Run
from limbeck.teacher_pass import answer_all


class Answerer:
    """The teacher and the texts of a pass, as the run that needs it has them.

    Args:
        workdir: has that run's ``state``: what it prepared, and the teacher's weights.
        sources: local folders of the configuration's models.
        teacher: the name of the teacher's phase.
        key: of the pass.

    Raises:
        Conflict: the state lacks something, or this machine would compute other bits: the key that it comes to is not
            the one of the pass.
    """

    def __init__(
        self,
        config: DistillConfig,
        workdir: Path,
        callbacks: Callbacks,
        sources: Mapping[str, Path],
        teacher: str,
        key: str,
    ) -> None:
        self._run = run = Run(config, workdir, callbacks, math.inf)
        if not (run.store.has("data") and run.store.has(teacher)):
            raise Conflict(f"The state has no data or no {teacher}: {run.store.damage or 'it is too young'}.")
        job = prepare(run, sources)
        member, weights = job.members[teacher], run.store.read_tensors(teacher)[0]
        self._data, self._task, self._key = member.train, job.task, key
        self._states = states_wanted(config, job, teacher)
        found = answers_key(run, member.blueprint.config, weights, member.train, job.task)
        if self._states is not None:
            found = self._states.key(found)
        if found != key:
            raise Conflict(f"This machine would answer as {found}, and not as {key}.")
        self._batches = forward_batches(member.train.lengths)
        self._model = teacher_of(run, member, weights)()

    @torch.inference_mode()
    def compute(self, part: Part, path: Path, worker: str) -> None:
        """Write the file of a part.

        Args:
            worker: who will be said to have computed it.

        Raises:
            Interrupted, StorageFull, OSError
        """
        started = time.monotonic()
        collate = Collator(self._data, pad_id_of(self._model.config), self._run.device.torch)
        found: list[Answers] = []
        for rows in self._batches[part.first : part.end]:
            self._run.poll()
            with self._run.device.autocast():
                found.append(answer_all(self._model, collate, rows, self._task, self._states))
        answers = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        write_part(path, self._key, part, Computed(answers, time.monotonic() - started, worker))
