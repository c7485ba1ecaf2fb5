"""The error tree: what the caller can mend, and what is our bug.

Messages name places, columns and limits that parties agreed on; they never carry a value read from a customer.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "CohortiumError",
    "ContractError",
    "DataError",
    "Defect",
    "OutputError",
    "PlanError",
    "RefusedError",
    "printable",
]


def printable(text: str) -> str:
    """The text with what a terminal would obey or hide written as escapes: others' documents are quoted to people."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class CohortiumError(Exception):
    """The caller's mistake. One line: the place, what is wrong, and the fix. The command line exits with 2.

    Args:
        message: what is wrong, without customer values.
        place: file, table, column or plan line the message is about.
        fix: what to do about it, as an imperative.
    """

    def __init__(self, message: str, *, place: str | None = None, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.fix = fix

    def __str__(self) -> str:
        head = f"{self.place}: {self.message}" if self.place else self.message
        return printable(f"{head} — fix: {self.fix}" if self.fix else head)


class ContractError(CohortiumError):
    """A feature contract that does not hold together."""


class PlanError(CohortiumError):
    """A plan that is malformed, unsafe or does not fit its contract."""


class DataError(CohortiumError):
    """A table that cannot be read as the contract says."""


class BudgetError(CohortiumError):
    """A charge that the plan's or the institution's privacy budget does not allow."""


class RefusedError(CohortiumError):
    """A question that the institution does not answer, or a federation in which somebody declined."""


class OutputError(CohortiumError):
    """A result that cannot be written where it was asked for."""


class Defect(Exception):  # noqa: N818 - an internal invariant is broken: not the caller's error
    """Our bug, not the caller's mistake: an internal invariant does not hold. The command line exits with 70."""
