"""One teacher's way over the training split: batch by batch, in any order, from one attempt to the next, and where it
takes long by several workers (``limbeck/offer.py``)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.batches import Collator, Encoded, forward_batches
from limbeck.errors import DamagedFile, Interrupted
from limbeck.families import pad_id_of
from limbeck.machine import likeness
from limbeck.offer import PARTS, Offer, OfferFolder, Part
from limbeck.part_files import read_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.run import Run
    from limbeck.tasks.base import Task

ROLE = "cache"
#: A pass is timed for this share of ``share_seconds`` first, and each part takes at most about that share.
_TIMED, _PART = 1 / 12, 1 / 3
#: Parts of one pass; where that is not enough they are larger.
_MOST_PARTS = 1000


def answer(
    model: PreTrainedModel, collate: Collator, rows: NDArray[np.int64], task: Task
) -> tuple[NDArray[np.int64], Tensor]:
    """Where the answers to these rows go, and the answers, (places, classes) in float32 on the CPU."""
    batch = collate(rows)
    found = task.kept(model, batch)
    if collate.data.per_token and not collate.data.cloze:
        found = found[batch.inputs["attention_mask"].bool()]
    return collate.data.answer_places(rows), found.cpu()


@dataclass(slots=True)
class Help:
    """What one other worker has done for a pass."""

    parts: int = 0
    examples: int = 0
    seconds: float = 0.0


class TeacherPass:
    """The answers so far, and how the rest comes to be.

    Args:
        key: :func:`limbeck.cache.answers_key`.
        role: where the state keeps the answers, and the item of the plan.
    """

    def __init__(self, run: Run, data: Encoded, task: Task, key: str, classes: int, role: str) -> None:
        self._run, self._data, self._task, self._key, self._role = run, data, task, key, role
        self._batches = forward_batches(data.lengths)
        self.logits = torch.zeros(len(data.ids) if data.per_token else len(data), classes)
        self._done = np.zeros(len(self._batches), dtype=bool)
        #: That computing what is done took, whoever did.
        self.seconds = 0.0
        #: Other workers' share of that.
        self.help: dict[str, Help] = {}
        self._size = 0  # batches of a part; 0 while none is offered
        self._sharing: _Sharing | None = None
        self._timed = (0, 0.0)  # own batches of this attempt, and their seconds
        self._restore()

    @property
    def whole(self) -> bool:
        return bool(self._done.all())

    @property
    def examples(self) -> int:
        """Rows that are answered."""
        return sum(len(rows) for rows, done in zip(self._batches, self._done, strict=True) if done)

    def take(self, logits: Tensor, seconds: float) -> None:
        """All of it, from elsewhere."""
        self.logits, self.seconds = logits, seconds
        self._done[:] = True

    def stage(self) -> None:
        """Put what is done into the run's state."""
        tensors = {"logits": self.logits, "done": torch.from_numpy(self._done)}
        facts: dict[str, Any] = {
            "key": self._key,
            "seconds": self.seconds,
            "help": {worker: [one.parts, one.examples, one.seconds] for worker, one in self.help.items()},
            "size": self._size,
        }
        self._run.store.write_tensors(self._role, tensors, facts)

    def _restore(self) -> None:
        if not self._run.store.has(self._role):
            return
        tensors, facts = self._run.store.read_tensors(self._role)
        if facts["key"] != self._key or "done" not in tensors:
            return
        self.logits, self._done = tensors["logits"], tensors["done"].numpy()
        self.seconds, self._size = facts["seconds"], facts["size"]
        self.help = {worker: Help(*one) for worker, one in facts["help"].items()}

    def fill(self, model: PreTrainedModel) -> None:
        """Answer what is left.

        Raises:
            Interrupted: what is done is staged.
        """
        model.train(False)
        run, collate = self._run, Collator(self._data, pad_id_of(model.config), self._run.device.torch)
        while (number := self._next()) is not None:
            try:
                run.poll()
            except Interrupted:
                self.stage()
                raise
            if run.save_due():
                self.stage()
                run.commit()
            started = time.monotonic()
            with run.device.autocast():
                places, answers = answer(model, collate, self._batches[number], self._task)
                self.logits[torch.from_numpy(places)] = answers
            self._timed = (self._timed[0] + 1, self._timed[1] + time.monotonic() - started)
            self.seconds += time.monotonic() - started
            self._mark([number])
        if self._sharing is not None:
            self._sharing.place.withdraw()

    def _next(self) -> int | None:
        """The batch to compute now; None where all are done."""
        if self._sharing is None:
            self._sharing = self._offer()
        if self._sharing is not None:
            for part in self._sharing.handed_in():
                self._take_in(self._sharing.place, part)
        if self.whole:
            return None
        return int(np.argmin(self._done)) if self._sharing is None else self._sharing.choose(self._done)

    def _mark(self, numbers: list[int]) -> None:
        fresh = [self._batches[number] for number in numbers if not self._done[number]]
        self._done[numbers] = True
        for rows in fresh:
            share = self._data.lengths_of(rows).sum() / self._data.starts[-1]
            self._run.meter.advance(float(share), examples=len(rows))

    def _offer(self) -> _Sharing | None:
        """Offer what is left, where it is long enough to be worth another worker's start; on CPUs alone: on a GPU
        other bits come of the same computation."""
        run, (count, seconds) = self._run, self._timed
        limit = None if run.teacher_cache is None else run.teacher_cache.share_seconds
        if limit is None or run.device.torch.type != "cpu":
            return None
        left = len(self._done) - int(self._done.sum())
        if not self._size:  # else an earlier attempt has offered it: the same parts again
            if not count or seconds < limit * _TIMED or left * seconds / count <= limit:
                return None
            self._size = _part_size(limit * _PART * count / seconds, len(self._done))
        offer = Offer(
            key=self._key,
            teacher=self._role.replace(ROLE, "teacher", 1),
            likeness=likeness(),
            threads=torch.get_num_threads(),
            left=tuple(
                Part(first, min(first + self._size, len(self._done))) for first in range(0, len(self._done), self._size)
            ),
        )
        self._say_offered(offer)
        return _Sharing(OfferFolder(run.store.folder.parent / PARTS), offer)

    def _say_offered(self, offer: Offer) -> None:
        left = sum(len(rows) for rows, done in zip(self._batches, self._done, strict=True) if not done)
        parts = sum(not self._done[part.first : part.end].all() for part in offer.left)
        self._run.event(
            "cache.offered",
            f"The teacher has {left:,} training examples still to answer; idle workers may take some of the {parts} "
            f"parts of them, if their machine is the same: {offer.likeness}, {offer.threads} threads.",
            examples=left,
            parts=parts,
            likeness=offer.likeness,
            threads=offer.threads,
        )

    def _take_in(self, place: OfferFolder, part: Part) -> None:
        """Another worker's answers; what is damaged is left to be computed here."""
        batches = self._batches[part.first : part.end]
        places = np.concatenate([self._data.answer_places(rows) for rows in batches] or [np.empty(0, np.int64)])
        try:
            found = read_part(place.path(self._key, part), self._key, part, (len(places), self.logits.shape[-1]))
        except DamagedFile as error:
            self._run.event("cache.damaged", f"{error.message} They are computed again.", key=self._key, part=part.name)
            return
        fresh = [number for number in range(part.first, part.end) if not self._done[number]]
        if not fresh:
            return
        self.logits[torch.from_numpy(places)] = found.logits
        theirs = self.help.setdefault(found.worker, Help())
        theirs.parts += 1
        theirs.examples += sum(len(self._batches[number]) for number in fresh)
        theirs.seconds += found.seconds
        self.seconds += found.seconds
        self._mark(fresh)


