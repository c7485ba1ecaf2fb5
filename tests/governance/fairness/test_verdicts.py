"""Verdicts: each one where it belongs, families by Holm, the best group chosen from noisy counts, the worst overall."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from cohortium.governance.fairness.intervals import Interval, Quotient, critical, ratio, share
from cohortium.governance.fairness.verdicts import (
    Verdict,
    against,
    against_best,
    decide,
    holm,
    judge_ratios,
    size_problem,
    worst,
)
from cohortium.privacy.accounting import budget_for

STD = math.sqrt(3 / budget_for(0.5, 1e-6).mu_squared * 3 / 2)


def exact(chosen: float, people: float) -> Quotient:
    return share(chosen, people, 0.0, 0.0, 0.0)


def noisy(rng: np.random.Generator, people: int, rate: float) -> Quotient:
    chosen = rng.binomial(people, rate)
    cells = np.array([chosen, people - chosen]) + rng.normal(0, STD, 2)
    return share(float(cells[0]), float(cells.sum()), STD**2, 2 * STD**2, STD**2)


@pytest.mark.parametrize(
    ("low", "high", "side", "verdict"),
    [
        (0.8, 1.2, "at least", "pass"),
        (0.79, 0.9, "at least", "inconclusive"),
        (0.5, 0.8, "at least", "inconclusive"),
        (0.5, 0.79, "at least", "fail"),
        (0.0, 0.1, "at most", "pass"),
        (0.05, 0.11, "at most", "inconclusive"),
        (0.11, 0.2, "at most", "fail"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(low: float, high: float, side: str, verdict: str) -> None:
    limit = 0.8 if side == "at least" else 0.1
    found = Interval((low + high) / 2, low, high, bounded=True)
    assert decide(found, limit, "at least" if side == "at least" else "at most") == verdict


def test_an_interval_without_an_end_is_insufficient_even_above_the_limit() -> None:
    assert decide(Interval(2.0, 0.9, math.inf, bounded=False), 0.8, "at least") == "insufficient"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "insufficient", "pass"], "insufficient"),
        (["insufficient", "fail", "pass"], "fail"),
        ([], "insufficient"),
    ],
)
def test_the_worst_counts_and_nothing_is_no_pass(verdicts: list[Verdict], expected: Verdict) -> None:
    assert worst(verdicts) == expected


def test_sizes_that_cannot_be_judged() -> None:
    assert size_problem(100.0, 19.9, 50.0) is None
    assert size_problem(100.0, 20.1, 50.0) == "fewer people expected than 5 standard deviations of the noise"
    assert size_problem(49.0, 0.0, 50.0) == "fewer people expected than the minimum cell"
    assert size_problem(math.nan, 0.0, 50.0) is not None


def test_holm_decides_what_bonferroni_would_not() -> None:
    """The first group leaves at 0.025; the second is then alone, and decided at 0.05."""
    reference = exact(4_000, 20_000)
    rates = [exact(100, 1_000), exact(135, 1_000)]
    family = holm([against(rate, reference) for rate in rates], 0.8, "at least", 0.05)
    assert [each.verdict for each in family] == ["fail", "fail"]
    assert [each.level for each in family] == [0.975, 0.95]
    assert ratio(rates[1], reference, critical(0.025)).high >= 0.8
    alone = holm([against(rates[1], reference), against(exact(200, 1_000), reference)], 0.8, "at least", 0.05)
    assert alone[0].verdict == "fail"  # decided in the second step, after the other one passed in the first


def test_a_family_is_wrong_in_no_more_than_alpha_of_all_draws() -> None:
    """Five groups exactly at the limit: every pass or fail of any of them is an error."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(300):
        reference = noisy(rng, 20_000, 0.25)
        family = holm([against(noisy(rng, 3_000, 0.2), reference) for _ in range(5)], 0.8, "at least", 0.05)
        wrong += any(each.verdict in ("pass", "fail") for each in family)
    assert wrong <= 26  # 0.05 of 300 and three standard deviations
    assert wrong > 0


