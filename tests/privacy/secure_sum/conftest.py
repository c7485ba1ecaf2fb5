"""Federations of parties in one process, and a driver that loses messages where it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from cohortium.privacy.secure_sum import Aggregator, Participant, SumRound, SumRun

RUN = "ab" * 16
FEDERATION, PLAN = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def question_of(number: int) -> str:
    """The question that a round serves: no question is served by two."""
    return f"sha256:{number + 3:064x}"


class DictStore:
    """Values written once, in memory."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int, str], bytes] = {}

    def keep(self, run: str, number: int, item: str, value: bytes) -> bytes:
        return self.values.setdefault((run, number, item), value)

    def find(self, run: str, number: int, item: str) -> bytes | None:
        return self.values.get((run, number, item))

    def erase(self, run: str, before: int, items: tuple[str, ...]) -> None:
        for key in [k for k in self.values if k[0] == run and k[1] < before and k[2] in items]:
            del self.values[key]


@dataclass
class Party:
    """An institution: its identity and its store outlive every `Participant` made of them, as processes come and go."""

    name: str
    identity: Ed25519PrivateKey
    store: DictStore = field(default_factory=DictStore)

    def participant(self, run: SumRun) -> Participant:
        return Participant(run, self.name, self.identity, self.store)


@dataclass
class Sums:
    """A federation in which every message is answered by a participant made anew from its store."""

    run: SumRun
    parties: list[Party]
    aggregator: Aggregator

    def of(self, party: int) -> Participant:
        return self.parties[party].participant(self.run)

    def introduce(self) -> None:
        for party in range(len(self.parties)):
            assert self.aggregator.introduce(self.of(party).introduce()) == self.parties[party].name
        self.aggregator.close_roster()

    def begin(self, number: int, vectors: list[NDArray[np.int64]]) -> tuple[SumRound, dict[int, NDArray[np.int64]]]:
        """A round after its input wave, and what every party sent."""
        attempt = self.aggregator.begin(number, question_of(number))
        return attempt, self.inputs(attempt, vectors, question_of(number), set())

    def share(self, number: int, *, absent: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """A share wave for those that made no offer for the round yet."""
        request = self.aggregator.share_request(number)
        for party in set(range(len(self.parties))) - set(self.aggregator.offered(number)) - absent:
            self.aggregator.take_offer(self.of(party).share(request), party, number)

    def ask(
        self,
        number: int,
        vectors: list[NDArray[np.int64]],
        *,
        question: str | None = None,
        no_input: set[int] = frozenset(),  # type: ignore[assignment]
        no_consent: set[int] = frozenset(),  # type: ignore[assignment]
        no_shares: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> tuple[NDArray[np.int64], SumRound]:
        """One question; the parties named do not answer that wave nor any after it."""
        question = question or question_of(number)
        attempt = self.aggregator.begin(number, question)
        self.inputs(attempt, vectors, question, no_input)
        request = attempt.choose_survivors()
        survivors = set(attempt.contributors)
        if attempt.waves == 3:
            for party in sorted(survivors - no_consent):
                attempt.take_consent(party, self.of(party).consent(request))
        request = attempt.unmask_request()
        for party in sorted(survivors - no_consent - no_shares):
            attempt.take_opened(party, self.of(party).unmask(request))
        return attempt.total(), attempt

    def inputs(
        self, attempt: SumRound, vectors: list[NDArray[np.int64]], question: str, missing: set[int]
    ) -> dict[int, NDArray[np.int64]]:
        """The input wave; returns what every party sent."""
        sent = {}
        for party in attempt.parties:
            if party not in missing:
                masking = self.of(party).begin(attempt.input_request(party), question)
                masked, note = masking.apply(vectors[party])
                attempt.take_vector(party, masked, note)
                sent[party] = masked
        return sent


@pytest.fixture
def make_sums() -> Callable[..., Sums]:
    """A federation of n parties with the plan's t and c (and T), introduced and with keys shared for round 0."""

    def make(n: int, t: int, c: int = 1, threshold: int | None = None, ready: bool = True) -> Sums:
        parties = [Party(f"bank {place:03d}", Ed25519PrivateKey.generate()) for place in range(n)]
        identities = {party.name: party.identity.public_key().public_bytes_raw() for party in parties}
        run = SumRun(FEDERATION, PLAN, RUN, identities, t, c, threshold)
        sums = Sums(run, parties, Aggregator(run, DictStore()))
        if ready:
            sums.introduce()
            sums.share(0)
        return sums

    return make


@pytest.fixture
def make_vectors() -> Callable[..., list[NDArray[np.int64]]]:
    def make(n: int, width: int = 5, seed: int = 0) -> list[NDArray[np.int64]]:
        rng = np.random.default_rng(seed)
        return [rng.integers(-(2**62), 2**62, width) for _ in range(n)]

    return make
