"""Every number of the audit: a chart and a table for each metric and attribute, institutions under all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cohortium.governance.fairness import Metric
from cohortium.governance.report.bands import SUPPRESSED
from cohortium.governance.report.charts.interval import IntervalRow, interval_chart, interval_scale
from cohortium.governance.report.fairness_page import FairnessPage
from cohortium.governance.report.markup import Child, Html, figure, join, paragraph, table, tag
from cohortium.governance.report.sections.fairness.words import (
    Block,
    blocks,
    counted_on,
    estimate_text,
    interval_text,
    level_text,
    limit_text,
    mark_of,
    metric_words,
    name_of,
    people_text,
    where,
)

__all__ = ["MOST_ROWS", "described", "judged"]

MOST_ROWS = 34
"""So many rows fit one drawing on a printed page; more make further drawings, on the same scale."""

_DESCRIBED = "described, not judged"
_LEGEND = (
    "Filled circle: pass. Diamond: fail. Open circle: inconclusive. Cross: insufficient. Square: compared with. Lines "
    "are intervals, with an arrow where they go on. Shaded: where the limit fails. Dotted: where groups fare alike."
)
_PLAIN_LEGEND = (
    "Circles are numbers, lines their intervals, with an arrow where they go on. Dotted: where groups fare alike."
)


def judged(page: FairnessPage) -> Iterator[Html]:
    """What is judged by a threshold."""
    found = [block for block in blocks(page.result) if block.threshold is not None]
    if not found:
        yield paragraph("No metric could be judged; why stands under Not judged.")
        return
    yield paragraph(
        "Each number stands beside the limit that it is judged by. A verdict is about the whole interval: only an "
        "interval that lies on the good side of the limit passes. People are bands wide enough for 95% of the noise."
    )
    for block in found:
        yield from _block(block)


def described(page: FairnessPage) -> Iterator[Html]:
    """What is described alone."""
    found = [block for block in blocks(page.result) if block.threshold is None]
    if not found:
        yield paragraph("Nothing is described beside what is judged.")
        return
    yield paragraph("These numbers have no limit. They help to understand the others, and take no part in the verdict.")
    for block in found:
        yield from _block(block)


def _block(block: Block) -> Iterator[Html]:
    words = metric_words(block.name)
    yield tag("h3", block.title, class_="block")
    yield paragraph(words.meaning, _compared(block), _limit(block))
    rows = [_drawn(metric, block) for metric in block.metrics]
    side = "at least" if block.threshold is None else block.threshold.side
    scale = interval_scale(rows, None if block.threshold is None else block.threshold.limit, side, words.even)
    parts, legend = list(_parts(rows)), _PLAIN_LEGEND if block.threshold is None else _LEGEND
    for number, part in enumerate(parts, 1):
        title = block.title if len(parts) == 1 else f"{block.title}, part {number} of {len(parts)}"
        yield figure(interval_chart(title, part, scale), legend, class_="chart wide")
    yield _table(block)


def _limit(block: Block) -> str:
    if block.threshold is None:
        return ""
    return f" Limit: {limit_text(block.threshold)} ({block.threshold.source})."


def _compared(block: Block) -> str:
    """Whom groups are compared with, where that is one for all rows."""
    references = {metric.reference for metric in block.metrics}
    if references == {None}:
        return " Compared with: the best of the groups." if metric_words(block.name).to_best else ""
    (first, *others) = sorted(" and ".join(reference or ("the best of the groups",)) for reference in references)
    return " Compared with: see the table." if others else f" Compared with: {first}."


def _drawn(metric: Metric, block: Block) -> IntervalRow:
    name, mark = name_of(metric), mark_of(metric)
    inner = metric.institution is not None
    place = f"{name}, {where(metric.institution)}"
    if not counted_on(metric):
        return IntervalRow(
            f"at {metric.institution}" if inner else name,
            "suppressed",
            SUPPRESSED,
            f"{place}: {SUPPRESSED}",
            inner=inner,
        )
    verdict = "" if mark == "described" else mark
    return IntervalRow(
        name=f"at {metric.institution}" if inner else name,
        mark=mark,
        words=f"{estimate_text(metric) if metric.estimate is not None else ''} {verdict}".strip(),
        spoken=f"{place}: {estimate_text(metric)}, interval {interval_text(metric, block.threshold)}"
        + (f", {verdict}" if verdict else ""),
        estimate=metric.estimate,
        low=metric.low,
        high=metric.high,
        inner=inner,
    )


def _parts(rows: Sequence[IntervalRow]) -> Iterator[list[IntervalRow]]:
    """Pieces of at most MOST_ROWS rows, broken before a row of all institutions where that can be."""
    part: list[IntervalRow] = []
    for place, row in enumerate(rows):
        family = 1 + next((n for n, other in enumerate(rows[place + 1 :]) if not other.inner), len(rows) - place - 1)
        starts = not row.inner and len(part) + family > MOST_ROWS
        if part and (starts or len(part) == MOST_ROWS):
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _table(block: Block) -> Html:
    metrics = block.metrics
    first = "Group" if any(metric.group or not metric.outcome for metric in metrics) else "Feature"
    heads = [first, "Where", "People", "Estimate", "Interval", "Verdict"]
    tested = any(metric.p_value is not None for metric in metrics)
    varied = _compared(block).endswith("see the table.")
    heads += ["p-value"] if tested else []
    heads += ["Compared with"] if varied else []
    rows = [_cells(metric, block, tested=tested, varied=varied) for metric in metrics]
    return table(block.title, heads, rows, numeric=(2, 3, 4), class_="data audit")


def _cells(metric: Metric, block: Block, *, tested: bool, varied: bool) -> list[Child]:
    cells: list[Child] = [
        name_of(metric),
        where(metric.institution),
        people_text(metric),
        estimate_text(metric),
        _with_level(metric, block),
        _verdict(metric),
    ]
    if tested:
        cells.append("none" if metric.p_value is None else _p_value(metric.p_value))
    if varied:
        cells.append(" and ".join(metric.reference or ("the best of the groups",)))
    return cells


def _with_level(metric: Metric, block: Block) -> Child:
    if mark_of(metric) == "reference":
        return "none"
    said = interval_text(metric, block.threshold)
    if metric.low is None or said == SUPPRESSED:
        return said
    return join((said, tag("br"), tag("small", level_text(metric))))


def _verdict(metric: Metric) -> Child:
    if metric.verdict is None:
        word: Child = "others are compared with it" if mark_of(metric) == "reference" else _DESCRIBED
    else:
        word = tag("strong", metric.verdict, class_=f"word {metric.verdict}")
    return word if metric.why is None else join((word, tag("br"), tag("small", metric.why)))


def _p_value(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
