"""The metrics of both audits on tables small enough to check by hand, and what becomes of what is missing or small."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from cohortium.governance.fairness import (
    CHOSEN,
    OTHERS,
    RESPONSES,
    REST,
    SEEDS,
    STABILITY,
    UPLIFT,
    Audited,
    AuditTerms,
    FairnessResult,
    LookalikeTables,
    Metric,
    SegmentTables,
    Threshold,
    audit_lookalike,
    audit_segments,
    thresholds_with,
)
from cohortium.models.group_table import GroupTable
from cohortium.study.errors import DataError, Defect

AUDITED = Audited("sha256:audited", "sha256:plan", 0.5, 1e-6, date(2026, 11, 23))
TERMS = AuditTerms(minimum_cell=50)
GROUPS = (("f",), ("m",))


def table(
    counts: object,
    outcomes: tuple[str, ...],
    *,
    std: float = 0.0,
    groups: tuple[tuple[str, ...], ...] = GROUPS,
    institution: str | None = None,
) -> GroupTable:
    attributes = ("sex", "age")[: len(groups[0])]
    return GroupTable(attributes, groups, outcomes, np.array(counts, dtype=np.float64), std, institution)


def audience(counts: object, **more: object) -> GroupTable:
    return table(counts, (CHOSEN, REST), **more)  # type: ignore[arg-type]


def metric(result: FairnessResult, name: str, group: str | None = None, outcome: str | None = None) -> Metric:
    return next(
        each
        for each in result.metrics
        if (each.name, each.outcome) == (name, outcome) and (group is None or each.group == (group,))
    )


def segments(**more: object) -> SegmentTables:
    people = table([[3_000, 2_000, 1_000], [3_000, 4_000, 2_000]], ("a", "b", "c"))
    return replace(SegmentTables(people), **more)  # type: ignore[arg-type]


def test_representation_and_balance() -> None:
    result = audit_segments([segments()], AUDITED, TERMS)
    found = metric(result, "representation", "f", "a")
    assert found.estimate == pytest.approx(0.5 / (6_000 / 15_000))
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.25 < found.high
    assert found.verdict is None
    worst = min(r if r < 1 else 1 / r for each in result.metrics if (r := each.estimate) and each.outcome)
    balance = metric(result, "balance")
    assert balance.estimate == pytest.approx(worst)
    assert balance.low is not None
    assert balance.low < worst


def test_representation_is_covered() -> None:
    """Against everybody, the group included, whose own noise is in both."""
    rng, std, held = np.random.default_rng(8), 15.0, 0
    mean = np.array([[120, 280], [1_500, 4_500]])
    truth = 0.3 / (1_620 / 6_400)
    for _ in range(200):
        counts = rng.binomial([[400], [6_000]], [[0.3], [0.25]])
        cells = np.hstack([counts, mean.sum(axis=1, keepdims=True) - counts]) + rng.normal(0, std, (2, 2))
        found = metric(
            audit_segments([SegmentTables(table(cells, ("a", "b"), std=std))], AUDITED, TERMS),
            "representation",
            "f",
            "a",
        )
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 200 <= 0.98


def test_beneficial_and_costly_treatments_are_judged_in_opposite_directions() -> None:
    result = audit_segments([segments(beneficial=("a",), costly=("b", "c"))], AUDITED, TERMS)
    good = metric(result, "beneficial-treatment", "m")
    assert good.estimate == pytest.approx((1 / 3) / 0.5)
    assert good.verdict == "fail"
    assert metric(result, "beneficial-treatment", "f").verdict == "pass"
    bad = metric(result, "costly-treatment", "m")
    assert bad.estimate == pytest.approx(0.5 / (2 / 3))
    assert bad.verdict == "fail"
    assert metric(result, "costly-treatment", "f").verdict == "pass"
    assert result.verdict == "fail"


def test_distance_and_stability_compare_means_and_shares() -> None:
    distance = table([[1_200], [2_700]], ("distance",))
    stability = table([[5_900, 100], [6_300, 2_700]], STABILITY)
    result = audit_segments([segments(distance=distance, stability=stability)], AUDITED, TERMS)
    assert metric(result, "distance-to-centre", "m").estimate == pytest.approx(0.2 / 0.3)
    assert metric(result, "distance-to-centre", "m").verdict == "fail"
    assert metric(result, "stability", "m").estimate == pytest.approx(0.7 / (5_900 / 6_000))
    assert metric(result, "stability", "m").verdict == "fail"


def test_a_rate_that_noise_puts_above_1_lends_no_people_to_a_group() -> None:
    """49.95 people, of whom 50.02 would stay at everybody's noisy rate of 1.0015: still below the minimum cell."""
    stability = table([[6_010, -8], [50.9, -0.95]], STABILITY, std=5.0)
    people = table([[3_000, 2_000, 1_000], [20, 20, 10]], ("a", "b", "c"))
    result = audit_segments([SegmentTables(people, stability=stability)], AUDITED, TERMS)
    small = metric(result, "stability", "m")
    assert (small.verdict, small.estimate) == ("insufficient", None)


