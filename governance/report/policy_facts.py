"""What reports quote of rules and review: articles, plain words, marks, clocks. Never the value that a fact had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import date
from typing import Annotated, Literal

from pydantic import Field

from cohortium.governance.report.facts import Count, Fact, Text
from cohortium.governance.review import Case, Kind, Standing
from cohortium.governance.review.standing import State
from cohortium.governance.rules import Clock, Decision, Duty, Limit, Pack, Rule, Stage
from cohortium.governance.rules.pack import Effect

__all__ = [
    "MARKS",
    "Confidence",
    "Digest",
    "DutyFacts",
    "FindingFacts",
    "LimitFacts",
    "MarkedRules",
    "PackFacts",
    "PolicyFacts",
    "Quote",
    "QuotedRule",
    "ReviewFacts",
    "clock_in_words",
]

Quote = Annotated[str, Field(max_length=4000)]
"""Longer than a `Text`, and may be empty: what a rule says."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

Confidence = Literal["A", "B", "C", "U", "house"]

MARKS: tuple[tuple[Confidence, str], ...] = (
    ("A", "read in the official text"),
    ("B", "read in a secondary source"),
    ("C", "recalled, unverified"),
    ("U", "uncertain, unverified"),
    ("house", "a limit of our own, set by no law"),
)
"""How surely a rule was read."""

_AGREED = "limit of another institution of the federation"
_UNITS = {"hours": "hour", "days": "day", "business_days": "business day", "months": "month"}
_SET_BY = {"law": "law", "guidance": "guidance", "house": "our own limit"}


class QuotedRule(Fact):
    """A rule by its number.

    Args:
        rule: its id.
        article: where it stands.
        plain: what it asks for.
        confidence: its mark, such as `C, unverified`.
    """

    rule: Text
    article: Quote
    plain: Quote
    confidence: Text

    @classmethod
    def of(cls, rule: Rule) -> QuotedRule:
        """From a pack."""
        return cls(rule=rule.id, article=rule.article, plain=rule.plain, confidence=rule.mark)


class FindingFacts(Fact):
    """Why a rule refused.

    Args:
        quoted: the rule.
        effect: what kind it is.
        outcome: the facts break it, or do not suffice to tell.
        change: what would change it.
    """

    quoted: QuotedRule
    effect: Effect
    outcome: Literal["broken", "unknown"]
    change: Quote


class LimitFacts(Fact):
    """A number that was to be kept to.

    Args:
        fact, op, number: `privacy.epsilon <= 3`.
        rules: whose limit it is.
    """

    fact: Text
    op: Literal["<=", ">="]
    number: Annotated[float, Field(allow_inf_nan=False)]
    rules: tuple[QuotedRule, ...]

    @classmethod
    def of(cls, limit: Limit, known: dict[str, QuotedRule]) -> LimitFacts:
        """From a decision; a rule of none of the packs at hand is another institution's."""
        return cls(
            fact=limit.fact,
            op=limit.op,
            number=limit.number,
            rules=tuple(known.get(rule, _others(rule)) for rule in limit.rules),
        )


class DutyFacts(Fact):
    """What has to be done, and by when.

    Args:
        rule, article, confidence: the rule's.
        obligation, deadline: what, and by when.
        clocks: the same for machines, in words.
        certain: whether it is known to be owed.
    """

    rule: Text
    article: Quote
    confidence: Text
    obligation: Quote
    deadline: Quote
    clocks: tuple[Text, ...]
    certain: bool

    @classmethod
    def of(cls, duty: Duty) -> DutyFacts:
        """From a decision."""
        return cls(
            rule=duty.rule,
            article=duty.article,
            confidence=duty.confidence,
            obligation=duty.obligation,
            deadline=duty.deadline,
            clocks=tuple(clock_in_words(clock) for clock in duty.clocks),
            certain=duty.certain,
        )


