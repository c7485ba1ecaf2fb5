"""Prices and budgets against independent formulas, and always rounded against the spender."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cohortium.privacy.accounting import (
    MU2_UNIT,
    TV_UNIT,
    Spend,
    budget_for,
    delta_spent,
    epsilon_by_pld,
    epsilon_by_rdp,
    epsilon_spent,
    if_more_collude,
    person_at,
    price,
    sigma_for,
)
from cohortium.privacy.query import SCALE
from cohortium.privacy.sharing import ALONE, NoiseShare
from cohortium.study.errors import CohortiumError

EPSILONS = st.floats(0.01, 50)
DELTAS = st.floats(-12, -1).map(lambda power: 10**power)
BOUNDS = st.integers(1, 2**70)
SIGMAS = st.integers(1, 2**52)
WIDTHS = st.integers(1, 2**22)


def exact_delta(spend: Spend, epsilon: float) -> Any:
    """The smaller of the two deltas that the module states, in 60 digits."""
    with mpmath.workdps(60):
        mu = mpmath.sqrt(mpmath.mpf(spend.mu2) / 2**48)
        e, tv = mpmath.mpf(epsilon), mpmath.mpf(spend.tv) / mpmath.mpf(2) ** 80

        def ideal(e: Any) -> Any:
            if mu == 0:
                return mpmath.mpf(0)
            return mpmath.ncdf(-e / mu + mu / 2) - mpmath.exp(e) * mpmath.ncdf(-e / mu - mu / 2)

        by_distance = ideal(e) + (1 + mpmath.exp(e)) * tv
        if e < 2 * 401 * tv:
            return by_distance
        tail = (1 + mpmath.exp(e + 401 * tv)) * mpmath.mpf(2) ** -225
        return min(by_distance, mpmath.exp(401 * tv) * ideal(e - 2 * 401 * tv) + tail)


@given(mu=st.floats(0.005, 5), epsilon=st.floats(0, 20), tv=st.integers(0, 2**55))
def test_delta_agrees_with_an_independent_formula(mu: float, epsilon: float, tv: int) -> None:
    spend = Spend(math.floor(Fraction(mu) ** 2 / MU2_UNIT), tv)
    exact = exact_delta(spend, epsilon)
    assert abs(delta_spent(spend, epsilon) - exact) <= exact * 1e-7 + mpmath.mpf(10) ** -300
    if exact >= 1e-15:
        assert exact <= delta_spent(spend, epsilon)


@given(epsilon=EPSILONS, delta=DELTAS)
def test_a_budget_holds_what_it_says(epsilon: float, delta: float) -> None:
    budget = budget_for(epsilon, delta)
    assert exact_delta(budget, epsilon) <= delta
    assert epsilon_spent(budget, delta) <= epsilon


@given(epsilon=st.floats(0.1, 8), delta=st.floats(-9, -4).map(lambda power: 10**power))
def test_a_budget_is_not_wasteful(epsilon: float, delta: float) -> None:
    assert epsilon_spent(budget_for(epsilon, delta), delta) > 0.999 * epsilon


@pytest.mark.parametrize(("epsilon", "delta"), [(1e-9, 1e-12), (1e-6, 1e-15), (1e-9, 0.1), (50.0, 1e-15)])
def test_a_budget_at_the_edge_of_its_domain(epsilon: float, delta: float) -> None:
    assert exact_delta(budget_for(epsilon, delta), epsilon) <= delta


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0, 1e-6), (51, 1e-6), (-1, 1e-6), (1, 0), (1, 1e-16), (1, 0.2), (math.nan, 1e-6), (1, math.nan)],
)
def test_a_budget_outside_its_domain_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(CohortiumError):
        budget_for(epsilon, delta)


@given(bound=BOUNDS, sigma=SIGMAS, width=WIDTHS)
def test_a_price_is_rounded_up_and_by_less_than_a_unit(bound: int, sigma: int, width: int) -> None:
    cost = price(bound, sigma, width)
    assert 0 <= cost.mu2 * MU2_UNIT - Fraction(bound, sigma**2) < MU2_UNIT
    assert 0 <= cost.tv * TV_UNIT - Fraction(width, 24 * sigma**2) < TV_UNIT


@given(bound=BOUNDS, allotment=st.integers(1, 2**60), width=WIDTHS)
def test_sigma_is_the_smallest_within_its_allotment(bound: int, allotment: int, width: int) -> None:
    sigma = sigma_for(bound, allotment)
    assert price(bound, sigma, width).mu2 <= allotment
    assert sigma == 1 or Fraction(bound, (sigma - 1) ** 2) > allotment * MU2_UNIT


def test_a_release_without_budget_is_refused() -> None:
    with pytest.raises(CohortiumError):
        sigma_for(1, 0)


@given(bound=BOUNDS, sigma=SIGMAS, width=WIDTHS, more=st.integers(1, 1000))
def test_prices_are_monotone(bound: int, sigma: int, width: int, more: int) -> None:
    cost = price(bound, sigma, width)
    assert price(bound + more, sigma, width).mu2 >= cost.mu2
    assert price(bound, sigma + more, width).fits(cost)
    assert price(bound, sigma, width + more).tv >= cost.tv


@settings(max_examples=40)
@given(mu2=st.integers(0, 2**50), tv=st.integers(0, 2**50), more=st.integers(0, 2**48), delta=DELTAS)
def test_spending_more_never_costs_less_epsilon(mu2: int, tv: int, more: int, delta: float) -> None:
    spent = epsilon_spent(Spend(mu2, tv), delta)
    nearly = spent * (1 - 1e-7)  # each is rounded up by what its own arithmetic may be off
    assert epsilon_spent(Spend(mu2 + more, tv), delta) >= nearly
    assert epsilon_spent(Spend(mu2, tv + more), delta) >= nearly


@example(mu2=22603802, tv=0, delta=1e-9)
@given(mu2=st.integers(1, 2**52), tv=st.integers(0, 2**50), delta=DELTAS)
def test_epsilon_spent_is_rounded_up(mu2: int, tv: int, delta: float) -> None:
    spend = Spend(mu2, tv)
    epsilon = epsilon_spent(spend, delta)
    if math.isfinite(epsilon):
        assert delta_spent(spend, epsilon) <= delta
        assert exact_delta(spend, epsilon) <= delta
    if 0 < epsilon < math.inf:
        assert delta_spent(spend, epsilon * (1 - 1e-6)) > delta


def test_no_epsilon_pays_for_too_much_slack() -> None:
    assert epsilon_spent(Spend(2**40, 2**79), 1e-6) == math.inf
    assert epsilon_by_pld(Spend(2**40, 2**79), 1e-6) == math.inf
    assert epsilon_by_pld(Spend(0, 2**79), 1e-6) == math.inf
    assert epsilon_by_rdp(Spend(0, 2**79), 1e-6) == math.inf
    assert epsilon_spent(Spend(), 1e-6) == epsilon_by_pld(Spend(), 1e-6) == epsilon_by_rdp(Spend(), 1e-6) == 0.0


@given(first=st.tuples(BOUNDS, SIGMAS), times=st.integers(1, 50))
def test_prices_add_up_to_no_less_than_the_joint_price(first: tuple[int, int], times: int) -> None:
    bound, sigma = first
    joint = price(times * bound, sigma, times)
    assert joint.mu2 <= price(bound, sigma, 1).times(times).mu2
    assert joint.tv <= price(bound, sigma, 1).times(times).tv


def test_spends_are_amounts() -> None:
    assert Spend(1, 2) + Spend(3, 4) == Spend(4, 6)
    assert Spend(4, 6) - Spend(3, 4) == Spend(1, 2)
    assert Spend(1, 1).fits(Spend(1, 1))
    assert not Spend(2, 0).fits(Spend(1, 9))
    assert not Spend(0, 2).fits(Spend(9, 1))


@pytest.mark.parametrize("epsilon", [0.25, 1.0, 3.0])
def test_three_accountants_agree_in_the_known_order(epsilon: float) -> None:
    """Exact GDP <= the pessimistic PLD (by little) <= Renyi."""
    spend, delta = budget_for(epsilon, 1e-6), 1e-6
    gdp, pld, rdp = (f(spend, delta) for f in (epsilon_spent, epsilon_by_pld, epsilon_by_rdp))
    assert gdp <= pld * (1 + 1e-6)
    assert pld <= gdp * 1.01 + 1e-3
    assert rdp > pld


@pytest.mark.parametrize("sigma", [1, 2, 3, 5, 10, 20, 50])
def test_the_discrete_gaussian_is_as_near_the_rounded_one_as_charged(sigma: int) -> None:
    """TV <= 1 / (24 sigma^2) from exact masses; and within a factor of 3 of it, so the bound is not idle."""
    with mpmath.workdps(40):
        s, half = mpmath.mpf(sigma), mpmath.mpf(1) / 2
        masses = [mpmath.exp(-(mpmath.mpf(z) ** 2) / (2 * s * s)) for z in range(14 * sigma)]
        total = 2 * mpmath.fsum(masses) - 1
        # for z >= 0, from the lower tail, where differences keep their digits; both laws are symmetric
        rounded = [mpmath.ncdf((half - z) / s) - mpmath.ncdf((-half - z) / s) for z in range(14 * sigma)]
        ratios = [q * total / p for p, q in zip(masses, rounded, strict=True)]
        gaps = [abs(p / total - q) for p, q in zip(masses, rounded, strict=True)]
        distance = (2 * mpmath.fsum(gaps) - gaps[0]) / 2
        bound = 1 / mpmath.mpf(24 * sigma * sigma)
        assert bound / 3 < distance <= bound
        assert min(ratios) >= 1 - bound  # the pointwise step of the proof
        near = [ratio for z, ratio in enumerate(ratios) if z <= 6 * sigma]
        assert max(near) <= mpmath.exp((6**2 + 1) * bound)  # the same from above, for K = 6
        assert total >= mpmath.sqrt(2 * mpmath.pi) * s  # the discrete normaliser exceeds the continuous one
    assert price(1, sigma, 1).tv * TV_UNIT >= Fraction(float(distance))


def test_the_price_of_large_epsilons_is_not_the_noise_s_grid() -> None:
    """A customer of eight institutions of the demo's plan: epsilon near that of pure Gaussian noise, not infinity."""
    budget = budget_for(2.0, 1e-6)
    spent = person_at(Spend(), Spend(budget.mu2, 2**36), 8)
    pure = epsilon_spent(Spend(spent.mu2, 0), 1e-6)
    assert pure <= epsilon_spent(spent, 1e-6) <= pure + 1e-6
    assert 20 < pure < 30


