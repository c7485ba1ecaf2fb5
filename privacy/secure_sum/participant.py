"""An institution's side of secure sums: what it answers, and what it refuses whatever the coordinator says.

Every answer is stored before it is handed out and handed out again when asked again. In one round a party masks one
vector, signs one survivor set and opens shares once; its keys of the round are then erased.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from cohortium.privacy.randomness import fresh_key
from cohortium.privacy.secure_sum.masking import add_masks, agreed_secret, derive_key, pair_key, self_key
from cohortium.privacy.secure_sum.messages import (
    Consent,
    Contributed,
    Introduction,
    Offer,
    OfferHead,
    OfferTo,
    Opened,
    Roster,
    ShareRequest,
    SumInput,
    SurvivorSet,
    UnmaskRequest,
    sign,
    verify,
    verify_signable,
)
from cohortium.privacy.secure_sum.shamir import SHARE_BYTES, split
from cohortium.privacy.secure_sum.state import OnceStore
from cohortium.privacy.secure_sum.terms import SumRun, SumTerms
from cohortium.study.canonical import canonical_bytes, digest_bytes
from cohortium.study.errors import PlanError, RefusedError

__all__ = [
    "Masking",
    "Participant",
    "asked_digest",
    "check_head",
    "check_introduction",
    "check_roster",
    "check_survivors",
]

_RUN = -1
_SECRETS = ("dealt", "held")
_ERASED = (*_SECRETS, "masked")
_LAST_ROUND = 2**31 - 2
_NONCE_BYTES = 12
_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))  # no secret: with any key of low order it agrees on nothing


@dataclass(frozen=True)
class _RunKeys:
    channel: X25519PrivateKey
    signing: Ed25519PrivateKey
    introduction: Introduction


@dataclass(frozen=True)
class _Dealt:
    """A party's own secrets of a round, and the offer that shares them out."""

    mask: X25519PrivateKey
    seed: bytes
    offer: Offer


@dataclass(frozen=True)
class _Held:
    """What a party holds of the others in a round: digest of who was asked, and (seed, key) shares by party."""

    asked: str
    shares: dict[int, tuple[str, str]]


@dataclass(frozen=True)
class Masking:
    """A validated request for a masked vector.

    Args:
        participant: whose.
        request: what the coordinator sent.
        question: digest of the question that the vector answers.
    """

    participant: Participant
    request: SumInput
    question: str

    def apply(self, vector: NDArray[np.int64]) -> tuple[NDArray[np.int64], bytes]:
        """The vector with all masks of the round added modulo 2**64, and the signed note that goes with it.

        The note says who was asked: without it a coordinator could ask some for a smaller sum than others.
        """
        return self.participant.masked(self.request, self.question, vector)