def test_leakage_is_judged_against_its_limit() -> None:
    assert metric(audit_segments([segments()], AUDITED, TERMS), "leakage").verdict == "pass"
    telling = SegmentTables(table([[5_000, 1_000], [1_000, 5_000]], ("a", "b")))
    found = metric(audit_segments([telling], AUDITED, TERMS), "leakage")
    assert found.verdict == "fail"
    assert found.p_value is not None
    assert found.p_value < 1e-12
    assert found.estimate == pytest.approx(4 / 6, abs=1e-3)


def test_cells_below_the_minimum_are_hidden_and_their_share_is_told() -> None:
    small = SegmentTables(table([[3_000, 2_960, 40], [3_000, 4_000, 2_000]], ("a", "b", "c")))
    result = audit_segments([small], AUDITED, TERMS)
    hidden = metric(result, "representation", "f", "c")
    assert (hidden.estimate, hidden.low, hidden.people) == (None, None, None)
    assert hidden.why == "fewer people than the minimum cell"
    assert metric(result, "suppressed-share", "f").estimate == pytest.approx(40 / 6_000)
    # 40 people where 816 would be expected is a finding, though the cell itself is not shown
    balance = metric(result, "balance").estimate
    assert balance == pytest.approx((40 / 6_000) / (2_040 / 15_000))


def test_what_segments_lack_is_not_judged_and_says_why() -> None:
    result = audit_segments([segments()], AUDITED, TERMS)
    assert {each.metric for each in result.not_judged} == {
        "beneficial-treatment",
        "costly-treatment",
        "distance-to-centre",
        "stability",
    }
    assert all(each.why for each in result.not_judged)


def test_a_fair_audience_passes_and_a_biased_one_fails_under_noise() -> None:
    rng = np.random.default_rng(9)
    for rate, verdict in ((0.2, "pass"), (0.13, "fail")):
        chosen = rng.binomial([20_000, 9_000], [0.2, rate])
        counts = np.stack([chosen, np.array([20_000, 9_000]) - chosen], axis=1) + rng.normal(0, 17, (2, 2))
        result = audit_lookalike([LookalikeTables(audience(counts, std=17.0))], AUDITED, TERMS)
        assert result.verdict == verdict
        assert metric(result, "impact-ratio", "m").verdict == verdict


def test_a_tiny_group_is_insufficient_and_keeps_the_whole_from_passing() -> None:
    groups = (*GROUPS, ("x",))
    result = audit_lookalike(
        [LookalikeTables(audience([[1_000, 4_000], [1_000, 4_000], [3, 9]], groups=groups))], AUDITED, TERMS
    )
    found = metric(result, "impact-ratio", "x")
    assert found.verdict == "insufficient"
    assert (found.estimate, found.people) == (None, None)
    assert result.too_small == (found,)
    assert metric(result, "impact-ratio", "f").verdict == "pass"
    assert result.verdict == "insufficient"


