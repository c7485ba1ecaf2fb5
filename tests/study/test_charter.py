"""Charters: who takes part, and thresholds that no plan may undercut."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cohortium.study.charter import (
    SIMULATION,
    Charter,
    Function,
    Reviewer,
    enrol_reviewer,
    has_signed,
    load_charter,
    parse_charter,
    prove_possession,
)
from cohortium.study.document import read_json
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


def test_a_charter_is_read_from_json_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "charter.toml").write_text(CHARTER)
    charter = load_charter(tmp_path / "charter.toml")
    (tmp_path / "charter.json").write_bytes(charter.to_bytes())
    assert load_charter(tmp_path / "charter.json") == charter


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "a", "name": "b"}', "each key once"),
        ('{"max_epsilon": NaN}', "plain, finite values"),
        ("[" * 200_000, "plain, finite values"),
        ("[]", "is no JSON object"),
        ("{", "plain, finite values"),
        ('{"name": "a"}', "missing"),
    ],
)
def test_a_json_charter_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "charter.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=said) as caught:
        load_charter(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_more_of_a_file_is_read_than_a_document_may_have(tmp_path: Path) -> None:
    """A device without an end, or a file of many gigabytes, would fill the memory."""
    with pytest.raises(PlanError, match="is no JSON document"):
        read_json(Path("/dev/zero"), PlanError)


def test_toml_nested_too_deeply_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "charter.toml"
    path.write_text("a = " + "[" * 50_000)
    with pytest.raises(PlanError, match="nested too deeply"):
        load_charter(path)


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


@pytest.mark.parametrize(
    "name", ["north\x1b[8m", "nor\u200bth", "\u202ehtron", "e\N{COMBINING ACUTE ACCENT}", "a\x9b1A"]
)
@pytest.mark.parametrize("field", ["name", "region", "group"])
def test_a_name_cannot_hide_itself_or_what_stands_beside_it(name: str, field: str) -> None:
    member = {"name": "south", "region": "EU", field: name}
    with pytest.raises(PlanError, match="a name is printable"):
        parse_charter(document(institutions=[{"name": "north", "region": "EU"}, member]))


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


NORTH, SOUTH, ANNA, BELA = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in range(1, 5))


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def enrolled(
    person: str = "p-1",
    institution: str = "north",
    function: Function = "privacy",
    key: Ed25519PrivateKey = ANNA,
    identity: Ed25519PrivateKey = NORTH,
    federation: str = "banks",
) -> Reviewer:
    return enrol_reviewer(federation, prove_possession(federation, person, institution, function, key), identity)


def reviewed(*reviewers: Reviewer | dict[str, Any], **changes: Any) -> dict[str, Any]:
    listed = [one.model_dump(mode="json") if isinstance(one, Reviewer) else one for one in reviewers]
    members = [
        {"name": "north", "region": "EU", "identity": public(NORTH)},
        {"name": "south", "region": "EU", "identity": public(SOUTH)},
    ]
    return document(**{"institutions": members, "reviewers": listed, **changes})


def test_a_reviewer_is_enrolled_under_two_signatures(tmp_path: Path) -> None:
    anna, bela = enrolled(), enrolled("p-2", "south", "risk", BELA, SOUTH)
    charter = parse_charter(reviewed(anna, bela))
    assert charter.reviewers == (anna, bela)
    assert parse_charter(json.loads(charter.to_bytes())) == charter
    assert parse_charter(reviewed(anna)).digest != charter.digest
    again = parse_charter(reviewed(anna)).with_reviewers([bela])
    assert again == charter


def test_reviewers_are_added_once_a_simulation_has_made_the_keys() -> None:
    bare = parse_charter(document())
    with pytest.raises(PlanError, match="'north' has no identity key"):
        bare.with_reviewers([enrolled()])
    with pytest.raises(PlanError, match="'north' has no identity key"):
        parse_charter(document(reviewers=[enrolled().model_dump(mode="json")]))
    members = (bare.institutions[0].model_copy(update={"identity": public(NORTH)}), bare.institutions[1])
    completed = bare.model_copy(update={"institutions": members}).with_reviewers([enrolled()])
    assert completed.reviewers == (enrolled(),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("person", "p-2"),
        ("institution", "south"),
        ("function", "risk"),
        ("key", public(BELA)),
        ("possession", enrolled().vouching),
        ("vouching", enrolled().possession),
        ("possession", "0" * 128),
        ("vouching", "0" * 128),
        ("vouching", enrolled(identity=SOUTH).vouching),
        ("possession", enrolled(federation="others").possession),
        ("vouching", enrolled(federation="others").vouching),
    ],
)
def test_an_enrolment_with_one_edited_field_makes_the_charter_be_refused(field: str, value: str) -> None:
    parse_charter(reviewed(enrolled()))
    with pytest.raises(PlanError, match=r"did not sign this enrolment|is not vouched for") as caught:
        parse_charter(reviewed({**enrolled().model_dump(mode="json"), field: value}))
    assert caught.value.fix


def test_an_enrolment_of_another_federation_is_refused() -> None:
    parse_charter(reviewed(enrolled()))
    with pytest.raises(PlanError, match="did not sign this enrolment"):
        parse_charter(reviewed(enrolled(), name="others"))


@pytest.mark.parametrize(
    ("reviewers", "words"),
    [
        ([enrolled(), enrolled("p-2", function="risk")], "distinct keys"),
        ([enrolled(), enrolled("p-2", "south", "risk", ANNA, SOUTH)], "distinct keys"),
        ([enrolled(), enrolled(function="risk", key=BELA)], "'p-1' of 'north' has two"),
        ([enrolled(), enrolled()], "distinct keys"),
        ([enrolled(institution="west")], "'west', which is no member"),
        ([enrolled(key=NORTH)], "uses the key of an institution"),
        ([enrolled(key=SOUTH)], "uses the key of an institution"),
        ([{**enrolled().model_dump(mode="json"), "person": "Anna Smith"}], "not of the right form"),
        ([{**enrolled().model_dump(mode="json"), "person": "p-1\n"}], "not of the right form"),
        ([{**enrolled().model_dump(mode="json"), "person": "p" * 129}], "not of the right form"),
        ([{**enrolled().model_dump(mode="json"), "person": "\u0440-1"}], "not of the right form"),
        ([{**enrolled().model_dump(mode="json"), "function": "marketing"}], "is not a function"),
        ([{**enrolled().model_dump(mode="json"), "possession": enrolled().possession.upper()}], "not of the right"),
    ],
)
def test_a_reviewer_who_could_sign_twice_or_for_somebody_else_is_refused(reviewers: list[Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse_charter(reviewed(*reviewers))


def test_the_coordinators_key_is_no_reviewers() -> None:
    parse_charter(reviewed(enrolled()))
    with pytest.raises(PlanError, match="of the coordinator"):
        parse_charter(reviewed(enrolled(), coordinator=public(ANNA)))


def test_one_person_may_review_for_two_institutions_under_two_keys() -> None:
    both = parse_charter(reviewed(enrolled(), enrolled(institution="south", key=BELA, identity=SOUTH)))
    assert [one.institution for one in both.reviewers] == ["north", "south"]


def test_an_institution_vouches_only_for_whom_holds_the_key() -> None:
    asked = prove_possession("banks", "p-1", "north", "privacy", ANNA)
    for forged in (
        asked.model_copy(update={"person": "p-2"}),
        asked.model_copy(update={"key": public(BELA)}),
        prove_possession("others", "p-1", "north", "privacy", ANNA),
    ):
        with pytest.raises(PlanError, match="not signed by the reviewer's own key"):
            enrol_reviewer("banks", forged, NORTH)
    with pytest.raises(PlanError, match="give an id, not a name"):
        prove_possession("banks", "Anna Smith", "north", "privacy", ANNA)


PRIME = 2**255 - 19
WEAK = [
    *(y.to_bytes(32, "little").hex() for y in (0, 1, PRIME - 1, PRIME, PRIME + 1)),
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]


@pytest.mark.parametrize("weak", [key[:62] + f"{int(key[62:], 16) | sign:02x}" for key in WEAK for sign in (0, 0x80)])
def test_a_key_of_small_order_signs_nothing(weak: str) -> None:
    """Under such a key one made-up signature fits many messages, and the library alone accepts it."""
    made_up = (1).to_bytes(32, "little").hex() + "0" * 64
    messages = [bytes([number]) for number in range(256)]
    assert not any(has_signed(weak, made_up, message) for message in messages)
    if int.from_bytes(bytes.fromhex(weak), "little") == 1:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(weak)).verify(bytes.fromhex(made_up), b"anything")


def test_a_signature_is_of_these_very_bytes() -> None:
    signature = ANNA.sign(b"this").hex()
    assert has_signed(public(ANNA), signature, b"this")
    assert not has_signed(public(ANNA), signature, b"that")
    assert not has_signed(public(BELA), signature, b"this")
    assert not has_signed(public(ANNA), signature[:-2], b"this")
    assert not has_signed(public(ANNA), "zz", b"this")
