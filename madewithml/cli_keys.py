"""The commands `madewithml keys create | list | revoke`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import rich.console
import rich.table
import typer

from madewithml import cli_options, config, keys

app = typer.Typer(help="API keys: who may call the service.", no_args_is_help=True, rich_markup_mode=None)

KeysFile = Annotated[
    Path | None, typer.Option(help="File of keys; default: keys.json in the state folder.", show_default=False)
]
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; appears in logs.")]


@app.command()
def create(
    name: KeyName,
    role: Annotated[Literal["predict", "admin"], typer.Option(help="What it opens.")] = "predict",
    rows_per_second: Annotated[
        float | None, typer.Option(help="Rows it may send a second; default: as many as there is room for.")
    ] = None,
    entry_only: Annotated[
        bool,
        typer.Option("--entry-only", help="Keep it nowhere: print the entry for MADEWITHML_KEYS."),
    ] = False,
    keys_file: KeysFile = None,
    home: cli_options.Home = None,
) -> None:
    """Make a key and print it, this once; only its hash is kept."""
    path = config.load(home=home, keys_file=keys_file).keys_path
    secret, key = keys.create(name, role=role, rows_per_second=rows_per_second)
    if entry_only:
        typer.echo(f"entry: {json.dumps(key.model_dump(exclude_none=True))}", err=True)
    else:
        keys.add(path, key)
        typer.echo(f"key {name!r} ({role}) is in {path}; the key itself is shown this once:", err=True)
    typer.echo(secret)


@app.command("list")
def list_(keys_file: KeysFile = None, home: cli_options.Home = None) -> None:
    """Names, roles and rates of the keys in the file."""
    found = keys.read(config.load(home=home, keys_file=keys_file).keys_path)
    table = rich.table.Table("name", "role", "rows a second", "created")
    for key in found:
        rate = "any" if key.rows_per_second is None else f"{key.rows_per_second:g}"
        table.add_row(key.name, key.role, rate, key.created)
    rich.console.Console(highlight=False).print(table)


@app.command()
def revoke(name: KeyName, keys_file: KeysFile = None, home: cli_options.Home = None) -> None:
    """Take a key out of the file; running services notice within a second."""
    path = config.load(home=home, keys_file=keys_file).keys_path
    keys.revoke(path, name)
    typer.echo(f"key {name!r} is no longer in {path}")
