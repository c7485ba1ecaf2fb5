"""The `cohortium` command: gathers the nouns and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from typer.core import TyperGroup

from cohortium.cli import audience, data, demo, doctor, init, ledger, privacy, score, seed, simulate
from cohortium.study.errors import CohortiumError, Defect

__all__ = ["app", "main"]

MISTAKE, DEFECT, STOPPED = 2, 70, 130


class _Stoppable(TyperGroup):
    """Says that it was stopped; typer alone would keep a stop from the keyboard to itself."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
            raise typer.Exit(STOPPED) from None


app = typer.Typer(
    name="cohortium",
    cls=_Stoppable,
    help="Federated customer segmentation under customer-level differential privacy.\n\n"
    "Begin with `cohortium demo`, then `cohortium init` for your own data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
app.command("demo")(demo.demo)
app.command("init")(init.init)
app.command("simulate")(simulate.simulate_command)
app.command("score")(score.score)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app)
app.add_typer(seed.app)
app.add_typer(audience.app)
app.add_typer(ledger.app)
app.add_typer(privacy.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cohortium {version('cohortium')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before a command."""


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 not ready, 2 the caller's mistake, 70 a bug of ours, 130 stopped."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        app()
    except CohortiumError as error:
        errors.print(f"error: {error}")
        sys.exit(MISTAKE)
    except Defect as error:
        errors.print(f"bug: {error} — please report it; nothing that was charged is lost")
        sys.exit(DEFECT)
    except Exception as error:  # noqa: BLE001 - its text or traceback could quote a customer
        place = traceback.extract_tb(error.__traceback__)[-1]
        errors.print(
            f"bug: internal error of type {type(error).__name__} in {Path(place.filename).name}, line {place.lineno} — "
            "please report it; nothing that was charged is lost"
        )
        sys.exit(DEFECT)
