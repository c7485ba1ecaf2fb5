"""`cohortium init`: a commented plan and contract to begin from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohortium.simulations.starter import write_starter

__all__ = ["init"]


def init(
    folder: Annotated[
        Path, typer.Argument(help="Where to write plan.toml and contract.toml; here when left out.", show_default=False)
    ] = Path(),
    data: Annotated[
        str | None,
        typer.Option(help="Write the contract of this public set (`cohortium data list`), or of `bank-world`."),
    ] = None,
    institutions: Annotated[
        int | None,
        typer.Option(
            help="How many will take part: sets how many of them a sum needs at least; 3 when left out.", min=1
        ),
    ] = None,
    lookalike: Annotated[
        bool, typer.Option("--lookalike", help="Write encoder.toml and campaign.toml as well, for lookalike audiences.")
    ] = False,
) -> None:
    """Write a starter plan and feature contract, every line explained. Existing files are never touched.

    \b
    Examples:
      cohortium init my-study
      cohortium init my-study --institutions 5
      cohortium init grocery --data ta-feng
      cohortium init grocery --data ta-feng --lookalike
    """
    for path in write_starter(folder, data, institutions, lookalike=lookalike):
        typer.echo(f"wrote {path}")
    source = f"--data {data}" if data is not None else f"--data YOUR_TABLE --institutions {institutions or 3}"
    if data is None:
        typer.echo("next: adapt contract.toml to your tables, then")
        typer.echo(f"  cohortium data check {folder / 'contract.toml'} YOUR_TABLE")
        typer.echo(f"  cohortium simulate {folder / 'plan.toml'} {source} --out results")
    else:
        typer.echo(f"next: cohortium simulate {folder / 'plan.toml'} {source} --out results")
    if lookalike:
        out, state = folder / "encoder", f"--state {folder / 'nodes'}"
        typer.echo(f"  or: cohortium simulate {folder / 'encoder.toml'} {source} {state} --out {out}, then")
        plan, seeds = folder / "campaign.toml", "--seeds YOUR_SEEDS.csv"
        typer.echo(f"      cohortium simulate {plan} {source} {state} {seeds} --out {folder / 'campaign'}")
