"""Sums are bit-exact in every pattern of drop-outs above the thresholds; below them nothing is unmasked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import pytest

from cohortium.privacy.secure_sum import SumFailed, SumTerms


def plain(vectors: Any, parties: Any) -> Any:
    total = np.zeros(len(vectors[0]), dtype=np.uint64)
    for party in parties:
        total += vectors[party].view(np.uint64)
    return total.view(np.int64)


@pytest.mark.parametrize(("n", "t", "c"), [(3, 3, 1), (4, 3, 1), (5, 4, 1), (6, 4, 1)])
def test_every_pattern_of_drop_outs(
    make_sums: Callable[..., Any], make_vectors: Callable[..., Any], n: int, t: int, c: int
) -> None:
    """Each party answers all waves or stops before input, consent or shares: all 4^n patterns, from 5 up to order."""
    terms = SumTerms.of(n, t, c)
    vectors = make_vectors(n)
    outcomes = {"sum": 0, "nothing": 0}
    patterns = list(product(range(4), repeat=n)) if n < 5 else list(combinations_with_replacement(range(4), n))
    for pattern in patterns:
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
