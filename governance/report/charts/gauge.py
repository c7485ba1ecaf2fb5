"""The privacy gauge: what this plan and earlier ones took of every institution's lifetime budget."""

from __future__ import annotations

from collections.abc import Sequence

from cohortium.governance.report.charts.axis import LinearAxis
from cohortium.governance.report.markup import Html, join, tag
from cohortium.governance.report.summary import InstitutionFacts
from cohortium.governance.report.wording import epsilon_left_text, epsilon_text, shortened
from cohortium.privacy.accounting import Spend

__all__ = ["privacy_gauge"]

_WIDTH, _ROW, _BAR, _EDGE = 520.0, 44.0, 12.0, 2.0
_NAME_LENGTH = 30
_AXIS = LinearAxis(0.0, 1.0, _EDGE, _WIDTH - 2 * _EDGE)
_TICKS = ((0.0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1.0, "end"))


def privacy_gauge(institutions: Sequence[InstitutionFacts], plan_budget: Spend) -> Html:
    """A bar per institution, its lifetime budget in mu^2; at least one institution."""
    bottom = _ROW * len(institutions) + 6
    return tag(
        "svg",
        *(_row(facts, plan_budget, _ROW * index) for index, facts in enumerate(institutions)),
        _scale(bottom + 12),
        viewBox=f"0 0 {_WIDTH:.0f} {bottom + 18:.0f}",
        role="img",
        aria_label="Privacy gauge. " + "; ".join(f"{facts.name}: {_words(facts)}" for facts in institutions),
        class_="gauge",
    )


def _row(facts: InstitutionFacts, plan_budget: Spend, top: float) -> Html:
    lifetime = max(facts.lifetime.mu2, 1)
    earlier = (facts.lifetime_spent.mu2 - facts.spent.mu2) / lifetime
    spent, limit = earlier + facts.spent.mu2 / lifetime, earlier + plan_budget.mu2 / lifetime
    y = top + 22
    return tag(
        "g",
        tag("text", shortened(facts.name, _NAME_LENGTH), x=_EDGE, y=top + 16, class_="row"),
        tag("text", _words(facts), x=_WIDTH - _EDGE, y=top + 16, text_anchor="end", class_="tick"),
        _bar(0.0, 1.0, y, "budget"),
        _bar(0.0, earlier, y, "used"),
        _bar(earlier, spent, y, "spent"),
        _limit(limit, y),
    )


def _bar(start: float, end: float, y: float, class_: str) -> Html:
    """A bar between two shares of the lifetime budget, cut off where the budget ends."""
    left, right = (_AXIS.at(min(share, 1.0)) for share in (start, end))
    return tag("rect", x=left, y=y, width=right - left, height=_BAR, class_=class_)


def _limit(share: float, y: float) -> Html:
    x = _AXIS.at(min(share, 1.0))
    return tag("line", x1=x, x2=x, y1=y - 3, y2=y + _BAR + 3, class_="limit")


def _scale(y: float) -> Html:
    return join(
        tag("text", f"{share:.0%}", x=_AXIS.at(share), y=y, text_anchor=anchor, class_="tick")
        for share, anchor in _TICKS
    )


def _words(facts: InstitutionFacts) -> str:
    spent, left = epsilon_text(facts.epsilon), epsilon_left_text(facts.lifetime_left)
    return f"spent {spent}, left {left} of {epsilon_text(facts.lifetime_epsilon)}"