def test_planted_bias_fails_fair_groups_pass_and_tiny_ones_are_insufficient() -> None:
    rng = np.random.default_rng(4)
    seen: dict[str, Counter[str | None]] = {"biased": Counter(), "fair": Counter(), "tiny": Counter()}
    for _ in range(40):
        rates = [noisy(rng, 20_000, 0.2), noisy(rng, 8_000, 0.13), noisy(rng, 10_000, 0.2), noisy(rng, 60, 0.2)]
        problems = [size_problem(0.2 * rate.bottom, STD, 50.0) for rate in rates]
        judged = judge_ratios(rates, problems, None, "benefit", 0.8, 0.05)
        for name, each in zip(("biased", "fair", "tiny"), judged[1:], strict=True):
            seen[name][each.verdict] += 1
    assert seen == {"biased": {"fail": 40}, "fair": {"pass": 40}, "tiny": {"insufficient": 40}}


def test_the_best_of_noisy_groups_is_covered_where_the_one_that_looks_best_is_not() -> None:
    """Five equal groups: every true ratio is 1. Dividing by the highest noisy rate alone is too low too often."""
    rng = np.random.default_rng(5)
    ours = naive = draws = 0
    for _ in range(120):
        rates = [noisy(rng, 5_000, 0.2) for _ in range(5)]
        top = max(range(5), key=lambda index: rates[index].estimate or 0.0)
        for index in range(5):
            if index != top:
                draws += 1
                ours += against_best(rates, index, "benefit")(0.05).high >= 1.0
                naive += ratio(rates[index], rates[top], critical(0.05)).high >= 1.0
    assert ours / draws >= 0.95
    assert naive / draws <= 0.93


def test_the_ratio_to_the_best_is_1_at_most_and_its_estimate_is_over_the_highest_rate() -> None:
    rates = [exact(100, 1_000), exact(300, 1_000), exact(200, 1_000)]
    found = [against_best(rates, index, "benefit")(0.05) for index in range(3)]
    assert [each.estimate for each in found] == pytest.approx([1 / 3, 1.0, 2 / 3])
    assert (found[1].low, found[1].high) == (1.0, 1.0)
    assert found[2].high < 0.8  # whatever the order: the second of the others is the best
    # of either one alone the upper end is at alpha, of several at alpha over their number
    assert found[0].high == ratio(rates[0], rates[1], critical(0.025)).high
    assert found[0].low == ratio(rates[0], rates[1], critical(0.05)).low
    costs = [against_best(rates, index, "cost")(0.05) for index in range(3)]
    assert [each.estimate for each in costs] == pytest.approx([1.0, 1 / 3, 1 / 2])
    assert costs[1].high < 0.5


def test_a_named_reference_is_described_and_blocks_the_others_when_it_is_too_small() -> None:
    rates = [exact(200, 1_000), exact(100, 1_000)]
    judged = judge_ratios(rates, [None, None], 0, "benefit", 0.8, 0.05)
    assert [each.verdict for each in judged] == [None, "fail"]
    blocked = judge_ratios(rates, ["small", None], 0, "benefit", 0.8, 0.05)
    assert blocked[1].verdict == "insufficient"
    assert blocked[1].why == "the reference group is too small"


def test_a_group_alone_has_nothing_to_be_compared_with() -> None:
    judged = judge_ratios([exact(200, 1_000), exact(2, 10)], [None, "small"], None, "benefit", 0.8, 0.05)
    assert [each.verdict for each in judged] == ["insufficient", "insufficient"]
    assert judged[0].why == "there is no other group that can be judged"


def test_nobody_chosen_at_all_is_not_a_pass() -> None:
    judged = judge_ratios([exact(0, 1_000), exact(0, 500)], [None, None], None, "benefit", 0.8, 0.05)
    assert {each.verdict for each in judged} == {"insufficient"}
