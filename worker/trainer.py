"""The process in which one attempt trains: ``python -m worker.trainer WORKDIR --pipe FD --parent PID``.

It reads ``WORKDIR/attempt.json`` (:func:`read_order`) and imports nothing of the database. What happens goes out on the
pipe, one JSON object a line; its ``type`` is ``stage``, ``progress``, ``metrics``, ``event``, ``checkpoint`` or
``provenance``, ``answers_wanted`` or ``answers_used`` (a teacher's, by their key), ``hosts_wanted`` (an invitation) or
``hosts_settled`` (the workers that came), or ``alive``, and the last one ``result``, ``interrupted`` or ``error``. Each
is sent by the work itself: a process that has said nothing for long is stuck. What it prints is its log.

On its standard input it hears ``{"type": "lease", "seconds": N}``, ``{"type": "answers", "key": …}`` (those that it
wanted have come, or there are none) and ``{"type": "stop"}``; the end of the input, and SIGTERM, mean stop as well.
When its lease runs out unrenewed it ends at once: its worker was stopped or cut off, and somebody else may have the job
by now.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from limbeck.assignment import Assignment
from limbeck.callbacks import Callbacks, CheckpointInfo, Progress, Stage
from limbeck.config import DistillConfig
from limbeck.death import die_with_parent
from limbeck.errors import Interrupted, LimbeckError
from limbeck.full_disk import disk_errors
from limbeck.hosts import HostsPlace, Invitation
from limbeck.launching import AnswersPlace, distill_in_ranks
from limbeck.result import DistillResult

ORDER = "attempt.json"
EXIT_ERROR = 1
EXIT_INTERRUPTED = 3
EXIT_LEASE_OVER = 75
_WATCH_SECONDS = 0.2
#: That fetching a teacher's answers from the storage may take; computing them is not endless either.
_ANSWERS_SECONDS = 60.0


class Pipe(Callbacks):
    """The engine's callbacks as lines on the pipe."""

    #: How readily the kernel ends this process when memory runs out, of at most 1,000.
    oom_score: ClassVar[int] = 500

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._arrived: set[str] = set()
        self._something_arrived = threading.Condition()

    def send(self, line_type: str, /, **facts: Any) -> None:
        line = json.dumps({"type": line_type, **_finite(facts)}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]

    def stop(self) -> None:
        self._stop.set()

    def hear(self, order: Mapping[str, Any]) -> None:
        """Something that the worker said, but for the lease."""
        if order["type"] == "answers":
            self.answers_arrived(order["key"])
        elif order["type"] == "stop":
            self.stop()

    def fetch_answers(self, key: str) -> None:
        """Have the worker bring a teacher's answers to the folder; return when it has, or has none, or takes long."""
        self.send("answers_wanted", key=key)
        end = time.monotonic() + _ANSWERS_SECONDS
        with self._something_arrived:
            while key not in self._arrived and not self.should_stop() and time.monotonic() < end:
                self._something_arrived.wait(_WATCH_SECONDS)

    def answers_arrived(self, key: str) -> None:
        with self._something_arrived:
            self._arrived.add(key)
            self._something_arrived.notify_all()

    def answers_used(self, key: str) -> None:
        self.send("answers_used", key=key)

    def invite(self, invitation: Invitation) -> None:
        self.send("hosts_wanted", invitation=asdict(invitation))

    def settle(self, workers: Sequence[str]) -> None:
        self.send("hosts_settled", workers=list(workers))

    def on_stage(self, stage: Stage) -> None:
        self.send("stage", stage=stage)

    def on_progress(self, progress: Progress) -> None:
        self.send("progress", progress=asdict(progress))

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.send("metrics", step=step, values=dict(values))

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        self.send("event", kind=kind, message=message, data=dict(data))

    def on_checkpoint(self, checkpoint: CheckpointInfo) -> None:
        self.send("checkpoint", step=checkpoint.step)

    def on_provenance(self, facts: Mapping[str, Any]) -> None:
        self.send("provenance", facts=dict(facts))

    def on_alive(self) -> None:
        self.send("alive")

    def should_stop(self) -> bool:
        return self._stop.is_set()


