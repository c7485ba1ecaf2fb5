"""Seed optimisation: which of the listed customers to learn from, decided row by row by an earlier campaign's release.

A released campaign model says how its ranker scores a row, and its curve which share of the seeds and which share of
all others score above each cut-off. From these alone follows a *rule*:

- *Negative selection*: the cut-off at which the two shares are furthest apart (Youden, "Index for rating diagnostic
  tests", Cancer 1950). Below it a score is commoner among the others than among the seeds: such a listed customer
  looks like the rest and is left out. Strangers in a list shrink the distance at every cut-off alike and do not move
  the best one.
- *Diversity*: where not all may stay, a draw thins crowded bands of the score first, so that the few hundred who stand
  out most do not crowd out the others.
- *Size*: the draw is by a keyed hash of the id, and keeps a stated share of those who passed.

**Why the bounds of later sums hold.** Whether a person is kept is a function of that person's own row and id, of
released (noised) numbers, of a share that was stated and of a pseudorandom key. It does not depend on how
many others are listed, on their rows, or on a rank among them. So adding or removing a person changes that person's
membership and no other's, and a later sum over the kept moves by one person's bounded contribution. The rule itself is
post-processing of a paid release. A share is asked for rather than a number of people: the rate that keeps exactly, or
on average, m of this list would depend on everybody in it, and one person's leaving would change another's membership.

The key must not be drawn again until its outcome pleases, for the outcome is everybody's. So a node derives it: the
same list, model, name and share get the same key, a changed list gets another. Being pseudorandom it is as likely in
one case as in the other, so the argument may take the same key for both. What does depend on everybody is whether the
part passes the floors and is kept as a list at all, as with any list.

What it is good for (benchmarks/seeds.py measures it): a list that must not be used whole and whose people are not all
valued customers. Where nothing caps the seed, nothing should be left out: the noise of a sum does not grow with the
number of people in it, and whole lists ranked best, with 30% strangers too. Thinning crowded bands first ranked no
better and no worse than thinning everybody alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium.models.ranker import Ranker
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import CohortiumError, Defect, RefusedError
from cohortium.study.reach import ReachCurve

__all__ = ["SeedRule", "seed_rule"]

_BANDS = 5


@dataclass(frozen=True)
class SeedRule:
    """Which listed people are kept: a function of a person's own row and id.

    Args:
        ranker: of the released model.
        cutoff: least score that does not look like the rest.
        edges: between the bands of higher scores, ascending, shape (bands - 1,).
        rates: share of each band's people that the draw keeps, 0 to 1, shape (bands,).
    """

    ranker: Ranker
    cutoff: float
    edges: NDArray[np.float64]
    rates: NDArray[np.float64]

    def kept(self, people: CustomerTable, key: bytes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Who of these listed people passes the negative selection, and who of them is kept; both of shape (n,).

        Args:
            people: listed people; whoever else is among them changes nothing.
            key: 32 bytes that are pseudorandom, of this draw, and unknown to whoever could choose ids.
        """
        if len(key) != 32:
            raise Defect("seed rule: a key of the wrong length")
        scores = self.ranker.scores(people)
        passed = scores >= self.cutoff
        rate = self.rates[np.searchsorted(self.edges, scores, side="right")]
        return passed, passed & (_drawn(people.keys, key) < rate)


def seed_rule(ranker: Ranker, curve: ReachCurve, share: float = 1.0, *, place: str = "model") -> SeedRule:
    """The rule that a released model suggests. Post-processing: it looks at nobody.

    Args:
        ranker, curve: of the model.
        share: of those who pass the negative selection, how many the draw keeps if they score as the model's seeds do;
            above 0 and at most 1.
        place: the model's file, for messages.

    Raises:
        CohortiumError: a share outside (0, 1].
        RefusedError: the curve does not show that the ranker tells its seeds from others.
    """
    if not 0 < share <= 1:
        raise CohortiumError("no such share", place="share", fix="state a share above 0 and at most 1")
    points = [(point.cutoff, point.share, point.recall) for point in curve.points if point.recall is not None]
    best = max(points, key=lambda point: point[2].value - point[1], default=None)
    if best is None or best[2].low <= best[1]:
        raise RefusedError(
            "the model's curve does not tell its seeds from others",
            place=place,
            fix="take the model of a campaign with more seeds or more epsilon",
        )
    cutoff, highest = best[0], points[0][0]
    edges = np.linspace(cutoff, highest, _BANDS + 1)[1:-1]
    cutoffs, recalls = np.array([(each, recall.value) for each, _share, recall in reversed(points)]).T
    above = np.interp([cutoff, *edges], cutoffs, recalls)  # share of the seeds from each band's lower end on
    return SeedRule(ranker, cutoff, edges, _rates(above - np.append(above[1:], 0.0), share))


def _rates(crowds: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """What the draw keeps of each band, from the share of the seeds in it: all, or what brings it down to a ceiling."""
    low, high = 0.0, float(crowds.max())
    for _ in range(60):
        ceiling = (low + high) / 2
        short = float(np.minimum(crowds, ceiling).sum()) <= share * float(crowds.sum())
        low, high = (ceiling, high) if short else (low, ceiling)
    return np.minimum(1.0, high / np.maximum(crowds, 1e-300))


def _drawn(keys: NDArray[np.generic], key: bytes) -> NDArray[np.float64]:
    """A number in [0, 1) from each id alone: the first 53 bits of its keyed BLAKE2b hash (RFC 7693)."""
    whole = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(str(one).encode(), key=key, digest_size=8).digest(), "big") >> 11
            for one in keys.tolist()
        ),
        dtype=np.int64,
        count=len(keys),
    )
    return np.asarray(whole / 2.0**53)
