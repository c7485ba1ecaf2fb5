"""Who may be activated: the seam through which rules and consent decide, customer by customer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cohortium.study.errors import Defect

__all__ = ["Activation", "EverybodyAllowed", "allowed_flags"]


class Activation(Protocol):
    """Decides which customers may be in an audience. Asked when one is made, and again at every export."""

    def allowed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """One flag per id, in order, shape (len(ids),). Each flag depends on its id alone, not on the others."""
        ...


class EverybodyAllowed:
    """No consent is kept: everybody may be activated. For nodes of simulations alone, see `NodeRecords.activation`."""

    def allowed(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """All True."""
        return np.ones(len(ids), dtype=np.bool_)


def allowed_flags(activation: Activation, ids: Sequence[str]) -> NDArray[np.bool_]:
    """The flags of an activation, checked; `Defect` for another shape or type: nobody is let in by mistake."""
    flags = activation.allowed(ids)
    if flags.shape != (len(ids),) or flags.dtype != np.bool_:
        raise Defect("an activation did not give one flag per customer")
    return flags