def test_a_larger_epsilon_allows_more_of_everything() -> None:
    budgets = [budget_for(epsilon, 1e-6) for epsilon in (0.1, 0.5, 1, 3, 12, 50)]
    for less, more in pairwise(budgets):
        assert less.mu2 < more.mu2
        assert less.tv < more.tv


def test_discrete_noise_itself_obeys_the_claimed_delta() -> None:
    """The privacy profile of the real mechanism at an integer shift, from exact masses, stays below what is claimed."""
    for sigma, shift in ((3, 1), (5, 4), (20, 10)):
        z = np.arange(-60 * sigma, 60 * sigma + 1)
        weight = np.exp(-(z.astype(np.float64) ** 2) / (2.0 * sigma**2))
        mass = weight / weight.sum()
        for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0):
            real = np.maximum(mass[shift:] - math.exp(epsilon) * mass[:-shift], 0.0).sum()
            assert real <= delta_spent(price(shift**2, sigma, 1), epsilon)


def test_a_person_who_adds_one_unit_costs_what_the_docs_say() -> None:
    """A count at sigma = 10 people costs mu = 0.1."""
    assert price(SCALE**2, 10 * SCALE, 1).mu_squared == pytest.approx(0.01, rel=1e-12)


# --- shared noise ----------------------------------------------------------------------------------------------------

