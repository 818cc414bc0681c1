"""All commands."""

from __future__ import annotations

from typing import Annotated

import typer

import pyconcord
from pyconcord import cli
from pyconcord.cli import install, log, packs, tables, wall

# From the package's docstring, where they are fixed; \b keeps the lines as they are.
EXIT_CODES = "\b\nExit codes" + (cli.__doc__ or "").partition("Exit codes")[2]

app = typer.Typer(
    name="pyconcord",
    help="Concurrency control for think-time, inside PostgreSQL.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (install, tables, wall, packs, log):
    part.register(app)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(pyconcord.__version__)
        raise typer.Exit
