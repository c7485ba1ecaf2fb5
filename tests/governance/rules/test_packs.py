"""The packs that ship: a rule fires where it should, alone, is silent where it should be, and refuses the unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_args

import pytest

from cohortium.governance.rules import (
    HOUSE,
    Clock,
    Facts,
    Pack,
    Rule,
    Stage,
    evaluate,
    fact_schema,
    load_packs,
    overdue,
    pack_names,
)

PACKS = load_packs(pack_names())
RULES = [pytest.param(pack, rule, id=rule.id) for pack in PACKS for rule in pack.rules]
REFUSING = [param for param in RULES if param.values[1].refuses]
DUTIES = [param for param in RULES if not param.values[1].refuses]
COUNTS = {
    "house": 9,
    "eu": 41,
    "uk": 9,
    "us": 8,
    "us-ca": 4,
    "us-co": 1,
    "us-ny": 2,
    "sg": 8,
    "th": 7,
    "sa": 6,
    "ae": 3,
    "bh": 3,
    "sharia": 2,
    "in": 6,
    "br": 6,
}

Reference = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]


def refusing(pack: Pack, facts: Mapping[str, Any], reference: Reference) -> set[str]:
    """The rules that these facts break, by the tests' own reading of expressions."""
    values, found = {**pack.sheet, **facts}, set()
    for rule in pack.rules:
        must = {rule.limit.op: [rule.limit.fact, rule.limit.number]} if rule.limit else rule.must
        applies = rule.applies is None or reference(rule.applies, values)
        if must is not None and applies and not reference(must, values):
            found.add(rule.id)
    return found


def test_all_rules_are_there() -> None:
    assert {pack.name: len(pack.rules) for pack in PACKS} == COUNTS
    assert sum(COUNTS.values()) == 115
    assert pack_names()[0] == HOUSE


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.name)
def test_a_pack_says_that_it_is_no_advice_and_marks_what_is_unverified(pack: Pack) -> None:
    assert pack.disclaimer == "not legal advice"
    for rule in pack.rules:
        assert ("unverified" in rule.mark) == (rule.confidence in ("C", "U"))
        assert rule.plain.endswith("."), rule.id
        assert rule.source or rule.confidence in ("C", "U", "house"), rule.id


@pytest.mark.parametrize(("pack", "rule"), RULES)
def test_the_passing_fixture_is_silent_where_the_rule_applies(pack: Pack, rule: Rule, reference: Reference) -> None:
    assert refusing(pack, rule.passing.facts, reference) == set()
    assert rule.applies is None or reference(rule.applies, {**pack.sheet, **rule.passing.facts})


@pytest.mark.parametrize(("pack", "rule"), REFUSING)
def test_the_failing_fixture_fires_its_rule_and_no_other(pack: Pack, rule: Rule, reference: Reference) -> None:
    assert refusing(pack, rule.failing.facts, reference) == {rule.id, *rule.also}
    decision = evaluate([pack], Facts.of({**pack.sheet, **rule.failing.facts}, "fixture"), rule.stage, pack.as_of)
    if rule.idle_on(pack.as_of) is None:
        assert rule.id in {finding.rule for finding in decision.findings if finding.outcome == "broken"}


def test_only_a_derogation_cannot_but_break_two_rules() -> None:
    assert {rule.id: rule.also for pack in PACKS for rule in pack.rules if rule.also} == {
        "EU-GDPR-49": ("EU-GDPR-44",)  # a derogation is also none of the tools of Art. 46
    }


@pytest.mark.parametrize(("pack", "rule"), DUTIES)
def test_a_duty_is_owed_and_its_fixtures_tell_late_from_in_time(pack: Pack, rule: Rule) -> None:
    for fixture, late in ((rule.passing, False), (rule.failing, True)):
        assert fixture.since is not None
        assert fixture.done is not None
        assert overdue(rule, fixture.since, fixture.done, fixture.before) is late
        facts = Facts.of({**pack.sheet, **fixture.facts}, "fixture")
        owed = {duty.rule: duty for duty in evaluate([pack], facts, rule.stage, date(2027, 12, 31)).duties}
        if rule.idle_on(date(2027, 12, 31)) is None:
            assert owed[rule.id].certain
            assert owed[rule.id].clocks == rule.clocks