class Participant:
    """One institution in the sums of one run.

    Formal guarantee, with T, t, c and n as in `terms`: whatever the coordinator and up to c parties send to honest
    parties, they learn at most one sum of a round's vectors, over at least t parties; everything else that leaves is
    indistinguishable from random, as long as X25519, HKDF-SHA256, ChaCha20, ChaCha20-Poly1305 and Ed25519 hold.

    Args:
        run: what the sums are bound to.
        institution: this party's name in the charter.
        identity: its Ed25519 key, pinned by the charter.
        store: durable; one per institution.
    """

    def __init__(self, run: SumRun, institution: str, identity: Ed25519PrivateKey, store: OnceStore) -> None:
        self._run = run
        self._institution = institution
        self._identity = identity
        self._store = store
        if run.identities.get(institution) != identity.public_key().public_bytes_raw():
            raise RefusedError("the charter pins another key for this institution", fix="enrol this node's key")

    def introduce(self) -> bytes:
        """This party's keys of the run, signed by its identity; the same bytes whenever asked."""
        return self._keys.introduction.to_bytes()

    def share(self, request: bytes) -> bytes:
        """An offer for a round, to the roster that the request names; the roster of a run never changes.

        Raises:
            RefusedError: a malformed request, another roster, a key that no pinned identity signed, or unsafe numbers.
        """
        asked = ShareRequest.from_bytes(request)
        check_roster(self._run, asked.roster)
        if asked.run != self._run.run or self._keys.introduction not in asked.roster.introductions:
            raise RefusedError("a roster without this institution's own keys")
        stored = self._store.keep(self._run.run, _RUN, "roster", asked.roster.to_bytes())
        if stored != asked.roster.to_bytes():
            raise RefusedError("another roster for the same run", fix="begin a new run")
        return self._deal(asked.round).offer.to_bytes()

    def begin(self, request: bytes, question: str) -> Masking:
        """Check a request for a masked vector, and bind its round to the question and to the parties for good.

        Raises:
            RefusedError: malformed, an offer that its party did not sign or seal, fewer than t parties, a round that
                served another question or other parties.
        """
        asked = SumInput.from_bytes(request)
        heads = [offer.head for offer in asked.offers]
        if asked.run != self._run.run or self._dealt(asked.round).offer.head not in heads:
            raise RefusedError("a round that this institution made no offer for")
        if asked.round > _LAST_ROUND:
            raise RefusedError("a run's last round has no next one to share keys for", fix="begin a new run")
        check_heads(self._roster, self._terms, heads, asked.round)
        held = {"asked": asked_digest(heads), "shares": {str(o.head.party): self._opened_box(o) for o in asked.offers}}
        if self._store.keep(asked.run, asked.round, "question", question.encode()) != question.encode():
            raise RefusedError("the round served another question")
        number = str(asked.round).encode()
        if self._store.keep(asked.run, _RUN, f"round of {question}", number) != number:
            raise RefusedError("another round served the question")
        if self._store.keep(asked.run, asked.round, "held", canonical_bytes(held)) != canonical_bytes(held):
            raise RefusedError("the round was begun with other parties")
        self._store.erase(asked.run, asked.round, _ERASED)
        return Masking(self, asked, question)

    def masked(self, asked: SumInput, question: str, vector: NDArray[np.int64]) -> tuple[NDArray[np.int64], bytes]:
        """See `Masking.apply`: the round's one masked vector, whatever vector comes after it."""
        roster = self._roster.digest
        own, dealt = self._place, self._dealt(asked.round)
        total = vector.view(np.uint64).copy()
        added = [self_key(dealt.seed, roster, question, asked.round, own)]
        subtracted: list[bytes] = []
        for offer in asked.offers:
            peer = offer.head.party
            if peer != own:
                secret = agreed_secret(dealt.mask, bytes.fromhex(offer.head.mask_key))
                key = pair_key(secret, roster, question, asked.round, min(own, peer), max(own, peer))
                (subtracted if own > peer else added).append(key)
        add_masks(total, added, subtracted)
        heads = asked_digest([offer.head for offer in asked.offers])
        note = Contributed(roster=roster, round=asked.round, party=own, question=question, asked=heads)
        stored = self._store.keep(asked.run, asked.round, "masked", total.astype("<u8", copy=False).tobytes())
        self._store.keep(asked.run, asked.round, "contributed", b"1")
        words = np.frombuffer(stored, dtype="<i8").astype(np.int64, copy=False)
        return words, bytes.fromhex(sign(self._keys.signing, note))

    def consent(self, request: bytes) -> bytes:
        """Sign a survivor set: one in a round.

        Raises:
            RefusedError: malformed, not a partition of those who were asked, fewer than t survivors, not for the
                question and parties that this institution answered, a survivor whose note says otherwise, or another
                set than the one signed before.
        """
        chosen = SurvivorSet.from_bytes(request)
        self._settle_on(chosen)
        return Consent(party=self._place, signature=sign(self._keys.signing, chosen)).to_bytes()

    def unmask(self, request: bytes) -> bytes:
        """Open shares of the survivors' seeds and the dropped parties' keys: once in a round, for one set.

        Raises:
            RefusedError: as `consent`, and when fewer than T parties signed the set although signatures are needed.
        """
        asked = UnmaskRequest.from_bytes(request)
        chosen = asked.survivor_set
        self._settle_on(chosen)
        stored = self._store.find(chosen.run, chosen.round, "opened")
        if stored is None:
            if self._waves(chosen) == 3:
                self._check_consents(asked)
            stored = self._open(chosen)
        self._store.erase(chosen.run, chosen.round + 1, _ERASED)  # again when asked again: a crash may have come first
        return stored

    @cached_property
    def _keys(self) -> _RunKeys:
        fresh = {"channel": fresh_key().hex(), "signing": fresh_key().hex()}
        stored = json.loads(self._store.keep(self._run.run, _RUN, "keys", canonical_bytes(fresh)))
        channel = X25519PrivateKey.from_private_bytes(bytes.fromhex(stored["channel"]))
        signing = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(stored["signing"]))
        unsigned = Introduction(
            federation=self._run.federation,
            plan=self._run.plan,
            run=self._run.run,
            institution=self._institution,
            channel_key=channel.public_key().public_bytes_raw().hex(),
            signing_key=signing.public_key().public_bytes_raw().hex(),
        )
        signed = unsigned.model_copy(update={"signature": sign(self._identity, unsigned)})
        return _RunKeys(channel, signing, signed)

    @cached_property
    def _roster(self) -> Roster:
        stored = self._store.find(self._run.run, _RUN, "roster")
        if stored is None:
            raise RefusedError("keys of this run were not shared yet")
        roster = Roster.from_bytes(stored)
        if self._keys.introduction not in roster.introductions:
            raise RefusedError("the run belongs to another plan or federation")
        return roster

    @cached_property
    def _terms(self) -> SumTerms:
        return self._run.terms(len(self._roster.introductions))

    @cached_property
    def _place(self) -> int:
        return self._roster.introductions.index(self._keys.introduction)

    def _deal(self, number: int) -> _Dealt:
        """The secrets and the offer of a round: made once."""
        stored = self._store.find(self._run.run, number, "dealt")
        if stored is None:
            if self._store.find(self._run.run, number, "question") is not None:
                raise RefusedError("the round is over")
            mask, seed = fresh_key(), fresh_key()
            document = {
                "mask": mask.hex(),
                "seed": seed.hex(),
                "offer": self._offer(number, mask, seed).to_bytes().hex(),
            }
            stored = self._store.keep(self._run.run, number, "dealt", canonical_bytes(document))
        return _parse_dealt(stored)

    def _dealt(self, number: int) -> _Dealt:
        stored = self._store.find(self._run.run, number, "dealt")
        if stored is None:
            raise RefusedError("a round that this institution has no keys for")
        return _parse_dealt(stored)

    def _offer(self, number: int, mask: bytes, seed: bytes) -> Offer:
        roster = self._roster
        unsigned = OfferHead(
            roster=roster.digest,
            round=number,
            party=self._place,
            mask_key=X25519PrivateKey.from_private_bytes(mask).public_key().public_bytes_raw().hex(),
            commitment=digest_bytes(seed),
        )
        head = unsigned.model_copy(update={"signature": sign(self._keys.signing, unsigned)})
        count = len(roster.introductions)
        seeds, keys = (split(secret, self._terms.threshold, count) for secret in (seed, mask))
        boxes = []
        bound_to = head.to_bytes()
        for peer in range(count):
            shares = seeds[peer].to_bytes(SHARE_BYTES, "big") + keys[peer].to_bytes(SHARE_BYTES, "big")
            nonce = fresh_key()[:_NONCE_BYTES]
            sealed = self._cipher(peer, self._place, peer).encrypt(nonce, shares, bound_to)
            boxes.append((nonce + sealed).hex())
        return Offer(head=head, boxes=tuple(boxes))

    def _cipher(self, peer: int, dealer: int, recipient: int) -> ChaCha20Poly1305:
        """The cipher of the boxes that `dealer` seals to `recipient`, one of which is this party."""
        public = bytes.fromhex(self._roster.introductions[peer].channel_key)
        secret = agreed_secret(self._keys.channel, public)
        binding: dict[str, str | int] = {"dealer": dealer, "recipient": recipient}
        return ChaCha20Poly1305(derive_key(secret, self._roster.digest, "share box", binding))

    def _settle_on(self, chosen: SurvivorSet) -> None:
        """Accept a survivor set for good, or refuse it."""
        if chosen.run != self._run.run or self._store.find(chosen.run, chosen.round, "contributed") is None:
            raise RefusedError("a sum that this institution did not contribute to")
        if self._store.find(chosen.run, chosen.round, "survivors") is None:
            held = self._held(chosen.round)
            if self._store.find(chosen.run, chosen.round, "question") != chosen.question.encode():
                raise RefusedError("a survivor set of another question")
            if chosen.asked != held.asked or {*chosen.survivors, *chosen.dropped} != set(held.shares):
                raise RefusedError("a survivor set of other parties")
            if self._place not in chosen.survivors:
                raise RefusedError("a survivor set without this institution, which contributed")
            check_survivors(self._roster, self._terms, chosen)
        if self._store.keep(chosen.run, chosen.round, "survivors", chosen.to_bytes()) != chosen.to_bytes():
            raise RefusedError("another survivor set for the same sum")

    def _held(self, number: int) -> _Held:
        stored = self._store.find(self._run.run, number, "held")
        if stored is None:
            raise RefusedError("a round whose keys are erased")
        document = json.loads(stored)
        shares = {int(party): (seed, key) for party, (seed, key) in document["shares"].items()}
        return _Held(document["asked"], shares)

    def _waves(self, chosen: SurvivorSet) -> int:
        """Two waves need that the whole roster was asked."""
        everybody = len(chosen.survivors) + len(chosen.dropped) == len(self._roster.introductions)
        return self._terms.waves if everybody else 3

    def _check_consents(self, asked: UnmaskRequest) -> None:
        chosen = asked.survivor_set
        signers = {consent.party for consent in asked.consents}
        if len(signers) != len(asked.consents) or len(signers) < self._terms.threshold:
            raise RefusedError("too few signatures under the survivor set")
        if not signers <= set(chosen.survivors):
            raise RefusedError("a signature of no survivor")
        signable = chosen.signable
        for consent in asked.consents:
            key = bytes.fromhex(self._roster.introductions[consent.party].signing_key)
            if not verify_signable(key, consent.signature, signable):
                raise RefusedError("a signature under another survivor set")

    def _open(self, chosen: SurvivorSet) -> bytes:
        """The reply, stored. Another process may have answered the same request, and erased the shares, meanwhile."""
        try:
            reply = self._opened(chosen).to_bytes()
        except RefusedError:
            stored = self._store.find(chosen.run, chosen.round, "opened")
            if stored is None:
                raise
            return stored
        return self._store.keep(chosen.run, chosen.round, "opened", reply)

    def _opened(self, chosen: SurvivorSet) -> Opened:
        held = self._held(chosen.round)
        return Opened(
            run=chosen.run,
            round=chosen.round,
            party=self._place,
            survivor_set=chosen.digest,
            seeds=tuple(held.shares[peer][0] for peer in chosen.survivors),
            keys=tuple(held.shares[peer][1] for peer in chosen.dropped),
            next_offer=self._deal(chosen.round + 1).offer,
        )

    def _opened_box(self, offer: OfferTo) -> tuple[str, str]:
        """The shares of seed and key in a box that was sealed to this party."""
        box = bytes.fromhex(offer.box)
        dealer = offer.head.party
        cipher = self._cipher(dealer, dealer, self._place)
        try:
            shares = cipher.decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], offer.head.to_bytes())
        except InvalidTag:
            raise RefusedError("a box that its party did not seal to this one") from None
        return shares[:SHARE_BYTES].hex(), shares[SHARE_BYTES:].hex()


