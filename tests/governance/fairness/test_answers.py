"""An audit's answers become one result: tables by what the plan audits, references, the minimum cell, own tables."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest

from cohortium.governance.fairness import FairnessResult, judge_answers
from cohortium.models.auditing import GroupAnswers, released_tables
from cohortium.models.group_table import GroupTable
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.audit_tables import AuditTables
from cohortium.study.errors import DataError
from cohortium.study.plans import parse_plan

DIGEST = "sha256:" + "a" * 64
DAY = date(2026, 11, 23)


def plan(audit: dict[str, Any], **more: Any) -> AuditPlan:
    document = {
        "schema": "cohortium.plan/1",
        "study": "audit",
        "name": "audit",
        "purpose": "Marketing",
        "lawful_basis": "consent",
        "regions": ["EU"],
        "contract": DIGEST,
        "expires": "2026-12-31",
        "epsilon": 0.5,
        "delta": 1e-6,
        "audit": {"attributes": ["sex"], **audit},
        **more,
    }
    parsed = parse_plan(document)
    assert isinstance(parsed, AuditPlan)
    return parsed


def audience_plan(**more: Any) -> AuditPlan:
    return plan({"of": "audience", "model": DIGEST, "level": "broad", "seed": "valued", **more})


def answers(outcomes: tuple[str, ...], counts: list[list[float]], institution: str | None = None) -> GroupAnswers:
    groups = (("f",), ("m",), ("unknown",))
    return GroupAnswers(GroupTable(("sex",), groups, outcomes, np.array(counts, dtype=float), 5.0, institution))


AUDIENCE = ("chosen", "rest", "seed")


def judged(result: FairnessResult, name: str, group: str, institution: str | None = None) -> Any:
    (found,) = [m for m in result.metrics if (m.name, m.group, m.institution) == (name, (group,), institution)]
    return found


def test_an_audience_is_judged_with_its_level_its_seed_and_its_day() -> None:
    counts = [[1_000.0, 4_000.0, 300.0], [650.0, 4_350.0, 300.0], [2.0, -3.0, 1.0]]
    result = judge_answers(audience_plan(), [answers(AUDIENCE, counts)], {}, DAY)
    assert (result.subject, result.audited, result.level, result.made) == ("lookalike", DIGEST, "broad", DAY)
    assert (result.plan, result.epsilon, result.minimum_cell) == (audience_plan().digest, 0.5, 100)
    assert judged(result, "impact-ratio", "m").verdict == "fail"
    assert judged(result, "impact-ratio", "m").estimate == pytest.approx(0.65)
    assert judged(result, "amplification", "m").verdict == "fail"  # 0.65 of the odds, of seeds as many
    assert result.verdict == "fail"


def test_the_seed_is_not_among_the_eligible() -> None:
    few, many = ([[1_000.0, 4_000.0, seeds], [1_000.0, 4_000.0, 300.0], [0.0, 0.0, 0.0]] for seeds in (300.0, 4_000.0))
    results = [judge_answers(audience_plan(), [answers(AUDIENCE, counts)], {}, DAY) for counts in (few, many)]
    ratios = [judged(result, "impact-ratio", "f") for result in results]
    assert ratios[0] == ratios[1]


def test_a_named_reference_is_what_others_are_compared_with() -> None:
    counts = [[1_000.0, 4_000.0, 0.0], [500.0, 4_500.0, 0.0], [0.0, 0.0, 0.0]]
    result = judge_answers(audience_plan(reference={"sex": "m"}), [answers(AUDIENCE, counts)], {}, DAY)
    assert judged(result, "impact-ratio", "f").estimate == pytest.approx(2.0)
    assert judged(result, "impact-ratio", "f").reference == ("m",)


def test_what_is_below_the_plans_minimum_cell_is_not_shown() -> None:
    counts = [[1_000.0, 4_000.0, 0.0], [30.0, 60.0, 0.0], [0.0, 0.0, 0.0]]
    small = judge_answers(audience_plan(), [answers(AUDIENCE, counts)], {}, DAY)
    assert judged(small, "impact-ratio", "m").people is None
    assert judged(small, "impact-ratio", "m").estimate is None
    assert small.verdict == "insufficient"


def test_own_tables_are_judged_beside_the_pooled_ones() -> None:
    fair, unfair = ([[1_000.0, 4_000.0, 0.0], [m, 5_000.0 - m, 0.0], [0.0, 0.0, 0.0]] for m in (1_000.0, 500.0))
    own = {"north": [answers(AUDIENCE, unfair, "north")]}
    result = judge_answers(audience_plan(), [answers(AUDIENCE, fair)], own, DAY)
    assert judged(result, "impact-ratio", "m").verdict == "pass"
    assert judged(result, "impact-ratio", "m", "north").verdict == "fail"
    assert result.verdict == "fail"


def test_segments_are_judged_by_their_treatment() -> None:
    names = ("segment 1", "segment 2")
    counts = [[1_000.0, 4_000.0], [500.0, 4_500.0], [0.0, 0.0]]
    segments = plan({"of": "segments", "model": DIGEST, "segments": 2, "beneficial": [1], "costly": [2]})
    result = judge_answers(segments, [answers(names, counts)], {}, DAY)
    assert (result.subject, result.level) == ("segments", None)
    assert judged(result, "beneficial-treatment", "m").estimate == pytest.approx(0.5)
    assert judged(result, "costly-treatment", "m").estimate == pytest.approx(0.8 / 0.9)


def test_a_column_with_chosen_categories_is_an_audience_without_seeds() -> None:
    column = plan({"of": "column", "column": "offered", "chosen": ["yes"]})
    counts = [[1_000.0, 4_000.0, 7.0], [500.0, 4_500.0, 7.0], [0.0, 0.0, 0.0]]
    result = judge_answers(column, [answers(("chosen", "rest", "unknown"), counts)], {}, DAY)
    assert judged(result, "impact-ratio", "m").estimate == pytest.approx(0.5)
    assert [one.metric for one in result.not_judged if one.metric == "amplification"] == ["amplification"]
    assert result.audited.startswith("sha256:")


def test_without_noise_no_epsilon_is_stated() -> None:
    counts = [[1_000.0, 4_000.0, 0.0], [1_000.0, 4_000.0, 0.0], [0.0, 0.0, 0.0]]
    bare = plan({"of": "audience", "model": DIGEST, "level": "broad", "seed": "valued"}, trust="unsafe-none")
    assert judge_answers(bare, [answers(AUDIENCE, counts)], {}, DAY).epsilon is None


def earlier(counts: list[list[float]], **changes: Any) -> AuditTables:
    plan = audience_plan()
    return AuditTables(
        plan=plan,
        run="0" * 32,
        institutions=3,
        tables=tuple(released_tables([answers(changes.get("outcomes", AUDIENCE), counts)], plan.min_cell)),
        releases=(),
    )


def test_nobody_is_made_equal_by_being_reached_less() -> None:
    before = earlier([[2_000.0, 8_000.0, 0.0], [1_000.0, 9_000.0, 0.0], [10.0, 20.0, 0.0]])
    now = [[1_000.0, 9_000.0, 0.0], [1_000.0, 9_000.0, 0.0], [10.0, 20.0, 0.0]]
    result = judge_answers(audience_plan(), [answers(AUDIENCE, now)], {}, DAY, before)
    assert judged(result, "reach", "f").verdict == "fail"
    assert judged(result, "reach", "f").estimate == pytest.approx(0.5)
    assert judged(result, "reach", "m").verdict == "pass"
    assert judged(result, "reach", "unknown").verdict == "insufficient"
    assert judged(result, "impact-ratio", "f").verdict == "pass"
    assert result.verdict == "fail"


def test_an_earlier_audit_that_was_asked_otherwise_is_refused() -> None:
    now = [answers(AUDIENCE, [[1_000.0, 9_000.0, 0.0], [1_000.0, 9_000.0, 0.0], [0.0, 0.0, 0.0]])]
    counts = [[2_000.0, 8_000.0], [1_000.0, 9_000.0], [0.0, 0.0]]
    with pytest.raises(DataError, match="has no table of an audience by sex in these groups"):
        judge_answers(audience_plan(), now, {}, DAY, earlier(counts, outcomes=("segment 1", "segment 2")))
    segments = plan({"of": "segments", "model": DIGEST, "segments": 2})
    names = ("segment 1", "segment 2")
    with pytest.raises(DataError, match="compared with audiences alone"):
        judge_answers(segments, [answers(names, counts)], {}, DAY, earlier(counts, outcomes=names))
