"""Rules in force, decisions with their duties, audit logs, review, bias audits, evidence, withdrawals."""

from __future__ import annotations

from collections.abc import Iterator

from cohortium.governance.report.governance_summary import GovernanceSummary, LogFacts
from cohortium.governance.report.markup import Child, Html, definitions, join, paragraph, section, table, tag
from cohortium.governance.report.policy_facts import MARKS, Confidence, DutyFacts, PackFacts
from cohortium.governance.report.sections.review_table import review_table
from cohortium.governance.report.wording import epsilon_text, label, plural, short_digest

__all__ = ["governance_limits", "governance_section"]


def governance_section(summary: GovernanceSummary) -> Html:
    """The section."""
    return section(
        "governance",
        "Governance",
        paragraph(
            "Every institution decides by its own rules, and nobody overrules it. What a rule found, which facts it "
            "read and how many customers it left out stays there. ",
            tag("strong", "Not legal advice."),
        ),
        *_packs(summary),
        *_decisions(summary),
        *_duties(summary),
        *_logs(summary),
        *_reviews(summary),
        *_audits(summary),
        *_evidence(summary),
        *_withdrawals(summary),
    )


def _packs(summary: GovernanceSummary) -> Iterator[Html]:
    yield tag("h3", "Rules in force")
    rows = [
        (each.institution, pack.name, tag("code", short_digest(pack.digest)), *_counts(pack))
        for each in summary.institutions
        for pack in each.packs
    ]
    without = [each.institution for each in summary.institutions if not each.packs]
    if rows:
        heads = ("Institution", "Pack", "Digest", *(mark for mark, _ in MARKS))
        columns = tuple(range(3, len(heads)))
        yield table("Packs of rules, and their rules in force by how surely they were read", heads, rows, columns)
        meanings = "; ".join(f"{mark}: {meaning}" for mark, meaning in MARKS)
        command = tag("code", "cohortium rules")
        yield paragraph(f"{meanings}. ", command, " shows article and source of every rule.", note=True)
    if without:
        yield paragraph(f"No rule is in force at: {', '.join(without)}.")


def _counts(pack: PackFacts) -> Iterator[str]:
    found: dict[Confidence, int] = {each.confidence: each.rules for each in pack.in_force}
    return (f"{found.get(mark, 0):,}" for mark, _ in MARKS)


def _decisions(summary: GovernanceSummary) -> Iterator[Html]:
    yield tag("h3", "Decisions")
    rows: list[tuple[Child, ...]] = [
        (
            each.institution,
            decision.plan,
            label(decision.stage),
            tag("strong", "admitted" if decision.admitted else "declined"),
            decision.day.isoformat(),
            tag("code", short_digest(decision.decision)),
        )
        for each in summary.institutions
        for decision in each.decisions
    ]
    if not rows:
        yield paragraph("No decision was recorded.")
        return
    yield table("Decisions of the rules", ("Institution", "Plan", "Stage", "Decision", "Day", "Id"), rows)


def _duties(summary: GovernanceSummary) -> Iterator[Html]:
    """Every duty once, with the institutions at which it is owed."""
    owed: dict[DutyFacts, dict[str, None]] = {}
    for each in summary.institutions:
        for duty in (duty for decision in each.decisions for duty in decision.duties):
            owed.setdefault(duty, {})[each.institution] = None
    if owed:
        heads = ("Article", "What has to be done", "By when", "Confidence", "At")
        yield table("Duties that come with these decisions", heads, [_duty(*one) for one in owed.items()])


def _duty(duty: DutyFacts, institutions: dict[str, None]) -> tuple[Child, ...]:
    clocks = (tag("div", tag("small", clock)) for clock in duty.clocks)
    unsure = () if duty.certain else (tag("div", tag("small", "kept as owed: not enough is known to tell")),)
    return (
        join((duty.article, tag("br"), tag("small", duty.rule))),
        join((duty.obligation, *unsure)),
        join((duty.deadline, *clocks)),
        duty.confidence,
        ", ".join(institutions),
    )


