"""What the report's section about governance is drawn from: rules, decisions, logs, cases, audits, evidence.

Numbers here are of entries, rules and signatures. How many customers a rule left out, objected or withdrew has no place
in it: at an institution that is for its own eyes, elsewhere it is for nobody's.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cohortium.governance.fairness import Verdict
from cohortium.governance.report.facts import Count, Epsilon, Fact, Text, Written, load_written
from cohortium.governance.report.fairness_page import FairnessPage
from cohortium.governance.report.policy_facts import Digest, DutyFacts, PackFacts, ReviewFacts
from cohortium.governance.rules import Decision, Stage
from cohortium.study.validation import first_repeat

__all__ = [
    "GOVERNANCE_SUMMARY_SCHEMA",
    "AuditFacts",
    "DecisionFacts",
    "EvidenceFacts",
    "GovernanceSummary",
    "GovernedInstitution",
    "LogFacts",
    "WithdrawalFacts",
    "load_governance_summary",
]

GOVERNANCE_SUMMARY_SCHEMA = "cohortium.governance-summary/1"
"""The schema name this version reads and writes; any other is refused."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_File = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})*$", max_length=200)]
_Page = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})*\.html$", max_length=200)]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DecisionFacts(Fact):
    """A decision of an institution's rules: what others may see of it, and the duties that come with it.

    Args:
        plan: name of the plan.
        stage, day, admitted: see `rules.Decision`.
        decision: its id.
        duties: with articles and clocks.
    """

    plan: Text
    stage: Stage
    day: date
    admitted: bool
    decision: Digest
    duties: tuple[DutyFacts, ...] = ()

    @classmethod
    def of(cls, plan: str, decision: Decision) -> DecisionFacts:
        """From a decision about the plan of that name; findings and facts stay where they are."""
        return cls(
            plan=plan,
            stage=decision.stage,
            day=decision.today,
            admitted=decision.admitted,
            decision=decision.id,
            duties=tuple(DutyFacts.of(duty) for duty in decision.duties),
        )


class LogFacts(Fact):
    """An audit log, and how far others vouch for it.

    Args:
        entries: in the log.
        checkpoint: how many of them the last cosigned checkpoint covers; 0 without one.
        root: that checkpoint's root in hexadecimal; None without one.
        cosigned, needed: other institutions that cosigned it, and how many the quorum asks for.
    """

    entries: Count
    checkpoint: Count
    root: _Hash | None
    cosigned: Count
    needed: Count

    @model_validator(mode="after")
    def _holds_together(self) -> LogFacts:
        if self.checkpoint > self.entries:
            raise ValueError("a checkpoint covers at most the entries of its log")
        if (self.root is None) != (self.checkpoint == 0):
            raise ValueError("a checkpoint has a root, and none has none")
        if self.root is None and self.cosigned:
            raise ValueError("nobody cosigns without a checkpoint")
        return self


class GovernedInstitution(Fact):
    """What one institution decided and recorded.

    Args:
        institution: its name.
        packs: in force there; none where a simulation's node answers without rules.
        decisions: of its rules, in order.
        log: its audit log; None where it was not read.
        reviews: cases of its reviewers.
    """

    institution: Text
    packs: tuple[PackFacts, ...] = ()
    decisions: tuple[DecisionFacts, ...] = ()
    log: LogFacts | None = None
    reviews: tuple[ReviewFacts, ...] = ()


class AuditFacts(Fact):
    """A bias audit in one line.

    Args:
        name: of what was audited.
        level: of a campaign, whose audience; None otherwise.
        verdict, made, epsilon: the result's; epsilon None for an audit without noise.
        page: file of its page, relative to the report.
    """

    name: Text
    level: Text | None = None
    verdict: Verdict
    made: date
    epsilon: Epsilon
    page: _Page

    @classmethod
    def of(cls, page: FairnessPage, file: str) -> AuditFacts:
        """From what its page is drawn from, and the page's file."""
        result = page.result
        return cls(
            name=page.name,
            level=result.level,
            verdict=result.verdict,
            made=result.made,
            epsilon=result.epsilon,
            page=file,
        )


class EvidenceFacts(Fact):
    """An evidence pack.

    Args:
        file: relative to the report.
        sha256: of the file, in hexadecimal.
        command: that verifies it offline.
    """

    file: _File
    sha256: _Hash
    command: Text


class WithdrawalFacts(Fact):
    """What became of one person's withdrawal, objection or erasure in a simulation. It says neither who nor how many.

    Args:
        institution: whose customer.
        what: what was said, and when in the run.
        first_without: the first question that was answered without the person, in words; None when there was none.
        changed: what changed after it, and what by design did not, a short line each.
    """

    institution: Text
    what: Text
    first_without: Text | None
    changed: tuple[Text, ...]


class GovernanceSummary(Written):
    """See the module.

    Args:
        schema_id: `cohortium.governance-summary/1`; written `schema`.
        mode: `simulation`: all institutions ran on one machine.
        institutions: in the report's order.
        audits: of bias.
        evidence: packs for outsiders.
        withdrawals: of a simulation alone.
    """

    schema_id: Annotated[Literal["cohortium.governance-summary/1"], Field(alias="schema")] = (
        "cohortium.governance-summary/1"
    )
    mode: Literal["simulation", "deployment"]
    institutions: Annotated[tuple[GovernedInstitution, ...], Field(min_length=1)]
    audits: tuple[AuditFacts, ...] = ()
    evidence: tuple[EvidenceFacts, ...] = ()
    withdrawals: tuple[WithdrawalFacts, ...] = ()

    @model_validator(mode="after")
    def _holds_together(self) -> GovernanceSummary:
        known = [each.institution for each in self.institutions]
        if repeated := first_repeat(known):
            raise ValueError(f"institutions must have distinct names; '{repeated}' repeats")
        if strangers := sorted({each.institution for each in self.withdrawals} - set(known)):
            raise ValueError(f"'{strangers[0]}' is not one of the institutions")
        if self.withdrawals and self.mode != "simulation":
            raise ValueError("only a simulation tells of single withdrawals")
        return self


def load_governance_summary(path: Path) -> GovernanceSummary:
    """Read a summary; `DataError` for one that is unreadable, of another schema, or does not hold together."""
    return load_written(path, GovernanceSummary, "governance summary", "make it again from the run's folder")
