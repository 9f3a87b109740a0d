"""The command line as a user runs it, against the server of ``scripted_api``."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from limbeck.cli import app
from tests.limbeck.scripted_api import Api


def run(api: Api, *arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--url", api.url], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refusing(body: bytes) -> tuple[int, Any]:
    """Answers as the API does: it names every pair, as a student of single texts cannot read one."""
    inputs = json.loads(body)["inputs"]
    errors = [
        {"pointer": f"/inputs/{place}/text_pair", "detail": "leave text_pair out"}
        for place, one in enumerate(inputs)
        if "text_pair" in one
    ]
    if errors:
        return 422, {"code": "invalid_input", "detail": "The inputs cannot be read", "errors": errors}
    return 200, [{"label": one, "score": 1.0} for one in inputs]
