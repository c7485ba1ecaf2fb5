"""An audit's plan: what it audits is stated whole, groups are protected features alone, every look has its share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cohortium.study.audit_plan import AuditPlan
from cohortium.study.audit_tables import AuditTables, load_audit_tables
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError, PlanError
from cohortium.study.plans import load_plan, parse_plan

DIGEST = "sha256:" + "a" * 64


def feature(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "table": "people", "column": name, **more}


CONTRACT = Contract.model_validate(
    {
        "schema": "cohortium.contract/1",
        "name": "bank",
        "purposes": ["research"],
        "window": {"start": "2024-01-01", "end": "2025-01-01"},
        "tables": [{"name": "people", "kind": "customers", "customer": "id"}],
        "features": [
            feature("spend", kind="numeric", low=0, high=100, missing=0, block="value"),
            feature("channel", kind="category", categories=["web", "shop"], block="channel"),
            feature("sex", kind="category", categories=["f", "m"], protected=True),
            feature("age", kind="numeric", low=18, high=90, missing=18, protected=True),
            feature("region", kind="category", categories=["north", "south"], protected=True),
            feature("treated", kind="category", categories=["loan", "card", "none"], protected=True),
            feature("answer", kind="category", categories=["yes", "no"], protected=True),
        ],
    }
)
SEGMENTS = {"of": "segments", "model": DIGEST, "segments": 5, "attributes": ["sex"]}
AUDIENCE = {"of": "audience", "model": DIGEST, "level": "narrow", "seed": "valued", "attributes": ["sex"]}
COLUMN = {"of": "column", "column": "treated", "attributes": ["sex", "age"], "cuts": {"age": [30, 65]}}


def plan(audit: dict[str, Any], **changes: Any) -> AuditPlan:
    made = parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "audit",
            "name": "audit",
            "purpose": "research",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": CONTRACT.digest,
            "expires": "2998-12-31",
            "trust": "local",
            "epsilon": 0.5,
            "delta": 1e-6,
            "audit": audit,
            **changes,
        }
    )
    assert isinstance(made, AuditPlan)
    return made


@pytest.mark.parametrize("audit", [SEGMENTS, AUDIENCE, COLUMN], ids=lambda audit: audit["of"])
def test_each_subject_fits_the_contract_and_keeps_its_digest(audit: dict[str, Any]) -> None:
    made = plan(audit)
    made.check_contract(CONTRACT)
    assert parse_plan(json.loads(made.to_bytes())).digest == made.digest


def test_everything_that_can_be_asked_at_once() -> None:
    audit = {
        **SEGMENTS,
        "attributes": ["sex", "age", "region"],
        "intersections": "all",
        "cuts": {"age": [30], "spend": [10, 20]},
        "label": "answer",
        "positive": "yes",
        "beneficial": [1, 2],
        "costly": [5],
        "distance": True,
        "proxies": ["spend", "channel"],
    }
    shares = {"outcomes": 40, "labels": 20, "distances": 20, "proxies": 20}
    made = plan(audit, shares=shares)
    made.check_contract(CONTRACT)
    assert made.audit.pairs == (("sex", "age"), ("sex", "region"), ("age", "region"))


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "segments without a bundle": ({**SEGMENTS, "model": None}, "needs model"),
    "segments without their number": ({**SEGMENTS, "segments": None}, "needs segments"),
    "an audience without a level": ({**AUDIENCE, "level": None}, "needs level"),
    "an audience without its seed": ({**AUDIENCE, "seed": None}, "needs seed"),
    "a column without a name": ({**COLUMN, "column": None}, "needs column"),
    "a column of a model": ({**COLUMN, "model": DIGEST}, "has no model"),
    "segments of a column": ({**SEGMENTS, "column": "treated"}, "has no column"),
    "chosen segments": ({**SEGMENTS, "chosen": ["loan"]}, "has no chosen"),
    "no attributes": ({**SEGMENTS, "attributes": []}, ""),
    "an attribute twice": ({**SEGMENTS, "attributes": ["sex", "sex"]}, "'sex' repeats"),
    "a pair with a stranger": ({**SEGMENTS, "intersections": [["sex", "age"]]}, "no such pair"),
    "a pair with itself": ({**SEGMENTS, "intersections": [["sex", "sex"]]}, "no such pair"),
    "a pair twice": (
        {**COLUMN, "intersections": [["sex", "age"], ["age", "sex"]]},
        "intersections must be distinct",
    ),
    "cuts that do not ascend": ({**COLUMN, "cuts": {"age": [65, 30]}}, "must ascend"),
    "an outcome by itself": ({**COLUMN, "attributes": ["treated"]}, "cannot be an attribute"),
    "a label without its yes": ({**COLUMN, "label": "answer"}, "belong together"),
    "a label that is the outcome": ({**COLUMN, "label": "treated", "positive": "loan"}, "are the same"),
    "distances of a column": ({**COLUMN, "distance": True}, "of segments alone"),
    "a segment that is not there": ({**SEGMENTS, "beneficial": [6]}, "use 1 to 5"),
    "a segment by name": ({**SEGMENTS, "costly": ["one"]}, "use 1 to 5"),
    "a category by number": ({**COLUMN, "costly": [1]}, "write them as texts"),
    "good and bad at once": ({**SEGMENTS, "beneficial": [1], "costly": [1]}, "stands twice"),
    "a treatment of the chosen": ({**COLUMN, "chosen": ["loan"], "beneficial": ["card"]}, "without chosen"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_subject_that_does_not_hold_together_is_refused(case: str) -> None:
    audit, said = MALFORMED[case]
    with pytest.raises(PlanError) as refusal:
        plan({key: value for key, value in audit.items() if value is not None})
    text = f"{refusal.value.message}; {refusal.value.fix}"
    assert said in text


MISFIT: dict[str, tuple[dict[str, Any], str]] = {
    "an attribute that is trained on": ({**SEGMENTS, "attributes": ["channel"]}, "'channel' is no protected feature"),
    "an attribute that is not there": ({**SEGMENTS, "attributes": ["regoin"]}, "did you mean 'region'"),
    "a number without cuts": ({**SEGMENTS, "attributes": ["age"]}, "add cuts.age"),
    "cuts of a category": ({**SEGMENTS, "cuts": {"sex": [1]}}, "'sex' is no number"),
    "a cut at a bound": ({**COLUMN, "cuts": {"age": [18]}}, "within its bounds"),
    "a cut at the other bound": ({**COLUMN, "cuts": {"age": [30, 90]}}, "within its bounds"),
    "an outcome that is trained on": ({**COLUMN, "column": "channel"}, "no protected category"),
    "an outcome that is a number": (
        {"of": "column", "column": "age", "attributes": ["sex"]},
        "no protected category",
    ),
    "a chosen stranger": ({**COLUMN, "chosen": ["lawn"]}, "did you mean 'loan'"),
    "a beneficial stranger": ({**COLUMN, "beneficial": ["lawn"]}, "did you mean 'loan'"),
    "a reference that is no group": ({**COLUMN, "reference": {"sex": "x"}}, "'x' is no category of 'sex'"),
    "a reference among numbers": ({**COLUMN, "reference": {"age": "30"}}, "no protected category"),
    "a yes that is no answer": ({**COLUMN, "label": "answer", "positive": "maybe"}, "'maybe' is no category"),
    "a protected proxy": ({**SEGMENTS, "proxies": ["region"]}, "no feature that is trained on"),
}


@pytest.mark.parametrize("case", MISFIT)
def test_a_plan_that_does_not_fit_the_contract_is_refused_with_the_fix(case: str) -> None:
    audit, said = MISFIT[case]
    labels, proxies = (50 if name in audit else 0 for name in ("label", "proxies"))
    shares = {"outcomes": 100 - labels - proxies, "labels": labels, "proxies": proxies}
    made = plan(audit, shares=shares)
    with pytest.raises(PlanError) as refusal:
        made.check_contract(CONTRACT)
    assert said in str(refusal.value)
    assert "plan: audit" in str(refusal.value)


@pytest.mark.parametrize(
    ("audit", "shares", "said"),
    [
        (SEGMENTS, {"outcomes": 90}, "add up to 90"),
        (SEGMENTS, {"outcomes": 0, "labels": 100}, "outcomes need"),
        (SEGMENTS, {"outcomes": 50, "labels": 50}, "pays for what is not asked"),
        ({**SEGMENTS, "distance": True}, {"outcomes": 100}, "shares.distances"),
        ({**SEGMENTS, "proxies": ["spend"]}, {"outcomes": 100}, "shares.proxies"),
        ({**SEGMENTS, "label": "answer", "positive": "yes"}, {"outcomes": 100}, "shares.labels"),
    ],
)
def test_shares_are_for_exactly_what_is_asked(audit: dict[str, Any], shares: dict[str, int], said: str) -> None:
    with pytest.raises(PlanError) as refusal:
        plan(audit, shares=shares)
    assert said in f"{refusal.value.message}; {refusal.value.fix}"


def test_a_plan_file_names_its_contract_and_refuses_a_bundle_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "contract.toml").write_text(
        'schema = "cohortium.contract/1"\nname = "bank"\npurposes = ["research"]\n'
        "[window]\nstart = 2024-01-01\nend = 2025-01-01\n"
        '[[tables]]\nname = "people"\nkind = "customers"\ncustomer = "id"\n'
        '[[features]]\nname = "spend"\ntable = "people"\nkind = "numeric"\ncolumn = "spend"\nlow = 0\nhigh = 100\n'
        'missing = 0\nblock = "value"\n'
        '[[features]]\nname = "sex"\ntable = "people"\nkind = "category"\ncolumn = "sex"\ncategories = ["f", "m"]\n'
        "protected = true\n",
        encoding="utf-8",
    )
    text = (
        'schema = "cohortium.plan/1"\nstudy = "audit"\nname = "audit"\npurpose = "research"\nlawful_basis = "consent"\n'
        'regions = ["EU"]\ncontract = "contract.toml"\nexpires = 2098-12-31\nepsilon = 0.5\ndelta = 1e-6\n'
        '[audit]\nof = "segments"\nsegments = 3\nattributes = ["sex"]\nmodel = "MODEL"\n'
    )
    (tmp_path / "plan.toml").write_text(text.replace("MODEL", DIGEST), encoding="utf-8")
    made, _ = load_plan(tmp_path / "plan.toml")
    assert isinstance(made, AuditPlan)
    assert made.audit.model == DIGEST
    (tmp_path / "bundle.json").write_text("{}", encoding="utf-8")
    (tmp_path / "plan.toml").write_text(text.replace("MODEL", "bundle.json"), encoding="utf-8")
    with pytest.raises(DataError, match="bundle"):
        load_plan(tmp_path / "plan.toml")


# --- what is made known ----------------------------------------------------------------------------------------------

TABLE = {
    "kind": "outcomes",
    "attributes": ["sex"],
    "groups": [["f"], ["m"]],
    "outcomes": ["chosen", "rest"],
    "counts": [[120.5, None], [99.0, 210.0]],
    "totals": [160.0, 309.0],
    "std": 4.5,
}


def tables(trust: str = "local", **changes: Any) -> dict[str, Any]:
    made = plan(COLUMN, trust=trust)
    document = {"schema": "cohortium.audit/1", "plan": made.to_json(), "run": "0" * 32, "institutions": 3}
    return {**document, "tables": [{**TABLE, **changes}], "releases": []}


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = AuditTables.model_validate(tables(institution="7"))
    (tmp_path / "audit.json").write_bytes(made.to_bytes())
    assert load_audit_tables(tmp_path / "audit.json") == made
    assert made.tables[0].counts[0][1] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": [[1.0, 2.0]]},
        {"counts": [[1.0], [2.0]]},
        {"counts": [[1.0, float("inf")], [1.0, 1.0]]},
        {"groups": [["f", "x"], ["m", "x"]]},
        {"totals": [1.0]},
        {"kind": "proxies"},
        {"feature": "spend"},
        {"std": -1.0},
    ],
    ids=str,
)
def test_tables_that_do_not_hold_together_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(json.dumps(tables(**changes)), encoding="utf-8")
    with pytest.raises(DataError):
        load_audit_tables(tmp_path / "audit.json")


def test_an_institution_s_own_table_needs_its_own_full_noise(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(json.dumps(tables("distributed", institution="7")), encoding="utf-8")
    with pytest.raises(DataError):
        load_audit_tables(tmp_path / "audit.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_audit_tables(tmp_path / "nothing.json")