@pytest.mark.parametrize(
    ("unknown", "own", "verdict"),
    [([3, 9], "insufficient", "pass"), ([1_000, 4_000], "pass", "pass"), ([200, 4_800], "fail", "fail")],
)
def test_people_without_a_value_are_judged_where_there_are_enough(unknown: list[int], own: str, verdict: str) -> None:
    table = audience([[1_000, 4_000], [1_000, 4_000], unknown], groups=(*GROUPS, ("unknown",)))
    result = audit_lookalike([LookalikeTables(table)], AUDITED, TERMS)
    found = metric(result, "impact-ratio", "unknown")
    assert found.verdict == own
    assert (found in result.too_small) == (own == "insufficient")
    assert result.verdict == verdict


def test_many_people_without_a_value_who_cannot_be_judged_keep_the_whole_from_passing() -> None:
    table = audience([[500, 9_500], [500, 9_500], [0, 900]], groups=(*GROUPS, ("unknown",)))
    result = audit_lookalike([LookalikeTables(table)], AUDITED, TERMS)
    assert metric(result, "impact-ratio", "unknown").verdict == "insufficient"
    assert metric(result, "impact-ratio", "unknown").people is not None
    assert result.verdict == "insufficient"


def test_a_table_in_which_nobody_but_the_unknown_is_compared_passes_nothing() -> None:
    table = audience([[1_000, 4_000], [3, 9]], groups=(("m",), ("unknown",)))
    terms = replace(TERMS, references={("sex",): ("m",)})
    result = audit_lookalike([LookalikeTables(table)], AUDITED, terms)
    assert metric(result, "impact-ratio", "unknown").verdict == "insufficient"
    assert metric(result, "variation").verdict == "pass"
    assert result.verdict == "insufficient"


def test_nobody_of_a_large_group_is_a_fail_not_a_lack_of_data() -> None:
    result = audit_lookalike([LookalikeTables(audience([[1_000, 4_000], [0, 5_000]]))], AUDITED, TERMS)
    assert metric(result, "impact-ratio", "m").verdict == "fail"


def test_variation_alarms_at_ten_points() -> None:
    for counts, verdict in (([[500, 4_500], [500, 4_500]], "pass"), ([[900, 4_100], [100, 4_900]], "fail")):
        found = metric(audit_lookalike([LookalikeTables(audience(counts))], AUDITED, TERMS), "variation")
        assert found.verdict == verdict
    assert found.estimate == pytest.approx(0.4)
    noisy = audience([[30.0, 900.0], [20.0, 900.0]], std=40.0)
    hidden = metric(audit_lookalike([LookalikeTables(noisy)], AUDITED, TERMS), "variation")
    assert hidden.verdict == "insufficient"


def test_amplification_is_the_audiences_ratio_over_the_seeds() -> None:
    seeds = table([[200, 4_800], [180, 4_820]], (SEEDS, OTHERS))
    found = metric(
        audit_lookalike([LookalikeTables(audience([[1_000, 4_000], [300, 4_700]]), seeds)], AUDITED, TERMS),
        "amplification",
    )
    assert found.group == ("m",)
    assert found.reference == ("f",)
    assert found.estimate == pytest.approx(0.3 / 0.9)
    assert found.verdict == "fail"


def test_nobody_is_made_equal_by_being_reached_less() -> None:
    before, now = audience([[1_000, 4_000], [600, 4_400]]), audience([[600, 4_400], [590, 4_410]])
    result = audit_lookalike([LookalikeTables(now, previous=before)], AUDITED, TERMS)
    assert metric(result, "impact-ratio", "m").verdict == "pass"
    down = metric(result, "reach", "f")
    assert down.estimate == pytest.approx(0.6)
    assert down.verdict == "fail"
    assert metric(result, "reach", "m").verdict == "pass"


