"""Cases of review as a table: on the page of an audit, and in the report's section about governance."""

from __future__ import annotations

from collections.abc import Sequence

from cohortium.governance.report.markup import Child, Html, join, table, tag
from cohortium.governance.report.policy_facts import ReviewFacts
from cohortium.governance.report.wording import label

__all__ = ["review_table"]

_HEADS = ("Case", "Asks for", "State", "Approved by", "Waits for", "Until", "Conditions and tasks")


def review_table(cases: Sequence[tuple[str | None, ReviewFacts]]) -> Html:
    """One row a case, under the institution whose it is where that is known."""
    named = any(institution is not None for institution, _ in cases)
    rows = [(*((institution or "not known",) if named else ()), *_cells(case)) for institution, case in cases]
    return table("Cases of review", (*(("Institution",) if named else ()), *_HEADS), rows)


def _cells(case: ReviewFacts) -> tuple[Child, ...]:
    return (
        case.case,
        label(case.kind),
        tag("strong", case.state),
        ", ".join(case.approved_by) or "nobody",
        ", ".join(case.waiting_for) or "nobody",
        "not approved" if case.until is None else tag("time", case.until.isoformat()),
        _lines((*case.conditions, *(f"task: {task}" for task in case.tasks))),
    )


def _lines(lines: Sequence[str]) -> Child:
    return join(tag("div", line) for line in lines) if lines else "none"
