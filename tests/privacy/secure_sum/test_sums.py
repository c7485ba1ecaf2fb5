"""Sums are bit-exact in every pattern of drop-outs above the thresholds; below them nothing is unmasked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, combinations_with_replacement, product
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from cohortium.privacy.secure_sum import SumFailed, SumTerms
from cohortium.study.errors import RefusedError


def plain(vectors: Any, parties: Any) -> Any:
    total = np.zeros(len(vectors[0]), dtype=np.uint64)
    for party in parties:
        total += vectors[party].view(np.uint64)
    return total.view(np.int64)


@pytest.mark.parametrize(("n", "t", "c"), [(3, 3, 1), (4, 3, 1), (5, 4, 1), (6, 4, 1)])
def test_every_pattern_of_drop_outs(
    make_sums: Callable[..., Any], make_vectors: Callable[..., Any], n: int, t: int, c: int
) -> None:
    """Each party answers all waves or stops before input, consent or shares: all 4^n patterns, from 4 up to order."""
    rng = np.random.default_rng(n)
    terms = SumTerms.of(n, t, c)
    vectors = make_vectors(n)
    outcomes = {"sum": 0, "nothing": 0}
    patterns = list(product(range(4), repeat=n)) if n < 4 else list(combinations_with_replacement(range(4), n))
    for pattern in map(rng.permutation, patterns):
        sums = make_sums(n, t, c)
        stops = [{party for party in range(n) if pattern[party] == wave} for wave in range(3)]
        inputs, answers = n - len(stops[0]), n - len(stops[0]) - len(stops[1])
        opened = answers - len(stops[2])
        possible = inputs >= t and opened >= terms.threshold and (terms.waves == 2 or answers >= terms.threshold)
        if possible:
            total, attempt = sums.ask(0, vectors, no_input=stops[0], no_consent=stops[1], no_shares=stops[2])
            assert (total == plain(vectors, attempt.contributors)).all()
            outcomes["sum"] += 1
        else:
            with pytest.raises(SumFailed, match="only"):
                sums.ask(0, vectors, no_input=stops[0], no_consent=stops[1], no_shares=stops[2])
            outcomes["nothing"] += 1
    assert min(outcomes.values()) > 0


def some(rng: np.random.Generator, among: set[int], most: int) -> set[int]:
    """Up to `most` of them."""
    return {int(party) for party in rng.permutation(sorted(among))[: rng.integers(0, most + 1)]}


@pytest.mark.parametrize(("n", "t", "c", "rounds"), [(8, 5, 1, 6), (16, 10, 2, 5), (32, 19, 3, 3)])
def test_rounds_in_a_row(
    make_sums: Callable[..., Any], make_vectors: Callable[..., Any], n: int, t: int, c: int, rounds: int
) -> None:
    """Offers ride on the last reply; who missed it sits out until a share wave reaches it."""
    sums, threshold, rng = make_sums(n, t, c), SumTerms.of(n, t, c).threshold, np.random.default_rng(n)
    absent: set[int] = set()
    rejoined = 0
    for number in range(rounds):
        if number:
            lacking = set(range(n)) - set(sums.aggregator.offered(number))
            still_absent = some(rng, lacking, n - t)
            sums.share(number, absent=still_absent)
            rejoined += len(absent - still_absent)
            absent = still_absent
        asked = set(sums.aggregator.offered(number))
        assert asked == set(range(n)) - absent
        no_input = some(rng, asked, len(asked) - t)
        no_consent = some(rng, asked - no_input, len(asked - no_input) - threshold)
        no_shares = some(rng, asked - no_input - no_consent, len(asked - no_input - no_consent) - threshold)
        vectors = make_vectors(n, seed=100 * n + number)
        total, attempt = sums.ask(number, vectors, no_input=no_input, no_consent=no_consent, no_shares=no_shares)
        assert set(attempt.contributors) == asked - no_input
        assert (total == plain(vectors, attempt.contributors)).all()
        offering = set(sums.aggregator.offered(number + 1))
        assert offering == asked - no_input - (no_consent | no_shares)
    assert rejoined > 0


def test_who_was_away_for_rounds_comes_back(make_sums: Callable[..., Any], make_vectors: Callable[..., Any]) -> None:
    sums, vectors = make_sums(8, 5), make_vectors(8)
    for number in range(3):
        sums.share(number, absent={7})
        total, attempt = sums.ask(number, vectors, no_input={7})
        assert (total == plain(vectors, range(7))).all()
        assert (7 in attempt.parties) == (number == 0)
    sums.share(3)
    total, _ = sums.ask(3, vectors)
    assert (total == plain(vectors, range(8))).all()


def looks_random(data: bytes) -> bool:
    """Chi-square of the byte counts, at a level of one in a thousand million."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    return float(chisquare(counts).pvalue) > 1e-9


def test_below_t_the_coordinator_holds_noise(make_sums: Callable[..., Any]) -> None:
    """Every sum of a subset of what was sent is uniform; the control is the sum that is unmasked, all zeros."""
    n, t = 6, 4
    vectors = [np.zeros(2_000, dtype=np.int64) for _ in range(n)]
    sums = make_sums(n, t)
    attempt = sums.aggregator.begin(0, question := f"sha256:{3:064x}")
    sent = sums.inputs(attempt, vectors, question, {3, 4, 5})
    with pytest.raises(SumFailed, match="only 3 institutions contributed"):
        attempt.choose_survivors()
    for size in range(1, 4):
        for parties in combinations(sorted(sent), size):
            assert looks_random(plain(sent, parties).tobytes())
    again = make_sums(n, t)
    total, _ = again.ask(0, vectors, no_input={5})
    assert not looks_random(total.tobytes())


def test_a_late_vector_changes_no_sum(make_sums: Callable[..., Any], make_vectors: Callable[..., Any]) -> None:
    """What comes after the survivors were fixed is left out, before and after a restart of the coordinator."""
    sums, vectors, question = make_sums(4, 3), make_vectors(4), f"sha256:{3:064x}"
    attempt = sums.aggregator.begin(0, question)
    sums.inputs(attempt, vectors, question, {3})
    chosen = attempt.choose_survivors()
    late, note = sums.of(3).begin(attempt.input_request(3), question).apply(vectors[3])
    attempt.take_vector(3, late, note)
    assert attempt.choose_survivors() == chosen
    request = attempt.unmask_request()
    for party in attempt.contributors:
        attempt.take_opened(party, sums.of(party).unmask(request))
    assert (attempt.total() == plain(vectors, range(3))).all()
    assert (attempt.total() == plain(vectors, range(3))).all()


def test_a_vector_of_another_width_is_refused(make_sums: Callable[..., Any], make_vectors: Callable[..., Any]) -> None:
    """NumPy would have added one word to every word."""
    sums, vectors, question = make_sums(4, 3), make_vectors(4), f"sha256:{3:064x}"
    attempt = sums.aggregator.begin(0, question)
    sums.inputs(attempt, vectors, question, {3})
    masked, note = sums.of(3).begin(attempt.input_request(3), question).apply(vectors[3])
    for wrong in (masked[:1], masked[:-1], np.append(masked, masked), masked.reshape(1, -1)):
        with pytest.raises(RefusedError, match="width"):
            attempt.take_vector(3, wrong, note)
    assert attempt.contributors == (0, 1, 2)