def test_responses_give_true_positive_rates_and_precision() -> None:
    responses = table([[600, 400, 400, 3_600], [300, 700, 700, 3_300]], RESPONSES)
    result = audit_lookalike(
        [LookalikeTables(audience([[1_000, 4_000], [1_000, 4_000]]), responses=responses)], AUDITED, TERMS
    )
    assert metric(result, "true-positive-rate", "m").estimate == pytest.approx((300 / 1_000) / (600 / 1_000))
    assert metric(result, "precision", "m").estimate == pytest.approx(0.5)
    assert metric(result, "precision", "m").verdict == "fail"
    assert metric(result, "impact-ratio", "m").verdict == "pass"


def test_uplift_tells_harm_from_benefit() -> None:
    uplift = table([[900, 2_100, 600, 2_400], [450, 2_550, 660, 2_340]], UPLIFT)
    result = audit_lookalike(
        [LookalikeTables(audience([[1_000, 4_000], [1_000, 4_000]]), uplift=uplift)], AUDITED, TERMS
    )
    assert metric(result, "uplift", "f").estimate == pytest.approx(0.1)
    assert metric(result, "uplift", "f").verdict == "pass"
    assert metric(result, "uplift", "m").estimate == pytest.approx(-0.07)
    assert metric(result, "uplift", "m").verdict == "fail"


def test_proxies_and_what_becomes_of_a_group_without_them() -> None:
    tables = LookalikeTables(
        audience([[1_000, 4_000], [500, 4_500]]),
        features={"height": table([[4_000, 1_000], [1_000, 4_000]], ("low", "high"))},
        without={"height": audience([[800, 4_200], [700, 4_300]])},
    )
    result = audit_lookalike([tables], AUDITED, TERMS)
    assert metric(result, "proxy", None, "height").verdict == "fail"
    changed = metric(result, "dropped-feature", "m", "height")
    assert changed.estimate == pytest.approx((7 / 8) / (1 / 2))
    assert changed.verdict is None


def test_what_an_audience_lacks_is_not_judged() -> None:
    result = audit_lookalike([LookalikeTables(audience([[1_000, 4_000], [1_000, 4_000]]))], AUDITED, TERMS)
    assert [each.metric for each in result.not_judged] == [
        "amplification",
        "reach",
        "true-positive-rate",
        "precision",
        "uplift",
        "proxy",
        "dropped-feature",
    ]


def test_a_named_reference_is_compared_with_and_not_judged() -> None:
    terms = AuditTerms(50, references={("sex",): ("m",)})
    result = audit_lookalike([LookalikeTables(audience([[1_000, 4_000], [900, 4_100]]))], AUDITED, terms)
    first, second = (each for each in result.metrics if each.name == "impact-ratio")
    assert (first.verdict, first.reference) == ("pass", ("m",))
    assert first.estimate == pytest.approx(1 / 0.9)
    assert second.verdict is None
    with pytest.raises(Defect):
        audit_lookalike(
            [LookalikeTables(audience([[1_000, 4_000], [900, 4_100]]))],
            AUDITED,
            AuditTerms(50, references={("sex",): ("x",)}),
        )


def test_two_attributes_make_groups_too_and_many_of_them_have_no_variation() -> None:
    groups = tuple((sex, age) for sex in "fm" for age in "abcdef")
    result = audit_lookalike([LookalikeTables(audience([[400, 1_600]] * 12, groups=groups))], AUDITED, TERMS)
    assert all(
        each.verdict == "pass" and each.attributes == ("sex", "age")
        for each in result.metrics
        if each.name == "impact-ratio"
    )
    assert "variation" in {each.metric for each in result.not_judged}


