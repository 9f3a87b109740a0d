"""``python -m limbeck.cli``, for where the command is not on the path."""

from limbeck.cli.app import app

app(prog_name="limbeck")
