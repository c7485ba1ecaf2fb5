"""The one door: whatever leaves an institution is made and sealed here, in this order.

1. the gate checks the question against the approved plan and says what it may cost;
2. the consent view says which people are counted;
3. the contribution of every person is bounded (`privacy.query.bounded_total`);
4. the ledger is charged, durably, before any noise is drawn;
5. exact discrete Gaussian noise is added (trust model `local`: full noise at every institution);
6. the audit sink records that a release was made, without its content;
7. the reply is stored durably, sealed and handed out.

A question asked again is answered with the stored bytes, free of charge.
Not built yet: masking for secure aggregation (it goes between 5 and 6).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from datetime import date
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.accounting import sigma_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.gate import AuditSink, ConsentView, PolicyGate
from cohortium.privacy.ledger import Charge, Ledger, Slot
from cohortium.privacy.query import QuerySpec, SumQuery, bounded_total
from cohortium.privacy.randomness import BitSource, OsBitSource, fresh_key
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, PlanError, RefusedError
from cohortium.study.question import Question, Release

__all__ = ["MAX_WIDTH", "MIN_SIGMA", "Door", "noise_scale"]

MIN_SIGMA = 2**20
"""Least sigma in integer units: below it the discreteness of the noise would cost noticeable delta."""

MAX_WIDTH = 2**22
"""Most words of one release."""

_MAX_PEOPLE = 2**31


class Door:
    """Turns an admitted question into a sealed release.

    Formal guarantee (trust model `local`): all releases of this institution together are (epsilon, delta)-DP for
    adding or removing one person with everything that the institution holds of them, for the epsilon and delta that
    `privacy.accounting.epsilon_spent` gives for the ledger's sum, however the coordinator chooses its questions.

    Args:
        people: the institution's customer table.
        ledger: what is charged, and where replies are stored.
        gate, consent, audit: see the protocols.
        build: rebuilds a query from its specification; `RefusedError` for one it does not know.
        bits: the source of noise; the operating system's by default.
    """

    def __init__(
        self,
        people: CustomerTable,
        ledger: Ledger,
        *,
        gate: PolicyGate,
        consent: ConsentView,
        audit: AuditSink,
        build: Callable[[QuerySpec], SumQuery],
        bits: BitSource | None = None,
    ) -> None:
        self._people = people
        self._ledger = ledger
        self._gate = gate
        self._consent = consent
        self._audit = audit
        self._build = build
        self._bits = bits if bits is not None else OsBitSource()
        self._key = fresh_key()

    def release(self, question: Question) -> Release:
        """The sealed answer to a question: at most one for each slot of a run, ever.

        Raises:
            RefusedError: the gate, the query's specification or its size does not allow an answer.
            BudgetError: the plan's or the lifetime budget would be passed, or the slot answered another question.
        """
        header = question.header
        terms = self._gate.admit(header)
        query = self._build(QuerySpec(header.kind, dict(header.scalars), dict(question.arrays)))
        sigma = noise_scale(query, terms.allotment)
        slot = Slot(header.plan, header.run, header.phase, header.step, header.attempt)
        stored = self._ledger.replay(slot, question.digest)
        if stored is None:
            total = bounded_total(query, self._consent.snapshot(self._people))
            self._ledger.reserve(slot.plan, slot.run, terms.plan_budget, date.max)  # the gate keeps the plan's expiry
            charge = self._ledger.charge(
                slot,
                question.digest,
                width=query.width,
                bound_squared=query.bound_squared,
                sigma=sigma,
            )
            if (charge.width, charge.bound_squared, charge.sigma) != (query.width, query.bound_squared, sigma):
                raise Defect("the door: a charge that this version would have made differently")
            stored = self._ledger.settle(charge, self._noised(total, charge))
        vector = np.frombuffer(stored, dtype="<i8").astype(np.int64, copy=False)
        return Release(question.digest, vector, self._seal(question.digest, stored))

    def has_sealed(self, release: Release) -> bool:
        """Whether this very door made this very release."""
        expected = self._seal(release.question, release.vector.astype("<i8").tobytes())
        return hmac.compare_digest(expected, release.seal)

    def _noised(self, total: NDArray[np.int64], charge: Charge) -> bytes:
        """The noised sum of a charged question, as the bytes to store."""
        if self._ledger.find(charge.slot) != charge:
            raise Defect("the door: noise before a durable charge")
        noise = sample_discrete_gaussian(charge.sigma, charge.width, self._bits)
        noised = (total.view(np.uint64) + noise.view(np.uint64)).view(np.int64)
        slot = charge.slot
        self._audit.append(
            {
                "event": "release",
                "charge": charge.sequence,
                "plan": slot.plan,
                "run": slot.run,
                "phase": slot.phase,
                "step": slot.step,
                "attempt": slot.attempt,
                "question": charge.question,
                "mu2": charge.spend.mu2,
                "tv": charge.spend.tv,
            }
        )
        return noised.astype("<i8").tobytes()

    def _seal(self, question: str, payload: bytes) -> bytes:
        return hmac.new(self._key, question.encode() + b"\0" + payload, hashlib.sha256).digest()


def noise_scale(query: SumQuery, allotment: int) -> int:
    """The sigma, in integer units, of a query that may cost `allotment` mu2 units.

    Raises:
        RefusedError: the answer is too wide, or sums could overflow 64 bits.
        PlanError: the allotment is so large that sigma falls below MIN_SIGMA.
    """
    if not 1 <= query.width <= MAX_WIDTH:
        raise RefusedError("the question's answer is too wide")
    sigma = sigma_for(query.bound_squared, allotment)
    if _MAX_PEOPLE * (isqrt(query.bound_squared) + 1) + 64 * sigma >= 2**63:
        raise RefusedError("the question's sum could overflow 64 bits")
    if sigma < MIN_SIGMA:
        raise PlanError("the noise is too small for its grid", fix="lower the plan's epsilon or its share")
    return sigma
