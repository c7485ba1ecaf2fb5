"""Charters: who takes part, and thresholds that no plan may undercut."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohortium.study.charter import SIMULATION, Charter, load_charter, parse_charter
from cohortium.study.errors import PlanError
from cohortium.study.plan import MAX_EPSILON, MIN_CELL, Plan

CHARTER = """
schema = "cohortium.charter/1"
name = "three banks"
max_epsilon = 2.0
min_cell = 80

[[institutions]]
name = "north"
region = "EU"
group = "holding"

[[institutions]]
name = "south"
region = "EU"
identity = "{key}"
""".format(key="ab" * 32)


def document(**changes: Any) -> dict[str, Any]:
    members = [{"name": "north", "region": "EU"}, {"name": "south", "region": "EU"}]
    whole = {"schema": "cohortium.charter/1", "name": "banks", "institutions": members, **changes}
    return {key: value for key, value in whole.items() if value is not None}


def test_a_charter_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "charter.toml"
    path.write_text(CHARTER)
    charter = load_charter(path)
    assert [member.name for member in charter.institutions] == ["north", "south"]
    assert (charter.institutions[0].group, charter.institutions[1].identity) == ("holding", "ab" * 32)
    assert (charter.max_epsilon, charter.min_cell) == (2.0, 80)
    assert parse_charter(json.loads(charter.to_bytes())) == charter
    assert parse_charter(json.loads(charter.to_bytes())).digest == charter.digest


def test_the_house_limits_hold_without_being_written() -> None:
    charter = parse_charter(document())
    assert (charter.max_epsilon, charter.min_cell, charter.min_customers) == (MAX_EPSILON, MIN_CELL, 1000)


def test_the_key_that_signs_models_is_part_of_what_was_agreed() -> None:
    pinned = parse_charter(document(coordinator="cd" * 32))
    assert pinned.coordinator == "cd" * 32
    assert parse_charter(json.loads(pinned.to_bytes())) == pinned
    assert parse_charter(document()).coordinator is None
    assert len({parse_charter(document(coordinator=key)).digest for key in (None, "cd" * 32, "ce" * 32)}) == 3


def members(*regions: str) -> list[dict[str, str]]:
    return [{"name": f"bank {index}", "region": region} for index, region in enumerate(regions)]


def test_only_a_simulation_goes_above_the_house_limit() -> None:
    simulated = parse_charter(document(institutions=members(SIMULATION, SIMULATION), max_epsilon=50.0))
    assert simulated.max_epsilon == 50.0
    for regions in (("EU", SIMULATION), (SIMULATION, "Simulation"), ("EU", "EU")):
        with pytest.raises(PlanError, match="max_epsilon must be 3 or less outside simulations"):
            parse_charter(document(institutions=members(*regions), max_epsilon=MAX_EPSILON + 0.1))
        parse_charter(document(institutions=members(*regions), max_epsilon=MAX_EPSILON))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"schema": "cohortium.charter/2"}, "schema"),
        ({"name": None}, "name"),
        ({"name": " banks"}, "name"),
        ({"institutions": []}, "institutions"),
        ({"institutions": None}, "institutions"),
        ({"institutions": [{"name": "a", "region": "EU"}] * 2}, ""),
        ({"institutions": [{"name": "a"}]}, "institution 'a', region"),
        ({"institutions": [{"name": "a\n", "region": "EU"}]}, "institution"),
        ({"institutions": [{"name": "a", "region": "EU", "identity": "AB" * 32}]}, "institution 'a', identity"),
        ({"institutions": [{"name": "a", "region": "EU", "identity": "ab"}]}, "institution 'a', identity"),
        ({"institutions": [{"name": "a", "region": "EU", "key": "ab"}]}, "institution 'a', key"),
        ({"institutions": ["a"]}, "institution number 1"),
        ({"max_epsilon": MAX_EPSILON + 0.1}, ""),
        ({"max_epsilon": 50.1}, "max_epsilon"),
        ({"max_epsilon": 0.0}, "max_epsilon"),
        ({"min_cell": MIN_CELL - 1}, "min_cell"),
        ({"min_customers": 0}, "min_customers"),
        ({"min_customers": 1000.0}, "min_customers"),
        ({"min_customers": 2**53}, "min_customers"),
        ({"min_cell": 2**53}, "min_cell"),
        ({"coordinator": "AB" * 32}, "coordinator"),
        ({"coordinator": "ab" * 31}, "coordinator"),
        ({"coordinator": 7}, "coordinator"),
        ({"quorum": 2}, "quorum"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_with_place_and_fix(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_charter(document(**changes), place="c.toml")
    assert str(caught.value.place).startswith(f"c.toml: {where}" if where else "c.toml")
    assert caught.value.fix
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["name = ", "\xff", "institutions = 7"])
def test_a_file_that_is_no_charter_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "charter.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanError, match=r"charter\.toml"):
        load_charter(path)
    with pytest.raises(PlanError, match=r"nowhere\.toml"):
        load_charter(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("plan_changes", "where"),
    [
        ({"epsilon": 2.1}, "plan: epsilon"),
        ({"min_cell": 79}, "plan: min_cell"),
        ({"min_institutions": 3}, "plan: min_institutions"),
        ({"delta": 1.01e-5}, "plan: delta"),
    ],
    ids=str,
)
def test_no_plan_undercuts_it(plan_changes: dict[str, Any], where: str, make_plan: Callable[..., Plan]) -> None:
    charter = Charter.model_validate(document(max_epsilon=2.0, min_cell=80, min_customers=10_000))
    limits = {"epsilon": 2.0, "min_cell": 80, "min_institutions": 2, "delta": 9.99e-6}
    charter.check_plan(make_plan(**limits))
    with pytest.raises(PlanError) as caught:
        charter.check_plan(make_plan(**{**limits, **plan_changes}))
    assert caught.value.place == where
    assert caught.value.fix


@pytest.mark.parametrize(("customers", "most"), [(10**5, 1e-6), (3000, 1 / 30_000), (10**9, 1e-10)])
def test_delta_is_compared_exactly(customers: int, most: float, make_plan: Callable[..., Plan]) -> None:
    """At most 1 / (10 * min_customers), to the last place."""
    charter = Charter.model_validate(document(min_customers=customers))
    charter.check_plan(make_plan(delta=math.nextafter(most, 0.0)))
    with pytest.raises(PlanError, match="min_customers"):
        charter.check_plan(make_plan(delta=math.nextafter(most, 1.0)))


def grouped(*groups: str | None) -> list[dict[str, Any]]:
    return [
        {"name": f"bank {index}", "region": "EU"} | ({} if group is None else {"group": group})
        for index, group in enumerate(groups)
    ]


@pytest.mark.parametrize(
    ("groups", "needed"),
    [
        ([None], (0, 0)),
        ([None, None], (1, 1)),
        (["a", "a"], (1, 0)),
        (["a", "a", "a"], (2, 0)),
        (["a", "a", "b"], (2, 1)),
        ([None, None, None, None], (2, 1)),
    ],
)
def test_a_quorum_is_two_others_and_one_of_another_group_where_there_are_such(
    groups: list[str | None], needed: tuple[int, int]
) -> None:
    quorum = parse_charter(document(institutions=grouped(*groups))).quorum_of("bank 0")
    assert (quorum.witnesses, quorum.outside_group) == needed


def test_a_quorum_may_be_larger_or_none() -> None:
    large = parse_charter(document(institutions=grouped(*"abcd"), quorum={"witnesses": 3, "outside_group": 3}))
    assert (large.quorum_of("bank 1").witnesses, large.quorum_of("bank 1").outside_group) == (3, 3)
    none = parse_charter(document(institutions=grouped(*"ab"), quorum={"witnesses": 0}))
    assert (none.quorum_of("bank 1").witnesses, none.quorum_of("bank 1").outside_group) == (0, 0)


@pytest.mark.parametrize(
    ("groups", "quorum", "words"),
    [
        ("aab", {"witnesses": 3}, "quorum.witnesses is above the 2 other"),
        ("aab", {"outside_group": 2}, "above the 1 institutions outside the group of 'bank 0'"),
        ("abc", {"witnesses": 1, "outside_group": 2}, "quorum.outside_group is above quorum.witnesses"),
        ("abc", {"witnesses": -1}, "witnesses"),
        ("abc", {"witnesses": 1.0}, "witnesses"),
        ("abc", {"cosigners": 1}, "cosigners"),
    ],
)
def test_a_quorum_that_nobody_could_gather_is_refused(groups: str, quorum: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse_charter(document(institutions=grouped(*groups), quorum=quorum))
