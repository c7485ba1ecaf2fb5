"""The coordinator's side of secure sums: keeps rosters and offers, adds up masked vectors, takes the masks off.

It learns nothing that institutions did not open. What it needs to go on after a crash is in its store; vectors,
signatures and shares are asked for again and come back byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from cohortium.privacy.secure_sum.masking import add_masks, agreed_secret, pair_key, self_key
from cohortium.privacy.secure_sum.messages import (
    Consent,
    Contributed,
    Introduction,
    Offer,
    OfferTo,
    Opened,
    Roster,
    ShareRequest,
    SumInput,
    SurvivorSet,
    UnmaskRequest,
    verify,
)
from cohortium.privacy.secure_sum.participant import asked_digest, check_head, check_introduction
from cohortium.privacy.secure_sum.shamir import Combiner
from cohortium.privacy.secure_sum.state import OnceStore
from cohortium.privacy.secure_sum.terms import SumRun, SumTerms
from cohortium.study.canonical import digest_bytes
from cohortium.study.errors import CohortiumError, RefusedError

__all__ = ["Aggregator", "SumFailed", "SumRound"]

_RUN = -1


class SumFailed(CohortiumError):  # noqa: N818 - an attempt that did not come to a sum; another may
    """Too few institutions took part in a wave, or what they opened does not fit; nothing was unmasked."""


class Aggregator:
    """The secure sums of one run.

    Args:
        run: what the sums are bound to.
        store: durable, the coordinator's own.
    """

    def __init__(self, run: SumRun, store: OnceStore) -> None:
        self.run = run
        self._store = store
        self._introductions: dict[str, Introduction] = {}

    def introduce(self, payload: bytes) -> str:
        """Take an institution's keys of the run; returns its name.

        Raises:
            RefusedError: malformed, of another run, or not signed by the identity that the charter pins.
        """
        introduction = Introduction.from_bytes(payload)
        check_introduction(self.run, introduction)
        self._introductions[introduction.institution] = introduction
        return introduction.institution

    def close_roster(self) -> tuple[str, ...]:
        """Fix who shares keys in this run; returns their names. A resumed run has the roster it began with.

        Raises:
            PlanError: the plan's numbers are not safe for that many.
            RefusedError: a resumed run, and nobody of its roster is there.
        """
        ordered = tuple(self._introductions[name] for name in sorted(self._introductions))
        stored = self._store.find(self.run.run, _RUN, "roster")
        if stored is None:
            self.run.terms(len(ordered))
            stored = self._store.keep(self.run.run, _RUN, "roster", Roster(introductions=ordered).to_bytes())
        self.roster = Roster.from_bytes(stored)
        self.terms: SumTerms = self.run.terms(len(self.roster.introductions))
        self.names = tuple(introduction.institution for introduction in self.roster.introductions)
        return self.names

    def share_request(self, number: int) -> bytes:
        """What asks an institution for an offer of a round."""
        return ShareRequest(run=self.run.run, round=number, roster=self.roster).to_bytes()

    def offered(self, number: int) -> tuple[int, ...]:
        """The parties whose offers of that round are there."""
        return tuple(party for party in range(len(self.names)) if self._offer(number, party) is not None)

    def take_offer(self, payload: bytes, party: int, number: int) -> None:
        """Keep a party's offer of a round; `RefusedError` for one that is malformed, of another round or unsigned."""
        self._keep_offer(Offer.from_bytes(payload), party, number)

    def begin(self, number: int, question: str) -> SumRound:
        """The sum of one attempt at a question, in a round that enough parties made offers for.

        Raises:
            SumFailed: fewer than t offers.
        """
        parties = self.offered(number)
        if len(parties) < self.terms.contributions:
            raise SumFailed(f"only {len(parties)} institutions shared keys", fix="bring the others back")
        listed = self._store.keep(self.run.run, number, "asked", ",".join(map(str, parties)).encode())
        offers = {}
        for party in map(int, listed.decode().split(",")):
            offer = self._offer(number, party)
            if offer is None:
                raise SumFailed("an offer is lost")
            offers[party] = offer
        return SumRound(self, number, question, offers)

    def keep_survivors(self, number: int, chosen: bytes) -> bytes:
        """The survivor set of a round: the first one decided on, for good."""
        return self._store.keep(self.run.run, number, "survivors", chosen)

    def find_survivors(self, number: int) -> bytes | None:
        """The survivor set that was decided on."""
        return self._store.find(self.run.run, number, "survivors")

    def _offer(self, number: int, party: int) -> Offer | None:
        stored = self._store.find(self.run.run, number, f"offer {party}")
        return None if stored is None else Offer.from_bytes(stored)

    def _keep_offer(self, offer: Offer, party: int, number: int) -> None:
        if offer.head.party != party or len(offer.boxes) != len(self.names):
            raise RefusedError("an offer of another party")
        check_head(self.roster, offer.head, number)
        self._store.keep(self.run.run, number, f"offer {party}", offer.to_bytes())


