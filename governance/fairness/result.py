"""What a fairness audit says: one document with every metric, its interval, the people behind it and its verdict.

The document is rebuilt strictly: a verdict that its own interval and threshold do not give is refused, and so is an
overall verdict that is not the worst of all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from cohortium.governance.fairness.intervals import Interval
from cohortium.governance.fairness.verdicts import Judged, Side, Verdict, decide, worst
from cohortium.models.auditing import UNKNOWN
from cohortium.study.document import Agreed, Document
from cohortium.study.errors import DataError
from cohortium.study.validation import first_repeat

__all__ = [
    "FAIRNESS_SCHEMA",
    "THRESHOLDS",
    "FairnessResult",
    "Metric",
    "NotJudged",
    "Reversal",
    "Threshold",
    "load_fairness",
    "overall",
    "thresholds_with",
]

FAIRNESS_SCHEMA = "cohortium.fairness/1"
"""The schema name this version reads and writes; any other is refused."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Text = Annotated[str, Field(min_length=1, max_length=200)]
_Labels = Annotated[tuple[_Text, ...], Field(min_length=1, max_length=2)]


class Threshold(Agreed):
    """Where a metric passes.

    Args:
        name: what metrics call it.
        limit: in the metric's unit.
        side: whether a metric must be at least or at most that.
        source: who says so; limits of our own are called so.
    """

    name: _Text
    limit: _Finite
    side: Side
    source: _Text


_FOUR_FIFTHS = "four-fifths rule, 29 CFR 1607.4(D)"

THRESHOLDS: tuple[Threshold, ...] = (
    Threshold(name="impact-ratio", limit=0.8, side="at least", source=_FOUR_FIFTHS),
    Threshold(
        name="treatment-ratio", limit=0.8, side="at least", source=f"{_FOUR_FIFTHS}, carried over: our own limit"
    ),
    Threshold(name="quality-ratio", limit=0.8, side="at least", source=f"{_FOUR_FIFTHS}, carried over: our own limit"),
    Threshold(name="amplification", limit=0.8, side="at least", source=f"{_FOUR_FIFTHS}, carried over: our own limit"),
    Threshold(name="reach-ratio", limit=0.8, side="at least", source="our own limit: no levelling down"),
    Threshold(name="variation", limit=0.1, side="at most", source="ten points, Meta's variance reduction system, 2023"),
    Threshold(name="association", limit=0.3, side="at most", source="medium effect, Cohen 1988, 7.2: our own limit"),
    Threshold(name="uplift", limit=0.0, side="at least", source="our own limit: no group is harmed"),
)
"""What is judged unless the plan says otherwise."""


def thresholds_with(*own: Threshold) -> tuple[Threshold, ...]:
    """THRESHOLDS, with some replaced by the same name.

    Raises:
        DataError: a name that no metric uses, or a side that was turned round.
    """
    given, known = {each.name: each for each in own}, {each.name: each for each in THRESHOLDS}
    for name, each in given.items():
        if name not in known or each.side != known[name].side:
            raise DataError(f"no threshold '{name}' of that side", fix=f"use one of {', '.join(known)}, with its side")
    return tuple(given.get(each.name, each) for each in THRESHOLDS)


class Metric(Agreed):
    """One number of the audit.

    Args:
        name: which metric.
        attributes: the protected attributes that make the groups.
        group: labels of the group; None for a metric of the whole table.
        outcome: segment or feature, where the metric is of one.
        institution: None for the pooled table.
        reference: the group compared with; None for the best of the groups, and where nothing is compared.
        people: noisy number of people behind it; None when below the minimum cell.
        people_std: standard deviation of its noise.
        estimate, low, high: the number and its interval; all None when nothing can be said; `high` None also where the
            interval has no end.
        level: probability with which the interval holds the truth, for this interval alone.
        p_value: against independence, of associations.
        threshold: name of the threshold; None for what is described and not judged.
        verdict: None for what is described and not judged.
        why: what is too small or missing, where nothing can be judged or shown.
    """

    name: _Text
    attributes: _Labels
    group: _Labels | None = None
    outcome: _Text | None = None
    institution: _Text | None = None
    reference: _Labels | None = None
    people: _Finite | None
    people_std: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    estimate: _Finite | None = None
    low: _Finite | None = None
    high: _Finite | None = None
    level: Annotated[float, Field(gt=0, lt=1)]
    p_value: Annotated[float, Field(ge=0, le=1)] | None = None
    threshold: _Text | None = None
    verdict: Verdict | None = None
    why: _Text | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Metric:
        if (self.verdict == "insufficient") != (self.why is not None) and self.verdict is not None:
            raise ValueError("exactly what is insufficient needs a reason")
        if self.verdict is not None and self.threshold is None:
            raise ValueError("a verdict without a threshold")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("an interval that ends before it begins")
        return self

    @classmethod
    def of(
        cls,
        judged: Judged,
        *,
        name: str,
        attributes: tuple[str, ...],
        people: float | None,
        people_std: float,
        group: tuple[str, ...] | None = None,
        outcome: str | None = None,
        institution: str | None = None,
        reference: tuple[str, ...] | None = None,
        threshold: str | None = None,
        p_value: float | None = None,
    ) -> Metric:
        """From what the statistics found; ends that are no numbers are None."""
        found = judged.interval
        empty = found is None or found.low != found.low
        return cls(
            name=name,
            attributes=attributes,
            group=group,
            outcome=outcome,
            institution=institution,
            reference=reference,
            people=people,
            people_std=people_std,
            estimate=None if empty or found is None else found.estimate,
            low=None if empty or found is None else found.low,
            high=None if empty or found is None or found.high == float("inf") else found.high,
            level=judged.level,
            p_value=p_value,
            threshold=threshold,
            verdict=judged.verdict,
            why=judged.why,
        )

    def follows(self, limit: float, side: Side) -> bool:
        """Whether the verdict is what interval and threshold give; `insufficient` needs no more than its reason."""
        if self.verdict in (None, "insufficient"):
            return True
        if self.low is None or self.high is None:
            return False
        return decide(Interval(self.estimate, self.low, self.high, bounded=True), limit, side) == self.verdict


