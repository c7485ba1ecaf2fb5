"""The reach-dilution curve as it is agreed on and released: levels and locks of a plan, points, quality, the choice.

Numbers of people are noisy; what is below the plan's minimum cell is absent (None), never 0, and no two reaches shown
differ by less. An interval of a number of people is for the noise alone; an interval of a quality is for the noise and
for the chance of who the seeds and the others are. Quality is measured on the very seeds that the ranker was learnt on:
differential privacy bounds how much that flatters it, and no interval here corrects for it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cohortium.study.document import Agreed

__all__ = [
    "MAX_LEVELS",
    "STANDARD_LEVELS",
    "CurvePoint",
    "LevelTarget",
    "Lock",
    "Measured",
    "RankerChoice",
    "RankerQuality",
    "ReachCurve",
    "ReachLevel",
    "even_levels",
]

MAX_LEVELS = 28
"""Three standard levels and up to 25 bins of one's own."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
_Measure = Literal["people", "share", "cutoff", "relevance", "lift", "precision", "recall"]
_KINDS = {"people": "reach", "share": "reach", "cutoff": "similarity", "relevance": "similarity"}


class Measured(Agreed):
    """A noisy value and its 95% interval, which holds it."""

    value: _Finite
    low: _Finite
    high: _Finite

    @model_validator(mode="after")
    def _ordered(self) -> Measured:
        if not self.low <= self.value <= self.high:
            raise ValueError("an interval must hold its value")
        return self


class Lock(Agreed):
    """A hard bound on an audience: kept even at the unfavourable end of the measure's interval.

    Args:
        measure: people or share (of the eligible): the reach; cutoff (on the score) or relevance: the similarity;
            lift, precision or recall: the dilution.
        at_least: lower bound.
        at_most: upper bound; for people and share alone.
    """

    measure: _Measure
    at_least: _Finite | None = None
    at_most: _Finite | None = None

    @property
    def kind(self) -> str:
        """reach, similarity or dilution."""
        return _KINDS.get(self.measure, "dilution")

    @model_validator(mode="after")
    def _one_bound(self) -> Lock:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a lock has one bound: at_least or at_most")
        if self.at_most is not None and self.kind != "reach":
            raise ValueError("only people and share are locked by at_most")
        bound = self.at_least if self.at_least is not None else self.at_most
        if self.measure != "cutoff" and (bound is None or bound <= 0):
            raise ValueError("a lock's bound must be above 0")
        if self.measure in ("share", "relevance", "precision", "recall") and (bound is None or bound > 1):
            raise ValueError("a lock on a share must not pass 1")
        return self


class LevelTarget(Agreed):
    """One audience size that a plan asks for.

    Args:
        name: such as `narrow`.
        share: of the eligible people; None when the locks alone say how many.
        locks: all of them hold.
    """

    name: _Name
    share: _Share | None = None
    locks: tuple[Lock, ...] = ()

    @model_validator(mode="after")
    def _determined(self) -> LevelTarget:
        if self.share is None and not self.locks:
            raise ValueError("a level needs a share or a lock")
        return self


STANDARD_LEVELS: tuple[LevelTarget, ...] = (
    LevelTarget(name="narrow", share=0.025),
    LevelTarget(name="balanced", share=0.05),
    LevelTarget(name="broad", share=0.1),
)
"""What a plan asks for when it says nothing else."""


def even_levels(bins: int, widest: float = 0.25) -> tuple[LevelTarget, ...]:
    """`bin-01`, `bin-02`, ...: 1 to 25 nested levels in equal steps up to the share `widest`."""
    if not 1 <= bins <= 25:
        raise ValueError("from 1 to 25 bins")
    return tuple(LevelTarget(name=f"bin-{i:02d}", share=widest * i / bins) for i in range(1, bins + 1))


class CurvePoint(Agreed):
    """Everybody whose score is at least the cut-off.

    Args:
        cutoff: on the ranker's score.
        people: eligible people reached.
        share: of the estimated eligible people, 0..1.
        recall: share of the seeds reached.
        lift: how much commoner seeds are here than among all; 1 is chance.
        precision: share of seeds among all people reached, seeds included.
        relevance: precision if seeds and others were equally many, 0..1; one half is chance. Never rises with reach.
    """

    cutoff: _Finite
    people: Measured
    share: Annotated[float, Field(ge=0, le=1)]
    recall: Measured | None = None
    lift: Measured | None = None
    precision: Measured | None = None
    relevance: Measured | None = None


class ReachLevel(Agreed):
    """A level as it came out.

    Args:
        name: of the target.
        point: where it stands; None when it is suppressed.
        change: reach relative to the level's reach before the refit, less 1; None without one.
        protected: whether the change is within the protection band at both ends of the interval; None without one.
    """

    name: _Name
    point: CurvePoint | None
    change: _Finite | None = None
    protected: bool | None = None


class ReachCurve(Agreed):
    """A ranker's reach and dilution.

    Args:
        eligible: people who could be reached: those with consent who are no seeds; None when suppressed.
        points: from the highest cut-off to the lowest; reaches grow by the minimum cell at least.
        levels: by growing reach, each point one of `points`.
    """

    eligible: Measured | None
    points: tuple[CurvePoint, ...]
    levels: tuple[ReachLevel, ...]

    @model_validator(mode="after")
    def _nested(self) -> ReachCurve:
        if any(first.cutoff <= second.cutoff for first, second in pairwise(self.points)):
            raise ValueError("cut-offs must fall along the curve")
        levels = [level.point for level in self.levels if level.point is not None]
        if any(first.cutoff < second.cutoff for first, second in pairwise(levels)):
            raise ValueError("levels must be nested")
        if any(point not in self.points for point in levels):
            raise ValueError("a level must be a point of the curve")
        return self


class RankerQuality(Agreed):
    """How well a ranker tells the seeds it was learnt on from the rest; None where noise hides it.

    Args:
        ranker: its name.
        auc: probability that a seed scores above another person, ties counted half.
        auc_noise_std: the part of its standard error that is noise.
        recall: share of the seeds among the top 5, 10 and 20% of people.
        lift: seeds among the top 1, 5 and 10% relative to all.
        deciles: the lift within each tenth of people, best first.
    """

    ranker: str
    auc: Measured | None
    auc_noise_std: _Finite | None
    recall: tuple[Measured | None, ...] = (None, None, None)
    lift: tuple[Measured | None, ...] = (None, None, None)
    deciles: tuple[Measured | None, ...] = (None,) * 10


class RankerChoice(Agreed):
    """Which ranker was taken, and by how much it won over the best of the others.

    Args:
        ranker: taken.
        rival: the best of the others; None without one.
        margin: estimated AUC of the ranker less the rival's; below 0 when a default was kept; None where hidden.
        margin_std: the noise in it.
        probability: that the ranker is the better of the two, by the stated prior.
        regret: expected AUC lost because it may not be.
    """

    ranker: str
    rival: str | None = None
    margin: _Finite | None = None
    margin_std: _Finite | None = None
    probability: _Finite | None = None
    regret: _Finite | None = None
