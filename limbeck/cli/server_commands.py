"""``limbeck up``, ``serve``, ``gc``, ``backup`` and ``restore``.

What they need is not imported, only executed: the wheel holds the library alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import limbeck
from limbeck.errors import Unavailable

DataDir = Annotated[
    Path | None, typer.Option(help="The server's data folder; default: LIMBECK_DATA_DIR, or .limbeck here.")
]


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    data_dir: DataDir = None,
    slots: Annotated[
        int | None, typer.Option(help="Jobs to run at a time; default: LIMBECK_SLOTS, or 1.", min=1, max=64)
    ] = None,
) -> None:
    """Start a server: API, worker, SQLite and a data folder. Ctrl-C stops it."""
    _execute(supervisor_command(host=host, port=port, data_dir=data_dir, slots=slots))


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(help="Processes that share the port.", min=1, max=256)] = 1,
    local: Annotated[
        Path | None, typer.Option(help="A student's folder, or one with several; then no database is asked.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Answer with students, and nothing else: no jobs, no worker, no state. SIGTERM ends it without a lost request."""
    module = "api.serve" if workers == 1 else "worker.replicas"
    command = _server_module(module, "--host", host, "--port", str(port))
    chosen = {"LIMBECK_SERVE_FOLDER": local, "LIMBECK_DATA_DIR": data_dir}
    environment = {name: str(path.absolute()) for name, path in chosen.items() if path is not None}
    _execute(command + ([] if workers == 1 else ["--workers", str(workers)]), environment)


def gc(
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and change nothing.")] = False,
) -> None:
    """Remove ended jobs by LIMBECK_KEEP_JOBS_DAYS and LIMBECK_MAX_STORAGE_GB, and files that belong to nothing."""
    _execute(_maintenance(data_dir, "gc", *(["--dry-run"] if dry_run else [])))


def backup(
    archive: Annotated[Path, typer.Argument(help="The .tar to write.")],
    data_dir: DataDir = None,
) -> None:
    """Save the data folder, also while its server runs."""
    _execute(_maintenance(data_dir, "backup", str(archive)))


def restore(
    archive: Annotated[Path, typer.Argument(help="The .tar that `limbeck backup` wrote.")],
    data_dir: DataDir = None,
) -> None:
    """Fill an empty data folder from a backup."""
    _execute(_maintenance(data_dir, "restore", str(archive)))


def supervisor_command(*, host: str, port: int, data_dir: Path | None = None, slots: int | None = None) -> list[str]:
    """The argument vector of the server's supervisor. What is not given is left to the environment.

    Raises:
        Unavailable: only the library is installed here.
    """
    given = {"--host": host, "--port": port, "--data-dir": data_dir, "--slots": slots}
    options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    return _server_module("worker.up", *options)


def server_environment() -> dict[str, str]:
    """This environment, with the server's packages found in its own checkout.

    ``python -m`` puts the working directory first on the path; a stranger's ``worker`` or ``models`` there must not
    be taken for Limbeck's.
    """
    path = os.pathsep.join(part for part in (str(_home()), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path}


def _maintenance(data_dir: Path | None, *arguments: str) -> list[str]:
    options = [] if data_dir is None else ["--data-dir", str(data_dir)]
    return _server_module("models.maintenance", *options, *arguments)


def _server_module(module: str, *arguments: str) -> list[str]:
    if not (_home() / "worker" / "up.py").is_file():
        raise Unavailable(
            "Only the library is installed here, not the server. Run `make install` in a checkout of Limbeck's "
            "repository and `.venv/bin/limbeck up` there, or use its Docker image."
        )
    if importlib.util.find_spec("celery") is None or importlib.util.find_spec("fastapi") is None:
        raise Unavailable(f"The server's packages are missing. Install them with `pip install -e '{_home()}[server]'`.")
    return [sys.executable, "-m", module, *arguments]


def _home() -> Path:
    return Path(limbeck.__file__).resolve().parent.parent


def _execute(command: list[str], environment: Mapping[str, str] | None = None) -> NoReturn:
    os.execve(command[0], command, server_environment() | dict(environment or {}))
