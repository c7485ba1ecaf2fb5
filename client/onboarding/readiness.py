"""Is this institution ready to take part? Findings with what to do about each; no value of any customer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cohortium.client.onboarding.report import FeatureReport, OnboardingReport
from cohortium.study.contract import Contract

__all__ = [
    "MINIMUM_CELL",
    "SEED_ADVISED",
    "SEED_FLOOR",
    "Finding",
    "Readiness",
    "assess",
]

MINIMUM_CELL = 100
"""People below whom no cell is released by default."""

SEED_FLOOR = 100
"""People below whom no lookalike seed is accepted."""

SEED_ADVISED = 500
"""People a lookalike seed should have."""

_HISTORY_WANTED = 0.9
_COVERAGE_WANTED = 0.8
_CLIPPED_TOLERATED = 0.05
_NEARLY_ALL = 0.99
_REPEATS_TOLERATED = 0.001


class Finding(BaseModel):
    """One thing that was checked.

    Args:
        level: `ok`, `advice` (works, could be better) or `blocks` (must be mended first).
        about: table, column or feature.
        text: what was found.
        fix: what to do; empty when ok.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["ok", "advice", "blocks"]
    about: str
    text: str
    fix: str = ""


class Readiness(BaseModel):
    """All findings; `ready` when none blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing blocks."""
        return all(finding.level != "blocks" for finding in self.findings)


def assess(contract: Contract, report: OnboardingReport) -> Readiness:
    """Findings about size, history, bad cells, coverage, bounds and duplicates, in that order."""
    return Readiness(
        findings=(
            _size(report),
            *_history(contract, report),
            *_bad_cells(contract, report),
            *_left_out(report),
            *(finding for feature in report.features for finding in _feature(contract, feature, report.people)),
            *_repeats(report),
        )
    )


def _size(report: OnboardingReport) -> Finding:
    people = report.people
    if people < max(MINIMUM_CELL, SEED_FLOOR):
        return Finding(
            level="blocks",
            about="customers",
            text=f"{people}, below the floor of {MINIMUM_CELL} for any released cell or seed",
            fix="widen the window, or join through a group that has more customers",
        )
    if people < SEED_ADVISED:
        text = f"{people}: enough for a seed's floor of {SEED_FLOOR}, below the {SEED_ADVISED} that are advised"
        return Finding(level="advice", about="customers", text=text, fix="expect wide intervals, or widen the window")
    return Finding(level="ok", about="customers", text=f"{people}")


def _history(contract: Contract, report: OnboardingReport) -> Iterator[Finding]:
    for table in report.tables:
        if table.first_day is None or table.last_day is None:
            continue
        days = (table.last_day - table.first_day).days + 1
        text = f"{days} of the window's {contract.window.days} days lie between the first and the last used line"
        if days < _HISTORY_WANTED * contract.window.days:
            yield Finding(
                level="advice", about=table.name, text=text, fix="load the missing months, or agree on a shorter window"
            )
        else:
            yield Finding(level="ok", about=table.name, text=text)


def _bad_cells(contract: Contract, report: OnboardingReport) -> Iterator[Finding]:
    beyond = list(report.beyond(contract.max_bad_share))
    for table, what, bad, cells in beyond:
        yield Finding(
            level="blocks",
            about=f"{table}, {what}",
            text=f"{bad} of {cells} are bad; the contract allows {contract.max_bad_share:.1%}",
            fix="clean the source, or agree on another max_bad_share",
        )
    if not beyond:
        yield Finding(level="ok", about="columns", text=f"all there; no bad share above {contract.max_bad_share:.1%}")


def _left_out(report: OnboardingReport) -> Iterator[Finding]:
    for table in report.tables:
        if table.lines_of_others:
            yield Finding(
                level="advice",
                about=table.name,
                text=f"{table.lines_of_others} of {table.lines} lines belong to nobody in the customers table",
                fix="complete the customers table, or check that both write ids alike",
            )


def _feature(contract: Contract, counts: FeatureReport, people: int) -> Iterator[Finding]:
    feature = contract.feature(counts.name)
    if feature.column is not None and counts.missing > (1 - _COVERAGE_WANTED) * people:
        what = "a listed category" if feature.is_category else "a value"
        yield Finding(
            level="advice",
            about=feature.name,
            text=f"{people - counts.missing} of {people} people have {what}",
            fix="complete the column, or agree to leave the feature out",
        )
    clipped = counts.clipped_low + counts.clipped_high
    if clipped > _CLIPPED_TOLERATED * people:
        yield Finding(
            level="advice",
            about=feature.name,
            text=f"{clipped} of {people} people lie outside the public bounds and were clipped",
            fix="agree on wider bounds from public knowledge, not from these rows",
        )
    elif max(counts.at_low, counts.at_high) > _NEARLY_ALL * people:
        yield Finding(
            level="advice",
            about=feature.name,
            text="nearly everybody lies at one bound: the feature tells people hardly apart",
            fix="agree to leave the feature out, or on other bounds",
        )


def _repeats(report: OnboardingReport) -> Iterator[Finding]:
    for table in report.tables:
        if (table.duplicates or 0) > _REPEATS_TOLERATED * table.lines:
            yield Finding(
                level="advice",
                about=table.name,
                text=f"{table.duplicates} of {table.lines} lines repeat another in every column; they count",
                fix="if an export wrote them twice, remove them at the source",
            )
