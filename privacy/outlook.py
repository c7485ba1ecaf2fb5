"""What a ledger says to people: what was spent and how, at how many institutions, and what still fits.

Post-processing of charges and reservations: nothing here charges, and nothing here decides whether a charge is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cohortium.privacy.accounting import (
    Spend,
    epsilon_by_pld,
    epsilon_by_rdp,
    epsilon_spent,
    if_more_collude,
    person_at,
)
from cohortium.privacy.ledger import Ledger, Line
from cohortium.privacy.replay import Replay
from cohortium.privacy.sharing import NoiseShare

__all__ = ["Epsilons", "Preview", "Statement", "differences", "preview", "statement"]

_AGREE = 1e-6


@dataclass(frozen=True)
class Epsilons:
    """One spend's epsilon by three accountants; infinity where an accountant finds none.

    Args:
        closed_form: exact for Gaussian releases; what budgets are made of.
        pld: by privacy loss distributions, pessimistically discretised.
        rdp: by Renyi orders, the loosest.
    """

    closed_form: float
    pld: float
    rdp: float

    @classmethod
    def of(cls, spend: Spend, delta: float) -> Epsilons:
        """Of a spend; mu^2 is added up before, and composed once."""
        return cls(epsilon_spent(spend, delta), epsilon_by_pld(spend, delta), epsilon_by_rdp(spend, delta))

    def to_json(self) -> dict[str, float | None]:
        """The three numbers, null for infinity."""
        return {"closed_form": _finite(self.closed_form), "pld": _finite(self.pld), "rdp": _finite(self.rdp)}


@dataclass(frozen=True)
class Statement:
    """What a ledger holds.

    Args:
        institution: whose it is.
        delta: at which every epsilon is told.
        spent, lifetime, available, held: of all charges; the budget for life; what a further plan may reserve; what
            open reservations may still charge.
        epsilon: of everything spent.
        lines: charges added up by plan, run, phase and trust.
        by_trust: charges added up by whose noise protects them, with their epsilon.
        person_at: epsilon of a person at so many institutions that spend the same.
        all_others_collude: epsilon if every other institution told its noise: only the own share protects.
    """

    institution: str
    delta: float
    spent: Spend
    lifetime: Spend
    available: Spend
    held: Spend
    epsilon: Epsilons
    lines: tuple[Line, ...]
    by_trust: dict[NoiseShare, tuple[Spend, float]]
    person_at: dict[int, Epsilons]
    all_others_collude: float

    def to_json(self) -> dict[str, Any]:
        """JSON types; spends are in the ledger's integer units."""
        return {
            "institution": self.institution,
            "delta": self.delta,
            "spent": _units(self.spent),
            "lifetime": _units(self.lifetime),
            "available": _units(self.available),
            "held": _units(self.held),
            "epsilon": self.epsilon.to_json(),
            "all_others_collude": _finite(self.all_others_collude),
            "person_at": {str(count): epsilons.to_json() for count, epsilons in self.person_at.items()},
            "by_trust": [
                {**_trust(share), "spent": _units(spend), "epsilon": _finite(epsilon)}
                for share, (spend, epsilon) in self.by_trust.items()
            ],
            "charges": [
                {
                    "plan": line.plan,
                    "run": line.run,
                    "phase": line.phase,
                    **_trust(line.share),
                    "charges": line.charges,
                    "spent": _units(line.spend),
                }
                for line in self.lines
            ],
        }


