"""The one door: whatever leaves an institution is made and sealed here, in this order.

1. the gate checks the question against the approved plan and says what it may cost;
2. others must have witnessed the audit log as it stands;
3. the consent view says which people are counted;
4. the contribution of every person is bounded (`privacy.query.bounded_total`);
5. the ledger is charged, durably, before any noise is drawn;
6. exact discrete Gaussian noise is added: all of it (`local`), or this institution's share (`distributed`);
7. a share of noise never leaves unmasked: the vector is masked for a secure sum;
8. when somebody's consent changed meanwhile, 3, 4, 6 and 7 are done again under the same charge;
9. the reply is stored durably; from here on it counts as aggregated;
10. the audit log gets its one entry of the release, without its content;
11. the reply is sealed and handed out.

A question asked again is answered with the stored bytes, free of charge.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cohortium.privacy.accounting import sigma_for
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.gate import AuditSink, ConsentView, Masks, PolicyGate, SecureSums
from cohortium.privacy.ledger import Charge, Ledger, Slot
from cohortium.privacy.query import QuerySpec, SumQuery, bounded_total
from cohortium.privacy.randomness import BitSource, OsBitSource, fresh_key
from cohortium.privacy.table import CustomerTable
from cohortium.study.canonical import canonical_bytes
from cohortium.study.errors import Defect, PlanError, RefusedError
from cohortium.study.question import LogMessage, Question, Release, SumMessage

__all__ = ["MAX_WIDTH", "MIN_SIGMA", "Door", "consent_commitment", "consent_opening", "noise_scale"]

MIN_SIGMA = 2**20
"""Least sigma in integer units: below it the discreteness of the noise would cost noticeable delta."""

MAX_WIDTH = 2**22
"""Most words of one release."""

_MAX_PEOPLE = 2**31
_NOISE_ROOM = 256  # sigmas: 128 institutions with full noise each have a standard deviation of 11.4 sigma together
_COMMITMENT = b"cohortium.consent-root/1\0"
_RECOUNTS = 8
_Message = TypeVar("_Message", SumMessage, LogMessage)


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
        header, digest = question.header, question.digest
        terms = self._gate.admit(header)
        if terms.share.is_shared != (sum_request is not None):
            raise RefusedError("a secure sum where the plan foresees none, or none where it does")
        query = self._build(QuerySpec(header.kind, dict(header.scalars), dict(question.arrays)))
        sigma = noise_scale(query, terms.allotment)
        slot = Slot(header.plan, header.run, header.phase, header.step, header.attempt)
        stored = self._ledger.replay(slot, digest)
        if stored is None:
            self._audit.require_witnessed(header.plan)
            masks = None if sum_request is None else self._sums.begin(header, sum_request, digest)
            people = self._people(header.plan)
            counted = self._consent.counted(people, header.plan)
            total = bounded_total(query, counted.people)
            charge = self._ledger.charge(
                slot,
                digest,
                width=query.width,
                bound_squared=query.bound_squared,
                sigma=sigma,
                share=terms.share,
            )
            made = (charge.width, charge.bound_squared, charge.sigma, charge.share)
            if made != (query.width, query.bound_squared, sigma, terms.share):
                raise Defect("the door: a charge that this version would have made differently")
            vector, note = self._noised(total, charge, masks)
            for _ in range(_RECOUNTS):
                latest = self._consent.counted(people, header.plan)
                if latest.root == counted.root:
                    break
                counted = latest
                vector, note = self._noised(bounded_total(query, counted.people), charge, masks)
            else:
                raise RefusedError("consent changes faster than it can be counted", fix="ask again; nothing is lost")
            reply = _Stored(vector, note, _entry(charge, terms.decision), counted.root.hex(), fresh_key().hex())
            stored = self._ledger.settle(charge, reply.to_bytes())
            self._consent.answered(counted, header.run, digest)
        return self._handed_out(digest, _Stored.from_bytes(stored, query.width))

    def has_sealed(self, release: Release) -> bool:
        """Whether this very door made this very release."""
        return hmac.compare_digest(self._seal_of(release), release.seal)

    def seal_message(self, message: _Message) -> _Message:
        """A message about keys or logs, sealed so that the guard lets it out; nothing of it derives from customers."""
        return replace(message, seal=self._seal(type(message).__name__, message.payload))

    def has_sealed_message(self, message: SumMessage | LogMessage) -> bool:
        """Whether this very door sealed this very message."""
        return hmac.compare_digest(self._seal(type(message).__name__, message.payload), message.seal)

    def _noised(self, total: NDArray[np.int64], charge: Charge, masks: Masks | None) -> tuple[NDArray[np.int64], bytes]:
        """The noised and, with shared noise, masked sum of a charged question, and what goes beside a masked one."""
        if self._ledger.find(charge.slot) != charge:
            raise Defect("the door: noise before a durable charge")
        if charge.share.is_shared != (masks is not None):
            raise Defect("the door: a share of noise without a mask")
        noise = sample_discrete_gaussian(charge.share.sigma_of(charge.sigma), charge.width, self._bits)
        noised = (total.view(np.uint64) + noise.view(np.uint64)).view(np.int64)
        return (noised, b"") if masks is None else masks.apply(noised)

    def _handed_out(self, question: str, stored: _Stored) -> Release:
        """Whoever hands out a reply first sees to it that the log has its entry."""
        statement = self._audit.record(f"charge {stored.entry['charge']}", stored.public_entry)
        release = Release(question, stored.vector, b"", stored.note, statement)
        return replace(release, seal=self._seal_of(release))

    def _seal_of(self, release: Release) -> bytes:
        parts = (release.vector.astype("<i8").tobytes(), release.note, release.statement)
        return self._seal(release.question, b"".join(len(part).to_bytes(8, "big") + part for part in parts))

    def _seal(self, question: str, payload: bytes) -> bytes:
        return hmac.new(self._key, question.encode() + b"\0" + payload, hashlib.sha256).digest()


@dataclass(frozen=True)
class _Stored:
    """A reply as the ledger keeps it.

    Args:
        vector, note: what was made: the sum, and what a secure sum sends beside it.
        entry: of the audit log, without the commitment.
        root, salt: of the consent snapshot and of the commitment to it, hexadecimal.
    """

    vector: NDArray[np.int64]
    note: bytes
    entry: dict[str, str | int]
    root: str
    salt: str

    @property
    def public_entry(self) -> dict[str, str | int]:
        """The entry with a commitment to the consent snapshot: equal roots give unequal commitments."""
        return {**self.entry, "consent": consent_commitment(self.root, self.salt)}

    def to_bytes(self) -> bytes:
        """The words, the note with its length before it, and the rest as canonical JSON."""
        rest = canonical_bytes({"entry": self.entry, "root": self.root, "salt": self.salt})
        return self.vector.astype("<i8").tobytes() + len(self.note).to_bytes(4, "big") + self.note + rest

    @classmethod
    def from_bytes(cls, data: bytes, width: int) -> _Stored:
        """The inverse of `to_bytes`; what the ledger keeps is covered by its digests."""
        words, length, rest = data[: 8 * width], data[8 * width : 8 * width + 4], data[8 * width + 4 :]
        size = int.from_bytes(length, "big")
        vector = np.frombuffer(words, dtype="<i8").astype(np.int64, copy=False)
        return cls(vector, rest[:size], **json.loads(rest[size:]))


def consent_commitment(root: str, salt: str) -> str:
    """The commitment in a log entry that this root and salt open; all three hexadecimal, of 32 bytes."""
    return hashlib.sha256(_COMMITMENT + bytes.fromhex(salt) + bytes.fromhex(root)).hexdigest()


def consent_opening(reply: bytes, width: int) -> dict[str, str]:
    """What opens the commitment in the log entry of a stored reply: `consent_root` and `salt`, hexadecimal.

    Args:
        reply: as the ledger keeps it.
        width: words of the release.
    """
    stored = _Stored.from_bytes(reply, width)
    return {"consent_root": stored.root, "salt": stored.salt}


def _entry(charge: Charge, decision: str) -> dict[str, str | int]:
    """What the audit log says of a release, but for the commitment: what was charged, and nothing of the answer."""
    slot = charge.slot
    return {
        "event": "release",
        "charge": charge.sequence,
        "plan": slot.plan,
        "run": slot.run,
        "phase": slot.phase,
        "step": slot.step,
        "attempt": slot.attempt,
        "question": charge.question,
        "decision": decision,
        "mu2": str(charge.spend.mu2),
        "tv": str(charge.spend.tv),
    }


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
