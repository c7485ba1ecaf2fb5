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

__all__ = ["AuditSink", "ConsentView", "Masks", "PolicyGate", "SecureSums", "Terms"]


@dataclass(frozen=True)
class Terms:
    """What an admitted question may cost.

    Args:
        allotment: mu2 units of this one question.
        share: whose noise protects the answer; with a share of the noise goes a mask.
    """

    allotment: int
    share: NoiseShare = ALONE


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

    def snapshot(self, people: CustomerTable) -> CustomerTable:
        """The people whom the next release may count."""
        ...


class AuditSink(Protocol):
    """Keeps a local record of what was released.

    A crash before the reply was stored makes the resumed door record the same release again: every release has at
    least one event, and the event's `charge` says which are of the same release.
    """

    def append(self, event: Mapping[str, str | int]) -> None:
        """Record one event, durably."""
        ...