class NotJudged(Agreed):
    """A metric that could not be made, and why: which table or fact is missing."""

    metric: _Text
    attributes: _Labels
    institution: _Text | None = None
    why: _Text


class Reversal(Agreed):
    """A group that fares worse than the reference in the pooled table and better at an institution, or the reverse.

    Both intervals leave 1 out, at a level shared among all groups and institutions: Simpson's paradox, not noise.

    Args:
        attributes, group, reference: which comparison.
        institution: where the direction is the other one.
        pooled, local: the two ratios.
    """

    attributes: _Labels
    group: _Labels
    reference: _Labels
    institution: _Text
    pooled: _Finite
    local: _Finite


class FairnessResult(Document):
    """See the module.

    Args:
        schema_id: `cohortium.fairness/1`; written `schema`.
        subject: what was audited.
        audited: digest of it: a bundle or a model.
        level: of a campaign, the level whose audience it is; None for segments.
        plan: digest of the audit's plan.
        made: day on which it was judged (UTC).
        alpha: error of every family of verdicts.
        minimum_cell: people below which nothing is said.
        epsilon, delta: what the audit's questions cost each person; epsilon None for an audit without noise.
        thresholds: every one that a metric names.
        metrics: in order of attribute, institution and metric.
        not_judged: what could not be made.
        reversals: directions that differ between the pooled table and an institution's.
        verdict: the worst of all verdicts that decide (`overall`).
    """

    schema_id: Annotated[Literal["cohortium.fairness/1"], Field(alias="schema")] = "cohortium.fairness/1"
    subject: Literal["segments", "lookalike"]
    audited: _Text
    level: _Text | None = None
    plan: _Text
    made: date
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    minimum_cell: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    thresholds: tuple[Threshold, ...]
    metrics: tuple[Metric, ...]
    not_judged: tuple[NotJudged, ...] = ()
    reversals: tuple[Reversal, ...] = ()
    verdict: Verdict

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _follows(self) -> FairnessResult:
        known = {each.name: each for each in self.thresholds}
        if first_repeat(each.name for each in self.thresholds):
            raise ValueError("two thresholds of one name")
        for metric in self.metrics:
            if metric.threshold is not None and metric.threshold not in known:
                raise ValueError("a metric names a threshold that is not there")
            if metric.threshold is not None and not metric.follows(
                known[metric.threshold].limit, known[metric.threshold].side
            ):
                raise ValueError("a verdict that its interval does not give")
        if self.verdict != overall(self.metrics):
            raise ValueError("the verdict is not the worst of all")
        return self

    @property
    def too_small(self) -> tuple[Metric, ...]:
        """What was too small to judge; each says why."""
        return tuple(metric for metric in self.metrics if metric.verdict == "insufficient")


def overall(metrics: Iterable[Metric]) -> Verdict:
    """The worst verdict of all metrics that have one; `insufficient` when none has.

    People without a value are judged like any group. Where they are fewer than the minimum cell, which is how it should
    be, that alone keeps nothing from passing: it is no group that anybody is treated by. But of every table whose
    groups are compared, some group has to be: where nobody else is left, the whole is `insufficient`.
    """
    judged = [metric for metric in metrics if metric.verdict is not None]
    deciding = [metric for metric in judged if not _few_unknown(metric)]
    tables = {_table(metric) for metric in judged if metric.group is not None}
    if tables - {_table(metric) for metric in deciding if metric.group is not None}:
        return worst([*(metric.verdict for metric in deciding if metric.verdict is not None), "insufficient"])
    return worst([metric.verdict for metric in deciding if metric.verdict is not None])


def _few_unknown(metric: Metric) -> bool:
    return (
        metric.verdict == "insufficient"
        and metric.people is None
        and metric.group is not None
        and UNKNOWN in metric.group
    )


def _table(metric: Metric) -> tuple[str, tuple[str, ...], str | None]:
    return metric.name, metric.attributes, metric.institution


def load_fairness(path: Path) -> FairnessResult:
    """Read a result; `DataError` for one that is unreadable, of another schema, or does not hold together."""
    try:
        result = FairnessResult.model_validate(json.loads(path.read_bytes()))
        result.to_bytes()
    except OSError as error:
        raise DataError("cannot be read", place=str(path), fix="check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError("is not a fairness result of this version", place=str(path), fix="export it again") from error
    return result
