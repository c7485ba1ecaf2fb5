"""What the door needs from above it, as protocols that `client` wires; privacy/ imports nothing above itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.study.question import QuestionHeader

__all__ = ["AuditSink", "ConsentView", "Counted", "Masks", "PolicyGate", "SecureSums", "Terms"]


@dataclass(frozen=True)
class Terms:
    """What an admitted question may cost.

    Args:
        allotment: mu2 units of this one question.
        share: whose noise protects the answer; with a share of the noise goes a mask.
        decision: digest of the institution's decision to admit the run.
    """

    allotment: int
    share: NoiseShare = ALONE
    decision: str = ""


@dataclass(frozen=True)
class Counted:
    """Who is counted, and of which state of consent that follows.

    Args:
        people: those whom the next release may count.
        root: 32 bytes that commit to the state of everybody's consent; they never leave the institution bare.
        sequence: number of the newest consent event in it.
    """

    people: CustomerTable
    root: bytes
    sequence: int = 0


class PolicyGate(Protocol):
    """Says whether a question may be answered; from the institution's own approved plan, never from the message."""

    def admit(self, question: QuestionHeader) -> Terms:
        """The terms of a question; `RefusedError` when the plan does not foresee it."""
        ...


class Masks(Protocol):
    """Masks one vector for a secure sum (`privacy.secure_sum.Masking`)."""

    def apply(self, vector: NDArray[np.int64]) -> tuple[NDArray[np.int64], bytes]:
        """The masked vector, and the 64 bytes that are sent with it."""
        ...


class SecureSums(Protocol):
    """The institution's part in secure sums."""

    def begin(self, question: QuestionHeader, request: bytes, digest: str) -> Masks:
        """Check what the coordinator sent with a question; `RefusedError` when it is unsafe to contribute."""
        ...


class ConsentView(Protocol):
    """Says which people count. People who are excluded are filtered, never a reason to refuse."""

    def counted(self, people: CustomerTable, plan: str) -> Counted:
        """The people whom the next release for that plan may count, as consent stands now."""
        ...

    def answered(self, counted: Counted, run: str, question: str) -> None:
        """Told when a question was answered from that state: receipts name the first one without somebody."""
        ...


class AuditSink(Protocol):
    """The institution's audit log: exactly one entry for every release, witnessed by others before the next one."""

    def require_witnessed(self, plan: str) -> None:
        """`RefusedError` unless a quorum of the plan's charter has cosigned the log as it stands: nothing is charged
        without."""
        ...

    def record(self, key: str, entry: Mapping[str, str | int]) -> bytes:
        """Record an entry durably, once for each key; what goes with its release.

        Args:
            key: a second entry under the same key is not recorded.
            entry: what everybody may learn who is shown the log.

        Returns:
            A `study.witness.Statement`: the entry in the log's newest checkpoint, and the newest that others cosigned.
        """
        ...
