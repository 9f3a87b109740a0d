"""The command ``limbeck``, put together, and the one place where its errors become a line and an exit code."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from limbeck import __version__
from limbeck.cli import alias_commands, job_commands, model_commands, server_commands, submitting
from limbeck.cli.output import complain
from limbeck.errors import InvalidInput, LimbeckError, NotFound, TooLarge

#: Asking again, the same way, cannot help.
_WRONG_INPUT = (InvalidInput, NotFound, TooLarge)


class _Polite(TyperGroup):
    """Prints an expected error as one line, and each problem below it; exit code 2 for wrong input, else 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LimbeckError as error:
            complain(error.message, error.problems)
            raise typer.Exit(2 if isinstance(error, _WRONG_INPUT) else 1) from error
        except OSError as error:
            complain(str(error))
            raise typer.Exit(1) from error


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"limbeck {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Polite,
    help="Distils BERT-family models into small students. Start a server with `limbeck up`, then submit a job.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print Limbeck's version.")
    ] = False,
) -> None: ...


app.command()(server_commands.up)
app.command()(server_commands.serve)
app.command()(submitting.submit)
app.command()(job_commands.watch)
app.command()(job_commands.jobs)
app.command()(job_commands.job)
app.command()(job_commands.scorecard)
app.command()(job_commands.hard_samples)
app.command()(job_commands.logs)
app.command()(job_commands.cancel)
app.command()(job_commands.pause)
app.command()(job_commands.resume)
app.command()(job_commands.rerun)
app.command()(job_commands.delete)
app.command()(model_commands.download)
app.command()(model_commands.predict)
app.command()(alias_commands.alias)
app.command()(alias_commands.aliases)
app.command()(server_commands.gc)
app.command()(server_commands.backup)
app.command()(server_commands.restore)
