"""`cohortium rules` from the outside: what it says of packs and facts, its exit codes, and what a mistake leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cedarpy
import pytest
from typer.testing import CliRunner

from cohortium.cli.rules import app
from cohortium.governance.rules import Decision, FactError, RuleError, load_packs, pack_names
from cohortium.study.errors import CohortiumError, OutputError

OWN = """
schema = "cohortium.rules/1"
name = "north"
title = "North Bank"
as_of = 2026-11-23
disclaimer = "not legal advice"

[sheet]
privacy.epsilon = 0.5

[[rules]]
id = "NORTH-EPS"
article = "Board decision 12"
plain = "One person's epsilon stays at or below 1."
stage = "admission"
effect = "limit"
limit = { fact = "privacy.epsilon", op = "<=", number = 1.0 }
status = "house"
confidence = "house"
passing = { facts = { privacy.epsilon = 1.0 } }
failing = { facts = { privacy.epsilon = 1.1 } }
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str


@pytest.fixture
def rules() -> Callable[..., Outcome]:
    """Exit code and output of `cohortium rules ...`; a caller's mistake is raised, as the root command gets it."""

    def run(*words: object) -> Outcome:
        done = CliRunner().invoke(app, list(map(str, words)))
        if isinstance(done.exception, CohortiumError):
            raise done.exception
        return Outcome(done.exit_code, done.output)

    return run


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "north.toml"
    path.write_text(OWN, encoding="utf-8")
    return path


@pytest.fixture
def sheet(tmp_path: Path) -> Callable[..., Path]:
    """A sheet under which the house's and the EU's rules are silent, with facts changed or, by None, left out."""

    def write(name: str = "facts.json", **changes: object) -> Path:
        facts = {name: value for pack in load_packs(["eu"]) for name, value in pack.sheet.items()}
        facts |= {name.replace("__", "."): value for name, value in changes.items()}
        told = {name: value for name, value in facts.items() if value is not None}
        document = {"schema": "cohortium.fact-sheet/1", "provenance": "North's privacy office", "facts": told}
        (tmp_path / name).write_text(json.dumps(document, default=str), encoding="utf-8")
        return tmp_path / name

    return write


def test_list_filters_by_pack_stage_and_confidence(rules: Callable[..., Outcome]) -> None:
    everything = json.loads(rules("list", "--json").out)
    assert len(everything) == 115
    chosen = json.loads(rules("list", "--pack", "eu", "--stage", "admission", "--confidence", "U", "--json").out)
    assert [entry["id"] for entry in chosen] == ["EU-AIA-10-5", "EU-PSR-DASH", "EU-FIDA"]
    assert all(entry["unverified"] for entry in chosen)
    gulf = rules("list", "--pack", "gulf").out
    assert "GCC-BH-15            admission  deny       U, unverified Files of several data managers" in gulf
    assert gulf.splitlines()[-1] == "23 rules of house, ae, bh, sa, sharia; not legal advice"


def test_explain_shows_the_whole_rule(rules: Callable[..., Outcome]) -> None:
    told = rules("explain", "EU-GDPR-49").out
    for part in (
        "Transfers that repeat do not rest on the derogation of explicit consent.",
        "GDPR Art. 49(1)(a); EDPB Guidelines 2/2018",
        "not legal advice",
        "when transfer.crosses_border is true",
        "transfer.tool is not derogation",
        'transfer.crosses_border = true, transfer.tool = "derogation"',
        "C, unverified",
        "What the transfer rests on. (charter)",
    ):
        assert part in told
    duty = rules("explain", "EU-GDPR-12-3").out
    assert "Tell the person what was done. (1 month, 2 more if the person is told why)" in duty
    assert json.loads(rules("explain", "EU-GDPR-49", "--json").out)["also"] == ["EU-GDPR-44"]


def test_explain_names_the_nearest_rule(rules: Callable[..., Outcome]) -> None:
    with pytest.raises(RuleError, match="there is no rule 'EU-GDPR-449' — fix: did you mean 'EU-GDPR-49'"):
        rules("explain", "EU-GDPR-449")


def test_check_admits_a_clean_sheet(rules: Callable[..., Outcome], sheet: Callable[..., Path]) -> None:
    done = rules("check", sheet(), "--stage", "admission", "--pack", "eu", "--today", "2026-11-23")
    assert done.code == 0
    assert done.out.startswith("admission on 2026-11-23: admitted (not legal advice)")
    assert "limit: privacy.epsilon <= 3 (X-EPS-CAP)" in done.out
    assert "owed: Leave the person out of every round" in done.out
    assert "not applied: EU-FIDA, proposed" in done.out


