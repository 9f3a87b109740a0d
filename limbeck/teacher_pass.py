"""One teacher's way over the training split: batch by batch, in any order, from one attempt to the next, and where it
takes long by several workers (``limbeck/offer.py``)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.answer_files import LOGITS, STATES, Answers, shapes_of
from limbeck.batches import Collator, Encoded, forward_batches
from limbeck.capture import captured
from limbeck.checkpoint import mapped_tensors
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


def answer_all(
    model: PreTrainedModel, collate: Collator, rows: NDArray[np.int64], task: Task, states: FirstTokens | None
) -> Answers:
    """All that is kept of the answers to these rows, from one forward pass; the logits are those of :func:`answer`."""
    if states is None:
        return {LOGITS: answer(model, collate, rows, task)[1]}
    with captured(model) as inside:
        logits = answer(model, collate, rows, task)[1]
    return {LOGITS: logits, STATES: inside.first_token(states.places).float().cpu()}


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The states of a teacher's first token that a method learns from beside the answers."""

    places: tuple[int, ...]  #: how many of the teacher's layers lie before each
    width: int

    def key(self, key: str) -> str:
        """Of a pass that keeps them too, from that of the logits alone."""
        return hashlib.sha256(f"{key} and the first token behind layers {self.places}".encode()).hexdigest()


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
        role: where the state keeps the logits, and the item of the plan.
        states: what else is kept; the state has it as :data:`STATES`.
        content: :func:`limbeck.cache.content_key`.
    """

    def __init__(
        self,
        run: Run,
        data: Encoded,
        task: Task,
        key: str,
        classes: int,
        role: str,
        states: FirstTokens | None = None,
        content: str | None = None,
    ) -> None:
        self._run, self._data, self._task, self._role, self._states = run, data, task, role, states
        self._content = content
        #: Of all that is kept.
        self.key = key if states is None else states.key(key)
        self._batches = forward_batches(data.lengths)
        self.answers: Answers = {LOGITS: torch.zeros(len(data.ids) if data.per_token else len(data), classes)}
        if states is not None:
            self.answers[STATES] = torch.zeros(len(data), len(states.places), states.width)
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

    def take(self, answers: Answers, seconds: float) -> None:
        """All of it, from elsewhere."""
        self.answers, self.seconds = answers, seconds
        self._done[:] = True

    def stage(self) -> None:
        """Put what is done into the run's state."""
        tensors = {LOGITS: self.answers[LOGITS], "done": torch.from_numpy(self._done)}
        facts: dict[str, Any] = {
            "key": self.key,
            "content": self._content,
            "seconds": self.seconds,
            "help": {worker: [one.parts, one.examples, one.seconds] for worker, one in self.help.items()},
            "size": self._size,
        }
        store = self._run.store
        store.write_tensors(self._role, tensors, facts)
        if self._states is not None:  # a file of their own: they are large, and training reads nothing else
            store.write_tensors(STATES, {STATES: self.answers[STATES]}, {"key": self.key})

    def _restore(self) -> None:
        store = self._run.store
        if not store.has(self._role):
            return
        tensors, facts = store.read_tensors(self._role)
        if "done" not in tensors or not (facts["key"] == self.key or self._finished_elsewhere(tensors, facts)):
            return
        self.answers[LOGITS], self._done = tensors[LOGITS], tensors["done"].numpy()
        if self._states is not None:
            states = mapped_tensors(store.path(STATES))[0][STATES]
            self.answers[STATES] = states if self.whole else states.clone()
        self.seconds, self._size = facts["seconds"], facts["size"]
        self.help = {worker: Help(*one) for worker, one in facts["help"].items()}

    def _finished_elsewhere(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
        """Whether the state has all of it from another machine, where the job began: its student has learned from these
        answers, and from those of this machine, which round otherwise, another one would come of it."""
        same = self._content is not None and facts.get("content") == self._content
        kept = self._states is None or self._run.store.has(STATES)
        return same and kept and bool(tensors["done"].all())

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
                answers = answer_all(model, collate, self._batches[number], self._task, self._states)
            self._put(self._batches[number], answers)
            self._timed = (self._timed[0] + 1, self._timed[1] + time.monotonic() - started)
            self.seconds += time.monotonic() - started
            self._mark([number])
        if self._sharing is not None:
            self._sharing.place.withdraw()

    def _put(self, rows: NDArray[np.int64], answers: Answers) -> None:
        """The answers to these rows, in their order."""
        self.answers[LOGITS][torch.from_numpy(self._data.answer_places(rows))] = answers[LOGITS]
        if self._states is not None:
            self.answers[STATES][torch.from_numpy(rows)] = answers[STATES]

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
            key=self.key,
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
        rows = np.concatenate([np.empty(0, np.int64), *self._batches[part.first : part.end]])
        shapes = {name: (len(rows), *shape[1:]) for name, shape in shapes_of(self.answers).items()}
        shapes[LOGITS] = (len(self._data.answer_places(rows)), self.answers[LOGITS].shape[-1])
        try:
            found = read_part(place.path(self.key, part), self.key, part, shapes)
        except DamagedFile as error:
            self._run.event("cache.damaged", f"{error.message} They are computed again.", key=self.key, part=part.name)
            return
        fresh = [number for number in range(part.first, part.end) if not self._done[number]]
        if not fresh:
            return
        self._put(rows, found.answers)
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