def check_roster(run: SumRun, roster: Roster) -> SumTerms:
    """The terms of a roster, if all of it was introduced for this run by identities that the charter pins.

    Raises:
        RefusedError: another federation, plan or run, an unknown or repeated institution, another order than by name,
            a key that the pinned identity did not sign, or numbers that are not safe together.
    """
    names = [introduction.institution for introduction in roster.introductions]
    if names != sorted(set(names)):
        raise RefusedError("a roster that repeats an institution or is not in order")
    for introduction in roster.introductions:
        check_introduction(run, introduction)
    try:
        return run.terms(len(names))
    except PlanError as unsafe:
        raise RefusedError("a roster for which the plan's numbers are not safe", fix=unsafe.fix) from unsafe


def check_introduction(run: SumRun, introduction: Introduction) -> None:
    """Refuse keys that are not of this run, not signed by the identity that the charter pins, or of low order."""
    if (introduction.federation, introduction.plan, introduction.run) != (run.federation, run.plan, run.run):
        raise RefusedError("keys of another federation, plan or run")
    identity = run.identities.get(introduction.institution)
    if identity is None:
        raise RefusedError("keys of an institution that the charter does not name")
    if not verify(identity, introduction.signature, introduction):
        raise RefusedError("keys that the institution's identity did not sign")
    agreed_secret(_PROBE, bytes.fromhex(introduction.channel_key))