@pytest.mark.parametrize(("pack", "rule"), REFUSING)
def test_a_rule_refuses_when_nothing_is_known(pack: Pack, rule: Rule, late: date) -> None:
    decision = evaluate([pack], Facts.of({}, "nobody"), rule.stage, late)
    unknown = {finding.rule for finding in decision.findings if finding.outcome == "unknown"}
    assert (rule.id in unknown) == (rule.idle_on(late) is None)
    assert rule.kept({}) is None


@pytest.mark.parametrize(("pack", "rule"), REFUSING)
def test_a_rule_refuses_when_one_fact_that_matters_is_missing(pack: Pack, rule: Rule) -> None:
    """Take any fact away from the failing fixture: the rule still refuses, if only because it cannot tell."""
    values = {**pack.sheet, **rule.failing.facts}
    for name in rule.reads:
        assert rule.kept({other: value for other, value in values.items() if other != name}) is not True, name


def test_every_stage_has_rules_and_every_fact_a_rule() -> None:
    assert {rule.stage for pack in PACKS for rule in pack.rules} == set(get_args(Stage))
    assert {name for pack in PACKS for rule in pack.rules for name in rule.reads} == set(fact_schema())


def test_dates_decide() -> None:
    """Proposed rules never apply, undated ones not yet, dated ones from their day."""
    idle = {rule.id: rule.idle_on(date(2026, 11, 23)) for pack in PACKS for rule in pack.rules}
    assert {name for name, why in idle.items() if why == "proposed"} == {"EU-FIDA", "SG-AIRG"}
    assert {name for name, why in idle.items() if why == "not dated"} == {"EU-PSR-DASH"}
    assert idle["EU-AIA-27"] == "not yet in force"
    assert idle["EU-CCD2-18"] is None
    india = next(rule for pack in PACKS for rule in pack.rules if rule.id == "IN-DPDP-9")
    assert india.idle_on(date(2027, 5, 12)) == "not yet in force"
    assert india.idle_on(date(2027, 5, 13)) is None


START = datetime(2026, 1, 30, 9, tzinfo=UTC)  # a Friday


@pytest.mark.parametrize(
    ("clock", "due"),
    [
        ({"amount": 24, "unit": "hours"}, START + timedelta(hours=24)),
        ({"amount": 0, "unit": "hours"}, START),
        ({"amount": 30, "unit": "days"}, datetime(2026, 3, 1, 9, tzinfo=UTC)),
        ({"amount": 1, "unit": "business_days"}, datetime(2026, 2, 2, 9, tzinfo=UTC)),
        ({"amount": 15, "unit": "business_days"}, datetime(2026, 2, 20, 9, tzinfo=UTC)),
        ({"amount": 1, "unit": "months"}, datetime(2026, 2, 28, 9, tzinfo=UTC)),
        ({"amount": 11, "unit": "months"}, datetime(2026, 12, 30, 9, tzinfo=UTC)),
        ({"amount": 12, "unit": "months"}, datetime(2027, 1, 30, 9, tzinfo=UTC)),
        ({"before": "next_round"}, START + timedelta(hours=5)),
    ],
)
def test_a_clock_runs_out(clock: dict[str, Any], due: datetime) -> None:
    made = Clock.model_validate({"since": "withdrawal", **clock})
    assert made.due(START, START + timedelta(hours=5)) == due


def test_a_clock_that_waits_for_an_event_without_a_date_has_no_end() -> None:
    assert Clock(since="withdrawal", before="next_round").due(START) is None


@pytest.mark.parametrize(
    "clock", [{}, {"amount": 1}, {"unit": "days"}, {"amount": 1, "unit": "days", "before": "offer"}]
)
def test_a_clock_has_one_end(clock: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="state one of the two"):
        Clock.model_validate({"since": "withdrawal", **clock})
