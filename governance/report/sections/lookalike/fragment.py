"""A campaign as one section of another report."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cohortium.governance.report.lookalike_summary import LookalikeSummary
from cohortium.governance.report.markup import Html, join, paragraph, section, tag
from cohortium.governance.report.sections.lookalike.audience import audience
from cohortium.governance.report.sections.lookalike.budget import participants, price
from cohortium.governance.report.sections.lookalike.closing import truth
from cohortium.governance.report.sections.lookalike.header import headline, unprotected
from cohortium.governance.report.sections.lookalike.quality import choice, quality
from cohortium.governance.report.sections.lookalike.reach import reach

__all__ = ["lookalike_section"]

_Parts = tuple[tuple[str, Callable[[LookalikeSummary], Iterator[Html]]], ...]

_PARTS: _Parts = (
    ("Reach and dilution", reach),
    ("Quality", quality),
    ("Who the audience is", audience),
    ("Which ranker won", choice),
)

_OF_PROTECTED_RUNS: _Parts = (
    ("Who took part", participants),
    ("What it cost", price),
)


def lookalike_section(summary: LookalikeSummary) -> Html:
    """Headline, curve, levels, quality, audience, ranker and price, as one section under the anchor `lookalike`."""
    parts = _PARTS if summary.campaign.plan.trust == "unsafe-none" else _PARTS + _OF_PROTECTED_RUNS
    parts += (("Compared with the truth", truth),) if summary.truth is not None else ()
    return section(
        "lookalike",
        "Lookalike audience",
        paragraph(tag("strong", summary.campaign.plan.name), ". ", headline(summary)),
        *unprotected(summary),
        *(join((tag("h3", title), *draw(summary))) for title, draw in parts),
    )
