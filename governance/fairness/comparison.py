"""What a mitigation changed: two audits side by side, group by group, and what it cost.

Nothing here is estimated anew. Every number, interval and verdict is one of the two audits', every cost one that a
model released. That a mitigation worked is said when the audit after it passes and leaves nothing out that the audit
before it judged: never because a number moved. The audits' noise is independent and their people are the same, so no
interval of a difference is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from cohortium.governance.fairness.result import FairnessResult, Metric, Threshold, overall
from cohortium.governance.fairness.verdicts import Verdict
from cohortium.study.bundle import Bundle
from cohortium.study.document import Agreed, Document
from cohortium.study.errors import DataError
from cohortium.study.reach import ReachCurve

__all__ = [
    "MITIGATION_SCHEMA",
    "Change",
    "Comparison",
    "Cost",
    "Figure",
    "Pair",
    "compare",
    "lift_cost",
    "segment_costs",
]

MITIGATION_SCHEMA = "cohortium.mitigation/1"
"""The schema name this version reads and writes; any other is refused."""

Change = Literal["reached", "kept", "lost", "broken", "failing", "open", "left out", "not audited", "described"]
"""How a judged metric stands after: passes and did not, or did (`kept`); passed, and is open or fails (`lost`,
`broken`); did not pass, and fails or is open; was judged before and not after, because its feature is `left out`, or
for no such reason. `described` ones are not judged."""

_WORDS: dict[Change, str] = {
    "reached": "now shown to pass",
    "kept": "passes as before",
    "lost": "passed before, NOT SHOWN any more",
    "broken": "passed before, FAILS now",
    "failing": "fails",
    "open": "not shown",
    "left out": "the feature is left out",
    "not audited": "NOT AUDITED again",
    "described": "",
}
_TRIED = (
    "Intervals are of one mitigation that was chosen beforehand: of several that were tried, the best looks too good."
)
_UNPAIRED = "representation"  # the segments of two bundles are not the same segments; its extremes are in `balance`
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Text = Annotated[str, Field(min_length=1, max_length=200)]


class Figure(Agreed):
    """A released number and its 95% interval; None where none was released."""

    value: _Finite
    low: _Finite | None = None
    high: _Finite | None = None


class Cost(Agreed):
    """What is given up, as it was released.

    Args:
        name: what it is.
        before, after: None where it was suppressed.
    """

    name: _Text
    before: Figure | None
    after: Figure | None

    @property
    def difference(self) -> Literal["lower", "higher", "not shown"] | None:
        """After the mitigation, where the two intervals do not touch: a cautious test. None without two intervals."""
        if self.before is None or self.after is None or None in (self.before.high, self.after.high):
            return None
        if _below(self.after, self.before):
            return "lower"
        return "higher" if _below(self.before, self.after) else "not shown"


def _below(first: Figure, second: Figure) -> bool:
    return first.high is not None and second.low is not None and first.high < second.low


class Audit(Agreed):
    """One of the two audits.

    Args:
        result: digest of its result.
        audited, plan, made, epsilon, verdict: as there.
    """

    result: _Text
    audited: _Text
    plan: _Text
    made: date
    epsilon: _Finite | None
    verdict: Verdict


class Pair(Agreed):
    """A metric of the audit before and the same of the audit after; None where an audit does not have it.

    Args:
        before, after: the two.
        left_out: whether it is of a feature that what was audited after does not use any more.
    """

    before: Metric | None
    after: Metric | None
    left_out: bool = False

    @model_validator(mode="after")
    def _same(self) -> Pair:
        if len({_key(metric) for metric in (self.before, self.after) if metric is not None}) != 1:
            raise ValueError("a pair is of one metric")
        return self

    @property
    def metric(self) -> Metric:
        """Either one: for what both say alike."""
        return self.before or self.after  # type: ignore[return-value] # one of them is there

    @property
    def change(self) -> Change:
        """See `Change`."""
        before, after = (None if metric is None else metric.verdict for metric in (self.before, self.after))
        if before is None and after is None:
            return "described"
        if after is None:
            return "left out" if self.left_out else "not audited"
        if after == "pass":
            return "kept" if before == "pass" else "reached"
        if after == "fail":
            return "broken" if before == "pass" else "failing"
        return "lost" if before == "pass" else "open"


class Comparison(Document):
    """See the module.

    Args:
        schema_id: `cohortium.mitigation/1`; written `schema`.
        mitigation: what was done, in words.
        without: features that the plan of what was audited after leaves out.
        subject, level: what both audits are of.
        before, after: the two audits.
        thresholds: of both.
        pairs: every metric of either audit, but for the representation of single segments: segments of two bundles are
            not the same ones.
        costs: what was given up.
    """

    schema_id: Annotated[Literal["cohortium.mitigation/1"], Field(alias="schema")] = "cohortium.mitigation/1"
    mitigation: _Text
    without: tuple[_Text, ...] = ()
    subject: Literal["segments", "lookalike"]
    level: _Text | None
    before: Audit
    after: Audit
    thresholds: tuple[Threshold, ...]
    pairs: tuple[Pair, ...]
    costs: tuple[Cost, ...]

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _follows(self) -> Comparison:
        limits = {each.name: each for each in self.thresholds}
        if any(pair.left_out != _is_left_out(pair.metric, self.without) for pair in self.pairs):
            raise ValueError("a pair that is left out for no reason")
        for side, audit in (("before", self.before), ("after", self.after)):
            metrics = [found for pair in self.pairs if (found := getattr(pair, side)) is not None]
            for metric in metrics:
                limit = limits.get(metric.threshold or "")
                if metric.threshold is not None and (limit is None or not metric.follows(limit.limit, limit.side)):
                    raise ValueError("a verdict that its interval does not give")
            if audit.verdict != overall(metrics):
                raise ValueError("an overall verdict that is not the worst of all")
        return self

    def of(self, *changes: Change) -> tuple[Pair, ...]:
        """The pairs that changed in one of these ways."""
        return tuple(pair for pair in self.pairs if pair.change in changes)

    @property
    def worked(self) -> bool:
        """Whether the audit after passes, the one before did not, and nothing that was judged is missing."""
        return self.after.verdict == "pass" != self.before.verdict and not self.of("not audited")

    def to_text(self) -> str:
        """For people: the conclusion first, then what got worse, every judged metric, and the cost."""
        judged = [pair for pair in self.pairs if pair.change != "described"]
        worse = self.of("broken", "lost", "not audited")
        level = f" at the level '{self.level}'" if self.level else ""
        lines = [
            f"Mitigation of {self.subject}{level}: {self.mitigation}",
            *([f"Features left out: {', '.join(self.without)}."] if self.without else []),
            f"Verdict before: {self.before.verdict}; after: {self.after.verdict}.",
            self._conclusion(),
            *(["", "Worse than before:", *map(_line, worse)] if worse else []),
            "",
            "Metrics, estimate (interval) and verdict before, then after:",
            *map(_line, judged),
            "",
            "Cost, with 95% intervals:" if self.costs else "Its cost was not given.",
            *(f"  {cost.name}: {_figure(cost.before)} before, {_figure(cost.after)} after; {_difference(cost)}"
              for cost in self.costs),
            "",
            _TRIED,
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _conclusion(self) -> str:
        missing = len(self.of("not audited"))
        if self.worked:
            return (
                "It worked: everything that was judged before is judged again or left out, and what is judged passes."
            )
        if missing:
            return f"It is not shown that it worked: {missing} of the metrics judged before are not judged again."
        if self.after.verdict == "pass":
            return "There was nothing to mend: everything passed before, and does after."
        reached, judged = len(self.of("reached")), len(self.pairs) - len(self.of("described"))
        return (
            f"It is not shown that it worked: the audit after it is '{self.after.verdict}'. "
            f"Of {judged} judged metrics {reached} pass that did not before."
        )


def compare(
    before: FairnessResult,
    after: FairnessResult,
    mitigation: str,
    costs: Sequence[Cost] = (),
    without: Sequence[str] = (),
) -> Comparison:
    """What changed from one audit to the other.

    Args:
        before, after: of what was mitigated, and of what came of it; asked alike.
        mitigation: what was done, in words.
        costs: `lift_cost`, `segment_costs`.
        without: features that the plan of what was audited after leaves out (`TrainingPlan.without`): that they are
            proxies is not asked again.

    Raises:
        DataError: audits that were not asked alike: another subject, level, threshold, alpha or minimum cell.
    """
    for name in ("subject", "level", "alpha", "minimum_cell"):
        if getattr(before, name) != getattr(after, name):
            raise DataError(
                f"the two audits differ in {name}",
                place="compare",
                fix="audit what came of it as it was audited before",
            )
    limits = {each.name: each for each in before.thresholds}
    if other := [each.name for each in after.thresholds if limits.setdefault(each.name, each) != each]:
        raise DataError(f"the two audits differ in the threshold of {other[0]}", place="compare", fix="audit with one")
    first, second = _by_key(before.metrics), _by_key(after.metrics)
    return Comparison(
        mitigation=mitigation,
        subject=before.subject,
        level=before.level,
        before=_audit(before),
        after=_audit(after),
        thresholds=tuple(limits.values()),
        without=tuple(without),
        pairs=tuple(
            Pair(
                before=first.get(key),
                after=second.get(key),
                left_out=_is_left_out(first.get(key) or second[key], without),
            )
            for key in dict.fromkeys((*first, *second))
        ),
        costs=tuple(costs),
    )


def lift_cost(before: ReachCurve, after: ReachCurve, level: str) -> Cost:
    """The lift of a level of two released curves, each measured on the seeds that its ranker was learnt on.

    Raises:
        DataError: a curve without that level.
    """
    return Cost(name=f"lift of the level '{level}'", before=_lift(before, level), after=_lift(after, level))


def segment_costs(before: Bundle, after: Bundle) -> tuple[Cost, ...]:
    """What two bundles explain, and in how many segments.

    Each bundle's share of explained variance is of its own features: with fewer features it may rise and mean less. It
    is an estimate from released numbers, without an interval.
    """
    counts = (sum(not segment.suppressed for segment in bundle.segments) for bundle in (before, after))
    explained = (None if bundle.explained is None else Figure(value=bundle.explained) for bundle in (before, after))
    segments, variance = (
        dict(zip(("before", "after"), each, strict=True))
        for each in ([Figure(value=float(count)) for count in counts], list(explained))
    )
    return (
        Cost(name="share of the variance of a bundle's features that its segments explain", **variance),
        Cost(name="segments that are not suppressed", **segments),
    )


def _lift(curve: ReachCurve, level: str) -> Figure | None:
    points = {each.name: each.point for each in curve.levels}
    if level not in points:
        raise DataError(f"no level '{level}'", place="compare", fix=f"use one of {', '.join(points)}")
    point = points[level]
    if point is None or point.lift is None:
        return None
    return Figure(value=point.lift.value, low=point.lift.low, high=point.lift.high)


def _audit(result: FairnessResult) -> Audit:
    return Audit(
        result=result.digest,
        audited=result.audited,
        plan=result.plan,
        made=result.made,
        epsilon=result.epsilon,
        verdict=result.verdict,
    )


def _is_left_out(metric: Metric, without: Sequence[str]) -> bool:
    return metric.outcome in without


def _key(metric: Metric) -> tuple[object, ...]:
    return metric.name, metric.attributes, metric.group, metric.outcome, metric.institution, metric.reference


def _by_key(metrics: Iterable[Metric]) -> dict[tuple[object, ...], Metric]:
    return {_key(metric): metric for metric in metrics if metric.name != _UNPAIRED}


def _line(pair: Pair) -> str:
    metric = pair.metric
    group = " of " + " & ".join(metric.group) if metric.group else ""
    outcome = f" ({metric.outcome})" if metric.outcome else ""
    where = f" at {metric.institution}" if metric.institution else ""
    attributes = " & ".join(metric.attributes)
    return (
        f"  {metric.name}{outcome}, {attributes}{group}{where}: {_reading(pair.before)}, then {_reading(pair.after)}: "
        f"{_WORDS[pair.change]}"
    )


def _reading(metric: Metric | None) -> str:
    if metric is None:
        return "nothing"
    shown = _figure(
        None if metric.estimate is None else Figure(value=metric.estimate, low=metric.low, high=metric.high)
    )
    return f"{shown} {metric.verdict}" if metric.verdict else shown


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "no number"
    if figure.low is None and figure.high is None:
        return f"{figure.value:.3g}"
    low, high = ("?" if end is None else f"{end:.2f}" for end in (figure.low, figure.high))
    return f"{figure.value:.2f} ({low} to {high})"


def _difference(cost: Cost) -> str:
    words = {"not shown": "no difference is shown", "lower": "it is lower", "higher": "it is higher"}
    return words.get(cost.difference or "", "without two intervals")
