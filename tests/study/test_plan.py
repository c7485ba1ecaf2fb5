"""Plans: read strictly, one line for every mistake, one digest for everything that was agreed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.simulations.bank_world import load_bank_world_contract
from cohortium.study.canonical import digest_json
from cohortium.study.contract import Contract
from cohortium.study.errors import ContractError, PlanError
from cohortium.study.plan import Plan
from cohortium.study.plans import load_plan, parse_plan
from cohortium.study.segment_plan import SegmentPlan

MakePlan = Callable[..., Plan]


def document(plan: Plan, **changes: Any) -> dict[str, Any]:
    """The plan as JSON types with top-level keys changed; None takes a key away."""
    return {key: value for key, value in {**plan.to_json(), **changes}.items() if value is not None}


# --- features left out -----------------------------------------------------------------------------------------------


def test_a_plan_uses_every_training_feature_that_it_does_not_leave_out(
    make_plan: MakePlan, small_contract: Contract
) -> None:
    plan = make_plan(without=["spend"])
    plan.check_contract(small_contract)
    assert [feature.name for feature in plan.features(small_contract)] == ["visits", "score"]
    assert plan.distance_features(small_contract) == ("visits", "score")
    assert make_plan().features(small_contract) == small_contract.training_features
    assert make_plan().to_json()["without"] == []
    assert make_plan(without=[]).digest == make_plan().digest != plan.digest


@pytest.mark.parametrize("study", ["segments", "encoder", "lookalike"])
@pytest.mark.parametrize(
    ("without", "message", "fix"),
    [
        (["spent"], "'spent' is no feature that is trained on", "did you mean 'spend'?"),
        (["zzz"], "'zzz' is no feature that is trained on", "use one of visits, spend, score"),
        (["visits", "spend", "score"], "no feature is left to train on", "leave out fewer"),
    ],
    ids=str,
)
def test_what_is_left_out_must_be_there_and_something_must_stay(
    study: str, without: list[str], message: str, fix: str, make_plan: MakePlan, small_contract: Contract
) -> None:
    own: dict[str, Any] = {"encoder": {}, "lookalike": {"model": f"sha256:{0:064d}", "lookalike": {"seed": "valued"}}}
    common = document(make_plan(), segments=None, shares=None)
    changes = {**common, **own[study], "study": study} if study in own else document(make_plan())
    with pytest.raises(PlanError, match="without") as refusal:
        parse_plan({**changes, "without": without}).check_contract(small_contract, "plan")
    assert message in str(refusal.value)
    assert refusal.value.fix == fix


def test_a_protected_feature_cannot_be_left_out_for_nothing_trains_on_it(
    make_plan: MakePlan, small_contract: Contract
) -> None:
    sex = {"name": "sex", "table": "people", "kind": "category", "column": "sex", "categories": ["f", "m"]}
    raw = small_contract.to_json()
    contract = Contract.model_validate({**raw, "features": [*raw["features"], {**sex, "protected": True}]})
    plan = make_plan(contract=contract.digest, without=["sex"])
    with pytest.raises(PlanError, match="'sex' is no feature that is trained on"):
        plan.check_contract(contract)


def test_a_feature_named_twice_or_named_and_left_out_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(PlanError, match="'spend' repeats"):
        parse_plan({**make_plan().to_json(), "without": ["spend", "spend"]})
    both = {**make_plan(segments={"k": 3, "features": ["spend"]}).to_json(), "without": ["spend"]}
    with pytest.raises(PlanError, match=r"in segments\.features and in without"):
        parse_plan(both)


def test_an_rfm_grid_needs_what_a_plan_left_out() -> None:
    contract = load_bank_world_contract()
    recency = next(feature.name for feature in contract.training_features if feature.derive == "recency")
    common = {"schema": "cohortium.plan/1", "name": "bank", "purpose": contract.purposes[0], "expires": "2099-12-31"}
    common |= {"lawful_basis": "consent", "regions": ["EU"], "contract": contract.digest}
    plan = SegmentPlan.model_validate({**common, "epsilon": 1.0, "delta": 1e-6, "without": [recency]})
    with pytest.raises(PlanError, match="the plan leaves no recency and frequency"):
        plan.check_contract(contract)
    plan.model_copy(update={"without": ()}).check_contract(contract)


def test_an_audit_trains_on_nothing_and_leaves_nothing_out(make_plan: MakePlan) -> None:
    audit = {"of": "column", "column": "sex", "attributes": ["sex2"]}
    raw = document(make_plan(), segments=None, shares=None, without=None)
    with pytest.raises(PlanError, match="unknown key 'without'"):
        parse_plan({**raw, "study": "audit", "audit": audit, "without": ["spend"]})


# --- a good plan -----------------------------------------------------------------------------------------------------


def test_a_plan_is_read_from_toml_with_its_contract(study_folder: Path, small_contract: Contract) -> None:
    plan, contract = load_plan(study_folder / "plan.toml")
    assert contract == small_contract
    assert plan.contract == small_contract.digest
    assert (plan.name, plan.expires, plan.epsilon) == ("small", date(2099, 12, 31), 1.0)
    assert plan.segments.k_range == (3, 3)
    assert plan.distance_features(contract) == ("visits", "spend", "score")


def test_the_digest_is_that_of_the_canonical_json_and_survives_it(make_plan: MakePlan) -> None:
    plan = make_plan(segments={"k": [2, 5], "features": ["score"], "seed": 3})
    again = parse_plan(json.loads(plan.to_bytes()))
    assert again == plan
    assert again.digest == plan.digest == digest_json(json.loads(json.dumps(plan.to_json(), indent=3)))


def test_defaults_are_spelled_out_in_what_is_agreed(make_plan: MakePlan) -> None:
    """A later version with other defaults must not read another plan out of the same digest."""
    written = make_plan().to_json()
    assert set(written) == {"schema", *set(SegmentPlan.model_fields) - {"schema_id"}}
    assert written["max_attempts"] == 1
    assert written["segments"] == {"k": 3, "features": None, "scale": "quantiles", "seed": 0}
    assert make_plan(max_attempts=1).digest == make_plan().digest


def test_a_plan_that_does_not_say_whom_to_trust_has_a_secure_sum(make_plan: MakePlan) -> None:
    plan = parse_plan(document(make_plan(), trust=None, min_institutions=None, colluders=None))
    assert (plan.trust, plan.min_institutions, plan.colluders, plan.share_threshold) == ("distributed", 3, 1, None)
    assert {"trust", "min_institutions", "colluders", "share_threshold"} <= set(plan.to_json())


@pytest.mark.parametrize(
    ("changes", "message", "fix"),
    [
        ({"min_institutions": 2}, "min_institutions = 2", 'set min_institutions = 3 or more, or trust = "local"'),
        ({"min_institutions": 1}, "min_institutions = 1", 'set min_institutions = 3 or more, or trust = "local"'),
        ({"colluders": 3}, "colluders = 3 of min_institutions = 3", "set colluders = 2 or less"),
        ({"colluders": 9, "min_institutions": 5}, "colluders = 9", "set colluders = 4 or less"),
        ({"share_threshold": 4}, "share_threshold is above min_institutions", "lower it, or leave it out"),
    ],
    ids=str,
)
def test_numbers_that_no_secure_sum_allows_are_refused(
    changes: dict[str, Any], message: str, fix: str, make_plan: MakePlan
) -> None:
    secure = {"trust": "distributed", "min_institutions": 3}
    parse_plan(document(make_plan(), **secure))
    with pytest.raises(PlanError, match=message) as caught:
        parse_plan(document(make_plan(), **{**secure, **changes}))
    assert caught.value.fix == fix
    assert parse_plan(document(make_plan(), **{**secure, **changes, "trust": "local"})).trust == "local"


CHANGES: dict[str, Any] = {
    "name": "other",
    "purpose": "other",
    "lawful_basis": "contract",
    "regions": ["UK"],
    "contract": "sha256:" + "0" * 64,
    "expires": "2098-12-31",
    "trust": "unsafe-none",
    "epsilon": 1.0000000000000002,
    "delta": 2e-6,
    "max_attempts": 2,
    "min_institutions": 3,
    "colluders": 2,
    "share_threshold": 2,
    "min_cell": 51,
    "segments": {"k": 4},
    "shares": {"marginals": 21, "clustering": 59, "profiles": 20, "rfm": 0},
    "without": ["spend"],
    "software": {"version": "0.1.0", "code": "sha256:" + "0" * 64, "bundle": "sha256:" + "1" * 64},
}


@pytest.mark.parametrize("key", CHANGES)
def test_whatever_changes_changes_the_digest(key: str, make_plan: MakePlan) -> None:
    assert make_plan(**{key: CHANGES[key]}).digest != make_plan().digest


def test_every_key_is_covered_by_the_test_above() -> None:
    assert set(CHANGES) == set(SegmentPlan.model_fields) - {"schema_id", "study"}  # these have one value


def test_the_contract_s_own_bytes_do_not_matter_but_its_content_does(study_folder: Path) -> None:
    before = load_plan(study_folder / "plan.toml")[0].digest
    path = study_folder / "contract.toml"
    path.write_text("# a comment\n" + path.read_text())
    assert load_plan(study_folder / "plan.toml")[0].digest == before
    path.write_text(path.read_text().replace("high = 40", "high = 41"))
    assert load_plan(study_folder / "plan.toml")[0].digest != before


# --- mistakes --------------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"schema": "cohortium.plan/2"}, "schema"),
    ({"schema": None}, "schema"),
    ({"name": ""}, "name"),
    ({"name": "a\nb"}, "name"),
    ({"name": 7}, "name"),
    ({"lawful_basis": "because"}, "lawful_basis"),
    ({"regions": []}, "regions"),
    ({"regions": "EU"}, "regions"),
    ({"contract": "sha256:abc"}, "contract"),
    ({"expires": "tomorrow"}, "expires"),
    ({"expires": None}, "expires"),
    ({"trust": "none"}, "trust"),
    ({"trust": None, "min_institutions": 2}, ""),
    ({"trust": "distributed", "min_institutions": 2}, ""),
    ({"trust": "distributed", "min_institutions": 3, "colluders": 3}, ""),
    ({"trust": "distributed", "min_institutions": 3, "share_threshold": 4}, ""),
    ({"colluders": 0}, "colluders"),
    ({"colluders": 1.0}, "colluders"),
    ({"share_threshold": 1}, "share_threshold"),
    ({"share_threshold": "2"}, "share_threshold"),
    ({"noise": "float"}, "noise"),
    ({"epsilon": None}, "epsilon"),
    ({"epsilon": 0.0}, "epsilon"),
    ({"epsilon": -1.0}, "epsilon"),
    ({"epsilon": 51.0}, "epsilon"),
    ({"epsilon": float("nan")}, "epsilon"),
    ({"epsilon": "1.0"}, "epsilon"),
    ({"epsilon": True}, "epsilon"),
    ({"delta": 0.0}, "delta"),
    ({"delta": 1e-16}, "delta"),
    ({"delta": 2e-4}, "delta"),
    ({"max_attempts": 0}, "max_attempts"),
    ({"max_attempts": 6}, "max_attempts"),
    ({"min_institutions": 0}, "min_institutions"),
    ({"min_cell": 49}, "min_cell"),
    ({"min_cell": 100.5}, "min_cell"),
    ({"segments": {"k": 0}}, "segments.k"),
    ({"segments": {"k": 65}}, "segments.k"),
    ({"segments": {"k": [5, 4]}}, "segments"),
    ({"segments": {"k": [1, 2, 3]}}, "segments.k"),
    ({"segments": {"k": "many"}}, "segments.k"),
    ({"segments": {"features": []}}, "segments"),
    ({"segments": {"features": ["a", "a"]}}, "segments"),
    ({"segments": {"scale": "log"}}, "segments.scale"),
    ({"segments": {"seed": -1}}, "segments.seed"),
    ({"segments": {"seed": 2**31}}, "segments.seed"),
    ({"shares": {"marginals": 0, "clustering": 100, "profiles": 0, "rfm": 0}}, "shares"),
    ({"shares": {"marginals": 100, "clustering": 0, "profiles": 0, "rfm": 0}}, "shares"),
    ({"shares": {"marginals": -5, "clustering": 80, "profiles": 20, "rfm": 5}}, "shares.marginals"),
    ({"shares": {"marginals": 15.5, "clustering": 59.5, "profiles": 20, "rfm": 5}}, "shares.marginals"),
    ({"shares": {"marginals": 20, "clustering": 80, "profile": 0}}, "shares"),
    ({"epsylon": 1.0}, "epsylon"),
    ({"segments": {"k": 3, "sed": 1}}, "segments.sed"),
    ({"a\nb": 1}, ""),
]


@pytest.mark.parametrize(("changes", "where"), BAD, ids=str)
def test_a_mistake_is_one_line_with_place_and_fix(changes: dict[str, Any], where: str, make_plan: MakePlan) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(document(make_plan(), **changes), place="plan.toml")
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    assert caught.value.fix
    assert str(caught.value.place).startswith(f"plan.toml: {where}" if where else "plan.toml")
    assert "Traceback" not in line
    assert "pydantic" not in line


def test_a_misspelt_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(PlanError, match="did you mean 'epsilon'"):
        parse_plan({"epsylon": 1.0, "epsilon": 1.0})


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=4),
            max_leaves=8,
        ),
        max_size=8,
    )
)
def test_no_document_fails_otherwise(raw: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        parse_plan(raw)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("epsilon = ", PlanError),
        ("\xff\xfe", PlanError),
        ('schema = "cohortium.plan/1"\n', PlanError),
        ("contract = 7\n", PlanError),
        ('contract = "nowhere.toml"\n', ContractError),
        ('contract = "."\n', ContractError),
        ('contract = "plan.toml"\n', ContractError),
    ],
)
def test_a_file_that_is_no_plan_is_named(text: str, kind: type[Exception], study_folder: Path) -> None:
    path = study_folder / "plan.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(kind) as caught:
        load_plan(path)
    assert str(study_folder) in str(caught.value)
    assert "fix: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_there_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "plan.toml", tmp_path):
        with pytest.raises(PlanError) as caught:
            load_plan(path)
        assert str(path) in str(caught.value)


# --- and its contract ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"purpose": "advertising"}, "plan: purpose"),
        ({"segments": {"features": ["visits", "nobody"]}}, "plan: segments.features"),
        ({"shares": {"marginals": 20, "clustering": 55, "profiles": 20, "rfm": 5}}, "plan: shares.rfm"),
        ({"contract": "sha256:" + "0" * 64}, "plan"),
    ],
    ids=str,
)
def test_a_plan_must_fit_its_contract(
    changes: dict[str, Any], where: str, make_plan: MakePlan, small_contract: Contract
) -> None:
    make_plan().check_contract(small_contract)
    with pytest.raises(PlanError) as caught:
        make_plan(**changes).check_contract(small_contract)
    assert caught.value.place == where
    assert caught.value.fix


def test_distances_never_use_protected_features_or_categories(make_plan: MakePlan, study_folder: Path) -> None:
    text = (study_folder / "contract.toml").read_text()
    raw = tomllib.loads(text)
    raw["features"][2]["protected"] = True
    del raw["features"][2]["block"]
    contract = Contract.model_validate(raw)
    plan = make_plan(contract=contract.digest)
    assert plan.distance_features(contract) == ("visits", "spend")
    with pytest.raises(PlanError, match="'score'"):
        make_plan(contract=contract.digest, segments={"features": ["score"]}).check_contract(contract)
