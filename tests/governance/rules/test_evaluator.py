"""Decisions: unknown refuses, the strictest limit wins, every finding explains itself, and one word leaves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.governance.rules import (
    Decision,
    Facts,
    Limit,
    Pack,
    RuleError,
    combine_limits,
    evaluate,
    load_packs,
    parse_pack,
)

DAY = date(2026, 11, 23)
KNOWN: dict[str, Any] = {
    "run.purpose": "dpv:DirectMarketing",
    "cohort.objectors": 0,
    "docs.tia_ref": "tia-1",
    "transfer.crosses_border": False,
    "privacy.epsilon": 1.0,
}
VALUES: dict[str, tuple[Any, ...]] = {
    "run.purpose": ("dpv:DirectMarketing", "dpv:ResearchAndDevelopment"),
    "cohort.objectors": (0, 3),
    "docs.tia_ref": ("tia-1", False),
    "transfer.crosses_border": (True, False),
    "privacy.epsilon": (2.0, 2.5),
}
LATE = date(2027, 12, 31)


def limit(number: float, *rules: str, fact: str = "privacy.epsilon", op: str = "<=", stage: str = "admission") -> Limit:
    return Limit.model_validate(
        {"stage": stage, "fact": fact, "op": op, "number": number, "rules": rules or ("X-ONE",)}
    )


def decide(pack: Pack, today: date = DAY, agreed: tuple[Limit, ...] = (), **changes: Any) -> Decision:
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return evaluate([pack], Facts.of({**KNOWN, **values}, "sheet 7"), "admission", today, agreed=agreed)


def test_a_clean_run_is_admitted(tiny: Pack) -> None:
    decision = decide(tiny)
    assert decision.admitted
    assert decision.findings == ()
    assert decision.duties == ()
    assert [(idle.rule, idle.why) for idle in decision.not_in_force] == [("T-TRANSFER", "not yet in force")]
    assert decision.packs == {"tiny": tiny.digest}


def test_a_finding_explains_itself(tiny: Pack) -> None:
    (finding,) = decide(tiny, cohort__objectors=3).findings
    assert (finding.rule, finding.pack, finding.article, finding.plain) == (
        "T-OBJECT",
        "tiny",
        "Law 1",
        "No objectors.",
    )
    assert (finding.effect, finding.outcome, finding.confidence) == ("deny", "broken", "C, unverified")
    assert [(seen.fact, seen.value, seen.provenance) for seen in finding.seen] == [
        ("run.purpose", "dpv:DirectMarketing", "sheet 7"),
        ("cohort.objectors", 3, "sheet 7"),
    ]
    assert finding.change == "needed: cohort.objectors is at most 0"


def test_a_missing_fact_refuses_and_says_who_knows_it(tiny: Pack) -> None:
    facts = Facts.of({name: value for name, value in KNOWN.items() if name != "cohort.objectors"}, "sheet 7")
    decision = evaluate([tiny], facts, "admission", DAY)
    (finding,) = decision.findings
    assert not decision.admitted
    assert finding.outcome == "unknown"
    assert finding.seen[1].model_dump() == {"fact": "cohort.objectors", "value": None, "provenance": None}
    assert finding.change == "state cohort.objectors (consent); needed: cohort.objectors is at most 0"


def test_an_unknown_applies_refuses(tiny: Pack) -> None:
    facts = Facts.of({"cohort.objectors": 3, "privacy.epsilon": 1.0}, "sheet 7")
    (finding,) = evaluate([tiny], facts, "admission", DAY).findings
    assert (finding.rule, finding.outcome) == ("T-OBJECT", "unknown")


def test_only_what_is_left_to_do_is_needed(all_packs: tuple[Pack, ...]) -> None:
    eu = next(pack for pack in all_packs if pack.name == "eu")
    facts = Facts.of({**eu.sheet, "transfer.crosses_border": True, "docs.tia_ref": False}, "us")
    (finding,) = evaluate([eu], facts, "admission", DAY).findings
    assert finding.rule == "EU-GDPR-44"
    assert finding.change == "needed: transfer.tool is adequacy or docs.tia_ref is given"


def test_a_rule_applies_from_its_day_to_its_last(tiny: Pack) -> None:
    def refused(day: date) -> set[str]:
        changes = {"cohort__objectors": 3, "transfer__crosses_border": True, "docs__tia_ref": False}
        return {finding.rule for finding in decide(tiny, day, **changes).findings}

    assert refused(date(2019, 12, 31)) == set()
    assert refused(date(2027, 5, 12)) == {"T-OBJECT"}
    assert refused(date(2027, 5, 13)) == {"T-OBJECT", "T-TRANSFER"}
    assert refused(date(2030, 12, 31)) == {"T-OBJECT", "T-TRANSFER"}
    assert refused(date(2031, 1, 1)) == {"T-TRANSFER"}
    assert ("T-OBJECT", "expired") in [(i.rule, i.why) for i in decide(tiny, date(2031, 1, 1)).not_in_force]


def test_only_rules_of_the_stage_are_evaluated(tiny: Pack) -> None:
    decision = evaluate([tiny], Facts.of({}, "nobody"), "activation", DAY)
    assert decision.admitted
    assert decision.not_in_force == ()


def test_a_duty_never_refuses_and_says_whether_it_is_certain(tiny: Pack) -> None:
    (duty,) = decide(tiny, transfer__crosses_border=True).duties
    assert (duty.rule, duty.obligation, duty.deadline, duty.certain) == ("T-REPLY", "Answer.", "1 month", True)
    assert (duty.clocks[0].amount, duty.clocks[0].unit, duty.confidence) == (1, "months", "U, unverified")
    unknown = Facts.of({name: KNOWN[name] for name in KNOWN if name != "transfer.crosses_border"}, "sheet")
    decision = evaluate([tiny], unknown, "admission", DAY)
    assert decision.admitted
    assert [duty.certain for duty in decision.duties] == [False]


def test_no_pack_is_not_a_way_to_be_admitted() -> None:
    with pytest.raises(RuleError, match="no pack of rules is in force"):
        evaluate([], Facts.of({}, "nobody"), "admission", DAY)


@settings(max_examples=100)
@given(known=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}))
def test_what_is_admitted_is_admitted_under_every_completion(tiny: Pack, known: Mapping[str, Any]) -> None:
    decision = evaluate([tiny], Facts.of(known, "drawn"), "admission", LATE)
    missing = [name for name in VALUES if name not in known]
    all_of_them = [
        evaluate([tiny], Facts.of({**known, **dict(zip(missing, values, strict=True))}, "drawn"), "admission", LATE)
        for values in itertools.product(*(VALUES[name] for name in missing))
    ]
    assert not decision.admitted or all(one.admitted for one in all_of_them)
    for finding in decision.findings:
        if finding.outcome == "broken":
            assert all(finding.rule in {other.rule for other in one.findings} for one in all_of_them)
    if not missing:
        assert not [finding for finding in decision.findings if finding.outcome == "unknown"]


def test_a_finding_more_is_never_an_admission(all_packs: tuple[Pack, ...], late: date) -> None:
    """Taking a fact away from a clean sheet never admits more, and taking all away admits nothing."""
    sheet = {name: value for pack in all_packs for name, value in pack.sheet.items()}
    assert evaluate(all_packs, Facts.of(sheet, "sheet"), "admission", late).admitted
    empty = evaluate(all_packs, Facts.of({}, "nobody"), "admission", late)
    in_force = {
        rule.id
        for pack in all_packs
        for rule in pack.rules
        if rule.refuses and rule.stage == "admission" and rule.idle_on(late) is None
    }
    assert {finding.rule for finding in empty.findings} == in_force


def test_the_strictest_limit_of_packs_wins(pack_text: str, tiny: Pack) -> None:
    changed = pack_text.replace('name = "tiny"', 'name = "tiny-two"').replace('"T-', '"U-').replace('"Law ', '"Act ')
    strict = parse_pack(changed.replace("number = 2.0", "number = 1.5").replace("= 2.0 }", "= 1.5 }"), "two.toml")
    packs = load_packs([], own=[tiny, strict])[1:]
    for order in (packs, packs[::-1]):
        decision = evaluate(order, Facts.of({**KNOWN, "privacy.epsilon": 1.7}, "sheet"), "admission", DAY)
        assert decision.limits == (limit(1.5, "U-EPSILON"),)
        assert [finding.rule for finding in decision.findings] == ["U-EPSILON"]


def test_own_limits_are_stricter_and_never_looser_than_the_houses(pack_text: str) -> None:
    own = parse_pack(pack_text.replace("number = 2.0", "number = 30.0"), "own.toml")
    decision = evaluate(load_packs([], own=[own]), Facts.of({"privacy.epsilon": 3.5}, "sheet"), "admission", DAY)
    assert limit(3.0, "X-EPS-CAP") in decision.limits
    assert {finding.rule for finding in decision.findings if finding.outcome == "broken"} == {"X-EPS-CAP"}


def test_a_limit_that_does_not_apply_is_none(all_packs: tuple[Pack, ...]) -> None:
    eu = next(pack for pack in all_packs if pack.name == "eu")

    def limited(**uses: bool) -> list[str]:
        values = {**eu.sheet, **{f"data.{name}": value for name, value in uses.items()}}
        return [found.fact for found in evaluate([eu], Facts.of(values, "us"), "admission", DAY).limits]

    assert limited(uses_ais=False) == []
    assert limited(uses_ais=True) == ["ais.pulls_24h", "ais.sca_age_days"]
    missing = {name: value for name, value in eu.sheet.items() if name != "data.uses_ais"}
    unknown = evaluate([eu], Facts.of(missing, "us"), "admission", DAY)
    assert [found.fact for found in unknown.limits] == ["ais.pulls_24h", "ais.sca_age_days"]


def test_a_stricter_limit_of_another_institution_is_tested(tiny: Pack) -> None:
    assert decide(tiny, agreed=(limit(1.0, "X-ONE"),)).admitted
    decision = decide(tiny, agreed=(limit(0.5, "X-ONE"), limit(9.0, "X-TWO")))
    (finding,) = decision.findings
    assert (finding.rule, finding.pack, finding.outcome) == ("X-ONE", "agreed", "broken")
    assert finding.change == "needed: privacy.epsilon is at most 0.5"
    assert decision.limits == (limit(0.5, "X-ONE"),)


def test_a_looser_limit_of_another_institution_changes_nothing(tiny: Pack) -> None:
    decision = decide(tiny, agreed=(limit(9.0, "X-TWO"), limit(0.0, "X-THREE", stage="activation")))
    assert decision.admitted
    assert decision.limits == (limit(2.0, "T-EPSILON"),)


def test_an_agreed_limit_on_an_unknown_fact_refuses(tiny: Pack) -> None:
    (finding,) = decide(tiny, agreed=(limit(50, fact="privacy.min_cell", op=">="),)).findings
    assert (finding.outcome, finding.change) == (
        "unknown",
        "state privacy.min_cell (plan); needed: privacy.min_cell is at least 50",
    )


LIMITS = st.lists(
    st.builds(
        lambda number, rule, fact, op: limit(number, rule, fact=fact, op=op),
        st.sampled_from([0.5, 1.0, 2.0, 3.0]),
        st.sampled_from(["X-ONE", "X-TWO", "X-THREE"]),
        st.sampled_from(["privacy.epsilon", "privacy.min_cell"]),
        st.sampled_from(["<=", ">="]),
    ),
    max_size=6,
)


@settings(max_examples=60)
@given(one=LIMITS, two=LIMITS, three=LIMITS)
def test_combining_is_the_strictest_in_any_order(one: list[Limit], two: list[Limit], three: list[Limit]) -> None:
    together = combine_limits(one, two, three)
    assert together == combine_limits(combine_limits(three, two), one) == combine_limits(together, together)
    for found in together:
        same = [other for other in (*one, *two, *three) if (other.fact, other.op) == (found.fact, found.op)]
        strictest = min if found.op == "<=" else max
        assert found.number == strictest(other.number for other in same)
        assert set(found.rules) == {rule for other in same if other.number == found.number for rule in other.rules}
    assert len({(found.fact, found.op) for found in together}) == len(together)


def test_others_see_one_word_and_an_id(tiny: Pack) -> None:
    admitted, declined = decide(tiny), decide(tiny, cohort__objectors=3)
    assert admitted.public.model_dump() == {"decision": "admitted", "id": admitted.digest}
    assert declined.public.model_dump() == {"decision": "declined", "id": declined.digest}


def test_an_id_cannot_be_guessed_back_to_the_facts(tiny: Pack) -> None:
    one, two = decide(tiny, cohort__objectors=3), decide(tiny, cohort__objectors=3)
    assert one.id != two.id
    assert len({one.salt, two.salt}) == 2
    assert one.model_copy(update={"salt": two.salt}).to_bytes() == two.to_bytes()


def test_a_decision_is_repeated_from_its_salt_and_read_back(tiny: Pack) -> None:
    facts = Facts.of({**KNOWN, "cohort.objectors": 3, "transfer.crosses_border": True}, "sheet 7")
    first = evaluate([tiny], facts, "admission", LATE)
    again = evaluate([tiny], facts, "admission", LATE, salt=first.salt)
    assert again.to_bytes() == first.to_bytes()
    assert Decision.model_validate_json(first.to_bytes()).digest == first.id
    assert evaluate([tiny], facts, "admission", LATE + timedelta(1), salt=first.salt).id != first.id


def test_the_facts_and_packs_are_bound_by_their_digests(tiny: Pack) -> None:
    facts = Facts.of(KNOWN, "sheet 7")
    decision = evaluate([tiny], facts, "admission", DAY)
    assert (decision.facts, decision.packs) == (facts.digest, {"tiny": tiny.digest})


def test_the_reference_agrees_on_a_broken_rule(tiny: Pack, reference: Callable[..., bool]) -> None:
    rule = tiny.rules[0]
    assert rule.must is not None
    assert rule.kept(KNOWN) is reference(rule.must, KNOWN) is True
