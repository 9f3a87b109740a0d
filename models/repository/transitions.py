"""What may be asked of a job in which state, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.job import JobStatus

_S = JobStatus


@dataclass(frozen=True, slots=True)
class Action:
    """One of the calls that change a job's status from outside."""

    name: str
    moves: Mapping[JobStatus, JobStatus]  #: from which state into which
    settled: frozenset[JobStatus]  #: states in which the call was granted already: the answer is the job as it is
    events: Mapping[JobStatus, tuple[str, str]]  #: the event's kind and message, by the new state
    from_checkpoint: frozenset[JobStatus] = frozenset()  #: of those in ``moves``, where it takes a checkpoint

    @property
    def allowed(self) -> tuple[str, ...]:
        """The states in which it is granted, for people."""
        states = [state for state in JobStatus if state in self.moves or state in self.settled]
        return tuple(f"{state} with a checkpoint" if state in self.from_checkpoint else state for state in states)


CANCEL = Action(
    "cancel",
    moves={
        _S.QUEUED: _S.CANCELLED,
        _S.PAUSED: _S.CANCELLED,
        _S.RUNNING: _S.CANCELLING,
        _S.PAUSING: _S.CANCELLING,
    },
    settled=frozenset({_S.CANCELLING, _S.CANCELLED}),
    events={
        _S.CANCELLED: ("job.cancelled", "The job was cancelled before a worker held it."),
        _S.CANCELLING: ("job.cancelling", "The worker is told to stop."),
    },
)

PAUSE = Action(
    "pause",
    moves={_S.QUEUED: _S.PAUSED, _S.RUNNING: _S.PAUSING},
    settled=frozenset({_S.PAUSING, _S.PAUSED}),
    events={
        _S.PAUSED: ("job.paused", "The job waits until it is resumed."),
        _S.PAUSING: ("job.pausing", "The worker is told to write a checkpoint and to give its slot back."),
    },
)

RESUME = Action(
    "resume",
    # A failed job keeps its checkpoint where the fault may pass, such as a full disk, and only there.
    moves={_S.PAUSED: _S.QUEUED, _S.FAILED: _S.QUEUED},
    from_checkpoint=frozenset({_S.FAILED}),
    settled=frozenset({_S.QUEUED, _S.RUNNING}),
    events={_S.QUEUED: ("job.resumed", "The job is in the queue again and goes on from its last checkpoint.")},
)
