"""`cohortium seed`: the lists of valued customers for whose likes campaigns look."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cohortium.cli.access import authorised
from cohortium.client.audience import looks_like_audience
from cohortium.client.lookalike import forecast_list, open_records, refine_list
from cohortium.client.seeds import SeedList
from cohortium.governance.access import Act

__all__ = ["app"]

app = typer.Typer(
    name="seed",
    help="Lists of valued customers, for whose likes campaigns look. A list never leaves its institution.",
    no_args_is_help=True,
)

_Node = Annotated[Path, typer.Argument(metavar="NODE", help="The node's state folder.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The list's name, by which plans ask for it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("add")
def add(
    node: _Node,
    name: _Name,
    file: Annotated[Path, typer.Option(help="CSV (also .gz) or Parquet file, or .txt with one id a line.")],
    column: Annotated[
        str | None, typer.Option(help="Which column holds the customer ids; left out for .txt files.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a list of that name which no plan has used.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Match a list of customer ids with the node's customers, and keep it under a name.

    Fewer than 100 usable seeds are refused, 500 are advised. So is a list of more than half of the customers, and one
    of which more than half were exported as an audience before: there is no lookalike of a lookalike. Once a plan has
    used a list, it does not change.

    \b
    Examples:
      cohortium seed add state/north vip --file vip.csv --column customer_id
      cohortium seed add state/north vip --file vip.txt --replace
    """
    authorised(node, Act.SEED_CHANGE, name)
    with open_records(node) as records:
        audiences = records.audiences()
        counts = records.seeds.add(
            name,
            file,
            column,
            records.people(),
            replace=replace,
            already_exported=lambda ids: looks_like_audience(ids.tolist(), audiences),
        )
        erased = not replace or records.seeds.erase_log()
    _warn_unless(erased)
    if as_json:
        typer.echo(json.dumps({"name": name, "counts": asdict(counts), "advice": counts.advice()}, indent=2))
        return
    for line in counts.advice():
        typer.echo(line)
    typer.echo(f"kept as '{name}'")


@app.command("list")
def list_seeds(node: _Node, as_json: _Json = False) -> None:
    """Show the node's seed lists with their counts, removed ones too.

    \b
    Example:
      cohortium seed list state/north
    """
    authorised(node, Act.SEED_READ)
    with open_records(node) as records:
        lists = records.seeds.lists()
    if as_json:
        typer.echo(json.dumps([_to_json(entry) for entry in lists], indent=2))
        return
    table = Table("name", "state", "added", "listed", "matched", "consented", "allowed", box=None, pad_edge=False)
    for entry in lists:
        counts = entry.counts
        numbers = (f"{n:,}" for n in (counts.listed, counts.matched, counts.consented, counts.allowed))
        table.add_row(entry.name, _state(entry), entry.added_at[:10], *numbers)
    Console(highlight=False, markup=False).print(table if lists else "no seed list")
    for entry in lists:
        if entry.origin is not None:
            typer.echo(f"{entry.name}: refined from '{entry.origin.list}' by the model {entry.origin.model}")


@app.command("remove")
def remove(node: _Node, name: _Name) -> None:
    """Erase a list's members for good. The name of a list that a plan has used is not given to another one.

    Lists that were refined from it keep their members, and are named.

    \b
    Example:
      cohortium seed remove state/north vip
    """
    authorised(node, Act.SEED_CHANGE, name)
    with open_records(node) as records:
        done = records.seeds.remove(name)
    _warn_unless(done.erased)
    typer.echo(f"removed '{name}'")
    if done.refined:
        typer.echo(
            f"its members are also in {', '.join(done.refined)}, refined from it: remove these too if they must go"
        )


@app.command("refine")
def refine(
    node: _Node,
    name: _Name,
    model: Annotated[Path, typer.Option(help="Released model of an earlier campaign for customers of this kind.")],
    new: Annotated[str, typer.Option("--as", metavar="NEW", help="Name of the list to make.")],
    share: Annotated[
        float, typer.Option(help="Of the members who do not look like the rest, how many to keep, above 0, at most 1.")
    ] = 1.0,
    as_json: _Json = False,
) -> None:
    """Make a new list of an old one, without members who look like the rest, and thinned to a share if asked.

    Who looks like the rest is decided by the released model alone, member by member; the draw is by a secret of the
    node, and the same refinement made again draws the same members. State a share in advance: a share tuned to the
    counts would make members depend on each other. The old list stays as it is. Nothing leaves the node, and nothing is
    charged. A list is best used whole, even with strangers in it: refine one that must be short, or must not hold
    strangers.

    \b
    Examples:
      cohortium seed refine state/north vip --model lookalike.safetensors --as vip-clean
      cohortium seed refine state/north vip --model lookalike.safetensors --as vip-short --share 0.25
    """
    authorised(node, Act.SEED_CHANGE, name)
    with open_records(node) as records:
        done = refine_list(records, name, model, new, share=share)
    made = done.refinement
    if as_json:
        told = {"name": new, "list": name, "model": done.model, "plan": done.plan, "model_seed": done.seed}
        typer.echo(json.dumps({**told, **asdict(made), "advice": made.advice()}, indent=2))
        return
    for line in made.advice():
        typer.echo(line)
    typer.echo(f"kept as '{new}', of '{name}', by a model of customers like '{done.seed}'")


@app.command("doctor")
def doctor(
    node: _Node,
    name: _Name,
    model: Annotated[Path, typer.Option(help="The released encoder that the campaign will stand on.")],
    epsilon: Annotated[float, typer.Option(help="Of the campaign.")] = 1.0,
    wanted: Annotated[float, typer.Option(help="Expected cosine to reach, above 0 and below 1.")] = 0.9,
    elsewhere: Annotated[
        list[int] | None, typer.Option(min=0, help="Matched seeds of another institution, if it tells; repeat it.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Predict how true to a list its noised direction would be in a campaign, before any epsilon is spent.

    The forecast is the cosine between what the campaign's first question would learn of these seeds and what it would
    learn without noise. It comes from exact figures about the seeds: keep it in this house.

    \b
    Examples:
      cohortium seed doctor state/north vip --model encoder.safetensors
      cohortium seed doctor state/north vip --model encoder.safetensors --epsilon 0.5 --elsewhere 300 --elsewhere 800
    """
    authorised(node, Act.SEED_READ, name)
    with open_records(node) as records:
        told = forecast_list(records, name, model, epsilon=epsilon, wanted=wanted, elsewhere=elsewhere or ())
    if as_json:
        typer.echo(json.dumps({**asdict(told), "advice": told.advice()}, indent=2))
        return
    for line in told.advice():
        typer.echo(line)


def _warn_unless(erased: bool) -> None:
    if not erased:
        typer.echo(
            "warning: another process reads the node's database: the erased ids stay in its log until no process has it"
            " open — fix: stop the node once",
            err=True,
        )


def _state(entry: SeedList) -> str:
    if entry.removed:
        return "removed"
    return "used by a plan" if entry.used else "free"


def _to_json(entry: SeedList) -> dict[str, Any]:
    return {
        "name": entry.name,
        "state": _state(entry),
        "added_at": entry.added_at,
        "version": entry.version,
        "counts": asdict(entry.counts),
        "origin": None if entry.origin is None else asdict(entry.origin),
    }