SHARES = st.integers(2, 64).flatmap(lambda t: st.builds(NoiseShare, st.just(t), st.integers(1, t - 1)))
SPENDS = st.builds(Spend, st.integers(0, 2**52), st.integers(0, 2**60))


@given(bound=BOUNDS, sigma=SIGMAS, width=WIDTHS, share=SHARES)
def test_a_shared_release_costs_one_unit_of_total_variation_more(
    bound: int, sigma: int, width: int, share: NoiseShare
) -> None:
    assert price(bound, sigma, width, share) == price(bound, sigma, width, ALONE) + Spend(0, 1)
    assert price(bound, sigma, width) == price(bound, sigma, width, ALONE)


@given(local=SPENDS, distributed=SPENDS, count=st.integers(1, 100))
def test_a_person_at_several_institutions_pays_for_each_or_moves_the_one_sum_by_more(
    local: Spend, distributed: Spend, count: int
) -> None:
    assert person_at(local, distributed, 1) == local + distributed
    assert person_at(local, Spend(), count) == local.times(count)
    assert person_at(Spend(), distributed, count) == Spend(count**2 * distributed.mu2, distributed.tv)
    assert person_at(local, distributed, count) == person_at(local, Spend(), count) + person_at(
        Spend(), distributed, count
    )


