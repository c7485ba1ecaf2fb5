"""What signatures amount to: two people, two functions, neither owner nor builder, these very documents, today."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.governance.review import (
    CLOCK_SKEW,
    Signed,
    Terms,
    is_approved,
    possible_reviewers,
    review_facts,
    sign_statement,
    standing,
)
from cohortium.study.charter import Charter, Function, enrol_reviewer, prove_possession
from cohortium.study.errors import DataError

NOW = datetime(2026, 4, 1, tzinfo=UTC)
FOUR_EYES = (("priya", "approve"), ("rolf", "approve"))


@pytest.mark.parametrize(
    ("said", "approved"),
    [
        ((), False),
        ((("priya", "approve"),), False),
        ((("rolf", "approve"),), False),
        (FOUR_EYES, True),
        ((("carla", "approve"), ("priya", "approve")), True),
        ((("priya", "approve"), ("pavel", "approve")), False),
        ((("rolf", "approve"), ("carla", "approve")), False),
        ((("rolf", "approve"), ("carla", "approve"), ("priya", "approve")), True),
        ((("priya", "approve"), ("priya", "approve")), False),
        ((("priya", "waive"), ("rolf", "waive")), False),
        ((("priya", "approve"), ("rolf", "waive")), False),
        ((("priya", "waive"), *FOUR_EYES), True),
    ],
)
def test_two_people_of_two_functions_approve(world: Any, said: Any, approved: bool) -> None:
    assert is_approved(world.case, world.record(*said), world.charter, NOW) is approved


def test_an_approval_says_who_until_when_and_on_what_conditions(world: Any) -> None:
    first = world.say("priya", until=date(2026, 6, 30), conditions=("no phone calls",))
    second = world.say("rolf", earlier=[first], hours=2)
    found = standing(world.case, [first, second], world.charter, NOW)
    assert (found.state, found.approvers, found.until) == ("approved", ("priya", "rolf"), date(2026, 6, 30))
    assert (found.conditions, found.waiting_for, found.independent) == (("no phone calls",), (), True)
    assert review_facts(found) == {"review.approvers": 2, "review.independent": True}


def test_it_waits_for_whom(world: Any) -> None:
    nobody = standing(world.case, [], world.charter, NOW)
    assert (nobody.state, nobody.waiting_for) == ("waiting", ("privacy", "risk or compliance"))
    assert review_facts(nobody) == {"review.approvers": 0, "review.independent": False}
    one = standing(world.case, world.record(("rolf", "approve")), world.charter, NOW)
    assert (one.state, one.waiting_for, one.approvers) == ("waiting", ("privacy",), ("rolf",))
    assert [who.person for who in possible_reviewers(world.case, world.charter, "privacy")] == ["priya", "pavel"]
    others = possible_reviewers(world.case, world.charter, "risk or compliance")
    assert [who.person for who in others] == ["rolf", "carla"]


def test_an_approval_ends_with_its_last_day(world: Any) -> None:
    first = world.say("priya", until=date(2026, 4, 10))
    record = [first, world.say("rolf", earlier=[first])]
    last = datetime(2026, 4, 10, 23, 59, 59, tzinfo=UTC)
    assert is_approved(world.case, record, world.charter, last)
    found = standing(world.case, record, world.charter, last + timedelta(seconds=1))
    assert (found.state, found.waiting_for, found.approvers) == ("expired", ("privacy",), ("rolf",))
    assert found.reasons == ("priya (privacy): expired on 2026-04-10",)
    record.append(world.say("pavel", earlier=record, hours=24 * 45))
    assert is_approved(world.case, record, world.charter, last + timedelta(days=30))


def test_the_last_word_of_a_person_counts(world: Any) -> None:
    first = world.say("priya")
    record = [first, world.say("priya", earlier=[first], until=date(2026, 3, 2))]
    record.append(world.say("rolf", earlier=record))
    assert not is_approved(world.case, record, world.charter, NOW)


def test_a_return_voids_what_was_signed_before(world: Any) -> None:
    record = world.record(*FOUR_EYES, ("carla", "return"))
    found = standing(world.case, record, world.charter, NOW)
    assert (found.state, found.approvers) == ("returned", ())
    assert found.reasons == ("carla (compliance) asks: why so few over 65?",)
    half = world.record(*FOUR_EYES, ("carla", "return"), ("priya", "approve"))
    assert standing(world.case, half, world.charter, NOW).state == "waiting"
    again = world.record(*FOUR_EYES, ("carla", "return"), *FOUR_EYES)
    assert is_approved(world.case, again, world.charter, NOW)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_rejection_holds_wherever_it_stands(world: Any, place: int) -> None:
    said = [*FOUR_EYES]
    said.insert(place, ("carla", "reject"))
    found = standing(world.case, world.record(*said), world.charter, NOW)
    assert (found.state, found.reasons) == ("rejected", ("carla (compliance) rejected it: too few over 65",))


@pytest.mark.parametrize("person", ["olga", "bert"])
@pytest.mark.parametrize("action", ["approve", "reject", "return", "waive"])
def test_owner_and_builder_have_no_say(world: Any, person: str, action: Any) -> None:
    alone = standing(world.case, world.record((person, action), ("priya", "approve")), world.charter, NOW)
    assert (alone.state, alone.approvers) == ("waiting", ("priya",))
    assert alone.left_out[0].startswith(person)
    assert is_approved(world.case, world.record((person, action), *FOUR_EYES), world.charter, NOW)


def test_a_reviewer_of_another_institution_has_no_say(world: Any) -> None:
    found = standing(world.case, world.record(("sven", "approve"), ("rolf", "approve")), world.charter, NOW)
    assert (found.state, found.approvers) == ("waiting", ("rolf",))
    assert found.left_out == ("sven (privacy) is enrolled elsewhere: 'north' decides",)


def with_second_key(charter: Charter, key_for: Callable[[str], Ed25519PrivateKey]) -> tuple[Any, Charter]:
    """Priya at south as well, for risk and under another key."""
    asked = prove_possession(charter.name, "priya", "south", "risk", key_for("priya's other"))
    other = enrol_reviewer(charter.name, asked, key_for("identity of south"))
    return other, charter.with_reviewers([other])


def test_one_person_under_two_keys_is_one_person(world: Any, key_for: Callable[[str], Ed25519PrivateKey]) -> None:
    other, charter = with_second_key(world.charter, key_for)
    first = world.say("priya")
    second = world.say("priya", earlier=[first], reviewer=other, key=key_for("priya's other"))
    found = standing(world.case, [first, second], charter, NOW)
    assert (found.state, found.approvers) == ("waiting", ("priya",))
    posing = other.model_copy(update={"institution": "north"})
    third = world.say("priya", earlier=[first], reviewer=posing, key=key_for("priya's other"))
    found = standing(world.case, [first, third], charter, NOW)
    assert found.state == "waiting"
    assert found.left_out == ("priya (risk) is not enrolled with this key and function",)


@pytest.mark.parametrize("change", [{"function": "risk"}, {"person": "pavel"}, {"person": "nobody"}])
def test_who_signs_is_who_is_enrolled(world: Any, change: dict[str, str]) -> None:
    posing = world.reviewer("priya").model_copy(update=change)
    found = standing(world.case, [world.say("priya", reviewer=posing)], world.charter, NOW)
    assert (found.state, found.approvers, len(found.left_out)) == ("waiting", (), 1)


def test_a_reviewer_who_left_the_charter_does_not_count_any_more(world: Any) -> None:
    rest = tuple(one for one in world.charter.reviewers if one.person != "priya")
    charter = world.charter.model_copy(update={"reviewers": rest})
    found = standing(world.case, world.record(*FOUR_EYES), charter, NOW)
    assert (found.state, found.waiting_for) == ("waiting", ("privacy",))


FIELDS = {
    "person": "pavel",
    "function": "compliance",
    "institution": "south",
    "conditions": ["none at all"],
    "expires": "2027-01-31",
    "at": "2026-03-01T10:30:00Z",
    "key": "ab" * 32,
    "case": "sha256:" + "a" * 64,
    "subject": "sha256:" + "a" * 64,
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("place", [0, 1])
def test_a_partially_edited_statement_makes_the_record_count_for_nothing(world: Any, field: str, place: int) -> None:
    record = world.record(*FOUR_EYES)
    assert is_approved(world.case, record, world.charter, NOW)
    document = record[place].model_dump(mode="json", by_alias=True)
    document["statement"][field] = FIELDS[field]
    record[place] = Signed.model_validate(document)
    found = standing(world.case, record, world.charter, NOW)
    assert found.state == "invalid"
    assert any("the signature is not of this statement" in reason for reason in found.reasons)


def test_an_approval_is_of_this_very_subject_and_case(world: Any) -> None:
    record = world.record(*FOUR_EYES)
    for other in (
        world.make_case(version=2),
        world.make_case(name="spring-2"),
        world.make_case(owner="rolf"),
        world.make_case(builders=["bert", "priya"]),
        world.make_case(purpose="Research"),
    ):
        found = standing(other, record, world.charter, NOW)
        assert found.state == "invalid"
        assert "priya (privacy): the statement is of another case" in found.reasons
    assert any(
        "another subject" in why for why in standing(world.make_case(version=2), record, world.charter, NOW).reasons
    )


def test_a_record_of_another_federation_counts_for_nothing(world: Any) -> None:
    other = world.charter.model_copy(update={"name": "other banks"})
    found = standing(world.case, world.record(*FOUR_EYES), other, NOW)
    assert (found.state, found.reasons) == ("invalid", ("the case is of the federation 'two banks'",))


def test_replayed_and_missing_statements_are_named(world: Any) -> None:
    returned = world.record(*FOUR_EYES, ("carla", "return"))
    replay = standing(world.case, [*returned, returned[1]], world.charter, NOW)
    assert replay.state == "invalid"
    assert "repeated, or forked" in replay.reasons[0]
    forked = [*returned, world.say("pavel", earlier=returned[:2])]
    assert "repeated, or forked" in standing(world.case, forked, world.charter, NOW).reasons[0]
    gap = standing(world.case, [returned[0], returned[2]], world.charter, NOW)
    assert (gap.state, gap.reasons) == ("invalid", ("1 statements do not follow the others: something is missing",))


def test_dates_that_cannot_be_are_named(world: Any) -> None:
    early = world.say("priya", hours=-0.001)
    assert standing(world.case, [early], world.charter, NOW).reasons == (
        "priya (privacy): the statement is dated before the case was opened",
    )
    said = world.say("priya", hours=1)
    at = said.statement.at
    assert standing(world.case, [said], world.charter, at - CLOCK_SKEW).state == "waiting"
    ahead = standing(world.case, [said], world.charter, at - CLOCK_SKEW - timedelta(seconds=1))
    assert ahead.reasons == ("priya (privacy): the statement is dated in the future",)
    back = [said, world.say("rolf", earlier=[said], hours=0.5)]
    assert standing(world.case, back, world.charter, NOW).reasons == (
        "rolf (risk): the statement is dated before the one it follows",
    )
    before = standing(world.case, [], world.charter, world.case.opened_at - CLOCK_SKEW - timedelta(seconds=1))
    assert before.reasons == ("the case is dated in the future",)


def test_a_waiver_needs_two_signatures_as_well(world: Any) -> None:
    one = standing(world.case, world.record(("priya", "waive")), world.charter, NOW)
    assert not one.waived
    two = standing(world.case, world.record(("priya", "waive"), ("carla", "waive")), world.charter, NOW)
    assert (two.state, two.waived, two.approvers) == ("waiting", True, ())
    assert review_facts(two)["audit.verdict"] == "waived_four_eyes"
    same = standing(world.case, world.record(("rolf", "waive"), ("carla", "waive")), world.charter, NOW)
    assert not same.waived
    both = world.record(("priya", "waive"), ("carla", "waive"), *FOUR_EYES)
    found = standing(world.case, both, world.charter, NOW)
    assert (found.state, found.waived, found.tasks) == ("approved", True, ("audit again in May",) * 2)
    late = standing(world.case, both, world.charter, datetime(2027, 1, 1, tzinfo=UTC))
    assert (late.state, late.waived) == ("expired", False)
    undone = world.record(("priya", "waive"), ("carla", "waive"), ("rolf", "return"))
    assert not standing(world.case, undone, world.charter, NOW).waived


def test_a_case_for_a_waiver_is_waived_and_never_approved(world: Any) -> None:
    case = world.make_case(kind="waiver")
    first = world.say("priya", "waive", case=case)
    second = world.say("rolf", "waive", [first], case=case)
    assert is_approved(case, [first, second], world.charter, NOW)
    found = standing(case, [world.say("priya", case=case)], world.charter, NOW)
    assert found.reasons == ("priya (privacy): a case for a waiver is waived, not approved",)


@pytest.mark.parametrize(
    ("action", "terms", "words"),
    [
        ("approve", Terms(), "needs expires"),
        ("approve", Terms(expires=date(2026, 2, 28)), "expires must be"),
        ("approve", Terms(expires=date(2027, 3, 3)), "expires must be"),
        ("approve", Terms(expires=date(2026, 5, 1), reason="so"), "has no reason"),
        ("return", Terms(), "needs questions"),
        ("return", Terms(questions=("why?",), expires=date(2026, 5, 1)), "has no expires"),
        ("reject", Terms(), "needs reason"),
        ("reject", Terms(reason="two\nlines"), "not of the right form"),
        ("waive", Terms(reason="so", expires=date(2026, 5, 1)), "needs task"),
        ("waive", Terms(task="so", expires=date(2026, 5, 1)), "needs reason"),
        ("waive", Terms(task="so", reason="so"), "needs expires"),
    ],
)
def test_a_statement_has_what_its_action_needs(world: Any, action: Any, terms: Terms, words: str) -> None:
    key = Ed25519PrivateKey.generate()
    reviewer = world.reviewer("priya").model_copy(update={"key": key.public_key().public_bytes_raw().hex()})
    at = world.case.opened_at + timedelta(hours=1)
    with pytest.raises(DataError, match=words):
        sign_statement(world.case, world.case.digest, reviewer, key, action, terms, at)


def test_nobody_signs_with_anothers_key(world: Any, key_for: Callable[[str], Ed25519PrivateKey]) -> None:
    with pytest.raises(DataError, match="not the key of this reviewer"):
        world.say("priya", key=key_for("rolf"))


# --- properties ------------------------------------------------------------------------------------------------------

ACTIONS = st.sampled_from(["approve", "return", "reject", "waive"])
PERSONS = st.sampled_from(["priya", "pavel", "rolf", "carla", "olga", "bert", "sven", "sara"])
SAID = st.lists(st.tuples(PERSONS, ACTIONS), max_size=5)


def model(said: list[tuple[str, str]]) -> bool:
    """Independent of the code: whether so many statements, none expired, approve."""
    said = [(who, what) for who, what in said if who in ("priya", "pavel", "rolf", "carla")]
    if any(what == "reject" for _, what in said):
        return False
    while any(what == "return" for _, what in said):
        said = said[1:]
    signed = {who for who, what in said if what == "approve"}
    return bool(signed & {"priya", "pavel"}) and bool(signed & {"rolf", "carla"})


@settings(max_examples=40)
@given(said=SAID, order=st.randoms(use_true_random=False))
def test_the_order_in_which_statements_are_given_does_not_matter(world: Any, said: Any, order: Any) -> None:
    record = world.record(*said)
    found = standing(world.case, record, world.charter, NOW)
    assert (found.state == "approved") is model(said)
    order.shuffle(record)
    assert standing(world.case, record, world.charter, NOW) == found


@settings(max_examples=40)
@given(person=PERSONS, actions=st.lists(ACTIONS, max_size=6))
def test_no_sequence_of_statements_by_one_person_approves(world: Any, person: str, actions: Any) -> None:
    found = standing(world.case, world.record(*((person, action) for action in actions)), world.charter, NOW)
    assert found.state != "approved"
    assert not found.waived
    assert len(found.approvers) <= 1


@settings(max_examples=40)
@given(said=SAID, dropped=st.integers(0, 4))
def test_a_statement_taken_out_of_the_middle_never_approves(world: Any, said: Any, dropped: int) -> None:
    record = world.record(*said)
    rest = [one for place, one in enumerate(record) if place != dropped]
    if dropped < len(record) - 1:
        assert standing(world.case, rest, world.charter, NOW).state == "invalid"


def test_every_pair_of_reviewers(world: Any) -> None:
    functions: dict[str, Function] = {"priya": "privacy", "pavel": "privacy", "rolf": "risk", "carla": "compliance"}
    for first, second in itertools.product(functions, repeat=2):
        record = world.record((first, "approve"), (second, "approve"))
        independent = (functions[first] == "privacy") != (functions[second] == "privacy")
        assert is_approved(world.case, record, world.charter, NOW) is independent
