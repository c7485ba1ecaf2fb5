"""`cohortium fairness`: which released models may be audited here, and what audits' results say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli.access import authorised
from cohortium.client.lookalike import open_records
from cohortium.governance.access import Act
from cohortium.governance.fairness import (
    Cost,
    FairnessResult,
    Metric,
    compare,
    lift_cost,
    load_fairness,
    segment_costs,
)
from cohortium.study.bundle import load_bundle
from cohortium.study.errors import DataError
from cohortium.study.model import LookalikeModel, load_model

__all__ = ["app", "verdict_lines"]

app = typer.Typer(
    name="fairness",
    help="Fairness audits: let a released model be audited here; read and compare what audits found.",
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
    authorised(node, Act.MODEL_ADD)
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


@app.command("compare")
def compare_audits(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="The fairness.json of what was mitigated.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The fairness.json of what came of it.")],
    mitigation: Annotated[str, typer.Option(help="What was done, in words.")],
    before_model: Annotated[
        Path | None, typer.Option(help="What BEFORE audited: bundle.json or lookalike.safetensors, for the cost.")
    ] = None,
    after_model: Annotated[Path | None, typer.Option(help="What AFTER audited, likewise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Two audits side by side, with what the mitigation cost: lift of an audience, or variance that segments explain.

    It says that a mitigation worked only where the audit after it passes. Exits with 0 then, with 1 otherwise.

    \b
    Example:
      cohortium fairness compare audit-1/fairness.json audit-2/fairness.json --mitigation "relationship left out" \\
        --before-model campaign-1/lookalike.safetensors --after-model campaign-2/lookalike.safetensors
    """
    first, second = load_fairness(before), load_fairness(after)
    costs, without = _costs(first, before_model, second, after_model)
    found = compare(first, second, mitigation, costs, without)
    typer.echo(found.to_bytes().decode() if as_json else found.to_text(), nl=not as_json)
    raise typer.Exit(0 if second.verdict == "pass" else 1)


def _costs(
    first: FairnessResult, before: Path | None, second: FairnessResult, after: Path | None
) -> tuple[tuple[Cost, ...], tuple[str, ...]]:
    """What it cost, and which features the plan after it left out; nothing without the two models."""
    if before is None or after is None:
        if (before is None) != (after is None):
            missing = "--before-model" if before is None else "--after-model"
            raise DataError("is needed beside the other one", place=missing, fix="give both models, or neither")
        return (), ()
    if first.subject == "segments":
        old, new = load_bundle(before), load_bundle(after)
        _check_audited(((first, old.digest, before), (second, new.digest, after)))
        return segment_costs(old, new), new.plan.without
    models = [load_model(file, LookalikeModel, signer=None) for file in (before, after)]
    _check_audited(((first, models[0].digest, before), (second, models[1].digest, after)))
    curves = [model.document.curve for model in models]
    return (lift_cost(curves[0], curves[1], first.level or ""),), models[1].document.plan.without


def _check_audited(pairs: Iterable[tuple[FairnessResult, str, Path]]) -> None:
    for result, digest, file in pairs:
        if result.audited != digest:
            raise DataError("is not what that audit is of", place=str(file), fix="give the model of that very digest")


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
