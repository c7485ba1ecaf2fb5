"""`cohortium simulate`: many institutions on this machine, with the very code that runs deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli.data import named_sources
from cohortium.cli.progress import progress_printer
from cohortium.governance.report import RunSummary, size_band
from cohortium.simulations.sources import is_public, own_data, public_data
from cohortium.simulations.study import Engine, SimulationOrder, simulate
from cohortium.study.charter import load_charter
from cohortium.study.errors import PlanError
from cohortium.study.plan import MAX_EPSILON, load_plan

__all__ = ["print_summary", "simulate_command"]

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
    engine: Annotated[str, typer.Option(help="in-process, or ray, which needs the extra of that name.")] = "in-process",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that OUT holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run a plan over simulated institutions: the same apps, ledgers and noise as deployed, in one process.

    Writes report.html, summary.json, bundle.json and, per institution, segments.parquet. Interrupted, it is continued
    with --resume; what was charged stays charged. Noise comes from the operating system: no two runs are alike.

    \b
    Examples:
      cohortium simulate plan.toml --data ta-feng --out results
      cohortium simulate plan.toml --data sales.parquet --institutions region --out results
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
    print_summary(simulate(order, say), out, as_json=as_json)


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
