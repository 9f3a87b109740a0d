"""Every error that Limbeck raises on purpose, as one tree.

    LimbeckError
    ├── InvalidInput            what was asked for cannot be done; ``problems`` names each field
    │   ├── InvalidConfig       a DistillConfig that does not hold together
    │   ├── InvalidDataset      a data set that cannot be learned from (row and column are named)
    │   ├── InvalidModel        a teacher or student folder that cannot be used
    │   ├── InvalidArchive      an archive that is broken, hostile or too large
    │   └── IdempotencyKeyReused  the same Idempotency-Key with another request
    ├── NotFound                no such job, data set, model or file
    │   └── NotYet              it will be there when the job has come that far
    ├── Conflict                the thing is in a state that forbids the call
    │   └── Stale               it is not as the caller has seen it
    ├── TooLarge                an upload over its limit
    ├── Unavailable             a service that this one needs is away; try again
    │   ├── QueueFull           as many jobs wait as the server takes; try again later
    │   ├── Busy                as many texts wait for a student's answer as the server takes
    │   └── TooSlow             a question was not answered in time
    ├── JobFailed               a job that ran and cannot end well
    │   ├── Diverged            the loss, or a model's logits, became NaN or infinite
    │   ├── TeacherUnfit        the teacher is no better than guessing the majority class
    │   ├── ExportFailed        an exported student does not answer as the trained one does
    │   ├── OutOfMemory         host or device memory ran out
    │   ├── RankLost            a process of a training over several devices has gone
    │   ├── StorageFull         the disk or bucket took no more bytes
    │   └── DamagedFile         a stored file is not what was stored
    ├── Interrupted             somebody asked the engine to stop; its state is checkpointed
    └── LeaseLost               another worker owns the job now: write nothing more

``code`` is what programs read (it stands in HTTP problems and in ``job.error.code``), the message is what people
read. The HTTP status is chosen in ``api/errors.py`` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input."""

    pointer: str  #: JSON pointer (RFC 6901) into the input, e.g. ``/method/temperature``; "" is the whole input
    detail: str  #: what was found and what is allowed


class LimbeckError(Exception):
    """The root of the tree."""

    code: ClassVar[str] = "internal_error"
    #: Whether the same attempt, made again, may well succeed.
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)

    def __reduce__(self) -> Any:
        return type(self), (self.message, self.problems)


class InvalidInput(LimbeckError):
    code = "invalid_input"


class InvalidConfig(InvalidInput):
    code = "invalid_config"


class InvalidDataset(InvalidInput):
    code = "invalid_dataset"


class InvalidModel(InvalidInput):
    code = "invalid_model"


class InvalidArchive(InvalidInput):
    code = "invalid_archive"


class IdempotencyKeyReused(InvalidInput):
    code = "idempotency_key_reused"


class NotFound(LimbeckError):
    code = "not_found"


class NotYet(NotFound):
    code = "not_yet"


class Conflict(LimbeckError):
    code = "conflict"


class Stale(Conflict):
    code = "stale"


class TooLarge(LimbeckError):
    code = "too_large"


class Unavailable(LimbeckError):
    code = "unavailable"
    retryable = True


class QueueFull(Unavailable):
    code = "queue_full"


class Busy(Unavailable):
    code = "busy"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after  #: seconds

    def __reduce__(self) -> Any:
        return type(self), (self.message, self.retry_after)


class TooSlow(Unavailable):
    code = "too_slow"


class JobFailed(LimbeckError):
    code = "job_failed"


class Diverged(JobFailed):
    code = "diverged"


class TeacherUnfit(JobFailed):
    code = "teacher_unfit"


class ExportFailed(JobFailed):
    code = "export_failed"


class OutOfMemory(JobFailed):
    code = "out_of_memory"
    retryable = True


class RankLost(JobFailed):
    code = "rank_lost"
    retryable = True


class StorageFull(JobFailed):
    code = "storage_full"
    retryable = True


class DamagedFile(JobFailed):
    code = "damaged_file"


class Interrupted(LimbeckError):
    code = "interrupted"
    retryable = True


class LeaseLost(LimbeckError):
    code = "lease_lost"
