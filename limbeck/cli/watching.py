"""A job's life on the screen: a live bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from limbeck.cli.output import complain, duration, err, out, print_json, say
from limbeck.cli.tables import scorecard_table
from limbeck.client import Client, Event, Job
from limbeck.errors import Unavailable

#: How long the server may be away, e.g. while it is restarted.
_PATIENCE = 60.0


class Display(Protocol):
    """Something that shows a job."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def job(self, job: Job) -> None:
        """Where the job is now."""

    def note(self, message: str) -> None:
        """Something about the watching itself."""


class Bar:
    """One live line, with events above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[details]}", style="dim"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("waiting", total=100, details="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def event(self, event: Event) -> None:
        self._progress.console.print(Text(event.message))

    def job(self, job: Job) -> None:
        percent = job.progress.percent if job.progress else 0
        self._progress.update(self._task, description=headline(job), completed=percent, details=details(job))

    def note(self, message: str) -> None:
        self._progress.console.print(Text(message, style="yellow"))


class Lines:
    """A line for each event, and one with the progress every ``seconds``.

    Each tells the time since ``began``, on the monotonic clock.
    """

    def __init__(self, console: Console, seconds: float = 5.0, began: float | None = None) -> None:
        self._console = console
        self._seconds = seconds
        self._began = time.monotonic() if began is None else began
        self._due = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return

    def event(self, event: Event) -> None:
        self._print(event.message)

    def job(self, job: Job) -> None:
        if time.monotonic() < self._due or job.ended:
            return
        self._due = time.monotonic() + self._seconds
        percent = f"{job.progress.percent:3.0f} %  " if job.progress else ""
        self._print(f"{percent}{headline(job)}  {details(job)}".rstrip())

    def note(self, message: str) -> None:
        self._print(message)

    def _print(self, message: str) -> None:
        passed = duration(time.monotonic() - self._began)
        self._console.print(Text(f"[{passed:>5}] {message}"), soft_wrap=True)


class JsonLines:
    """Each event as a line of JSON on stdout."""

    def event(self, event: Event) -> None:
        print_json(event)

    def job(self, job: Job) -> None:
        return

    def note(self, message: str) -> None:
        say(message)


def headline(job: Job) -> str:
    """The stage of a running job, the state of any other."""
    if job.status == "running" and job.stage:
        return job.stage
    if job.status == "queued" and job.queue_position is not None:
        if job.waits_for is not None:
            return f"queued, place {job.queue_position}, waits for {job.waits_for}"
        wait = job.starts_in_seconds
        likely = f", starts in {wait.least / 60:.0f} to {wait.most / 60:.0f} min" if wait else ""
        return f"queued, place {job.queue_position}{likely}"
    return job.status


def details(job: Job) -> str:
    """Step, speed and the time that is left, as far as they are known."""
    progress = job.progress
    if progress is None or job.status != "running":
        return ""
    parts = [f"step {progress.step}/{progress.total_steps}"]
    if progress.examples_per_second:
        parts.append(f"{progress.examples_per_second:.0f} examples/s")
    parts.append("estimating" if progress.eta_seconds is None else f"about {duration(progress.eta_seconds)} left")
    return "  ".join(parts)


def follow(client: Client, job_id: str, display: Display, *, seconds: float = 0.5) -> Job:
    """Show a job until it has ended, over restarts of the server.

    Raises:
        Unavailable: the server stayed away for a minute.
    """
    after, away_since = 0, None
    while True:
        try:
            job = client.job(job_id)  # before its events, so that those of the end are among them
            while page := client.events(job_id, after=after):
                for event in page:
                    display.event(event)
                after = page[-1].sequence
        except Unavailable as error:
            if away_since is None:
                away_since = time.monotonic()
                display.note(f"{error.message} Trying again for a minute.")
            if time.monotonic() - away_since > _PATIENCE:
                raise
        else:
            away_since = None
            display.job(job)
            if job.ended:
                return job
        time.sleep(seconds)


def watch_to_the_end(client: Client, job_id: str, *, as_json: bool) -> None:
    """:func:`follow`, then the scorecard or the error.

    Raises:
        typer.Exit: 1 where the job has no student, 130 after Ctrl-C; the job goes on then.
    """
    try:
        if as_json:
            job = follow(client, job_id, JsonLines())
        else:
            with Bar(err) if err.is_terminal else Lines(err) as display:
                job = follow(client, job_id, display)
    except KeyboardInterrupt:
        say(f"\nNo longer watching; the job goes on. `limbeck watch {job_id}` shows it again,")
        say(f"`limbeck cancel {job_id}` ends it.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(job)
    if job.status != "succeeded":
        _explain(job)
        raise typer.Exit(1)
    if not as_json:
        show_scorecard(client, job)


def show_scorecard(client: Client, job: Job) -> None:
    """The table, and what to do with the student."""
    out.print(scorecard_table(client.scorecard(job.id), out.width))
    say(f"Student: {job.student_id}. Fetch it with `limbeck download {job.id}`.")


def _explain(job: Job) -> None:
    if job.error is None:
        complain(f"Job {job.id} was {job.status}.")
        return
    complain(f"Job {job.id} failed ({job.error.code}): {job.error.message}")
    say(f"`limbeck logs {job.id}` shows what it printed.", "dim")
