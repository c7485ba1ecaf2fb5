"""Obligations: what decisions brought with them, the events that start their clocks, and how each was closed.

May import `governance.rules`, `governance.log`, `privacy` and `study`.
Must never happen here: a row changed or removed, a deadline computed otherwise than by a rule's clock, a person named.
"""

from cohortium.governance.obligations.obligation import (
    SOON,
    Closure,
    Extension,
    Obligation,
    Occurrence,
    Part,
    StandingDuty,
    State,
    deadline,
    parts_of,
    state_at,
)
from cohortium.governance.obligations.register import ObligationRegister, one_line

__all__ = [
    "SOON",
    "Closure",
    "Extension",
    "Obligation",
    "ObligationRegister",
    "Occurrence",
    "Part",
    "StandingDuty",
    "State",
    "deadline",
    "one_line",
    "parts_of",
    "state_at",
]
