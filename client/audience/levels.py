"""Levels: where on the score an audience begins, and how far it reaches."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cohortium.study.errors import DataError

__all__ = ["CUSTOM", "Level", "custom_level"]

CUSTOM = "custom"
"""Name of a level whose cut-off an operator chose, not the campaign."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True)
class Level:
    """Everybody with a score of at least the cut-off. Levels of one model nest: a lower cut-off holds the higher ones.

    Args:
        name: small letters, digits and hyphens: `narrow`, `balanced`, `broad`, `bin-01`, ..., `custom`.
        cutoff: lowest score of a member; finite, in the unit of the scores file.
        reach: expected share of the eligible population, above 0 and at most 1; None where nobody has estimated it.

    Raises:
        DataError: a malformed name, a cut-off that is not finite, a reach outside (0, 1].
    """

    name: str
    cutoff: float
    reach: float | None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DataError("malformed name", place="level", fix="use small letters, digits and hyphens")
        if not math.isfinite(self.cutoff):
            raise DataError("the cut-off is not a finite number", place=f"level {self.name}", fix="give a score")
        if self.reach is not None and not 0 < self.reach <= 1:
            raise DataError("the reach is not a share", place=f"level {self.name}", fix="give a number in (0, 1]")


def custom_level(cutoff: float) -> Level:
    """The level of a cut-off that an operator chose; its reach is not known."""
    return Level(CUSTOM, cutoff, None)
