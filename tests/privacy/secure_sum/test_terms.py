"""The two bounds of `terms`, against searches for every equivocation they must rule out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from cohortium.privacy.secure_sum import MAX_PARTIES, SumTerms
from cohortium.privacy.secure_sum.terms import least_contributions
from cohortium.study.errors import PlanError


def numbers(most: int) -> Iterator[tuple[int, int, int, int]]:
    """All n, t, c, T up to n = most that are not plainly absurd, safe or not."""
    for n in range(3, most + 1):
        for t in range(3, n + 1):
            for c in range(1, t):
                yield from ((n, t, c, threshold) for threshold in range(c + 1, t + 1))


def is_safe(n: int, t: int, c: int, threshold: int) -> bool:
    try:
        SumTerms(n, t, c, threshold)
    except PlanError:
        return False
    return True


# --- one set ---------------------------------------------------------------------------------------------------------


def opens_both(n: int, c: int, threshold: int) -> bool:
    """Whether some answers of the n - c honest open one of them as survivor and as dropped; it calls itself alive."""
    for answers in product(["alive", "dropped"], repeat=n - c - 1):
        if min(1 + answers.count("alive"), answers.count("dropped")) + c >= threshold:
            return True
    return False


def test_no_answers_open_a_party_both_ways() -> None:
    """The bound is exact: just outside of it there are such answers."""
    safe = {True: 0, False: 0}
    for n, t, c, threshold in numbers(9):
        assert is_safe(n, t, c, threshold) != opens_both(n, c, threshold)
        safe[is_safe(n, t, c, threshold)] += 1
    assert min(safe.values()) > 50


# --- two waves -------------------------------------------------------------------------------------------------------


def opens_less_by_enumeration(n: int, t: int, c: int, threshold: int) -> bool:
    """Whether some sets, told to the honest one by one, open a sum of fewer than t - c of them.

    Every honest party names at most n - t others as dropped, never itself. The target's seeds must be opened by T - c
    of them, and the keys of every honest party outside the target, whose masks lie over it.
    """
    honest = range(n - c)
    told = [
        [frozenset(dropped) for size in range(n - t + 1) for dropped in combinations(set(honest) - {party}, size)]
        for party in honest
    ]
    targets = [frozenset(range(size)) for size in range(1, t - c)]  # the honest are alike: which ones does not matter
    for sets in product(*told):
        named = [sum(party in dropped for dropped in sets) for party in honest]
        for target in targets:
            alive = all(len(sets) - named[party] >= threshold - c for party in target)
            if alive and all(named[party] >= threshold - c for party in honest if party not in target):
                return True
    return False


def opens_less(n: int, t: int, c: int, threshold: int) -> bool:
    """The same as an integer programme: x[i, o] = 1 where i is told that o, outside the target, dropped."""
    honest, needed = n - c, threshold - c
    if needed > honest:
        return False
    for size in range(1, t - c):
        outside = range(size, honest)
        cells = [(i, o) for i in range(honest) for o in outside if i != o]
        rows = [[float(i == party) for i, _ in cells] for party in range(honest)]
        columns = [[float(o == party) for _, o in cells] for party in outside]
        if not cells:
            continue
        found = milp(
            np.zeros(len(cells)),
            integrality=np.ones(len(cells)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(np.array(rows), -np.inf, n - t),
                LinearConstraint(np.array(columns), needed, np.inf),
            ],
        )
        if found.status == 0:
            return True
    return False


def test_the_search_finds_what_enumeration_finds() -> None:
    outcomes = set()
    for case in [(3, 3, 1, 3), (4, 3, 1, 3), (4, 4, 1, 3), (4, 4, 2, 4), (5, 4, 1, 4), (5, 5, 1, 4), (5, 3, 1, 3)]:
        assert opens_less_by_enumeration(*case) == opens_less(*case)
        outcomes.add(opens_less(*case))
    assert opens_less_by_enumeration(5, 4, 1, 3)
    assert opens_less(5, 4, 1, 3)
    assert outcomes == {True, False}


def test_two_waves_are_claimed_exactly_where_no_equivocation_opens_less() -> None:
    """Sound everywhere; and tight wherever there can be less than t - c, that is for t >= c + 2."""
    waves = {2: 0, 3: 0}
    for n, t, c, threshold in numbers(9):
        if is_safe(n, t, c, threshold):
            terms = SumTerms(n, t, c, threshold)
            attack = opens_less(n, t, c, threshold)
            assert attack == (terms.waves == 3 and t >= c + 2)
            waves[terms.waves] += 1
    assert min(waves.values()) > 5


def test_who_was_asked_cannot_be_split_even_without_notes() -> None:
    """A group G asked without the others would be opened by T - c honest parties outside of it, with its dropped peers.

    G and its dropped peers are t - c honest at least, or the group would refuse: so T + t - c parties, more than n.
    Where two waves suffice, the dropped peers may themselves be among those who open: too few name them.
    """
    tried = 0
    for n in range(3, 41):
        for t in range(3, n + 1):
            for c in range(1, t):
                if is_safe(n, t, c, (n + c) // 2 + 1):
                    terms = SumTerms.of(n, t, c)
                    honest, needed = n - c, terms.threshold - c
                    assert terms.threshold + t - c > n
                    for group in range(1, t - c) if terms.waves == 2 else ():
                        tried += 1
                        dropped, openers = t - c - group, honest - group
                        names = min(n - t, dropped)
                        assert openers - 1 < needed or openers * names < dropped * needed
    assert tried > 100
    assert 3 + 3 - 1 <= 5  # the numbers of the attack in test_attacks, which are not safe: nothing forbids it there
    assert not is_safe(5, 3, 1, 3)


def test_waves_and_thresholds() -> None:
    for n in range(3, MAX_PARTIES + 1):
        for c in range(1, (n - 1) // 2 + 1):
            t = least_contributions(n, c)
            if t > n or t <= c:
                continue
            terms = SumTerms.of(n, t, c)
            assert terms.threshold <= t
            assert is_safe(n, t, c, terms.threshold)
            assert not is_safe(n, t - 1, c, terms.threshold)
            assert not is_safe(n, t, c, terms.threshold - 1)
            assert not is_safe(n, t, c, t + 1)
            assert SumTerms.of(n, n, c).waves == 2  # nobody may be called dropped
            claimed = [SumTerms.of(n, more, c).waves for more in range(t, n + 1)]
            assert claimed == sorted(claimed, reverse=True)  # a higher t never needs more waves
            higher = [SumTerms(n, n, c, threshold).waves for threshold in range(terms.threshold, n + 1)]
            assert set(higher) == {2}


@pytest.mark.parametrize(
    ("n", "t", "c", "threshold", "line"),
    [
        (3, 2, 1, None, "min_institutions"),
        (5, 4, 0, None, "colluders"),
        (5, 4, 4, None, "colluders"),
        (3, 4, 1, None, "min_institutions"),
        (MAX_PARTIES + 1, MAX_PARTIES, 1, None, "institutions"),
        (8, 4, 1, None, "min_institutions"),
        (8, 6, 1, 4, "share_threshold"),
        (8, 6, 1, 7, "share_threshold"),
    ],
)
def test_unsafe_numbers_name_the_line_to_change(n: int, t: int, c: int, threshold: int | None, line: str) -> None:
    with pytest.raises(PlanError) as refused:
        SumTerms.of(n, t, c, threshold)
    assert refused.value.place is not None
    assert line in refused.value.place
    assert refused.value.fix
