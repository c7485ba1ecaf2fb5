"""Facts: what the schema does not allow never becomes one, and two sources never blur."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from cohortium.governance.rules import FactError, Facts, fact_schema, read_facts


def test_every_fact_is_explained() -> None:
    schema = fact_schema()
    assert len(schema) == 107
    assert list(schema) == sorted(schema)
    for name, spec in schema.items():
        assert spec.meaning.endswith("."), name
        assert bool(spec.values) == (spec.kind == "text"), name
        assert not spec.integer or spec.kind == "number", name
        assert spec.may_be_none or spec.kind not in ("date", "reference"), name
        assert not spec.may_be_none or spec.kind in ("text", "date", "reference"), name


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("cohort.minor", 0, "there is no fact 'cohort.minor' — fix: did you mean 'cohort.minors'?"),
        ("cohort.minors", True, "wrong type"),
        ("cohort.minors", "0", "wrong type"),
        ("cohort.minors", False, "wrong type"),
        ("cohort.minors", -1, "out of range"),
        ("cohort.minors", 1.5, "has a fraction"),
        ("privacy.epsilon", float("nan"), "'privacy.epsilon' is not a number"),
        ("privacy.epsilon", float("inf"), "is not a number"),
        ("privacy.epsilon", 1e300, "out of range"),
        ("data.uses_ais", 1, "state true or false"),
        ("data.uses_ais", None, "state true or false"),
        ("use.decision", "Pricing", "is no choice — fix: did you mean 'pricing'?"),
        ("use.decision", False, "state one of its choices"),
        ("run.purpose", "dpv:Marketing", "is no choice — fix: did you mean"),
        ("docs.tia_ref", "", "or false if there is none"),
        ("docs.tia_ref", "  ", "or false if there is none"),
        ("docs.tia_ref", True, "or false if there is none"),
        ("model.expires_on", "soon", "is not a date"),
        ("model.expires_on", datetime(2027, 1, 1), "state a date"),
    ],
)
def test_a_value_that_the_schema_does_not_allow_is_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(FactError) as refused:
        Facts.of({name: value}, "our sheet")
    assert said in str(refused.value)
    assert str(refused.value).startswith("our sheet: facts")


def test_what_the_schema_allows_is_kept() -> None:
    stated = {
        "cohort": {"minors": 0},
        "privacy.epsilon": 1,
        "docs.tia_ref": False,
        "run.lawful_basis": False,
        "model.expires_on": "2027-01-31",
        "use.decision": "pricing",
    }
    facts = Facts.of(stated, "plan 7")
    assert facts.facts == {
        "cohort.minors": 0,
        "privacy.epsilon": 1,
        "docs.tia_ref": False,
        "run.lawful_basis": False,
        "model.expires_on": date(2027, 1, 31),
        "use.decision": "pricing",
    }
    assert facts.facts["docs.tia_ref"] is False
    assert set(facts.provenance.values()) == {"plan 7"}


def test_a_fact_needs_a_provenance() -> None:
    with pytest.raises(FactError, match="provenance"):
        Facts.of({"cohort.minors": 0}, " ")


def test_merging_keeps_every_provenance() -> None:
    plan = Facts.of({"privacy.epsilon": 1.0, "cohort.minors": 0}, "plan")
    ledger = Facts.of({"privacy.epsilon": 1, "log.cosigners": 2}, "ledger")
    both = Facts.merged(plan, ledger)
    assert both.facts == {"privacy.epsilon": 1.0, "cohort.minors": 0, "log.cosigners": 2}
    assert both.provenance == {"privacy.epsilon": "plan", "cohort.minors": "plan", "log.cosigners": "ledger"}
    assert Facts.merged().facts == {}


def test_two_values_for_one_fact_are_refused_without_telling_them() -> None:
    parts = [Facts.of({"cohort.minors": count}, source) for count, source in ((41_977, "consent"), (0, "our sheet"))]
    with pytest.raises(FactError) as refused:
        Facts.merged(*parts)
    assert str(refused.value) == (
        "fact 'cohort.minors': consent and our sheet state different values — fix: correct one of the two sources"
    )


def test_none_and_a_value_are_two_values() -> None:
    with pytest.raises(FactError, match="different values"):
        Facts.merged(Facts.of({"docs.tia_ref": False}, "a"), Facts.of({"docs.tia_ref": "tia-1"}, "b"))


def test_the_digest_is_of_values_and_provenance_and_of_no_order() -> None:
    one = Facts.of({"cohort.minors": 0, "log.cosigners": 2}, "a")
    assert one.digest == Facts.of({"log.cosigners": 2, "cohort.minors": 0}, "a").digest
    assert one.digest != Facts.of({"cohort.minors": 0, "log.cosigners": 2}, "b").digest
    assert one.digest != Facts.of({"cohort.minors": 1, "log.cosigners": 2}, "a").digest
    assert Facts.model_validate_json(one.to_bytes()) == one


def test_a_fact_without_a_source_is_no_document() -> None:
    with pytest.raises(ValueError, match="give every fact one source"):
        Facts.model_validate({"schema": "cohortium.facts/1", "facts": {"cohort.minors": 0}, "sources": {}})


@pytest.mark.parametrize("name", ["facts.toml", "facts.json"])
def test_a_sheet_is_read(tmp_path: Path, name: str) -> None:
    told = {"schema": "cohortium.fact-sheet/1", "provenance": "us", "facts": {"cohort": {"minors": 0}}}
    lines = 'schema = "cohortium.fact-sheet/1"\nprovenance = "us"\n[facts]\ncohort.minors = 0\n'
    (tmp_path / name).write_text(lines if name.endswith("toml") else json.dumps(told), encoding="utf-8")
    assert read_facts(tmp_path / name) == Facts.of({"cohort.minors": 0}, "us")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "schema =", "a.toml: not TOML"),
        ("a.json", "{", "a.json: not JSON"),
        ("a.json", "[]", "a.json: is no fact sheet"),
        ("a.toml", 'schema = "cohortium.fact-sheet/2"\nprovenance = "us"\n[facts]', "a.toml: schema: unknown schema"),
        ("a.toml", 'schema = "cohortium.fact-sheet/1"\n[facts]', "'provenance' is missing"),
        (
            "a.json",
            '{"schema": "cohortium.fact-sheet/1", "provenance": "us", "facts": {"privacy.epsilon": NaN}}',
            "NaN",
        ),
        ("a.toml", 'schema = "cohortium.fact-sheet/1"\nprovenance = "us"\n[facts]\nprivacy.epsilon = nan', "finite"),
    ],
)
def test_a_bad_sheet_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(FactError) as refused:
        read_facts(tmp_path / name)
    assert str(refused.value).startswith(str(tmp_path / name))
    assert said.replace("NaN", "is not a number") in str(refused.value).replace(str(tmp_path) + "/", "")


def test_a_sheet_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("gone.toml", "gone.json"):
        with pytest.raises(FactError, match=f"{name}.*check the path"):
            read_facts(tmp_path / name)
