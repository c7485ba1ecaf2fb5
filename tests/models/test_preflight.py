"""Preflight: no unsafe combination of plan, contract and charter begins, and every refusal names the line to change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from cohortium.models.preflight import preflight
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import PlanError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.segment_plan import Segments

MakePlan = Callable[..., Plan]


def federation(members: int = 5, signing: int | None = None, **limits: Any) -> Charter:
    """A charter of that many institutions, of which some have keys; all, when not said."""
    count = members if signing is None else signing
    institutions = [
        {"name": f"bank {index}", "region": "EU", **({"identity": f"{index:064x}"} if index < count else {})}
        for index in range(members)
    ]
    document = {"schema": "cohortium.charter/1", "name": "banks", "institutions": institutions, **limits}
    return parse_charter(document)


@pytest.fixture
def secure(make_plan: MakePlan) -> MakePlan:
    """The small plan with a safe secure sum of five, with top-level keys changed."""

    def make(**changes: Any) -> Plan:
        return make_plan(**{"trust": "distributed", "min_institutions": 4, **changes})

    return make


def refusal(plan: Plan, contract: Contract, charter: Charter, **seams: Any) -> PlanError:
    """The one line in which a combination is refused."""
    with pytest.raises(PlanError) as caught:
        preflight(plan, contract, charter, **seams)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    assert caught.value.fix
    return caught.value


# --- what is safe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "changes"),
    [
        (3, {"min_institutions": 3}),
        (4, {"min_institutions": 3}),
        (5, {}),
        (5, {"min_institutions": 5, "colluders": 3}),
        (6, {"share_threshold": 4}),
        (128, {"min_institutions": 100, "colluders": 20}),
    ],
    ids=str,
)
def test_a_safe_secure_sum_may_begin(
    members: int, changes: dict[str, Any], secure: MakePlan, small_contract: Contract
) -> None:
    preflight(secure(**changes), small_contract, federation(members))


@pytest.mark.parametrize("members", [1, 2, 3, 200])
def test_a_local_plan_may_begin_with_any_number_and_without_keys(
    members: int, make_plan: MakePlan, small_contract: Contract
) -> None:
    preflight(make_plan(min_institutions=1), small_contract, federation(members, signing=0))


# --- the secure sum's numbers ----------------------------------------------------------------------------------------


def test_two_parties_have_no_secure_sum(secure: MakePlan, small_contract: Contract) -> None:
    """A plan that says so does not parse; one made otherwise does not begin."""
    with pytest.raises(PlanError, match="min_institutions = 2") as caught:
        parse_plan({**secure().to_json(), "min_institutions": 2})
    assert caught.value.fix == 'set min_institutions = 3 or more, or trust = "local"'
    forced = secure().model_copy(update={"min_institutions": 2})
    error = refusal(forced, small_contract, federation(2))
    assert (error.place, error.fix) == (
        "plan: min_institutions",
        'set min_institutions = 3 or more, or trust = "local"',
    )


@pytest.mark.parametrize(
    ("members", "changes", "least"),
    [
        (5, {"min_institutions": 3}, 4),
        (6, {"min_institutions": 3}, 4),
        (7, {"min_institutions": 4}, 5),
        (8, {"min_institutions": 5, "colluders": 2}, 6),
        (100, {"min_institutions": 50}, 51),
    ],
    ids=str,
)
def test_too_many_members_for_t_and_c(
    members: int, changes: dict[str, Any], least: int, secure: MakePlan, small_contract: Contract
) -> None:
    """2 (t - c) must be above n - c, or two survivor sets of one sum could be opened."""
    error = refusal(secure(**changes), small_contract, federation(members))
    assert error.place == "plan: min_institutions"
    assert error.fix == f'set min_institutions = {least} or more, or trust = "local"'
    preflight(secure(**{**changes, "min_institutions": least}), small_contract, federation(members))


def test_the_largest_roster_decides_not_those_without_keys(secure: MakePlan, small_contract: Contract) -> None:
    plan = secure(min_institutions=3)
    preflight(plan, small_contract, federation(10, signing=4))
    assert refusal(plan, small_contract, federation(10, signing=5)).place == "plan: min_institutions"


def test_more_parties_than_a_sum_can_have(secure: MakePlan, small_contract: Contract) -> None:
    plan = secure(min_institutions=100)
    assert refusal(plan, small_contract, federation(129)).place == "charter: institutions"


def test_nobody_left_to_add_noise(secure: MakePlan, small_contract: Contract) -> None:
    for colluders in (4, 5, 9):
        with pytest.raises(PlanError, match=f"colluders = {colluders}") as caught:
            parse_plan({**secure().to_json(), "colluders": colluders})
        assert caught.value.fix == "set colluders = 3 or less"
        forced = secure().model_copy(update={"colluders": colluders})
        assert refusal(forced, small_contract, federation(5)).place == "plan: colluders"


@pytest.mark.parametrize("threshold", [2, 3])
def test_a_threshold_that_is_not_safe(threshold: int, secure: MakePlan, small_contract: Contract) -> None:
    error = refusal(secure(share_threshold=threshold), small_contract, federation(5))
    assert error.place == "plan: share_threshold"
    assert error.fix == "set it between 4 and 4, or leave it out"


def test_a_threshold_above_t(secure: MakePlan, small_contract: Contract) -> None:
    with pytest.raises(PlanError, match="share_threshold is above min_institutions"):
        parse_plan({**secure().to_json(), "share_threshold": 5})
    forced = secure().model_copy(update={"share_threshold": 5})
    assert refusal(forced, small_contract, federation(5)).place == "plan: share_threshold"


@pytest.mark.parametrize("signing", [0, 1, 3])
def test_members_without_keys_cannot_sign(signing: int, secure: MakePlan, small_contract: Contract) -> None:
    error = refusal(secure(), small_contract, federation(5, signing=signing))
    assert error.place == "charter: institutions.identity"
    assert str(signing) in error.message
    assert 'trust = "local"' in str(error.fix)


# --- the charter's limits --------------------------------------------------------------------------------------------


def test_a_delta_too_large_for_so_few_customers(secure: MakePlan, small_contract: Contract) -> None:
    """A delta of one in so many could be paid by publishing one customer in ten."""
    plan = secure(delta=1e-5)
    preflight(plan, small_contract, federation(min_customers=10_000))
    error = refusal(plan, small_contract, federation(min_customers=10_001))
    assert error.place == "plan: delta"
    assert "min_customers" in error.message


def test_cells_below_the_charter_s(secure: MakePlan, small_contract: Contract) -> None:
    plan = secure(min_cell=60)
    preflight(plan, small_contract, federation(min_cell=60))
    error = refusal(plan, small_contract, federation(min_cell=61))
    assert (error.place, error.fix) == ("plan: min_cell", "set min_cell = 61 or more")


def test_an_epsilon_above_the_charter_s(secure: MakePlan, small_contract: Contract) -> None:
    plan = secure(epsilon=1.5)
    preflight(plan, small_contract, federation(max_epsilon=1.5))
    error = refusal(plan, small_contract, federation(max_epsilon=1.4))
    assert (error.place, error.fix) == ("plan: epsilon", "set epsilon = 1.4 or less")


def test_more_institutions_than_there_are(secure: MakePlan, make_plan: MakePlan, small_contract: Contract) -> None:
    for plan in (secure(min_institutions=6), make_plan(min_institutions=6)):
        assert refusal(plan, small_contract, federation(5)).place == "plan: min_institutions"


# --- whose noise -----------------------------------------------------------------------------------------------------


def test_a_plan_without_noise(make_plan: MakePlan, small_contract: Contract) -> None:
    plan = make_plan(trust="unsafe-none")
    error = refusal(plan, small_contract, federation())
    assert (error.place, error.fix) == ("plan: trust", 'set trust = "distributed" or "local"')


@pytest.mark.parametrize("line", [{"noise": "float"}, {"sampler": "fast"}, {"secure_sum": False}, {"clip": 0}], ids=str)
def test_no_line_of_a_plan_weakens_the_noise(line: dict[str, Any], secure: MakePlan) -> None:
    """There is no such line: noise is exact, in integers and from the operating system, in every plan."""
    (name,) = line
    with pytest.raises(PlanError, match=f"unknown key '{name}'") as caught:
        parse_plan({**secure().to_json(), **line})
    assert caught.value.place == f"plan: {name}"


# --- what could not be answered to its end ---------------------------------------------------------------------------


def test_an_expired_plan(secure: MakePlan, small_contract: Contract) -> None:
    plan = secure(expires="2024-06-30")
    preflight(plan, small_contract, federation(), today=date(2024, 6, 30))
    for error in (
        refusal(plan, small_contract, federation(), today=date(2024, 7, 1)),
        refusal(plan, small_contract, federation()),
    ):
        assert (error.place, error.fix) == ("plan: expires", "agree on a new one")


def test_a_plan_for_another_contract(secure: MakePlan, small_contract: Contract) -> None:
    foreign = secure().model_copy(update={"contract": "sha256:" + "0" * 64})
    assert "another contract" in refusal(foreign, small_contract, federation()).message


def wide(contract: Contract, features: int) -> Contract:
    """The contract with that many numbers instead of its own."""
    last = contract.features[-1]
    more = tuple(last.model_copy(update={"name": f"x{i}", "column": f"x{i}"}) for i in range(features))
    return contract.model_copy(update={"features": more})


def test_sums_that_could_overflow(secure: MakePlan, small_contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sum of the widest questions fits 64 bits with all the noise there can be, or the plan does not begin."""
    plan = secure()
    preflight(plan, small_contract, federation())
    with monkeypatch.context() as patch:
        patch.setattr("cohortium.privacy.release._MAX_PEOPLE", 2**44)  # contracts cannot state bounds that come near
        error = refusal(plan, small_contract, federation())
    assert error.place == "plan: segments.features"
    assert "wider bounds" in error.message


def test_noise_that_could_overflow(secure: MakePlan, small_contract: Contract) -> None:
    tiny = secure(epsilon=1e-15, delta=1e-15)
    assert refusal(tiny, small_contract, federation()).place in ("plan: epsilon", "plan: segments.features")


def test_questions_that_are_too_wide(
    secure: MakePlan, small_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = wide(small_contract, 40)
    plan = secure(contract=contract.digest).model_copy(update={"segments": Segments(k=64)})
    preflight(plan, contract, federation())
    monkeypatch.setattr("cohortium.privacy.release.MAX_WIDTH", 1000)
    error = refusal(plan, contract, federation())
    assert error.place == "plan: segments.features"
    assert "fewer" in str(error.fix)


def test_a_budget_below_the_noise_s_grid(
    secure: MakePlan, small_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The discreteness of the noise has its price too: a plan whose budget has no room for it does not begin."""
    plan = secure()
    budget = budget_for(plan.epsilon, plan.delta)
    monkeypatch.setattr("cohortium.models.studies.budget_for", lambda *_: Spend(budget.mu2, 0))
    error = refusal(plan, small_contract, federation())
    assert error.place == "plan: epsilon"
    assert "no room" in error.message
