"""The one door: whatever leaves an institution is made and sealed here, in this order.

1. the gate checks the question against the approved plan and says what it may cost;
2. the consent view says which people are counted;
3. the contribution of every person is bounded (`privacy.query.bounded_total`);
4. the ledger is charged, durably, before any noise is drawn;
5. exact discrete Gaussian noise is added: all of it (`local`), or this institution's share (`distributed`);
6. a share of noise never leaves unmasked: the vector is masked for a secure sum;
7. the audit sink records that a release was made, without its content;
8. the reply is stored durably, sealed and handed out.

A question asked again is answered with the stored bytes, free of charge.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.accounting import sigma_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.gate import AuditSink, ConsentView, Masks, PolicyGate, SecureSums
from cohortium.privacy.ledger import Charge, Ledger, Slot
from cohortium.privacy.query import QuerySpec, SumQuery, bounded_total
from cohortium.privacy.randomness import BitSource, OsBitSource, fresh_key
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, PlanError, RefusedError
from cohortium.study.question import Question, Release, SumMessage

__all__ = ["MAX_WIDTH", "MIN_SIGMA", "Door", "noise_scale"]

MIN_SIGMA = 2**20
"""Least sigma in integer units: below it the discreteness of the noise would cost noticeable delta."""

MAX_WIDTH = 2**22
"""Most words of one release."""

_MAX_PEOPLE = 2**31
_NOISE_ROOM = 256  # sigmas: 128 institutions with full noise each have a standard deviation of 11.4 sigma together
_MESSAGE = "secure-sum"


class Door:
    """Turns an admitted question into a sealed release.

    Formal guarantee: all releases of this institution together are (epsilon, delta)-DP for adding or removing one
    person with everything that the institution holds of them, for the epsilon and delta that
    `privacy.accounting.epsilon_spent` gives for the ledger's sum, however the coordinator chooses its questions. With
    `local` this holds against everybody; with `distributed` against the coordinator and up to c institutions, as
    long as the secure sum's assumptions hold (`privacy.secure_sum.Participant`).

    Args:
        people: the institution's customers as a plan, by digest, asks about them.
        ledger: what is charged, and where replies are stored.
        gate, consent, audit, sums: see the protocols.
        build: rebuilds a query from its specification; `RefusedError` for one it does not know.
        bits: the source of noise; the operating system's by default.
    """

    def __init__(
        self,
        people: Callable[[str], CustomerTable],
        ledger: Ledger,
        *,
        gate: PolicyGate,
        consent: ConsentView,
        audit: AuditSink,
        sums: SecureSums,
        build: Callable[[QuerySpec], SumQuery],
        bits: BitSource | None = None,
    ) -> None:
        self._people = people
        self._ledger = ledger
        self._gate = gate
        self._consent = consent
        self._audit = audit
        self._sums = sums
        self._build = build
        self._bits = bits if bits is not None else OsBitSource()
        self._key = fresh_key()

    def release(self, question: Question, sum_request: bytes | None = None) -> Release:
        """The sealed answer to a question: at most one for each slot of a run, ever.

        Args:
            question: what is asked.
            sum_request: what the secure sum needs, where the plan shares the noise; None where it does not.

        Raises:
            RefusedError: the gate, the query's specification, its size or the secure sum does not allow an answer.
            BudgetError: the plan's or the lifetime budget would be passed, or the slot answered another question.
        """
        header = question.header
        terms = self._gate.admit(header)
        if terms.share.is_shared != (sum_request is not None):
            raise RefusedError("a secure sum where the plan foresees none, or none where it does")
        query = self._build(QuerySpec(header.kind, dict(header.scalars), dict(question.arrays)))
        sigma = noise_scale(query, terms.allotment)
        slot = Slot(header.plan, header.run, header.phase, header.step, header.attempt)
        stored = self._ledger.replay(slot, question.digest)
        if stored is None:
            masks = None if sum_request is None else self._sums.begin(header, sum_request, question.digest)
            total = bounded_total(query, self._consent.snapshot(self._people(header.plan)))
            charge = self._ledger.charge(
                slot,
                question.digest,
                width=query.width,
                bound_squared=query.bound_squared,
                sigma=sigma,
                share=terms.share,
            )
            made = (charge.width, charge.bound_squared, charge.sigma, charge.share)
            if made != (query.width, query.bound_squared, sigma, terms.share):
                raise Defect("the door: a charge that this version would have made differently")
            stored = self._ledger.settle(charge, self._noised(total, charge, masks))
        words, note = stored[: 8 * query.width], stored[8 * query.width :]
        vector = np.frombuffer(words, dtype="<i8").astype(np.int64, copy=False)
        return Release(question.digest, vector, self._seal(question.digest, stored), note)

    def has_sealed(self, release: Release) -> bool:
        """Whether this very door made this very release."""
        payload = release.vector.astype("<i8").tobytes() + release.note
        return hmac.compare_digest(self._seal(release.question, payload), release.seal)

    def seal_message(self, payload: bytes) -> SumMessage:
        """A message of the secure sum, derived from keys alone, sealed so that the guard lets it out."""
        return SumMessage(payload, self._seal(_MESSAGE, payload))

    def has_sealed_message(self, message: SumMessage) -> bool:
        """Whether this very door sealed this very message."""
        return hmac.compare_digest(self._seal(_MESSAGE, message.payload), message.seal)

    def _noised(self, total: NDArray[np.int64], charge: Charge, masks: Masks | None) -> bytes:
        """The noised and, with shared noise, masked sum of a charged question, as the bytes to store."""
        if self._ledger.find(charge.slot) != charge:
            raise Defect("the door: noise before a durable charge")
        if charge.share.is_shared != (masks is not None):
            raise Defect("the door: a share of noise without a mask")
        noise = sample_discrete_gaussian(charge.share.sigma_of(charge.sigma), charge.width, self._bits)
        noised = (total.view(np.uint64) + noise.view(np.uint64)).view(np.int64)
        note = b""
        if masks is not None:
            noised, note = masks.apply(noised)
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
        return noised.astype("<i8").tobytes() + note

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
    if _MAX_PEOPLE * (isqrt(query.bound_squared) + 1) + _NOISE_ROOM * sigma >= 2**63:
        raise RefusedError("the question's sum could overflow 64 bits")
    if sigma < MIN_SIGMA:
        raise PlanError("the noise is too small for its grid", fix="lower the plan's epsilon or its share")
    return sigma