class SumRound:
    """One attempt: takes in vectors, consents and shares, and gives the sum of the survivors' vectors.

    Parties are called by their place in the roster.

    Args:
        aggregator: of the run.
        number: of the round.
        question: digest of the question.
        offers: of all who are asked, by party.
    """

    def __init__(self, aggregator: Aggregator, number: int, question: str, offers: Mapping[int, Offer]) -> None:
        self._aggregator = aggregator
        self._number = number
        self._question = question
        self._offers = dict(sorted(offers.items()))
        self._asked = asked_digest([offer.head for offer in self._offers.values()])
        stored = aggregator.find_survivors(number)
        self._fixed = None if stored is None else SurvivorSet.from_bytes(stored)
        self._sum: NDArray[np.uint64] | None = None
        self._notes: dict[int, str] = {}
        self._consents: dict[int, Consent] = {}
        self._opened: dict[int, Opened] = {}
        self._chosen: SurvivorSet | None = None

    @property
    def parties(self) -> tuple[int, ...]:
        """Who is asked."""
        return tuple(self._offers)

    def input_request(self, party: int) -> bytes:
        """What asks a party for its masked vector."""
        offers = tuple(OfferTo(head=offer.head, box=offer.boxes[party]) for offer in self._offers.values())
        return SumInput(run=self._aggregator.run.run, round=self._number, offers=offers).to_bytes()

    def take_vector(self, party: int, vector: NDArray[np.int64], note: bytes) -> None:
        """Add a masked vector; a second one of a party is ignored, and one that comes after the survivors were fixed.

        Raises:
            RefusedError: a party that was not asked, a note that is not of this round, question and parties, or another
                width than the first vector's.
        """
        if party not in self._offers:
            raise RefusedError("a vector of a party that was not asked")
        contributed = Contributed(
            roster=self._aggregator.roster.digest,
            round=self._number,
            party=party,
            question=self._question,
            asked=self._asked,
        )
        if not verify(self._signing_key(party), note.hex(), contributed):
            raise RefusedError("a note of another sum")
        if party in self._notes or (self._fixed is not None and party in self._fixed.dropped):
            return
        words = vector.view(np.uint64)
        if words.ndim != 1 or (self._sum is not None and words.shape != self._sum.shape):
            raise RefusedError("a vector of another width")
        self._sum = words.copy() if self._sum is None else np.add(self._sum, words, out=self._sum)
        self._notes[party] = note.hex()

    @property
    def contributors(self) -> tuple[int, ...]:
        """Whose vectors were added up."""
        return tuple(sorted(self._notes))

    def choose_survivors(self) -> bytes:
        """Fix the survivor set: everybody whose vector is there, or what was fixed before a crash.

        Raises:
            SumFailed: fewer than t vectors, or one of the survivors fixed before is not there any more.
        """
        if self._fixed is not None:
            chosen = self._fixed
            if set(self.contributors) != set(chosen.survivors):
                raise SumFailed("an institution of the survivor set did not send its vector again")
        else:
            survivors = self.contributors
            if len(survivors) < self._aggregator.terms.contributions:
                raise SumFailed(f"only {len(survivors)} institutions contributed", fix="bring the others back")
            chosen = SurvivorSet(
                run=self._aggregator.run.run,
                round=self._number,
                question=self._question,
                asked=self._asked,
                survivors=survivors,
                dropped=tuple(party for party in self._offers if party not in self._notes),
                notes=tuple(self._notes[party] for party in survivors),
            )
            if self._aggregator.keep_survivors(self._number, chosen.to_bytes()) != chosen.to_bytes():
                raise SumFailed("another survivor set was fixed meanwhile")
        self._chosen = self._fixed = chosen
        return chosen.to_bytes()

    @property
    def waves(self) -> int:
        """3, or 2 where the bound of `terms` holds and everybody was asked."""
        everybody = len(self._offers) == len(self._aggregator.names)
        return self._aggregator.terms.waves if everybody else 3

    def take_consent(self, party: int, payload: bytes) -> None:
        """Take a signature; `RefusedError` for one that is not under this survivor set or not of a survivor."""
        consent, chosen = Consent.from_bytes(payload), self._survivor_set
        if consent.party != party or party not in chosen.survivors:
            raise RefusedError("a consent of another party")
        if not verify(self._signing_key(party), consent.signature, chosen):
            raise RefusedError("a consent to another survivor set")
        self._consents[party] = consent

    def unmask_request(self) -> bytes:
        """What asks the survivors for shares.

        Raises:
            SumFailed: fewer than T consents where they are needed.
        """
        terms, consents = self._aggregator.terms, [self._consents[party] for party in sorted(self._consents)]
        if self.waves == 3 and len(consents) < terms.threshold:
            raise SumFailed(f"only {len(consents)} institutions consented to the survivor set")
        return UnmaskRequest(survivor_set=self._survivor_set, consents=tuple(consents)).to_bytes()

    def take_opened(self, party: int, payload: bytes) -> None:
        """Take a party's shares and keep its offer for the next round; `RefusedError` for what is of another sum."""
        opened, chosen = Opened.from_bytes(payload), self._survivor_set
        if opened.party != party or opened.survivor_set != chosen.digest or party not in chosen.survivors:
            raise RefusedError("shares of another sum")
        if (len(opened.seeds), len(opened.keys)) != (len(chosen.survivors), len(chosen.dropped)):
            raise RefusedError("shares of other parties")
        self._aggregator.take_offer(opened.next_offer.to_bytes(), party, self._number + 1)
        self._opened[party] = opened

    def total(self) -> NDArray[np.int64]:
        """The sum of the survivors' vectors modulo 2**64.

        Raises:
            SumFailed: fewer than T parties opened shares, or what they opened is not what was committed to.
        """
        try:
            return self._unmasked()
        except RefusedError as error:
            raise SumFailed("what was opened belongs to no secret") from error

    def _unmasked(self) -> NDArray[np.int64]:
        terms, chosen = self._aggregator.terms, self._survivor_set
        if len(self._opened) < terms.threshold:
            raise SumFailed(f"only {len(self._opened)} institutions opened shares", fix="bring the others back")
        openers = sorted(self._opened)[: terms.threshold]
        combiner = Combiner([party + 1 for party in openers])
        if self._sum is None:
            raise SumFailed("no vectors")
        total = self._sum.copy()
        own = []
        for index, party in enumerate(chosen.survivors):
            seed = combiner.secret({p + 1: int(self._opened[p].seeds[index], 16) for p in openers})
            if digest_bytes(seed) != self._offers[party].head.commitment:
                raise SumFailed("the seed that was opened is not the one committed to")
            own.append(self_key(seed, self._roster_digest, self._question, self._number, party))
        add_masks(total, (), own)
        for index, party in enumerate(chosen.dropped):
            secret = combiner.secret({p + 1: int(self._opened[p].keys[index], 16) for p in openers})
            self._take_off(total, party, X25519PrivateKey.from_private_bytes(secret))
        return total.view(np.int64)

    def _take_off(self, total: NDArray[np.uint64], dropped: int, private: X25519PrivateKey) -> None:
        """Remove the masks that the survivors share with a dropped party."""
        if private.public_key().public_bytes_raw().hex() != self._offers[dropped].head.mask_key:
            raise SumFailed("the key that was opened is not the one offered")
        added: list[bytes] = []
        subtracted: list[bytes] = []
        for party in self._survivor_set.survivors:
            secret = agreed_secret(private, bytes.fromhex(self._offers[party].head.mask_key))
            low, high = min(party, dropped), max(party, dropped)
            key = pair_key(secret, self._roster_digest, self._question, self._number, low, high)
            (subtracted if party < dropped else added).append(key)
        add_masks(total, added, subtracted)

    @property
    def _survivor_set(self) -> SurvivorSet:
        if self._chosen is None:
            raise SumFailed("no survivor set was chosen")
        return self._chosen

    @property
    def _roster_digest(self) -> str:
        return self._aggregator.roster.digest

    def _signing_key(self, party: int) -> bytes:
        return bytes.fromhex(self._aggregator.roster.introductions[party].signing_key)
