"""One command's worth of segmentation: many institutions on one machine, each with its own node, and one coordinator.

Beside what every run leaves in its folder (`simulations.run_folder`):

    institutions/NAME/segments.parquet
    bundle.json         what the run released
    summary.json        everything the report is drawn from
    report.html
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version

from cohortium.client.onboarding import OnboardingReport, load_report
from cohortium.client.scoring import score_customers, write_segments
from cohortium.governance.report import (
    ContractFacts,
    LeftOut,
    RunSummary,
    collusion,
    person_at,
    render_report,
)
from cohortium.simulations.baselines import compare_with_central
from cohortium.simulations.run_folder import (
    Clock,
    Say,
    SimulationOrder,
    begin_run,
    institution_facts,
    run_plan,
    write_bytes,
)
from cohortium.study.bundle import Bundle
from cohortium.study.errors import Defect

__all__ = ["simulate"]


def simulate(order: SimulationOrder, say: Say) -> RunSummary:
    """Run a plan over simulated institutions and write everything a run leaves behind.

    Interrupted at any point, the run is continued by `resume`: what was charged stays charged, what was answered is
    answered again with the same bytes.

    Args:
        order: what to simulate.
        say: called with one line of progress at a time.

    Raises:
        OutputError: `out` holds something else, or a run and `resume` was not asked for.
        PlanError, DataError, BudgetError, RefusedError: before anything is charged where possible; each says where.
    """
    clock = Clock(say)
    with ExitStack() as stack:
        begun = begin_run(order, say, clock, stack, lambda _nodes: None)
        nodes, folders = begun.nodes, begun.folders
        with clock.stage("federated study"):
            bundle = run_plan(order, begun, say)
        if not isinstance(bundle, Bundle):
            raise Defect("a segmentation study released no bundle")
        write_bytes(order.out / "bundle.json", bundle.to_bytes())
        with clock.stage("scoring"):
            for name, node in nodes.items():
                write_segments(
                    score_customers(bundle, node.people), bundle, order.state_folder / name / "segments.parquet"
                )
        with clock.stage("comparison with central clustering"):
            comparison = compare_with_central(bundle, {name: node.people for name, node in nodes.items()})
        spends = {name: node.ledger.spent(order.plan.digest) for name, node in nodes.items()}
        summary = RunSummary(
            version=version("cohortium"),
            started=begun.file.started,
            finished=datetime.now(UTC),
            stages=tuple(clock.stages),
            dataset=order.data.facts,
            bundle=bundle,
            contract=ContractFacts.of(order.contract),
            institutions=tuple(institution_facts(order.plan, name, node) for name, node in nodes.items()),
            person_at=person_at(spends.values(), order.plan),
            collusion=collusion(spends.values(), order.plan, len(nodes)),
            left_out=tuple(_left_out(name, load_report(folders[name] / "customers")) for name in nodes),
            comparison=comparison,
        )
    write_bytes(order.out / "summary.json", summary.to_bytes())
    write_bytes(order.out / "report.html", render_report(summary).encode())
    return summary


def _left_out(name: str, report: OnboardingReport) -> LeftOut:
    counted = [table.duplicates for table in report.tables if table.duplicates is not None]
    return LeftOut(
        institution=name,
        lines=sum(table.lines for table in report.tables),
        unused=sum(table.lines - table.used + table.lines_of_others for table in report.tables),
        duplicates=sum(counted) if counted else None,
        bad_cells=sum(column.bad for column in report.columns),
        clipped=sum(feature.clipped_low + feature.clipped_high for feature in report.features),
        unknown=sum(feature.missing for feature in report.features),
    )