def test_check_declines_with_rule_article_fact_value_and_what_would_change_it(
    rules: Callable[..., Outcome], sheet: Callable[..., Path]
) -> None:
    changed = sheet(cohort__minors=7, docs__dpia_ref=None)
    done = rules("check", changed, "--stage", "admission", "--pack", "eu", "--today", "2026-11-23")
    assert done.code == 1
    for line in (
        "admission on 2026-11-23: declined (not legal advice)",
        "EU-GDPR-8 (GDPR Art. 8, Recitals 38 and 71; C, unverified): broken",
        "  cohort.minors = 7, by North's privacy office",
        "  what would change it: needed: cohort.minors is at most 0",
        "  docs.dpia_ref = unknown",
        "  what would change it: state docs.dpia_ref (declared); needed: docs.dpia_ref is given",
    ):
        assert line in done.out.splitlines()
    assert done.out.count("what would change it") == 2


def test_check_as_json_is_the_decision(rules: Callable[..., Outcome], sheet: Callable[..., Path]) -> None:
    done = rules("check", sheet(cohort__minors=7), "--stage", "admission", "--pack", "eu", "--json")
    told = json.loads(done.out)
    assert done.code == 1
    name = told.pop("id")
    assert Decision.model_validate(told).id == name


def test_check_takes_own_packs_and_several_sheets(
    rules: Callable[..., Outcome], sheet: Callable[..., Path], own: Path, tmp_path: Path
) -> None:
    rest, ledger = sheet(privacy__epsilon=None), tmp_path / "ledger.toml"
    ledger.write_text(
        'schema = "cohortium.fact-sheet/1"\nprovenance = "ledger"\n[facts]\nprivacy.epsilon = 2.0\n', encoding="utf-8"
    )
    words = ("--stage", "admission", "--pack", "eu", "--today", "2026-11-23")
    assert rules("check", rest, ledger, *words).code == 0
    done = rules("check", rest, ledger, *words, "--own", own)
    assert done.code == 1
    assert "NORTH-EPS (Board decision 12; house): broken" in done.out
    assert "limit: privacy.epsilon <= 1 (NORTH-EPS)" in done.out


def test_check_names_what_is_wrong_with_a_sheet(
    rules: Callable[..., Outcome], sheet: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(FactError, match=r"did you mean 'cohort\.minors'"):
        rules("check", sheet(cohort__minor=0), "--stage", "admission")
    other = sheet("other.json", cohort__minors=5)
    with pytest.raises(FactError, match=r"fact 'cohort\.minors'"):
        rules("check", sheet(), other.rename(tmp_path / "third.json"), "--stage", "admission")


def test_the_day_decides(rules: Callable[..., Outcome], sheet: Callable[..., Path]) -> None:
    changed = sheet(use__decision="creditworthiness", docs__fria_ref=False)
    words = ("check", changed, "--stage", "admission", "--pack", "eu", "--today")
    assert rules(*words, "2027-12-01").code == 0
    assert "EU-AIA-27" in rules(*words, "2027-12-02").out
    assert rules(*words, "2027-12-02").code == 1


def test_test_runs_the_fixtures_that_ship(rules: Callable[..., Outcome]) -> None:
    assert rules("test") == Outcome(0, "115 rules in 15 packs: every fixture holds\n")
    told = json.loads(rules("test", "--json").out)
    assert told == {"packs": {p.name: p.digest for p in load_packs(pack_names())}, "rules": 115, "problems": []}


def test_test_runs_own_packs_and_lists_every_problem(rules: Callable[..., Outcome], own: Path) -> None:
    assert rules("test", own) == Outcome(0, "1 rules in 1 packs: every fixture holds\n")
    bent = OWN.replace("privacy.epsilon = 1.0 }", "privacy.epsilon = 1.2 }").replace("= 1.1", "= 0.1")
    own.write_text(bent, encoding="utf-8")
    done = rules("test", own)
    assert done.code == 1
    assert "rule 'NORTH-EPS': passing: fires NORTH-EPS" in done.out
    assert "rule 'NORTH-EPS': failing: does not break the rule" in done.out
    assert done.out.splitlines()[-1] == "1 rules in 1 packs: 2 fixtures do NOT hold"


def test_test_refuses_packs_that_overlap_with_those_that_ship(rules: Callable[..., Outcome], own: Path) -> None:
    own.write_text(OWN.replace("NORTH-EPS", "X-EPS-CAP"), encoding="utf-8")
    with pytest.raises(RuleError, match="packs 'house' and 'north' both have a rule 'X-EPS-CAP'"):
        rules("test", own)


def test_a_pack_that_cannot_be_read_is_named(rules: Callable[..., Outcome], tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=r"gone\.toml: cannot be read"):
        rules("test", tmp_path / "gone.toml")
    with pytest.raises(RuleError, match="there is no pack 'ue'"):
        rules("list", "--pack", "ue")


def test_export_writes_what_cedar_takes_and_overwrites_nothing(rules: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "cedar"
    words = ("export", "--cedar", folder, "--pack", "eu", "--today", "2026-11-23")
    assert rules(*words).code == 0
    policies, schema = ((folder / name).read_text(encoding="utf-8") for name in ("policies.cedar", "schema.json"))
    assert cedarpy.validate_policies(policies, schema).validation_passed
    assert '@id("EU-GDPR-49")' in policies
    assert "EU-AIA-27" not in policies
    with pytest.raises(OutputError, match="is there already"):
        rules(*words)
