"""The command line as a user runs it, against the server of ``scripted_api``."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from limbeck.cli import app
from tests.limbeck.scripted_api import Api


def run(api: Api, *arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--url", api.url], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result
