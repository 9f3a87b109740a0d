"""``limbeck alias`` and ``limbeck aliases``: names for students that answer."""

from __future__ import annotations

from typing import Annotated

import typer

from limbeck.cli.model_commands import resolve
from limbeck.cli.output import DEFAULT_URL, AsJson, Url, connect, out, print_json, say
from limbeck.cli.tables import aliases_table
from limbeck.errors import InvalidInput


def alias(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What a student is to be called.")],
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A job (its student), a model or another alias.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the name; its model stays.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Let a name mean a model, without a request that fails; without MODEL, show which one it means."""
    if delete and model is not None:
        raise InvalidInput("Give either a MODEL or --delete, and not both.")
    with connect(url) as client:
        if delete:
            client.delete_alias(name)
            say(f"Alias {name} is gone.")
            return
        found = client.alias(name) if model is None else client.set_alias(name, resolve(client, model))
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found.name}\t{found.model}\tversion {found.version}")


def aliases(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the names, and what they mean."""
    with connect(url) as client:
        found = client.aliases()
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
    elif found:
        out.print(aliases_table(found))
    else:
        say("There is no alias. `limbeck alias NAME MODEL` makes one.", "dim")
