"""One command's worth of a fairness audit: tables by protected group from many institutions, judged, and its page.

Beside what every run leaves in its folder (`simulations.run_folder`):

    tables.json         what the run made known: noisy tables, nothing below the minimum cell
    fairness.json       every metric with its interval and verdict: what reviewers sign
    audit.json          what the page is drawn from
    report.html         the page
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cohortium.client.node import Node
from cohortium.governance.fairness import judge_answers
from cohortium.governance.report import FairnessPage, MitigationFacts, render_fairness_report
from cohortium.server.study_run import Asked, AuditAnswer
from cohortium.simulations.run_folder import Clock, Say, SimulationOrder, begin_run, run_plan, write_bytes
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.audit_tables import AuditTables
from cohortium.study.bundle import load_bundle
from cohortium.study.errors import Defect, PlanError
from cohortium.study.model import LookalikeModel, load_model

__all__ = ["FAIRNESS_FILE", "TABLES_FILE", "simulate_audit", "write_page"]

TABLES_FILE, FAIRNESS_FILE = "tables.json", "fairness.json"


_FEATURES = MitigationFacts(
    what="Leave features that tell most about the groups out of the plan (without = [ … ]), train again, audit again."
)
_THRESHOLDS = MitigationFacts(
    what="A threshold for every group (governance.fairness.group_thresholds), worked out on released tables.",
    condition="Only where the rules of the place let protected attributes decide who is chosen.",
)
_NUMBER = MitigationFacts(what="Another number of segments (k in the plan); the new segments are audited again.")
_ASKABLE = {"audience": (_FEATURES, _THRESHOLDS), "segments": (_FEATURES, _NUMBER), "column": (_THRESHOLDS,)}


def simulate_audit(
    order: SimulationOrder,
    model: Path | None,
    say: Say,
    after: Callable[[Asked], None] = lambda _asked: None,
    previous: AuditTables | None = None,
) -> FairnessPage:
    """Run an audit's plan over simulated institutions, judge what it learnt, and write everything a run leaves behind.

    Args:
        order: what to simulate. Seed lists are those that the institutions in `order.state` have.
        model: the released bundle or campaign's model that the plan audits; None for a column.
        say: called with one line of progress at a time.
        after: called after every question.
        previous: tables of the audit of the last approved audience, to compare whom it reached.

    Raises:
        PlanError: not an audit's plan, or one without its model's file.
        OutputError, DataError, BudgetError, RefusedError: as `study.simulate`.
    """
    plan, clock = order.plan, Clock(say)
    if not isinstance(plan, AuditPlan):
        raise PlanError("is no audit's plan", place="plan: study", fix='set study = "audit"')
    if (model is None) != (plan.audit.model is None):
        raise PlanError(
            "names no file", place="plan: audit.model", fix='write model = "lookalike.safetensors", or "bundle.json"'
        )
    with ExitStack() as stack:

        def add(nodes: Mapping[str, Node]) -> None:
            for node in nodes.values():
                if model is not None:
                    node.models.add(model)

        begun = begin_run(order, say, clock, stack, add)
        with clock.stage("fairness audit"):
            answer = run_plan(order, begun, say, after)
    if not isinstance(answer, AuditAnswer):
        raise Defect("an audit released no tables")
    write_bytes(order.out / TABLES_FILE, answer.document.to_bytes())
    result = judge_answers(plan, answer.pooled, answer.own, datetime.now(UTC).date(), previous)
    write_bytes(order.out / FAIRNESS_FILE, result.to_bytes())
    page = FairnessPage(
        version=version("cohortium"),
        mode="simulation",
        of=plan.audit.of,
        name=_name(plan, model),
        purpose=plan.purpose,
        institutions=answer.document.institutions,
        trust=plan.trust,
        result=result,
        mitigations=_ASKABLE[plan.audit.of],
    )
    write_page(page, order.out)
    return page


def write_page(page: FairnessPage, out: Path) -> None:
    """Write what the page of an audit is drawn from, and the page."""
    write_bytes(out / "audit.json", page.to_bytes())
    write_bytes(out / "report.html", render_fairness_report(page).encode())


def _name(plan: AuditPlan, model: Path | None) -> str:
    if model is None:
        return str(plan.audit.column)
    if plan.audit.of == "segments":
        return load_bundle(model).plan.name
    return load_model(model, LookalikeModel, signer=None).document.plan.name
