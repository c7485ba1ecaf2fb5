"""Who may be activated, and whether an audience may go out: the seam through which consent, rules and review decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cohortium.client.audience.store import Audience
from cohortium.study.errors import Defect

__all__ = ["Activation", "Clearance", "EverybodyAllowed", "allowed_flags"]


@dataclass(frozen=True)
class Clearance:
    """What let an export go out.

    Args:
        decision: digest of the policy decision at activation.
        case: digest of the approved case of review.
    """

    decision: str
    case: str


class Activation(Protocol):
    """Decides which customers may be in an audience, and whether it may be handed over."""

    def allowed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """One flag per id, in order, shape (len(ids),). Each flag depends on its id alone, not on the others.

        Asked when an audience is made, and again at every export.
        """
        ...

    def cleared(self, audience: Audience, destination: str, sequence: int) -> Clearance | None:
        """Let an export that may add people go out; None where no rule is in force, in a simulation.

        Asked at every export, before anything of it is written; never for the removal of everybody.

        Raises:
            RefusedError: the rules in force or the reviewers do not let it go out.
        """
        ...


class EverybodyAllowed:
    """No consent is kept and no rule in force. For nodes of simulations alone, see `NodeRecords.activation`."""

    def allowed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """All True."""
        return np.ones(len(ids), dtype=np.bool_)

    def cleared(self, audience: Audience, destination: str, sequence: int) -> Clearance | None:
        """Nothing is asked."""
        return None


def allowed_flags(activation: Activation, ids: Sequence[str]) -> NDArray[np.bool_]:
    """The flags of an activation, checked; `Defect` for another shape or type: nobody is let in by mistake."""
    flags = activation.allowed(ids)
    if flags.shape != (len(ids),) or flags.dtype != np.bool_:
        raise Defect("an activation did not give one flag per customer")
    return flags