def check_head(roster: Roster, head: OfferHead, number: int) -> None:
    """Refuse an offer that is of another roster or round, that its party did not sign, or with a key of low order.

    Found out later, such a key would cost everybody else an attempt that is already charged.
    """
    if head.roster != roster.digest or head.round != number or head.party >= len(roster.introductions):
        raise RefusedError("an offer of another roster or round")
    if not verify(bytes.fromhex(roster.introductions[head.party].signing_key), head.signature, head):
        raise RefusedError("an offer that its party did not sign")
    agreed_secret(_PROBE, bytes.fromhex(head.mask_key))


def check_heads(roster: Roster, terms: SumTerms, heads: Sequence[OfferHead], number: int) -> None:
    """Refuse offers that are out of order, too few, or one of which `check_head` refuses."""
    parties = [head.party for head in heads]
    if parties != sorted(set(parties)) or len(parties) < terms.contributions:
        raise RefusedError("offers of too few parties, or not in order")
    for head in heads:
        check_head(roster, head, number)


def check_survivors(roster: Roster, terms: SumTerms, chosen: SurvivorSet) -> None:
    """Refuse survivors below t, a peer both alive and dropped, or a survivor whose note says otherwise."""
    for parties in (chosen.survivors, chosen.dropped):
        if list(parties) != sorted(set(parties)):
            raise RefusedError("a survivor set out of order")
    if set(chosen.survivors) & set(chosen.dropped):
        raise RefusedError("a survivor set with a peer both alive and dropped")
    if len(chosen.survivors) < terms.contributions:
        raise RefusedError("fewer survivors than the plan's minimum")
    if len(chosen.notes) != len(chosen.survivors):
        raise RefusedError("a survivor set without a note of every survivor")
    for party, signature in zip(chosen.survivors, chosen.notes, strict=True):
        note = Contributed(
            roster=roster.digest, round=chosen.round, party=party, question=chosen.question, asked=chosen.asked
        )
        if not verify(bytes.fromhex(roster.introductions[party].signing_key), signature, note):
            raise RefusedError("a survivor whose note says otherwise")


def asked_digest(heads: Sequence[OfferHead]) -> str:
    """Digest of who takes part in a round, by their signed offers."""
    return digest_bytes(b"\n".join(head.to_bytes() for head in heads))


def _parse_dealt(stored: bytes) -> _Dealt:
    document = json.loads(stored)
    mask = X25519PrivateKey.from_private_bytes(bytes.fromhex(document["mask"]))
    return _Dealt(mask, bytes.fromhex(document["seed"]), Offer.from_bytes(bytes.fromhex(document["offer"])))
