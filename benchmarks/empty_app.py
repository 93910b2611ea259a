"""The smallest Typer application with two commands: what `pgcli --help` is compared with."""

import typer

app = typer.Typer()


@app.command()
def one() -> None:
    """The first."""


@app.command()
def two() -> None:
    """The second."""


app()
