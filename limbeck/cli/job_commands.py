"""Commands about jobs that exist."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from limbeck.cli.output import DEFAULT_URL, AsJson, JobId, Url, connect, out, print_json, say
from limbeck.cli.tables import hard_samples_table, jobs_table, scorecard_table
from limbeck.cli.watching import details, headline, watch_to_the_end
from limbeck.client import Client, Job

HardSplit = Literal["train", "validation"]


def watch(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a job's progress until it has ended; exit code 1 where it has no student. Ctrl-C leaves it running."""
    with connect(url) as client:
        watch_to_the_end(client, job, as_json=as_json)


def jobs(
    status: Annotated[str | None, typer.Option(help="Only these, e.g. running.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with connect(url) as client:
        page = client.jobs(status=status, limit=limit)
    if as_json:
        print_json(page)
        return
    if not page.data:
        say("There are no jobs." if status is None else f"No job is {status}.")
        return
    out.print(jobs_table(page.data, out.width))
    if page.has_more:
        say(f"These are the newest {limit}; --limit shows more.", "dim")


def job(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show one job."""
    with connect(url) as client:
        found = client.job(job)
    _report(found, as_json)


def scorecard(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show what a job's student is worth, beside its teacher."""
    with connect(url) as client:
        card = client.scorecard(job)
    if as_json:
        print_json(card)
    else:
        out.print(scorecard_table(card, out.width))


def hard_samples(
    job: JobId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A .csv or .parquet to write.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many examples, the hardest first.")] = 20,
    split: Annotated[HardSplit, typer.Option(help="Whose examples.")] = "validation",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show the examples that a job's student finds hardest, or save the table of all of them."""
    with connect(url) as client, TemporaryDirectory() as folder:
        path = client.hard_samples(job, output or Path(folder) / "hard_samples.csv")
        if output is not None:
            say(f"Saved as {path}.")
            return
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(islice((row for row in csv.DictReader(file) if row["split"] == split), limit))
    if as_json:
        print_json(rows)
    else:
        out.print(hard_samples_table(rows))


def logs(job: JobId, url: Url = DEFAULT_URL) -> None:
    """Print what a job's processes printed."""
    with connect(url) as client:
        printed = client.logs(job)
    typer.echo(printed, nl=False)
    if not printed:
        say(f"Its processes have printed nothing. What has happened: `limbeck watch {job}`.", "dim")


def cancel(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """End a job."""
    _act(Client.cancel, job, url, as_json)


def pause(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Checkpoint a job and free its place."""
    _act(Client.pause, job, url, as_json)


def resume(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Go on with a paused job, or with one that failed for want of disk, memory or workers."""
    _act(Client.resume, job, url, as_json)


def rerun(job: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Submit a job again, with the same configuration, seed, data and revisions."""
    _act(Client.rerun, job, url, as_json)


def delete(
    job: JobId,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the student and the baseline.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Remove a job that has ended, and its models."""
    with connect(url) as client:
        client.delete(job, keep_models=keep_models)
    say(f"Job {job} is gone.")


def _act(call: Callable[[Client, str], Job], job_id: str, url: str, as_json: bool) -> None:
    with connect(url) as client:
        _report(call(client, job_id), as_json)


def _report(found: Job, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    line = f"{found.id} ({found.name}): {headline(found)}"
    if found.progress and not found.ended:
        line += f", {found.progress.percent:.0f} %  {details(found)}".rstrip()
    if found.error:
        line += f" ({found.error.code}): {found.error.message}"
    if found.result:
        line += f", student {found.result.model_id}"
    out.print(line, markup=False, highlight=False, soft_wrap=True)