def _logs(summary: GovernanceSummary) -> Iterator[Html]:
    yield tag("h3", "Audit logs")
    rows = [(each.institution, *_log(each.log)) for each in summary.institutions if each.log is not None]
    if not rows:
        yield paragraph("No audit log was read.")
        return
    yield paragraph(
        "An institution's log is append-only; the other institutions cosign how it grows. What is not yet covered by a "
        "cosigned checkpoint nobody vouches for. A log proves that its entries were not changed, not that they are "
        "true or complete."
    )
    heads = ("Institution", "Entries", "Covered by checkpoint", "Root", "Cosigned by")
    yield table("Audit logs and their cosigned checkpoints", heads, rows, numeric=(1, 2))


def _log(log: LogFacts) -> tuple[Child, ...]:
    root: Child = "none" if log.root is None else tag("code", log.root[:16] + "\N{HORIZONTAL ELLIPSIS}")
    lacking = log.needed - log.cosigned
    reached = "quorum reached" if log.needed else "no quorum is asked for"
    state = f"quorum lacks {lacking:,}" if lacking > 0 else reached
    words = f"{plural(log.cosigned, 'institution')}, {log.needed:,} needed"
    return f"{log.entries:,}", f"{log.checkpoint:,}", root, join((words, tag("br"), tag("small", state)))


def _reviews(summary: GovernanceSummary) -> Iterator[Html]:
    yield tag("h3", "Review")
    cases = [(each.institution, case) for each in summary.institutions for case in each.reviews]
    yield review_table(cases) if cases else paragraph("No case of review was opened.")


def _audits(summary: GovernanceSummary) -> Iterator[Html]:
    yield tag("h3", "Bias audits")
    if not summary.audits:
        yield paragraph("No bias audit was made: nothing here says that groups of people are treated fairly.")
        return
    rows: list[tuple[Child, ...]] = [
        (
            each.name if each.level is None else f"{each.name}, level '{each.level}'",
            tag("strong", each.verdict, class_=f"word {each.verdict}"),
            each.made.isoformat(),
            "no noise" if each.epsilon is None else epsilon_text(each.epsilon),
            tag("a", each.page, href=each.page),
        )
        for each in summary.audits
    ]
    yield table("Bias audits", ("Of", "Verdict", "Judged on", "Epsilon", "Page"), rows, numeric=(3,))
    yield paragraph(
        "Anything but a pass keeps an audience from being exported, unless two reviewers waive it for a stated time.",
        note=True,
    )


def _evidence(summary: GovernanceSummary) -> Iterator[Html]:
    yield tag("h3", "Evidence")
    if not summary.evidence:
        yield paragraph("No evidence pack was built.")
        return
    yield paragraph("An outsider verifies a pack offline, with a charter that they got from somebody they trust.")
    for each in summary.evidence:
        facts = (("File", each.file), ("SHA-256", tag("code", each.sha256)), ("Verify", tag("code", each.command)))
        yield definitions(facts)


def _withdrawals(summary: GovernanceSummary) -> Iterator[Html]:
    if not summary.withdrawals:
        return
    yield tag("h3", "Withdrawals in this simulation")
    rows: list[tuple[Child, ...]] = [
        (
            each.institution,
            each.what,
            "none: no question followed" if each.first_without is None else each.first_without,
            join(tag("div", line) for line in each.changed),
        )
        for each in summary.withdrawals
    ]
    heads = ("Institution", "What was said", "First question without the person", "What changed")
    yield table("What became of what people said during the run", heads, rows)
    yield paragraph("A deployment's report never tells of single withdrawals: the person gets a receipt.", note=True)


def governance_limits(summary: GovernanceSummary) -> Iterator[str]:
    """What the section does not prove."""
    yield (
        "That what institutions declared to their rules is true, that the packs hold every law, or that they were read "
        "rightly: rules are marked by how surely, and none of it is legal advice."
    )
    if any(not each.packs for each in summary.institutions):
        yield "Anything about law or consent at an institution without rules in force: no rule was evaluated there."
    yield "That log entries are true, or that none was left out: only that what was cosigned was not changed later."
    if summary.audits:
        yield "That groups are treated fairly beyond what the bias audits under Governance show, on their day."