class Leash:
    """Hears the worker, and ends this process when the lease is over."""

    def __init__(self, pipe: Pipe, seconds: float) -> None:
        self._pipe = pipe
        self._deadline = time.monotonic() + seconds

    def start(self) -> None:
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        threading.Thread(target=self._watch, name="lease", daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin.buffer:
            order = json.loads(line)
            if order["type"] == "lease":
                self._deadline = time.monotonic() + order["seconds"]
            else:
                self._pipe.hear(order)
        self._pipe.stop()

    def _watch(self) -> None:
        while time.monotonic() < self._deadline:
            time.sleep(_WATCH_SECONDS)
        # Not in order: a checkpoint that is written now would be nobody's, and the thread that trains may be stuck.
        with suppress(OSError):
            os.write(2, b"The lease ran out and was not renewed; this attempt ends here.\n")
        os._exit(EXIT_LEASE_OVER)


def read_order(workdir: Path) -> dict[str, Any]:
    """The order: ``config``, ``sources`` (reference to folder), ``checkpoint_seconds``, ``lease_seconds``,
    ``expected`` (``dataset`` and ``teacher`` to the sha256 that a rerun has to find), ``micro_batches`` (what the first
    run's probe found), ``hosts`` (this one's ``address``, and ``seconds`` in which others have to come, if several are
    wanted), and, where jobs share teachers' answers, ``teacher_cache`` (``folder``, ``bytes`` and
    ``share_seconds``)."""
    order: dict[str, Any] = json.loads((workdir / ORDER).read_text(encoding="utf-8"))
    return order


def train(workdir: Path, order: Mapping[str, Any], pipe: Pipe) -> int:
    """Run the engine; the exit code."""
    return bounded(pipe, lambda: _train(workdir, order, pipe))


def bounded(pipe: Pipe, work: Callable[[], int]) -> int:
    """The boundary: the work's exit code, or of how it went wrong, which is said on the pipe."""
    try:
        with disk_errors():  # also of what lies around the work, such as the folders in which ranks meet
            return work()
    except Interrupted:
        pipe.send("interrupted")
        return EXIT_INTERRUPTED
    except LimbeckError as error:
        return _say_error(pipe, error.code, error.message, error.retryable)
    except Exception as error:  # whatever else goes wrong is a fault of Limbeck's own
        what = f"Limbeck itself failed ({type(error).__name__}: {error}); the job's log has the details."
        return _say_error(pipe, "internal_error", what, retryable=False)


def _train(workdir: Path, order: Mapping[str, Any], pipe: Pipe) -> int:
    result = _distill(workdir, order, pipe)
    pipe.send(
        "result",
        student=str(result.student.relative_to(workdir)),
        baseline=str(result.baseline.relative_to(workdir)) if result.baseline else None,
        hard_samples=[str(path.relative_to(workdir)) for path in result.hard_samples],
        scorecard=result.scorecard.model_dump(mode="json"),
        teacher=asdict(result.teacher),
        provenance=result.provenance,
    )
    return 0


def _distill(workdir: Path, order: Mapping[str, Any], pipe: Pipe) -> DistillResult:
    """By the engine in this process; or in others, and then this one has no need of torch."""
    assignment = Assignment(
        DistillConfig.parse(order["config"], stored=True),
        workdir,
        sources={reference: Path(folder) for reference, folder in order["sources"].items()},
        checkpoint_seconds=order["checkpoint_seconds"],
        expected=order["expected"],
        micro_batches=order["micro_batches"],
    )
    answers = _answers(order.get("teacher_cache"), pipe)
    if assignment.config.training.devices > 1:
        return distill_in_ranks(assignment, pipe, answers, _hosts(order.get("hosts"), pipe))
    from limbeck.engine import distill_here
    from limbeck.teacher_cache import TeacherCache

    return distill_here(assignment, pipe, None if answers is None else TeacherCache.at(answers))


def _hosts(place: Mapping[str, Any] | None, pipe: Pipe) -> HostsPlace | None:
    return None if place is None else HostsPlace(place["address"], place["seconds"], pipe.invite, pipe.settle)


def _answers(place: Mapping[str, Any] | None, pipe: Pipe) -> AnswersPlace | None:
    if place is None:
        return None
    return AnswersPlace(
        Path(place["folder"]), place["bytes"], pipe.fetch_answers, pipe.answers_used, place.get("share_seconds")
    )


def _say_error(pipe: Pipe, code: str, message: str, retryable: bool) -> int:
    sys.stderr.write(f"{message}\n\n{traceback.format_exc()}")
    sys.stderr.flush()
    pipe.send("error", code=code, message=message, retryable=retryable)
    return EXIT_ERROR


def _finite(value: Any) -> Any:
    """The value without NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _offer_to_the_oom_killer(eagerness: int) -> None:
    # When memory runs out the kernel ends one process: it should be this one, and not the worker or the database.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(eagerness), encoding="ascii")


P = TypeVar("P", bound=Pipe)
Train = Callable[[Path, Mapping[str, Any], P], int]


def main(arguments: Sequence[str] | None = None, train: Train[Pipe] = train) -> int:
    """Set the process up, then ``train``; the exit code."""
    return run(train, Pipe, arguments)


def run(work: Train[P], kind: type[P], arguments: Sequence[str] | None = None) -> int:
    """Set the process up for ``work``, which talks with the worker through a pipe of this kind; the exit code."""
    parser = argparse.ArgumentParser(prog="worker.trainer")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args(arguments)
    die_with_parent(given.parent)
    faulthandler.enable()
    _offer_to_the_oom_killer(kind.oom_score)
    order = read_order(given.workdir)
    pipe = kind(given.pipe)
    Leash(pipe, order["lease_seconds"]).start()
    signal.signal(signal.SIGTERM, lambda *_: pipe.stop())
    # Ctrl-C in a terminal is for the supervisor; it tells the worker, and the worker tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return work(given.workdir, order, pipe)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: leftover threads of libraries must not hold up, or change, how an attempt ends.
    os._exit(code)
