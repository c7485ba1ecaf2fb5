"""`cohortium fairness`: which released models may be audited here, and what an audit's result says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cohortium.client.lookalike import open_records
from cohortium.governance.fairness import FairnessResult, Metric, load_fairness

__all__ = ["app", "verdict_lines"]

app = typer.Typer(
    name="fairness",
    help="Fairness audits: let a released model be audited here; read what an audit found.",
    no_args_is_help=True,
)

_ORDER = ("fail", "insufficient", "inconclusive", "pass")


@app.command("add")
def add_model(
    node: Annotated[Path, typer.Argument(metavar="NODE", help="The node's state folder.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A released bundle.json or lookalike.safetensors.")],
) -> None:
    """Let a released model be audited on this node's customers: the node keeps a copy by its digest.

    An audit's plan names the model by that digest; approving the plan approves the audit. An audience is exported only
    with the model held here, for its model card is made anew from it.

    \b
    Example:
      cohortium fairness add state/north campaign/lookalike.safetensors
    """
    with open_records(node) as records:
        typer.echo(records.models.add(file))


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An audit's fairness.json.")],
    everything: Annotated[bool, typer.Option("--all", help="Every metric, not only what did not pass.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Print an audit's verdict and every metric that did not pass, with its interval and the people behind it.

    Exits with 0 when the audit passed, with 1 otherwise.

    \b
    Example:
      cohortium fairness show audit/fairness.json --all
    """
    result = load_fairness(file)
    if as_json:
        typer.echo(result.to_bytes().decode(), nl=False)
    else:
        _print(result, everything=everything)
    raise typer.Exit(0 if result.verdict == "pass" else 1)


def verdict_lines(result: FairnessResult) -> Iterator[str]:
    """How many metrics came to each verdict, the worst first, and the first of the worst."""
    for verdict in _ORDER:
        found = [metric for metric in result.metrics if metric.verdict == verdict]
        if found:
            named = f": {_named(found[0])}" if verdict != "pass" else ""
            more = f" and {len(found) - 1} more" if verdict != "pass" and len(found) > 1 else ""
            yield f"{len(found):>3} {verdict}{named}{more}"


def _named(metric: Metric) -> str:
    group = " & ".join(metric.group) if metric.group is not None else "all groups"
    told = [metric.name, *metric.attributes, group]
    return " ".join([*told, metric.outcome or "", f"at {metric.institution}" if metric.institution else ""]).strip()


def _print(result: FairnessResult, *, everything: bool) -> None:
    what = result.subject if result.level is None else f"{result.subject}, level {result.level}"
    typer.echo(f"{result.verdict.upper()}: {what}, {result.audited}, judged on {result.made}")
    shown = [metric for metric in result.metrics if everything or metric.verdict not in (None, "pass")]
    limits = {each.name: f"{each.side} {each.limit:g}" for each in result.thresholds}
    for metric in shown:
        found = "" if metric.estimate is None else f": {_number(metric.estimate)}"
        interval = f" ({_number(metric.low)} to {_number(metric.high)})" if metric.low is not None else ""
        limit = f", limit: {limits[metric.threshold]}" if metric.threshold is not None else ""
        people = "fewer people than the minimum cell" if metric.people is None else f"{metric.people:,.0f} people"
        why = f", {metric.why}" if metric.why is not None else ""
        typer.echo(f"{metric.verdict or '-':<13}{_named(metric)}{found}{interval}{limit}; {people}{why}")
    for missing in result.not_judged if everything else ():
        typer.echo(f"not judged: {missing.metric} of {' & '.join(missing.attributes)}: {missing.why}")
    if not everything:
        typer.echo(f"{len(result.metrics) - len(shown)} other metrics, {len(result.not_judged)} not judged: --all")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
