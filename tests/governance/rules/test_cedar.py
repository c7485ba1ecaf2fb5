"""The Cedar export, and Cedar as an oracle: the same rules refuse, over thousands of random fact sheets."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import date
from typing import Any

import cedarpy
import pytest

from cohortium.governance.rules import (
    CedarExport,
    FactError,
    Facts,
    Pack,
    RuleError,
    Stage,
    Value,
    evaluate,
    export_cedar,
    fact_schema,
    parse_pack,
)

SHEETS, BATCH, WHOLE = 10_000, 1_000, 20
STAGES: tuple[Stage, ...] = ("admission", "activation")


@pytest.fixture(scope="module")
def export(all_packs: tuple[Pack, ...], late: date) -> CedarExport:
    return export_cedar(all_packs, late)


def drawer(packs: Sequence[Pack], rng: random.Random) -> dict[str, list[Value]]:
    """For every fact values to draw from: all choices; of numbers those at, and just beside, every limit."""
    found: dict[str, list[Value]] = {}
    for name, spec in fact_schema().items():
        beside: dict[str, list[Value]] = {
            "number": [0, 1, 1000],
            "bool": [True, False],
            "text": [*spec.values],
            "date": [date(2027, 1, 31)],
            "reference": ["one", "two"],
        }
        found[name] = [*beside[spec.kind], *([False] * spec.may_be_none)]
    for limit in (rule.limit for pack in packs for rule in pack.rules if rule.limit is not None):
        step = 1 if fact_schema()[limit.fact].integer else 1e-12
        found[limit.fact] += [limit.number - step, limit.number, limit.number + step]
    return found


def refusing(answer: cedarpy.AuthzResult) -> set[str]:
    assert answer.diagnostics.errors == []
    found = set(answer.diagnostics.id_annotations_by_reason.values())
    assert answer.allowed == (found == {"permit"})
    return found - {"permit"}


def test_the_policies_fit_their_schema(export: CedarExport, all_packs: tuple[Pack, ...], late: date) -> None:
    checked = cedarpy.validate_policies(export.policies, json.dumps(export.schema))
    assert checked.validation_passed, checked.errors
    in_force = [rule for pack in all_packs for rule in pack.rules if rule.refuses and rule.idle_on(late) is None]
    assert export.policies.count("forbid(") == len(in_force)
    assert all(f'@id("{rule.id}")' in export.policies for rule in in_force)


def test_cedar_and_we_refuse_by_the_same_rules(export: CedarExport, all_packs: tuple[Pack, ...], late: date) -> None:
    rng = random.Random(20261123)
    values, schema = drawer(all_packs, rng), json.dumps(export.schema)
    rules = [rule for pack in all_packs for rule in pack.rules if rule.refuses and rule.idle_on(late) is None]
    seen: set[str] = set()
    silent = 0
    for _ in range(SHEETS // BATCH):
        columns = [rng.choices(pool, k=BATCH) for pool in values.values()]
        sheets = [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]
        drawn = list(zip(sheets, rng.choices(STAGES, k=BATCH), strict=True))
        requests = [export.request(sheet, stage) for sheet, stage in drawn]
        answers = cedarpy.is_authorized_batch(requests, export.policies, [], schema=schema)
        for number, ((sheet, stage), answer) in enumerate(zip(drawn, answers, strict=True)):
            ours = {rule.id for rule in rules if rule.stage == stage and rule.kept(sheet) is not True}
            assert refusing(answer) == ours, sheet
            seen |= ours
            silent += not ours
            if number % (BATCH // WHOLE) == 0:
                decision = evaluate(all_packs, Facts.of(sheet, "drawn"), stage, late)
                assert {finding.rule for finding in decision.findings} == ours
    assert seen == {rule.id for rule in rules}, "some rules never refused, so nothing was shown of them"
    assert silent > SHEETS / 100


def test_a_clean_sheet_is_permitted(export: CedarExport, all_packs: tuple[Pack, ...]) -> None:
    sheet = {name: value for pack in all_packs for name, value in pack.sheet.items()}
    for stage in STAGES:
        answer = cedarpy.is_authorized(
            export.request(sheet, stage), export.policies, [], schema=json.dumps(export.schema)
        )
        assert refusing(answer) == set()


def test_without_a_fact_that_cannot_be_none_cedar_refuses_the_request(
    export: CedarExport, all_packs: tuple[Pack, ...]
) -> None:
    """The documented difference, first half; without its schema Cedar would skip the policy and permit."""
    sheet = {name: value for pack in all_packs for name, value in pack.sheet.items()}
    request = export.request(sheet, "admission")
    del request["context"]["cohort.objectors"]
    checked = cedarpy.is_authorized(request, export.policies, [], schema=json.dumps(export.schema))
    assert not checked.allowed
    assert "cohort.objectors" in checked.diagnostics.errors[0]
    assert cedarpy.is_authorized(request, export.policies, []).allowed


def test_cedar_takes_an_unknown_fact_for_none(export: CedarExport, all_packs: tuple[Pack, ...]) -> None:
    """The documented difference, second half: for us the basis is unknown, so Singapore's rule refuses."""
    singapore = [pack for pack in all_packs if pack.name == "sg"]
    made = export_cedar(singapore, singapore[0].as_of)
    sheet = dict(singapore[0].sheet)
    request = made.request({**sheet, "run.lawful_basis": False}, "admission")
    answer = cedarpy.is_authorized(request, made.policies, [], schema=json.dumps(made.schema))
    del sheet["run.lawful_basis"]
    ours = evaluate(singapore, Facts.of(sheet, "us"), "admission", singapore[0].as_of)
    assert refusing(answer) == set()
    assert {finding.rule for finding in ours.findings} == {"SG-PDPA-15A"}


def test_a_request_needs_every_fact(export: CedarExport) -> None:
    with pytest.raises(FactError, match="Cedar has no word for"):
        export.request({}, "admission")


@pytest.mark.parametrize(
    ("epsilon", "admitted"),
    [
        (2.0, True),
        (1.9999999999, True),
        (2.0000000001, False),
        (2.000000001, False),
        (2.0000000000000004, False),
        (1e12, False),
        (1e-12, True),
        (0, True),
    ],
)
def test_numbers_keep_their_order_beyond_cedars_four_places(tiny: Pack, epsilon: float, admitted: bool) -> None:
    made = export_cedar([tiny], tiny.as_of)
    sheet: dict[str, Any] = {**tiny.sheet, "privacy.epsilon": epsilon}
    answer = cedarpy.is_authorized(made.request(sheet, "admission"), made.policies, [], schema=json.dumps(made.schema))
    ours = evaluate([tiny], Facts.of(sheet, "us"), "admission", tiny.as_of)
    assert (answer.allowed, ours.admitted) == (admitted, admitted)


def test_a_limit_too_fine_for_the_encoding_is_refused(pack_text: str) -> None:
    fine = parse_pack(pack_text.replace("number = 2.0", "number = 2.0000000001"), "tiny.toml")
    with pytest.raises(RuleError, match="more than 9 decimal places"):
        export_cedar([fine], fine.as_of)


def test_rules_that_are_not_in_force_and_duties_are_left_out(tiny: Pack) -> None:
    made = export_cedar([tiny], tiny.as_of)
    assert "T-OBJECT" in made.policies
    assert "T-TRANSFER" not in made.policies
    assert "T-REPLY" not in made.policies
    assert set(made.schema[""]["actions"]) == {"admission"}