def test_the_price_at_several_institutions_is_that_of_a_bound_times_as_large() -> None:
    """j institutions, one sum: the person's vector is j bounds long, which is what `price` says of j^2 bound^2."""
    for count in (1, 2, 3, 7):
        single = price(1 << 48, 1 << 30, 3)
        assert person_at(Spend(), single, count) == price(count**2 << 48, 1 << 30, 3)


@pytest.mark.parametrize("count", [0, -1])
def test_a_person_is_somewhere(count: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        person_at(Spend(1, 1), Spend(1, 1), count)


def test_epsilon_at_several_institutions_is_what_the_facts_say() -> None:
    """Epsilon 1 of joint sums becomes 2.12 at two institutions, 3.32 at three and 5.93 at five."""
    spent = Spend(budget_for(1.0, 1e-6).mu2, 0)
    found = [epsilon_spent(person_at(Spend(), spent, count), 1e-6) for count in (2, 3, 5)]
    assert found == pytest.approx([2.12, 3.32, 5.93], abs=0.01)


@given(spend=SPENDS, share=SHARES, more=st.integers(0, 70))
def test_more_colluders_cost_what_their_noise_was_worth(spend: Spend, share: NoiseShare, more: int) -> None:
    t, c = share.contributions, share.colluders
    worse = if_more_collude(spend, share, more)
    factor = Fraction(t - c, max(t - max(more, c), 1))
    for before, after in ((spend.mu2, worse.mu2), (spend.tv, worse.tv)):
        assert 0 <= after - before * factor < 1
    assert spend.fits(worse)
    assert worse.fits(spend.times(t - c)), "its own share of noise always remains"
    assert if_more_collude(spend, share, c) == spend
    assert if_more_collude(spend, share, t - 1) == if_more_collude(spend, share, t) == spend.times(t - c)


@given(spend=SPENDS, colluders=st.integers(0, 70))
def test_nobody_can_collude_away_noise_that_an_institution_added_alone(spend: Spend, colluders: int) -> None:
    assert if_more_collude(spend, ALONE, colluders) == spend


@pytest.mark.parametrize("share", [NoiseShare(3, 1), NoiseShare(8, 2), NoiseShare(5, 4)])
def test_the_worst_case_is_the_price_of_the_institutions_own_share(share: NoiseShare) -> None:
    sigma = 1 << 30
    own = price(1 << 48, share.sigma_of(sigma), 1000)
    worst = if_more_collude(price(1 << 48, sigma, 1000, share), share, 10**6)
    assert own.fits(worst)
    assert worst.mu2 <= own.mu2 * (1 + 1e-6)


# --- a programme -----------------------------------------------------------------------------------------------------

PROGRAMME = (1.0, 2.0, 0.25, *([0.25] * 10))
"""Clustering, encoder, fairness and ten campaigns, each at delta 1e-6: 5.75 if epsilons added up."""


def programme_spend() -> Spend:
    total = Spend()
    for epsilon in PROGRAMME:
        allotment = budget_for(epsilon, 1e-6).mu2 // 20
        sigma = sigma_for(SCALE**2, allotment)
        total = total + price(SCALE**2, sigma, 1000, NoiseShare(3, 1)).times(20)
    return total


def test_a_programme_of_thirteen_plans_costs_half_of_what_epsilons_add_up_to() -> None:
    """Everything at delta 1e-6 in all, by prices as the door charges them: closed form <= PLD <= RDP."""
    assert sum(PROGRAMME) == 5.75
    spend = programme_spend()
    closed, pld, rdp = (f(spend, 1e-6) for f in (epsilon_spent, epsilon_by_pld, epsilon_by_rdp))
    assert 2.49 < closed <= 2.51
    assert closed <= pld * (1 + 1e-6)
    assert pld <= closed * 1.01
    assert pld < rdp <= closed * 1.15


@settings(max_examples=15)
@given(mu2=st.integers(2**32, 2**50))
def test_the_accountants_keep_their_order(mu2: int) -> None:
    spend = Spend(mu2, 1)
    closed, pld, rdp = (f(spend, 1e-6) for f in (epsilon_spent, epsilon_by_pld, epsilon_by_rdp))
    assert closed <= pld * (1 + 1e-3) + 1e-3
    assert pld <= rdp * (1 + 1e-3) + 1e-3
