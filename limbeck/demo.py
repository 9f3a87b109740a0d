"""``make demo``: a server of its own, one real job over HTTP, its student in use, and a clean end."""

from __future__ import annotations

import fcntl
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from limbeck.cli.local_server import local_server
from limbeck.cli.output import complain, duration
from limbeck.cli.tables import scorecard_table
from limbeck.cli.watching import Bar, Lines, follow
from limbeck.client import Client, Job
from limbeck.errors import Conflict, LimbeckError
from limbeck.recipes import recipe

FOLDER = Path(".demo")

#: Sentences in the manner of a docstring; none of them is one of the standard library's.
QUESTIONS = (
    "Open a TCP connection to the server and return the connected socket.",
    "Start a new thread and wait until every worker has finished.",
    "Compress the bytes and append them to the zip file.",
    "Draw a button in the window and call the function when it is clicked.",
    "Check that the two values are equal and report a failing test otherwise.",
)


class Stopwatch:
    """Says what happens, and how long the demo has been going on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.began = time.monotonic()

    def say(self, message: str) -> None:
        passed = duration(time.monotonic() - self.began)
        self._console.print(Text(f"[{passed:>5}] {message}"), soft_wrap=True)


def main() -> int:
    """Run the demo; 0 where it came to its end, 1 where something failed, 130 after Ctrl-C."""
    # `kill` and a closed terminal end the demo as Ctrl-C does: with the server stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with _alone():
            return _run(Console())
    except KeyboardInterrupt:
        complain("Interrupted. Nothing is left running.")
        return 130
    except LimbeckError as error:
        complain(error.message, error.problems)
        return 1


def _run(console: Console) -> int:
    clock = Stopwatch(console)
    clock.say("This takes about 4 minutes on two cores. It needs no network.")
    clock.say(f"Starting a server (API, worker, SQLite) with its data in {FOLDER / 'server'} …")
    student = FOLDER / "student"
    for leftover in (FOLDER / "server", student):
        shutil.rmtree(leftover, ignore_errors=True)
    with local_server(FOLDER / "server", FOLDER / "server.log") as url, Client(url) as client:
        clock.say(f"It answers at {url}.")
        chosen = recipe("demo")
        job = client.submit(chosen.document, name="demo")
        clock.say(f"Submitted {job.id}. {chosen.summary}")
        with Bar(console) if console.is_terminal else Lines(console, began=clock.began) as display:
            job = follow(client, job.id, display)
        if job.status != "succeeded":
            return _report_failure(client, job)
        console.print(scorecard_table(client.scorecard(job.id), console.width))
        client.download(job.student_id, student, format="onnx")
        clock.say(f"Downloaded the student to {student}.")
        _ask(client, job.student_id, console, clock)
        clock.say("Stopping the server …")
    clock.say(f"Done. The student stays in {student}: .venv/bin/limbeck predict --local {student} 'your text'")
    return 0


def _ask(client: Client, student: str, console: Console, clock: Stopwatch) -> None:
    clock.say("Asking the student over HTTP which area of the standard library these belong to:")
    for question, answer in zip(QUESTIONS, client.predict(student, list(QUESTIONS)), strict=True):
        console.print(Text(f"        {answer['label']:<16} {answer['score']:6.1%}  {question}"), soft_wrap=True)


def _report_failure(client: Client, job: Job) -> int:
    complain(f"The job failed ({job.error.code}): {job.error.message}" if job.error else f"The job was {job.status}.")
    complain("The end of its log:")
    for line in client.logs(job.id).splitlines()[-30:]:
        complain(f"    {line}")
    return 1


@contextmanager
def _alone() -> Iterator[None]:
    """Two demos in one folder would remove each other's data."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(f"Another demo is running in {FOLDER.absolute()}.") from error
        yield


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