class PolicyFacts(Fact):
    """A decision of the rules, as far as a reader may see it.

    Args:
        institution: whose; None where the page says it.
        decision: its id.
        stage, day, admitted: see `Decision`.
        packs: names of the packs in force.
        findings, limits, duties: quoted.
    """

    institution: Text | None = None
    decision: Digest
    stage: Stage
    day: date
    admitted: bool
    packs: tuple[Text, ...]
    findings: tuple[FindingFacts, ...] = ()
    limits: tuple[LimitFacts, ...] = ()
    duties: tuple[DutyFacts, ...] = ()

    @classmethod
    def of(cls, decision: Decision, packs: Iterable[Pack], institution: str | None = None) -> PolicyFacts:
        """From a decision.

        Args:
            packs: that it was made by: limits name rules by their ids alone.
            institution: whose it is.
        """
        known = {rule.id: QuotedRule.of(rule) for pack in packs for rule in pack.rules}
        return cls(
            institution=institution,
            decision=decision.id,
            stage=decision.stage,
            day=decision.today,
            admitted=decision.admitted,
            packs=tuple(sorted(decision.packs)),
            findings=tuple(
                FindingFacts(
                    quoted=QuotedRule(
                        rule=each.rule, article=each.article, plain=each.plain, confidence=each.confidence
                    ),
                    effect=each.effect,
                    outcome=each.outcome,
                    change=each.change,
                )
                for each in decision.findings
            ),
            limits=tuple(LimitFacts.of(limit, known) for limit in decision.limits),
            duties=tuple(DutyFacts.of(duty) for duty in decision.duties),
        )


class MarkedRules(Fact):
    """How many rules bear a mark."""

    confidence: Confidence
    rules: Count


class PackFacts(Fact):
    """A pack of rules that an institution put in force.

    Args:
        name, digest: which.
        in_force: its rules that apply on the day, by confidence; marks that none bears are left out.
    """

    name: Text
    digest: Digest
    in_force: tuple[MarkedRules, ...]

    @classmethod
    def of(cls, pack: Pack, day: date) -> PackFacts:
        """From a pack, on a day."""
        counts = Counter(rule.confidence for rule in pack.rules if rule.idle_on(day) is None)
        marked = tuple(MarkedRules(confidence=mark, rules=counts[mark]) for mark, _ in MARKS if counts[mark])
        return cls(name=pack.name, digest=pack.digest, in_force=marked)


class ReviewFacts(Fact):
    """How a case of review stands; people appear as functions only.

    Args:
        case, kind: which, and what it asks for.
        state: see `review.Standing`.
        approved_by: functions whose signature counts.
        waiting_for: functions that have still to sign.
        until: last day on which an approval holds.
        conditions: of signatures that count.
        tasks: that remedy what is waived.
    """

    case: Text
    kind: Kind
    state: State
    approved_by: tuple[Text, ...] = ()
    waiting_for: tuple[Text, ...] = ()
    until: date | None = None
    conditions: tuple[Text, ...] = ()
    tasks: tuple[Text, ...] = ()

    @classmethod
    def of(cls, case: Case, found: Standing) -> ReviewFacts:
        """From a case and its standing on the day."""
        signed = {"privacy", "risk or compliance"} - set(found.waiting_for) if found.approvers else set()
        return cls(
            case=case.name,
            kind=case.kind,
            state=found.state,
            approved_by=tuple(sorted(signed)),
            waiting_for=found.waiting_for,
            until=found.until,
            conditions=tuple(dict.fromkeys(found.conditions)),
            tasks=tuple(dict.fromkeys(found.tasks)),
        )


def clock_in_words(clock: Clock) -> str:
    """'within 1 month of a rights request (law)', 'before the next round after a withdrawal (our own limit)'."""
    since = clock.since.replace("_", " ")
    what = "" if clock.act is None else f"{clock.act}: "
    if clock.amount is None or clock.unit is None:
        before = (clock.before or "").removeprefix("next_").replace("_", " ")
        when = (
            f"before the {'next ' if (clock.before or '').startswith('next_') else ''}{before}, counted from: {since}"
        )
    else:
        unit = _UNITS[clock.unit]
        when = f"within {clock.amount:,} {unit if clock.amount == 1 else unit + 's'} of: {since}"
        if clock.extendable is not None:
            when += f", extendable by {clock.extendable:,}"
    return f"{what}{when} ({_SET_BY[clock.set_by]})"


def _others(rule: str) -> QuotedRule:
    return QuotedRule(rule=rule, article=_AGREED, plain="", confidence="house")
