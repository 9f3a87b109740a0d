"""What every command shares: its options, where it prints, and how things look."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from limbeck.client import Client
from limbeck.errors import Problem

#: Columns of what goes into a file or a pipe, where nothing need be cut or broken for a screen.
_PIPED = 160

out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED)
err = Console(stderr=True)

Url = Annotated[str, typer.Option("--url", envvar="LIMBECK_URL", help="Where the server listens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, job_…")]

DEFAULT_URL = "http://127.0.0.1:8000"


def connect(url: str) -> Client:
    return Client(url)


def complain(message: str, problems: Iterable[Problem] = ()) -> None:
    """One red line on stderr, and one for each problem that the message does not tell already."""
    err.print(Text(message, style="red"), soft_wrap=True)
    for problem in problems:
        if problem.detail in message:
            continue
        place = problem.pointer or "(the whole input)"
        err.print(Text.assemble("  ", (place, "bold"), f"  {problem.detail}"), soft_wrap=True)


def say(message: str, style: str = "") -> None:
    """A line for people; they may pipe stdout elsewhere."""
    err.print(Text(message, style=style), soft_wrap=True)


def print_json(value: BaseModel | Any) -> None:
    """One line of JSON on stdout."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    line = json.dumps(plain, ensure_ascii=False)
    typer.echo(line if whole(line) else json.dumps(plain))


def whole(text: str) -> bool:
    """Whether it has no half of a surrogate pair, which JSON allows and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def duration(seconds: float) -> str:
    """``65`` -> ``1:05``."""
    minutes, rest = divmod(max(0, math.ceil(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """``45_000_000`` -> ``45.0 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
