"""Metrics of an audit in words: what each one is, whom a row is of, its figures with no more digits than they bear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cohortium.governance.fairness import FairnessResult, Metric, Threshold
from cohortium.governance.report.bands import HIDDEN, SUPPRESSED, size_band
from cohortium.governance.report.charts.interval import Mark
from cohortium.governance.report.wording import amount, label, number, percent
from cohortium.models.auditing import UNKNOWN

__all__ = [
    "Block",
    "MetricWords",
    "attributes_text",
    "blocks",
    "counted_on",
    "decides",
    "estimate_text",
    "interval_text",
    "level_text",
    "limit_text",
    "mark_of",
    "metric_words",
    "name_of",
    "people_text",
    "sentence_of",
    "where",
]


@dataclass(frozen=True)
class MetricWords:
    """What a metric is called and means.

    Args:
        title: for headings.
        meaning: one sentence.
        even: the value at which groups fare alike; None where there is none.
        to_best: whether groups are compared with the best of them where no reference is named.
        joined: the word between a group and what the metric is of besides, such as a segment.
    """

    title: str
    meaning: str
    even: float | None = None
    to_best: bool = False
    joined: str = "in"


_WORDS = {
    "impact-ratio": MetricWords(
        "Impact ratio",
        "Share of the group's eligible people who are chosen, over the same share of the group compared with.",
        1.0,
        to_best=True,
    ),
    "variation": MetricWords(
        "Total variation",
        "Half the sum of the differences between the groups' shares in the audience and among everybody eligible: "
        "0 is the same mix.",
    ),
    "amplification": MetricWords(
        "Amplification of the seed",
        "The group's people for each person of the reference in the audience, over the same in the seed list: below 1 "
        "the audience holds relatively fewer of them than the seed did.",
        1.0,
    ),
    "reach": MetricWords(
        "Reach since the last audience",
        "People chosen of the group, over those of the last approved audience: nobody is made equal by being reached "
        "less.",
        1.0,
    ),
    "true-positive-rate": MetricWords(
        "True positive rate",
        "Share of the group's responders who were chosen, over the same share of the group compared with.",
        1.0,
        to_best=True,
    ),
    "precision": MetricWords(
        "Precision",
        "Share of the group's chosen people who respond, over the same share of the group compared with.",
        1.0,
        to_best=True,
    ),
    "uplift": MetricWords(
        "Uplift",
        "Rate of good outcomes of those who were treated, less that of a control group drawn by lot: below 0 is harm.",
        0.0,
    ),
    "proxy": MetricWords(
        "Proxies",
        "Cramér's V of the groups and a feature: how much the feature tells about the group, 0 for nothing, 1 for all.",
    ),
    "dropped-feature": MetricWords(
        "Without a feature",
        "The group's people for each person of the reference in the audience of a ranker that does not see the "
        "feature, over the same with it.",
        1.0,
        joined="without",
    ),
    "representation": MetricWords(
        "Representation", "Share of the group that is in the segment, over everybody's share.", 1.0
    ),
    "balance": MetricWords(
        "Balance",
        "The least representation over all groups and segments, or its inverse where that is less: 1 is even.",
        1.0,
    ),
    "beneficial-treatment": MetricWords(
        "Beneficial treatment",
        "Share of the group in segments whose treatment the plan calls beneficial, over the same share of the group "
        "compared with.",
        1.0,
        to_best=True,
    ),
    "costly-treatment": MetricWords(
        "Costly treatment",
        "Share of the group compared with in segments whose treatment the plan calls costly, over this group's: low is "
        "bad for the group.",
        1.0,
        to_best=True,
    ),
    "distance-to-centre": MetricWords(
        "Fit of the segments",
        "Mean distance to the segment's centre in the group compared with, over this group's: low means that segments "
        "describe this group worse.",
        1.0,
        to_best=True,
    ),
    "leakage": MetricWords(
        "Leakage",
        "Cramér's V of groups and segments: how much the segment tells about the group, 0 for nothing, 1 for all.",
    ),
    "suppressed-share": MetricWords(
        "Suppressed share", "Share of the group's people who are in cells below the minimum cell."
    ),
    "stability": MetricWords(
        "Stability",
        "Share of the group's people whose segment stays when the noise is drawn again, over the same share of the "
        "group compared with.",
        1.0,
        to_best=True,
    ),
}


def metric_words(name: str) -> MetricWords:
    """The words of a metric; one that is not known here goes by its name."""
    return _WORDS.get(name, MetricWords(label(name.replace("-", " ")).capitalize(), "See the audit's documentation."))


@dataclass(frozen=True)
class Block:
    """All numbers of one metric by one attribute, or pair of attributes.

    Args:
        name, attributes: which.
        metrics: for every group and outcome the row of all institutions, and under it those of single ones.
        threshold: what they are judged by; None for what is described.
    """

    name: str
    attributes: tuple[str, ...]
    metrics: tuple[Metric, ...]
    threshold: Threshold | None

    @property
    def title(self) -> str:
        """For a heading."""
        return f"{metric_words(self.name).title} by {attributes_text(self.attributes)}"


def blocks(result: FairnessResult) -> Iterator[Block]:
    """The metrics of a result, in its order of metric and attribute."""
    thresholds = {each.name: each for each in result.thresholds}
    found: dict[tuple[str, tuple[str, ...]], list[Metric]] = {}
    for metric in result.metrics:
        found.setdefault((metric.name, metric.attributes), []).append(metric)
    for (name, attributes), metrics in found.items():
        named = next((metric.threshold for metric in metrics if metric.threshold is not None), None)
        yield Block(name, attributes, tuple(_ordered(metrics)), None if named is None else thresholds[named])


def _ordered(metrics: Iterable[Metric]) -> Iterator[Metric]:
    rows: dict[tuple[str, tuple[str, ...]], list[Metric]] = {}
    for metric in metrics:
        rows.setdefault((metric.outcome or "", metric.group or ()), []).append(metric)
    outcomes = dict.fromkeys(outcome for outcome, _ in rows)
    for wanted in outcomes:
        for (outcome, _), same in rows.items():
            if outcome == wanted:
                yield from sorted(same, key=lambda metric: metric.institution is not None)


def attributes_text(attributes: Iterable[str]) -> str:
    """'age group', 'age group and sex'."""
    return " and ".join(label(attribute) for attribute in attributes)


def name_of(metric: Metric) -> str:
    """Whom a number is of: '65+', '65+ and f', '65+ in segment 3', 'all groups', 'basket size'."""
    group = None if metric.group is None else " and ".join(metric.group)
    outcome = None if metric.outcome is None else label(metric.outcome)
    if group is None or outcome is None:
        return group or outcome or "all groups"
    return f"{group} {metric_words(metric.name).joined} {outcome}"


def where(institution: str | None) -> str:
    """An institution, or all."""
    return "all institutions" if institution is None else institution


def sentence_of(metric: Metric) -> str:
    """Which number it is: 'impact ratio of 65+ by age group at Northbank'."""
    title, by = metric_words(metric.name).title.lower(), attributes_text(metric.attributes)
    place = "" if metric.institution is None else f" at {metric.institution}"
    return f"{title} of {name_of(metric)} by {by}{place}"


def mark_of(metric: Metric) -> Mark:
    """How it is drawn where there are people enough."""
    if metric.verdict is not None:
        return metric.verdict
    is_reference = metric.group is not None and metric.group == metric.reference
    return "reference" if is_reference and metric.threshold is not None else "described"


def decides(metric: Metric) -> bool:
    """Whether its verdict takes part in the overall one: too few people without a value do not (`fairness.overall`)."""
    if metric.verdict is None:
        return False
    few = metric.verdict == "insufficient" and metric.people is None
    return not (few and metric.group is not None and UNKNOWN in metric.group)


def people_text(metric: Metric) -> str:
    """The people behind it, as a band; suppressed below the minimum cell."""
    return size_band(metric.people, metric.people_std)


def counted_on(metric: Metric) -> bool:
    """Whether its numbers may be shown: there are people enough behind them."""
    return people_text(metric) != SUPPRESSED


def estimate_text(metric: Metric) -> str:
    """The number, with the digits that its interval supports."""
    if not counted_on(metric):
        return SUPPRESSED
    return HIDDEN if metric.estimate is None else amount(metric.estimate, _half(metric))


def interval_text(metric: Metric, threshold: Threshold | None) -> str:
    """Its interval: '0.57 to 0.74', 'from 0.41, without an end'. No end is rounded across the limit."""
    if not counted_on(metric):
        return SUPPRESSED
    if metric.low is None:
        return HIDDEN
    half = _half(metric)
    if metric.high is None:
        return f"from {_end(metric.low, half, threshold)}, without an end"
    return f"{_end(metric.low, half, threshold)} to {_end(metric.high, half, threshold)}"


def level_text(metric: Metric) -> str:
    """The level of its interval: 'at 97.5%'."""
    return f"at {percent(metric.level)}"


def limit_text(threshold: Threshold) -> str:
    """'at least 0.8'."""
    return f"{threshold.side} {number(threshold.limit)}"


def _end(value: float, half: float, threshold: Threshold | None) -> str:
    """An end of an interval, with as many more digits as it takes to show on which side of the limit it is."""
    every = [amount(value, half / 10**more) for more in range(4)]
    if threshold is None:
        return every[0]
    return next(
        (said for said in every if _keeps(float(said.replace(",", "")), threshold) == _keeps(value, threshold)),
        every[-1],
    )


def _keeps(value: float, threshold: Threshold) -> bool:
    return value >= threshold.limit if threshold.side == "at least" else value <= threshold.limit


def _half(metric: Metric) -> float:
    """Half an interval, or what is known of it."""
    ends = [end for end in (metric.low, metric.high) if end is not None]
    if metric.estimate is None:
        return (max(ends) - min(ends)) / 2 if ends else 0.0
    return max((abs(end - metric.estimate) for end in ends), default=0.0)
