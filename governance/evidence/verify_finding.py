"""What verification of evidence packs finds: one line for every check and party."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cohortium.study.errors import CohortiumError, DataError

__all__ = ["CHECKS", "NOT_THERE", "Check", "Finding", "Findings", "NothingToCheckError", "judged", "nothing", "wrong"]

NOT_THERE = "not in this pack"
"""What a check says that has nothing to check: that is no pass."""

Check = Literal[
    "every byte",
    "documents",
    "charter",
    "plans",
    "contracts",
    "approvals",
    "checkpoints",
    "log entries",
    "cosignatures",
    "witnesses",
    "charges",
    "epsilon",
    "decisions",
    "consent",
    "contributions",
    "released",
    "reviews",
    "activations",
    "fairness",
    "attack audit",
]

CHECKS: dict[Check, str] = {
    "every byte": "the file is what its signed manifest makes it; the signer's key is the charter's",
    "documents": "every document is of a kind and form that this version knows",
    "charter": "the pack was built under the charter that was given",
    "plans": "every plan that a log names is there, and keeps the charter's limits",
    "contracts": "the feature contracts are those that the plans name",
    "approvals": "whoever answered a proposed plan had approved it before, under its own key",
    "checkpoints": "each log signed its checkpoints, and each continues the one before",
    "log entries": "every entry hashes into the log's last checkpoint",
    "cosignatures": "a quorum of others cosigned the log",
    "witnesses": "what others cosigned is what the log shows here",
    "charges": "every charge has its one log entry, every entry its charge, at the price that follows",
    "epsilon": "the epsilon that the charges come to is what is stated, and within the plan",
    "decisions": "every release was admitted by a decision that is there, on facts that are there",
    "consent": "every commitment to a consent snapshot opens",
    "contributions": "the entries that the coordinator took are proven, and those in the institutions' logs",
    "released": "what was released is what the coordinator's log says, paid for question by question",
    "reviews": "cases hold together: documents, signatures, enrolment",
    "activations": "every export was approved by reviewers, on a decision, of a model that was released",
    "fairness": "fairness results are of what was released",
    "attack audit": "the attack audit refuted no claim",
}
"""Every check and what a pass of it means, in the order of the report."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        check: which.
        about: of which party or document; empty where it is of the whole pack.
        status: `passed`, `failed`, or `absent` where there was nothing to check.
        message: in words.
    """

    check: Check
    about: str
    status: Literal["passed", "failed", "absent"]
    message: str


@dataclass(frozen=True)
class Findings:
    """What verification found.

    Args:
        signers: who put each pack together and signed it; empty where that could not be verified.
        documents: how many there are, in all packs.
        altered: the document in which the first altered byte lies, or which of the container's own parts; None when
            none was altered.
        findings: in the order of `CHECKS`; at least one for each, unless something was altered.
    """

    signers: tuple[str, ...]
    documents: int
    altered: str | None
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed. What is not in the pack was not checked."""
        return all(finding.status != "failed" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "verified": self.passed,
            "signers": list(self.signers),
            "documents": self.documents,
            "altered": self.altered,
            "findings": [vars(finding) for finding in self.findings],
        }


class NothingToCheckError(CohortiumError):
    """A check has nothing to check."""


def judged(check: Check, about: str, look: Callable[[], str | None]) -> Finding:
    """The finding of a check.

    Args:
        check, about: see `Finding`.
        look: says what was found in order; None, or `NothingToCheckError` with the reason, when there is nothing to
            check; any other `CohortiumError` when something does not hold.
    """
    try:
        said = look()
    except NothingToCheckError as error:
        return Finding(check, about, "absent", f"{NOT_THERE}: {error.message}")
    except CohortiumError as error:
        where = f"{error.place}: " if error.place and error.place != about else ""
        return Finding(check, about, "failed", f"{where}{error.message}")
    return Finding(check, about, "absent", NOT_THERE) if said is None else Finding(check, about, "passed", said)


def nothing() -> None:
    """What a check looks at that has nothing to check."""


def wrong(message: str, place: str | None = None) -> DataError:
    """What a check says when something does not hold."""
    return DataError(message, place=place)
