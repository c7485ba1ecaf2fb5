"""`cohortium simulate`: many institutions on this machine, with the very code that runs deployed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli.data import named_sources
from cohortium.cli.fairness import verdict_lines
from cohortium.cli.progress import progress_printer
from cohortium.governance.report import FairnessPage, LookalikeSummary, RunSummary, size_band
from cohortium.models.levels import why_suppressed
from cohortium.simulations.audit_study import FAIRNESS_FILE, simulate_audit
from cohortium.simulations.lookalike_study import (
    ENCODER_FILE,
    LOOKALIKE_FILE,
    SeedOrder,
    simulate_campaign,
    simulate_encoder,
)
from cohortium.simulations.run_folder import Engine, SimulationOrder
from cohortium.simulations.sources import is_public, own_data, public_data
from cohortium.simulations.study import simulate
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.audit_tables import load_audit_tables
from cohortium.study.charter import load_charter
from cohortium.study.errors import DataError, Defect, PlanError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import EncoderModel, Model, load_model
from cohortium.study.plan import MAX_EPSILON
from cohortium.study.plans import load_plan, named_audited, named_model
from cohortium.study.segment_plan import SegmentPlan

__all__ = ["print_audit", "print_campaign", "print_summary", "simulate_command"]

_ENGINES: dict[str, Engine] = {"in-process": "in-process", "ray": "ray"}


def simulate_command(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan, a TOML file that names its contract.")],
    data: Annotated[
        list[str],
        typer.Option(
            help="A public set (`cohortium data list`), `bank-world`, or your tables: a path, or TABLE=PATH for each; "
            "repeat it for several tables.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results; a new one, unless --resume.")],
    institutions: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN_OR_N",
            help="Column whose values are the institutions (TABLE.COLUMN with several tables), or a number of equal "
            "parts. Public sets know theirs.",
        ),
    ] = None,
    charter: Annotated[
        Path | None, typer.Option(help="The federation's charter, a TOML file; made of the data when left out.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder of the institutions' ledgers and tables, for several plans on the same customers."),
    ] = None,
    lifetime_epsilon: Annotated[
        float, typer.Option(help="Every institution's lifetime budget, above 0 and up to 50.")
    ] = MAX_EPSILON,
    seeds: Annotated[
        Path | None,
        typer.Option(help="For a campaign: CSV or Parquet file with the seeds' customer ids.", metavar="FILE"),
    ] = None,
    seed_column: Annotated[str, typer.Option(help="Column of the ids in that file.")] = "id",
    seed_institutions: Annotated[
        str | None,
        typer.Option(help="Institutions that hold a seed list, separated by commas; all with such customers."),
    ] = None,
    audience: Annotated[
        str | None,
        typer.Option(help="Level, such as balanced, that every institution without seeds exports.", metavar="LEVEL"),
    ] = None,
    previous: Annotated[
        Path | None,
        typer.Option(help="For an audit: tables.json of the audit of the last approved audience.", metavar="FILE"),
    ] = None,
    engine: Annotated[str, typer.Option(help="in-process, or ray, which needs the extra of that name.")] = "in-process",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that OUT holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run a plan over simulated institutions: the same apps, ledgers and noise as deployed, in one process.

    A plan that finds segments writes report.html, summary.json, bundle.json and, per institution, segments.parquet; one
    that trains an encoder writes encoder.safetensors; a campaign, with --seeds, lookalike.safetensors; an audit
    fairness.json, tables.json and report.html. Interrupted, a run is continued with --resume; what was charged stays
    charged. Noise comes from the operating system: no two runs are alike.

    \b
    Examples:
      cohortium simulate plan.toml --data ta-feng --out results
      cohortium simulate plan.toml --data sales.parquet --institutions region --out results
      cohortium simulate encoder.toml --data ta-feng --state nodes --out encoder
      cohortium simulate campaign.toml --data ta-feng --state nodes --seeds valued.csv --out campaign
      cohortium simulate audit.toml --data ta-feng --state nodes --out audit
      cohortium simulate plan.toml --data purchases=sales.csv --data customers=crm.csv --institutions 5 --out results
    """
    if engine not in _ENGINES:
        raise PlanError(f"no engine '{engine}'", place="--engine", fix=f"use one of {', '.join(_ENGINES)}")
    plan, contract = load_plan(plan_file)
    say = progress_printer(quiet)
    if len(data) == 1 and is_public(data[0]):
        customers = public_data(data[0], institutions, contract, say)
    else:
        customers = own_data(named_sources(contract, data), institutions, contract)
    order = SimulationOrder(
        plan=plan,
        contract=contract,
        data=customers,
        out=out,
        charter=load_charter(charter) if charter is not None else None,
        state=state,
        lifetime_epsilon=lifetime_epsilon,
        lifetime_delta=plan.delta,
        engine=_ENGINES[engine],
        resume=resume,
    )
    match plan:
        case SegmentPlan():
            print_summary(simulate(order, say), out, as_json=as_json)
        case EncoderPlan():
            _print_encoder(simulate_encoder(order, say), out, as_json=as_json)
        case LookalikePlan():
            options = (seeds, seed_column, seed_institutions, audience)
            print_campaign(_campaign(order, plan_file, options, say), out, as_json=as_json)
        case AuditPlan():
            earlier = load_audit_tables(previous) if previous is not None else None
            page = simulate_audit(order, named_audited(plan_file), say, previous=earlier)
            print_audit(page, out, as_json=as_json)
        case _:
            raise Defect(f"a plan of the kind {type(plan).__name__}")