class _Sharing:
    """An offer that stands, and what has come of it."""

    def __init__(self, place: OfferFolder, offer: Offer) -> None:
        self.place = place
        self._offer = offer
        self._seen: set[Part] = set()

    def handed_in(self) -> list[Part]:
        """Parts that have come since the last time."""
        new = [part for part in self.place.handed_in(self._offer.key) if part not in self._seen]
        self._seen.update(new)
        return new

    def choose(self, done: NDArray[np.bool_]) -> int:
        """The batch to compute now: in the part that was begun, else in the first that nobody is at, else, rather than
        to wait, in one that somebody is at."""
        left = tuple(part for part in self._offer.left if not done[part.first : part.end].all())
        own = self._offer.own
        if own not in left:
            held = self.place.held()
            own = next((part for part in left if part.first not in held), left[0])
        now = replace(self._offer, left=left, own=own)
        if now != self._offer:
            self.place.put(now)
            self._offer = now
        assert own is not None
        return own.first + int(np.argmin(done[own.first : own.end]))


def _part_size(batches: float, count: int) -> int:
    """The largest power of two that is no more than so many batches: attempts that time the pass a little differently
    cut it alike, and find each other's parts."""
    size = 1
    while size * 2 <= batches or size * _MOST_PARTS < count:
        size *= 2
    return size