def test_simpsons_paradox_is_found_and_noise_is_not() -> None:
    """Women are chosen more often at either institution, and less often in all: they are where few are chosen."""
    north, south = np.array([[100, 3_900], [5, 995]]), np.array([[720, 280], [2_400, 1_600]])
    tables = [
        LookalikeTables(audience(counts, institution=name))
        for counts, name in ((north + south, None), (north, "north"), (south, "south"))
    ]
    found = audit_lookalike(tables, AUDITED, AuditTerms(5)).reversals
    assert [(each.institution, each.group, each.reference) for each in found] == [
        ("north", ("m",), ("f",)),
        ("south", ("m",), ("f",)),
    ]
    assert all(each.pooled > 1 > each.local for each in found)
    # 18 of the men in the north would be chosen at everybody's rate there
    assert [each.institution for each in audit_lookalike(tables, AUDITED, AuditTerms(50)).reversals] == ["south"]
    noisy = [replace(each, audience=replace(each.audience, std=400.0)) for each in tables]
    assert audit_lookalike(noisy, AUDITED, AuditTerms(5)).reversals == ()


def test_institutions_are_named_in_their_metrics() -> None:
    tables = [LookalikeTables(audience([[1_000, 4_000], [1_000, 4_000]], institution=name)) for name in (None, "north")]
    result = audit_lookalike(tables, AUDITED, TERMS)
    assert {each.institution for each in result.metrics} == {None, "north"}


def test_tables_that_do_not_belong_together_are_refused() -> None:
    fair = audience([[1_000, 4_000], [1_000, 4_000]])
    other = audience([[1_000, 4_000], [1_000, 4_000]], groups=(("x",), ("y",)))
    with pytest.raises(Defect):
        LookalikeTables(fair, previous=other)
    with pytest.raises(Defect):
        LookalikeTables(table([[1, 2], [3, 4]], ("yes", "no")))
    with pytest.raises(Defect):
        segments(beneficial=("nowhere",))
    with pytest.raises(Defect):
        LookalikeTables(fair, previous=replace(fair, institution="north"))


def test_thresholds_can_be_set_with_their_source_and_are_listed() -> None:
    own = Threshold(name="impact-ratio", limit=0.9, side="at least", source="our board")
    terms = AuditTerms(50, thresholds=thresholds_with(own))
    tables = [LookalikeTables(audience([[10_000, 40_000], [8_500, 41_500]]))]
    assert metric(audit_lookalike(tables, AUDITED, TERMS), "impact-ratio", "m").verdict == "pass"
    result = audit_lookalike(tables, AUDITED, terms)
    assert metric(result, "impact-ratio", "m").verdict == "fail"
    assert {each.name: each.source for each in result.thresholds}["impact-ratio"] == "our board"
    with pytest.raises(DataError, match="no threshold"):
        thresholds_with(Threshold(name="impact", limit=0.9, side="at least", source="our board"))
    with pytest.raises(DataError, match="no threshold"):
        thresholds_with(Threshold(name="impact-ratio", limit=0.9, side="at most", source="our board"))


def test_negative_and_huge_noise_never_breaks_an_audit() -> None:
    rng = np.random.default_rng(11)
    groups = (("f",), ("m",), ("unknown",))
    for _ in range(15):
        std = float(10 ** rng.uniform(0, 4))

        def of(*outcomes: str, std: float = std) -> GroupTable:
            return table(rng.normal(300, std, (3, len(outcomes))), outcomes, std=std, groups=groups)

        first = SegmentTables(of("a", "b", "c"), ("a",), ("b",), of("all"), of(*STABILITY))
        second = LookalikeTables(
            of(CHOSEN, REST),
            of(SEEDS, OTHERS),
            of(CHOSEN, REST),
            of(*RESPONSES),
            of(*UPLIFT),
            {"x": of("low", "high")},
            {"x": of(CHOSEN, REST)},
        )
        for result in (audit_segments([first], AUDITED, TERMS), audit_lookalike([second], AUDITED, TERMS)):
            assert result.to_bytes()
            assert std < 100 or result.verdict != "pass"
            assert all(math.isfinite(each.estimate) for each in result.metrics if each.estimate is not None)