def _campaign(
    order: SimulationOrder,
    plan_file: Path,
    options: tuple[Path | None, str, str | None, str | None],
    say: Callable[[str], None],
) -> LookalikeSummary:
    seeds, column, institutions, audience = options
    if seeds is None:
        raise DataError("a campaign needs seeds", place="--seeds", fix="give a file of the seeds' customer ids")
    model = named_model(plan_file)
    if model is None:
        raise PlanError("names no file", place=f"{plan_file}: model", fix='write model = "encoder.safetensors"')
    chosen = tuple(name.strip() for name in institutions.split(",")) if institutions is not None else None
    base = load_model(model, EncoderModel, signer=None)
    return simulate_campaign(replace(order, base=base), SeedOrder(seeds, column, chosen, audience), say)


def _print_encoder(model: Model[EncoderModel], out: Path, *, as_json: bool) -> None:
    document = model.document
    if as_json:
        typer.echo(document.to_bytes().decode())
        return
    typer.echo("")
    typer.echo(f"an encoder of {len(document.features)} features, trained by {document.institutions} institutions")
    typer.echo(f"model: {out / ENCODER_FILE} ({model.digest})")


def print_campaign(summary: LookalikeSummary, out: Path, *, as_json: bool) -> None:
    """A campaign's result in a few lines, or the whole summary as JSON."""
    if as_json:
        typer.echo(summary.to_bytes().decode(), nl=False)
        return
    campaign = summary.campaign
    typer.echo("")
    typer.echo(f"customers like the seed '{campaign.plan.lookalike.seed}', ranked by {campaign.choice.ranker}")
    targets = {target.name: target for target in campaign.plan.lookalike.targets}
    for level in campaign.curve.levels:
        if level.point is None:
            why = why_suppressed(campaign.curve, targets.get(level.name), campaign.plan.min_cell)
            typer.echo(f"  {level.name:<10} suppressed: {why}")
            continue
        people = level.point.people
        band = size_band(people.value, (people.high - people.low) / 3.92)
        lift = "" if level.point.lift is None else f", seeds {level.point.lift.value:.1f} times as common as among all"
        typer.echo(f"  {level.name:<10} {band} customers{lift}")
    cost = summary.costs[0]
    if cost.both is not None:
        typer.echo(
            f"privacy spent by encoder and campaign: epsilon {_number(cost.both)} at delta {campaign.plan.delta:g}"
        )
    typer.echo(f"report: {out / 'report.html'}")
    typer.echo(f"model: {out / LOOKALIKE_FILE}")


def print_audit(page: FairnessPage, out: Path, *, as_json: bool) -> None:
    """An audit's verdict in a few lines, or the whole page as JSON."""
    if as_json:
        typer.echo(page.to_bytes().decode(), nl=False)
        return
    result = page.result
    typer.echo("")
    typer.echo(f"fairness audit of {page.name}: {result.verdict.upper()}")
    for line in verdict_lines(result):
        typer.echo(f"  {line}")
    if result.epsilon is not None:
        typer.echo(
            f"cost of the audit: epsilon {result.epsilon:g} at delta {result.delta:g}, per person and institution"
        )
    typer.echo(f"report: {out / 'report.html'}")
    typer.echo(f"result: {out / FAIRNESS_FILE} ({result.digest})")


def print_summary(summary: RunSummary, out: Path, *, as_json: bool) -> None:
    """The result in a few lines, or the whole summary as JSON."""
    if as_json:
        typer.echo(summary.to_bytes().decode(), nl=False)
        return
    bundle, plan = summary.bundle, summary.bundle.plan
    typer.echo("")
    typer.echo(f"{len(bundle.segments)} segments, learnt by {bundle.institutions} institutions")
    for segment in bundle.segments:
        size = "suppressed" if segment.size is None else f"{size_band(segment.size, segment.size_std)} customers"
        typer.echo(f"  {segment.id:>2}  {segment.name:<44} {size}")
    if plan.trust == "unsafe-none":
        typer.echo("NO PRIVACY: no noise was added; every number above may reveal single customers")
    else:
        typer.echo(
            f"privacy spent: epsilon {_number(summary.person_at[0].epsilon)} of {plan.epsilon:g} at delta "
            f"{plan.delta:g}, per person and institution"
        )
        for row in summary.person_at[1:]:
            typer.echo(f"  a customer of {row.institutions} institutions: epsilon {_number(row.epsilon)}")
    if summary.comparison is not None:
        ratio = summary.comparison.federated_ratio
        typer.echo(f"cost: {ratio:.3f} times that of central, non-private k-means (known in a simulation only)")
    typer.echo(f"report: {out / 'report.html'}")


def _number(epsilon: float | None) -> str:
    return "above 200" if epsilon is None else f"{epsilon:.3f}"
