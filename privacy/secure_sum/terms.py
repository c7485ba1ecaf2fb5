"""The three numbers of a secure sum, what must hold between them, and how many waves a question then takes.

n parties share keys; a sum is unmasked only for a set of at least t of them; up to c of them may collude with the
coordinator; T of them together can open a key. An honest party answers once in an attempt. Then:

*One set* (2(T - c) > n - c). Whatever is opened needs T answers, of which at least T - c are honest; two different
answers to the same question would need 2(T - c) honest parties, more than there are. So a peer is opened as a survivor
or as dropped, never both, and at most one signed survivor set exists.

*Two waves* ((n - t + 1)(T - c) > (n - c)(n - t), and everybody of the roster was asked). Without the wave of
signatures a coordinator may tell different parties different sets. To unmask fewer than t - c honest contributions it
must open the keys of at least n - t + 1 honest parties, each by T - c honest answers; but n - c honest parties name at
most n - t dropped peers each. Where the first product is larger, that is impossible and no signatures are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cohortium.study.charter import Charter
from cohortium.study.errors import PlanError, RefusedError
from cohortium.study.plan import Plan

__all__ = ["LEAST_CONTRIBUTIONS", "MAX_PARTIES", "SumRun", "SumTerms", "least_contributions", "usual_contributions"]

MAX_PARTIES = 128
"""Most parties of one sum: the graph is complete, so everybody shares keys with everybody."""

LEAST_CONTRIBUTIONS = 3
"""With two parties, each learns the other's contribution by subtracting its own."""


@dataclass(frozen=True)
class SumTerms:
    """The numbers of one sum, checked.

    Args:
        parties: n, who share keys.
        contributions: t, least number of contributions in an unmasked sum.
        colluders: c, parties that may collude with each other and the coordinator.
        threshold: T, parties that together can open a key; the least safe number when None.

    Raises:
        PlanError: naming the plan's line to change.
    """

    parties: int
    contributions: int
    colluders: int
    threshold: int

    @classmethod
    def of(cls, parties: int, contributions: int, colluders: int, threshold: int | None = None) -> SumTerms:
        """The terms with the least safe threshold where none is given."""
        return cls(parties, contributions, colluders, _least(parties, colluders) if threshold is None else threshold)

    def __post_init__(self) -> None:
        n, t, c = self.parties, self.contributions, self.colluders
        if t < LEAST_CONTRIBUTIONS:
            raise PlanError(
                f"a secure sum of {t} would show each institution the others' numbers",
                place="plan: min_institutions",
                fix=f'set min_institutions = {LEAST_CONTRIBUTIONS} or more, or trust = "local"',
            )
        if not 1 <= c < t:
            raise PlanError(
                f"{c} colluders among {t} contributions", place="plan: colluders", fix=f"set it between 1 and {t - 1}"
            )
        if n < t:
            raise PlanError(
                f"{n} institutions are fewer than min_institutions {t}",
                place="plan: min_institutions",
                fix="lower it, or wait for more institutions",
            )
        if n > MAX_PARTIES:
            raise PlanError(
                f"{n} institutions in one secure sum",
                place="charter: institutions",
                fix=f'at most {MAX_PARTIES}, or set trust = "local" in the plan',
            )
        if 2 * (t - c) <= n - c:
            raise PlanError(
                f"with {n} institutions and colluders = {c}, sums of {t} could be opened for two different sets",
                place="plan: min_institutions",
                fix=f'set min_institutions = {_least(n, c)} or more, or trust = "local"',
            )
        if self.threshold > t or 2 * (self.threshold - c) <= n - c:
            raise PlanError(
                f"a threshold of {self.threshold} is not safe for {n} institutions",
                place="plan: share_threshold",
                fix=f"set it between {_least(n, c)} and {t}, or leave it out",
            )

    def shares_left(self, colluders: int) -> int:
        """Honest shares of noise in the smallest sum that so many colluders and the coordinator can open.

        Up to c: the t - c that the price counts on. Above c, the bounds above may fail for that many; then keys of both
        kinds can be opened, and what protects an institution is its own share alone.
        """
        n, t, j = self.parties, self.contributions, max(colluders, self.colluders)
        one_set = 2 * (self.threshold - j) > n - j
        one_view = self.waves == 3 or (n - t + 1) * (self.threshold - j) > (n - j) * (n - t)
        return max(t - j, 1) if one_set and one_view else 1

    @property
    def waves(self) -> int:
        """Messages an institution answers for one question when the whole roster is asked: 2 or 3."""
        n, t, c = self.parties, self.contributions, self.colluders
        return 2 if (n - t + 1) * (self.threshold - c) > (n - c) * (n - t) else 3


@dataclass(frozen=True)
class SumRun:
    """What all sums of one run are bound to; everybody derives it from the plan and charter that they approved.

    Args:
        federation, plan: digests of charter and plan.
        run: 32 hexadecimal digits.
        identities: Ed25519 public key of every member of the federation by name.
        contributions, colluders, threshold: t, c and T of the plan.
    """

    federation: str
    plan: str
    run: str
    identities: Mapping[str, bytes]
    contributions: int
    colluders: int
    threshold: int | None = None

    @classmethod
    def of(cls, plan: Plan, charter: Charter, run: str) -> SumRun:
        """The sums of one run of a plan.

        Raises:
            RefusedError: the plan has no secure sum.
        """
        if plan.trust != "distributed":
            raise RefusedError("the plan foresees no secure sum")
        return cls(
            federation=charter.digest,
            plan=plan.digest,
            run=run,
            identities={i.name: bytes.fromhex(i.identity) for i in charter.institutions if i.identity is not None},
            contributions=plan.min_institutions,
            colluders=plan.colluders,
            threshold=plan.share_threshold,
        )

    def terms(self, parties: int) -> SumTerms:
        """The terms for a roster of that many."""
        return SumTerms.of(parties, self.contributions, self.colluders, self.threshold)


def least_contributions(parties: int, colluders: int) -> int:
    """The least t that is safe for n parties and c colluders."""
    return max(_least(parties, colluders), LEAST_CONTRIBUTIONS)


def usual_contributions(parties: int, colluders: int = 1) -> int:
    """A t that lets a fifth of the parties drop out, where that is safe."""
    four_fifths = -(-4 * parties // 5)
    return min(max(four_fifths, least_contributions(parties, colluders)), parties)


def _least(parties: int, colluders: int) -> int:
    """The least T with 2(T - c) > n - c."""
    return (parties + colluders) // 2 + 1
