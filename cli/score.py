"""`cohortium score`: an institution's own customers, by a released lookalike model or in released segments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli.access import authorised
from cohortium.cli.progress import progress_printer
from cohortium.client.lookalike import ScoredCustomers, open_records, score_customers_file
from cohortium.client.segmenting import score_bundle_file
from cohortium.governance.access import Act

__all__ = ["score"]

_NO_SEEDS = {
    "none": "this node has no seed list of the campaign's name: nobody is marked as a seed",
    "removed": "the campaign's seed list was removed here: its customers are scored like all others",
}
_STEP = 0.1


def score(
    node: Annotated[Path, typer.Argument(metavar="NODE", help="The node's state folder.")],
    model: Annotated[
        Path, typer.Option(help="What was released: a campaign's safetensors file, or segments as bundle.json.")
    ],
    out: Annotated[Path, typer.Option(help="The scores file to write, Parquet; an earlier one is replaced.")],
    reasons: Annotated[
        bool,
        typer.Option(help="Of a campaign: name the three features that raise each score most; slower."),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Score all customers of a node with a model released under a plan it approved, or find their segments.

    A campaign's signature must be that of the coordinator whose key the plan's charter pins. Scores and reasons stay in
    this house: nothing is sent, and no budget is spent. Memory does not grow with the number of customers.

    \b
    Examples:
      cohortium score state/north --model lookalike.safetensors --out scores.parquet
      cohortium score state/north --model lookalike.safetensors --out scores.parquet --no-reasons
      cohortium score state/north --model state/north/released/3f9a.../bundle.json --out segments.parquet
    """
    authorised(node, Act.SCORE)
    if model.suffix == ".json":
        _score_segments(node, model, out, as_json)
        return
    with open_records(node) as records:
        done = score_customers_file(records, model, out, reasons=reasons, progress=_tenths(progress_printer(quiet)))
    if as_json:
        typer.echo(json.dumps(_to_json(done), indent=2))
        return
    typer.echo(f"{done.customers:,} customers scored, {done.seeds:,} of them seeds")
    if done.seed_list in _NO_SEEDS:
        typer.echo(_NO_SEEDS[done.seed_list])
    typer.echo(f"scores: {out}, of use until {done.expires}")
    typer.echo(f"next: cohortium audience preview {node} --scores {out} --model {model}")


def _score_segments(node: Path, bundle: Path, out: Path, as_json: bool) -> None:
    with open_records(node) as records:
        customers = score_bundle_file(records, bundle, out)
    told = {"segments": str(out), "customers": customers, "bundle": str(bundle)}
    typer.echo(json.dumps(told, indent=2) if as_json else f"{customers:,} customers in segments: {out}")


def _to_json(done: ScoredCustomers) -> dict[str, object]:
    return {
        "scores": str(done.path),
        "customers": done.customers,
        "seeds": done.seeds,
        "seed_list": done.seed_list,
        "model": done.model,
        "plan": done.plan,
        "expires": done.expires.isoformat(),
    }


def _tenths(say: Callable[[str], None]) -> Callable[[str, float], None]:
    """Progress at every further tenth of a stage."""
    said: dict[str, float] = {}

    def tell(stage: str, share: float) -> None:
        if stage not in said or share >= said[stage] + _STEP:
            said[stage] = share
            say(f"{stage} {share:.0%}")

    return tell
