"""Two audits side by side: that a mitigation worked is said when the audit after it passes, and never otherwise."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pytest

from cohortium.governance.fairness import (
    CHOSEN,
    REST,
    Audited,
    AuditTerms,
    Comparison,
    Cost,
    FairnessResult,
    Figure,
    LookalikeTables,
    SegmentTables,
    Threshold,
    audit_lookalike,
    audit_segments,
    compare,
    lift_cost,
    segment_costs,
    thresholds_with,
)
from cohortium.models.group_table import GroupTable
from cohortium.study.bundle import AxisScale, Bundle, Segment
from cohortium.study.errors import DataError
from cohortium.study.reach import CurvePoint, Measured, ReachCurve, ReachLevel
from cohortium.study.segment_plan import SegmentPlan

GROUPS = (("f",), ("m",))
FAIR = [[1000.0, 9000.0], [1000.0, 9000.0]]
BIASED = [[500.0, 9500.0], [1000.0, 9000.0]]
UNCLEAR = [[80.0, 920.0], [100.0, 900.0]]


def audit(
    counts: list[list[float]], *, terms: AuditTerms | None = None, level: str = "broad", **more: Any
) -> FairnessResult:
    table = GroupTable(("sex",), GROUPS, (CHOSEN, REST), np.array(counts), 3.0)
    audited = Audited("sha256:m", "sha256:p", 0.5, 1e-6, date(2026, 11, 23), level)
    own = terms or AuditTerms(minimum_cell=50, references={("sex",): ("m",)})
    return audit_lookalike([LookalikeTables(table, **more)], audited, own)


def change_of(found: Comparison, name: str = "impact-ratio") -> str:
    (pair,) = [pair for pair in found.pairs if pair.metric.name == name and pair.metric.group in (("f",), None)]
    return pair.change


def test_the_tables_of_these_tests_have_the_verdicts_they_are_named_for() -> None:
    """Of the ratio of the women's rate to the men's."""
    verdicts = [audit(counts).metrics[0].verdict for counts in (FAIR, BIASED, UNCLEAR)]
    assert verdicts == ["pass", "fail", "inconclusive"]


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (BIASED, FAIR, "reached"),
        (UNCLEAR, FAIR, "reached"),
        (FAIR, FAIR, "kept"),
        (FAIR, UNCLEAR, "lost"),
        (FAIR, BIASED, "broken"),
        (BIASED, BIASED, "failing"),
        (UNCLEAR, BIASED, "failing"),
        (BIASED, UNCLEAR, "open"),
        (UNCLEAR, UNCLEAR, "open"),
    ],
)
def test_how_a_metric_changed_is_told_by_its_two_verdicts(before: Any, after: Any, change: str) -> None:
    assert change_of(compare(audit(before), audit(after), "fewer features")) == change


def test_it_worked_when_everything_passes_after_and_did_not_before() -> None:
    found = compare(audit(BIASED), audit(FAIR), "fewer features")
    assert (found.before.verdict, found.after.verdict) == ("fail", "pass")
    assert found.worked
    assert "It worked" in found.to_text()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (BIASED, UNCLEAR, "It is not shown that it worked: the audit after it is 'inconclusive'"),
        (BIASED, BIASED, "It is not shown that it worked: the audit after it is 'fail'"),
        (FAIR, BIASED, "It is not shown that it worked: the audit after it is 'fail'"),
        (FAIR, FAIR, "There was nothing to mend"),
    ],
)
def test_nothing_else_is_called_a_success(before: Any, after: Any, said: str) -> None:
    found = compare(audit(before), audit(after), "fewer features")
    assert not found.worked
    text = found.to_text()
    assert said in text
    assert "It worked" not in text


def test_what_is_not_audited_again_keeps_a_mitigation_from_having_worked() -> None:
    """Fewer groups, fewer metrics: the audit after passes, and proves less."""
    seeds = GroupTable(("sex",), GROUPS, ("seed", "others"), np.array([[500.0, 9500.0], [500.0, 9500.0]]), 3.0)
    before, after = audit(BIASED, seeds=seeds), audit(FAIR)
    assert after.verdict == "pass"
    found = compare(before, after, "fewer features")
    assert {pair.metric.name for pair in found.of("not audited")} == {"amplification"}
    assert not found.worked
    text = found.to_text()
    assert "1 of the metrics judged before are not judged again" in text
    assert "then nothing: NOT AUDITED again" in text
    assert compare(after, before, "more metrics").of("not audited") == ()


def proxies(*features: str) -> dict[str, GroupTable]:
    counts = np.array([[900.0, 100.0], [100.0, 900.0]])
    return {name: GroupTable(("sex",), GROUPS, ("low", "high"), counts, 3.0) for name in features}


def test_that_a_left_out_feature_is_a_proxy_need_not_be_asked_again() -> None:
    before, after = audit(BIASED, features=proxies("area")), audit(FAIR)
    assert compare(before, after, "no area").worked is False
    found = compare(before, after, "no area", without=["area"])
    (pair,) = found.of("left out")
    assert (pair.metric.name, pair.metric.outcome, found.without) == ("proxy", "area", ("area",))
    assert found.worked
    text = found.to_text()
    assert "Features left out: area." in text
    assert "fail, then nothing: the feature is left out" in text
    for without in ([], ["card"]):
        assert not compare(before, after, "no area", without=without).worked
    raw = found.to_json()
    raw["without"] = []
    with pytest.raises(ValueError, match="left out for no reason"):
        Comparison.model_validate(raw)


def test_a_left_out_feature_that_is_asked_again_is_judged_like_any_other() -> None:
    """Who asks for it gets its verdict: the audit does not know what the model reads."""
    asked = audit(FAIR, features=proxies("area"))
    found = compare(audit(BIASED, features=proxies("area")), asked, "no area", without=["area"])
    assert found.after.verdict == "fail"
    assert not found.worked
    assert found.of("left out") == ()


def test_the_text_says_first_what_got_worse_with_both_intervals() -> None:
    found = compare(audit(FAIR), audit(BIASED), "other features")
    lines = found.to_text().splitlines()
    worse = lines.index("Worse than before:")
    assert worse < lines.index("Metrics, estimate (interval) and verdict before, then after:")
    before, after = (
        next(m for m in result.metrics if m.name == "impact-ratio") for result in (audit(FAIR), audit(BIASED))
    )
    shown = [f"{m.estimate:.2f} ({m.low:.2f} to {m.high:.2f}) {m.verdict}" for m in (before, after)]
    assert f"impact-ratio, sex of f: {shown[0]}, then {shown[1]}: passed before, FAILS now" in lines[worse + 1]
    assert "Its cost was not given." in lines
    assert lines[-1].endswith("the best looks too good.")


@pytest.mark.parametrize(
    ("what", "after"),
    [
        ("level", audit(FAIR, level="narrow")),
        ("alpha", audit(FAIR, terms=AuditTerms(minimum_cell=50, alpha=0.1, references={("sex",): ("m",)}))),
        ("minimum_cell", audit(FAIR, terms=AuditTerms(minimum_cell=60, references={("sex",): ("m",)}))),
        (
            "the threshold of impact-ratio",
            audit(
                FAIR,
                terms=AuditTerms(
                    minimum_cell=50,
                    references={("sex",): ("m",)},
                    thresholds=thresholds_with(
                        Threshold(name="impact-ratio", limit=0.5, side="at least", source="somebody")
                    ),
                ),
            ),
        ),
    ],
)
def test_audits_that_were_not_asked_alike_are_not_compared(what: str, after: FairnessResult) -> None:
    with pytest.raises(DataError, match=f"differ in {what}"):
        compare(audit(BIASED), after, "another question")


def test_another_reference_makes_another_metric() -> None:
    best = audit(FAIR, terms=AuditTerms(minimum_cell=50))
    found = compare(audit(BIASED), best, "another reference")
    assert not found.worked
    assert "impact-ratio" in {pair.metric.name for pair in found.of("not audited")}


def _all_that_failed(raw: dict[str, Any]) -> None:
    raw["pairs"] = [pair for pair in raw["pairs"] if pair["before"]["verdict"] != "fail"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: raw["pairs"][0]["before"].update(verdict="pass"),
        lambda raw: raw["pairs"][0]["after"].update(low=0.1),
        lambda raw: raw["after"].update(verdict="inconclusive"),
        lambda raw: raw["before"].update(verdict="pass"),
        _all_that_failed,
        lambda raw: raw["pairs"][0]["after"].update(name="reach"),
        lambda raw: raw["pairs"][0].update(before=None, after=None),
        lambda raw: raw.update(thresholds=[]),
        lambda raw: raw.update(worked=True),
    ],
)
def test_a_document_whose_verdicts_do_not_follow_is_refused(edit: Callable[[dict[str, Any]], None]) -> None:
    found = compare(audit(BIASED), audit(FAIR), "fewer features")
    raw = found.to_json()
    assert raw["pairs"][0]["before"]["verdict"] == "fail"
    assert Comparison.model_validate(raw).digest == found.digest
    edit(raw)
    with pytest.raises(ValueError, match="validation error"):
        Comparison.model_validate(raw)


# --- cost ------------------------------------------------------------------------------------------------------------


def curve(*lifts: tuple[float, float, float] | None) -> ReachCurve:
    points, levels = [], []
    for index, lift in enumerate(lifts):
        people = Measured(value=100.0 * (index + 1), low=90.0, high=100.0 * (index + 1) + 9)
        shown = None if lift is None else Measured(low=lift[0], value=lift[1], high=lift[2])
        points.append(CurvePoint(cutoff=1.0 - index, people=people, share=0.1, lift=shown))
        levels.append(ReachLevel(name=("narrow", "broad")[index], point=points[-1]))
    return ReachCurve(eligible=None, points=tuple(points), levels=(ReachLevel(name="tiny", point=None), *levels))


def test_the_lift_of_a_level_is_that_of_the_released_curves() -> None:
    first, second = curve((3.0, 3.2, 3.4), (2.0, 2.2, 2.4)), curve((2.5, 2.7, 2.9), (1.9, 2.1, 2.3))
    narrow, broad = (lift_cost(first, second, level) for level in ("narrow", "broad"))
    assert narrow.before == Figure(value=3.2, low=3.0, high=3.4)
    assert narrow.after == Figure(value=2.7, low=2.5, high=2.9)
    assert (narrow.difference, broad.difference) == ("lower", "not shown")
    assert lift_cost(second, first, "narrow").difference == "higher"
    text = compare(audit(BIASED), audit(FAIR), "fewer features", [narrow, broad]).to_text()
    assert "lift of the level 'narrow': 3.20 (3.00 to 3.40) before, 2.70 (2.50 to 2.90) after; it is lower" in text
    assert "2.10 (1.90 to 2.30) after; no difference is shown" in text


def test_a_lift_that_was_suppressed_is_not_shown_and_a_level_that_is_missing_is_refused() -> None:
    hidden = lift_cost(curve(None), curve((2.0, 2.1, 2.2)), "narrow")
    assert hidden.before is None
    assert hidden.difference is None
    text = compare(audit(BIASED), audit(FAIR), "fewer features", [hidden]).to_text()
    assert "no number before, 2.10 (2.00 to 2.20) after; without two intervals" in text
    assert lift_cost(curve(None), curve((2.0, 2.1, 2.2)), "tiny").after is None
    with pytest.raises(DataError, match="no level 'wide'"):
        lift_cost(curve(None), curve(None), "wide")


def bundle(segments: int, explained: float | None) -> Bundle:
    plan = SegmentPlan.model_validate(
        {
            "schema": "cohortium.plan/1",
            "name": "k",
            "purpose": "research",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": "sha256:" + "1" * 64,
            "expires": "2099-12-31",
            "epsilon": 1.0,
            "delta": 1e-6,
            "segments": {"k": segments},
        }
    )
    made = [
        Segment(id=i + 1, name="s", centre=(0.0,), size=None if i == segments - 1 else 90.0, size_std=1.0)
        for i in range(segments)
    ]
    scaler = (AxisScale(feature="spend", log=False, low=0.0, high=1.0),)
    return Bundle(
        plan=plan, run="0" * 32, institutions=3, scaler=scaler, segments=tuple(made), customers=1.0,
        explained=explained, k_choices=(), rfm=None, releases=(),
    )  # fmt: skip


def segment_audit(counts: list[list[float]]) -> FairnessResult:
    names = tuple(f"segment {number}" for number in range(1, len(counts[0]) + 1))
    table = GroupTable(("sex",), GROUPS, names, np.array(counts), 3.0)
    audited = Audited("sha256:b", "sha256:p", 0.5, 1e-6, date(2026, 11, 23))
    return audit_segments([SegmentTables(table)], audited, AuditTerms(minimum_cell=50))


def test_bundles_of_different_k_are_compared_by_what_does_not_depend_on_which_segment_is_which() -> None:
    before = segment_audit([[4000.0, 100, 900], [100.0, 4000, 900]])
    after = segment_audit([[2500.0, 2500], [2500.0, 2500]])
    costs = segment_costs(bundle(4, 0.75), bundle(3, 0.5))
    found = compare(before, after, "two segments for three", costs)
    assert change_of(found, "leakage") == "reached"
    assert change_of(found, "balance") == "described"
    assert "representation" in {metric.name for metric in before.metrics}
    assert "representation" not in {pair.metric.name for pair in found.pairs}
    assert found.worked
    assert [(cost.before, cost.after) for cost in costs] == [
        (Figure(value=0.75), Figure(value=0.5)),
        (Figure(value=3.0), Figure(value=2.0)),
    ]
    assert {cost.difference for cost in costs} == {None}, "an estimate without an interval shows nothing"
    assert ": 0.75 before, 0.5 after; without two intervals" in found.to_text()
    assert segment_costs(bundle(4, None), bundle(3, 0.5))[0] == Cost(
        name=costs[0].name, before=None, after=Figure(value=0.5)
    )