@dataclass(frozen=True)
class Preview:
    """What further runs of one plan would come to.

    Args:
        runs_left: how many more fit, beside what open reservations hold.
        epsilon_now: of everything charged so far.
        epsilon_held: of that and everything open reservations may still charge.
        epsilon_after: of all that and 1, 2, ... further runs that spend their whole budget; at most `at_most` of them.
    """

    runs_left: int
    epsilon_now: float
    epsilon_held: float
    epsilon_after: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON types; null for infinity."""
        return {
            "runs_left": self.runs_left,
            "epsilon_now": _finite(self.epsilon_now),
            "epsilon_held": _finite(self.epsilon_held),
            "epsilon_after": [_finite(epsilon) for epsilon in self.epsilon_after],
        }


def statement(ledger: Ledger, delta: float, institutions: int | None = None) -> Statement:
    """Add a ledger up.

    Args:
        ledger: which.
        delta: at which epsilons are told.
        institutions: how many there are in all; the table of a person at several ends with them. 3 when left out.
    """
    trusts = ledger.spent_by_trust()
    spent = sum(trusts.values(), Spend())
    local = sum((spend for share, spend in trusts.items() if not share.is_shared), Spend())
    counts = sorted({count for count in (1, 2, 3, institutions or 3) if count <= (institutions or 3)})
    worst = sum((if_more_collude(spend, share, share.contributions) for share, spend in trusts.items()), Spend())
    return Statement(
        institution=ledger.institution,
        delta=delta,
        spent=spent,
        lifetime=ledger.lifetime,
        available=ledger.available(),
        held=ledger.held(),
        epsilon=Epsilons.of(spent, delta),
        lines=tuple(ledger.breakdown()),
        by_trust={share: (spend, epsilon_spent(spend, delta)) for share, spend in trusts.items()},
        person_at={count: Epsilons.of(person_at(local, spent - local, count), delta) for count in counts},
        all_others_collude=epsilon_spent(worst, delta),
    )


def preview(ledger: Ledger, budget: Spend, delta: float, at_most: int = 10) -> Preview:
    """How many further runs of a plan fit, and what the lifetime total would be after each, before anything is spent.

    Args:
        ledger: which.
        budget: what one run may spend: `budget_for` of the plan's epsilon and delta.
        delta: at which the totals are told.
        at_most: how many totals to tell.
    """
    if budget.mu2 < 1:
        raise ValueError("a plan without budget")
    runs = max(ledger.available().mu2, 0) // budget.mu2
    spent = ledger.spent()
    begun = _within(spent + ledger.held(), ledger.lifetime, spent)
    after = (_within(begun + budget.times(n), ledger.lifetime, spent) for n in range(1, min(runs, at_most) + 1))
    return Preview(
        runs_left=runs,
        epsilon_now=epsilon_spent(spent, delta),
        epsilon_held=epsilon_spent(begun, delta),
        epsilon_after=tuple(epsilon_spent(total, delta) for total in after),
    )


def differences(ledger: Ledger, again: Replay, delta: float) -> list[str]:
    """In which sums a ledger and its replay differ; empty when they agree to a unit, and in epsilon to 1e-6."""
    spent, found = ledger.spent(), []
    if (spent.mu2, spent.tv) != (again.mu2, again.tv):
        found.append(f"sums: the ledger says {spent.mu2} and {spent.tv} units, the replay {again.mu2} and {again.tv}")
    pairs = {
        "closed form": (epsilon_spent(spent, delta), again.epsilon(delta)),
        "PLD": (epsilon_by_pld(spent, delta), again.epsilon_by_pld(delta)),
        "RDP": (epsilon_by_rdp(spent, delta), again.epsilon_by_rdp(delta)),
    }
    for name, (first, second) in pairs.items():
        if not math.isclose(first, second, rel_tol=_AGREE, abs_tol=_AGREE):
            found.append(f"epsilon by {name}: the ledger says {first:.9g}, the replay {second:.9g}")
    return found


def _within(total: Spend, lifetime: Spend, spent: Spend) -> Spend:
    """A total of budgets, with no more total variation than the ledger would let them charge."""
    return Spend(total.mu2, min(total.tv, max(lifetime.tv, spent.tv)))


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _units(spend: Spend) -> dict[str, int]:
    return {"mu2": spend.mu2, "tv": spend.tv}


def _trust(share: NoiseShare) -> dict[str, Any]:
    return {
        "trust": "distributed" if share.is_shared else "local",
        "contributions": share.contributions,
        "colluders": share.colluders,
    }
