"""The audit's mask test on the protocol itself: fresh in every round, and a build that reuses masks is flagged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.privacy.audit.masks import masks_look_fresh
from cohortium.privacy.secure_sum import participant
from cohortium.privacy.secure_sum.masking import derive_key


def sent_twice(make_sums: Callable[..., Any], width: int) -> list[NDArray[np.uint64]]:
    """What one institution of three sends in two rounds, for vectors that differ by noise of the product's scale."""
    sums, rng = make_sums(3, 3), np.random.default_rng(0)
    sent = []
    for number in range(2):
        sums.share(number)
        vectors = [rng.integers(-(2**30), 2**30, width) for _ in range(3)]
        _, masked = sums.begin(number, vectors)
        sent.append(masked[0].view(np.uint64))
    return sent


@pytest.mark.parametrize("width", [1, 64])
def test_the_protocol_s_masks_are_fresh_in_every_round(make_sums: Callable[..., Any], width: int) -> None:
    first, second = sent_twice(make_sums, width)
    assert masks_look_fresh(first, second)
    assert masks_look_fresh(first, np.zeros_like(first))


def test_a_build_that_reuses_masks_is_flagged(make_sums: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that keeps each pair's and each party's first secret, and forgets round and question."""
    kept: dict[str, bytes] = {}

    def stale(purpose: str) -> Callable[..., bytes]:
        def key(secret: bytes, roster: str, _question: str, _number: int, *parties: int) -> bytes:
            first = kept.setdefault(f"{purpose} {parties}", secret)
            return derive_key(first, roster, purpose, {"parties": str(parties)})

        return key

    monkeypatch.setattr(participant, "pair_key", stale("pair mask"))
    monkeypatch.setattr(participant, "self_key", stale("self mask"))
    first, second = sent_twice(make_sums, 64)
    assert not masks_look_fresh(first, second)
