"""Proposals and approvals: what verifies, and every way in which one that does not is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from cohortium.study.canonical import canonical_bytes
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import RefusedError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.proposal import (
    MAX_PROPOSAL,
    Proposal,
    SignedProposal,
    StudyApproval,
    check_approval,
    parse_approval,
    parse_proposal,
    sign_approval,
    sign_proposal,
)
from cohortium.study.software import Software

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SOFTWARE = Software(version="1", code="sha256:" + "1" * 64, bundle="sha256:" + "2" * 64)
MakeProposal = Callable[..., Proposal]


def private(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode())


def public(name: str) -> str:
    return private(name).public_key().public_bytes_raw().hex()


@pytest.fixture
def make_proposal(small_contract: Contract, charter: Charter, make_plan: Callable[..., Plan]) -> MakeProposal:
    """A proposal of the small plan, with fields of it changed."""

    def make(**changes: Any) -> Proposal:
        document = {
            "federation": charter.name,
            "plan": make_plan(software=SOFTWARE),
            "contract": small_contract,
            "charter": parse_charter({**charter.to_json(), "coordinator": public("coordinator")}),
            "base": None,
            "made": NOW,
            **changes,
        }
        return Proposal(**document)

    return make


def signed(proposal: Proposal) -> bytes:
    return sign_proposal(proposal, private("coordinator")).to_bytes()


def opened(data: bytes, federation: str = "small", coordinator: str = "coordinator") -> SignedProposal:
    return parse_proposal(data, "p.json", federation=federation, coordinator=public(coordinator))


def test_a_signed_proposal_is_read_as_it_was_written(make_proposal: MakeProposal) -> None:
    proposal = make_proposal()
    data = signed(proposal)
    found = opened(data)
    assert found.proposal == proposal
    assert type(found.proposal.plan) is type(proposal.plan)
    assert found.proposal.plan.digest == proposal.plan.digest
    assert found.to_bytes() == data == canonical_bytes(json.loads(data))


@pytest.mark.parametrize(
    "path",
    [
        ("proposal", "plan", "epsilon"),
        ("proposal", "plan", "software", "version"),
        ("proposal", "contract", "name"),
        ("proposal", "charter", "min_customers"),
        ("proposal", "made"),
        ("signature",),
    ],
    ids=".".join,
)
def test_no_value_of_a_proposal_can_be_edited(path: tuple[str, ...], make_proposal: MakeProposal) -> None:
    """Anything that still reads as a proposal fails at the signature; the rest fails before."""
    edits = {"epsilon": 0.5, "version": "2", "name": "other", "min_customers": 999, "made": "2026-11-23T12:00:01Z"}
    document = json.loads(signed(make_proposal()))
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = edits.get(path[-1], "0" * 128)
    with pytest.raises(RefusedError) as caught:
        opened(canonical_bytes(document))
    assert caught.value.place is not None
    assert caught.value.fix


def test_no_byte_of_a_proposal_can_be_edited(make_proposal: MakeProposal) -> None:
    data = signed(make_proposal())
    for position in range(0, len(data), 37):
        edited = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(RefusedError):
            opened(edited)


@pytest.mark.parametrize("edit", [b" ", b"\n"])
def test_the_same_values_in_other_bytes_are_refused(edit: bytes, make_proposal: MakeProposal) -> None:
    with pytest.raises(RefusedError, match="not byte for byte"):
        opened(signed(make_proposal()) + edit)


def test_a_proposal_of_another_coordinator_is_refused(make_proposal: MakeProposal, charter: Charter) -> None:
    theirs = parse_charter({**charter.to_json(), "coordinator": public("mallory")})
    forged = sign_proposal(make_proposal(charter=theirs), private("mallory")).to_bytes()
    assert opened(forged, coordinator="mallory").proposal.charter == theirs
    with pytest.raises(RefusedError, match="not signed by the coordinator"):
        opened(forged)


def test_a_signature_of_another_key_under_the_right_charter_is_refused(make_proposal: MakeProposal) -> None:
    proposal = make_proposal()
    with pytest.raises(RefusedError, match="names another key"):
        sign_proposal(proposal, private("mallory"))
    forged = SignedProposal(proposal=proposal, signature=private("mallory").sign(proposal.signable()).hex())
    with pytest.raises(RefusedError, match="not signed by the coordinator"):
        opened(forged.to_bytes())


def test_the_coordinator_signs_no_charter_that_names_another(make_proposal: MakeProposal, charter: Charter) -> None:
    theirs = parse_charter({**charter.to_json(), "coordinator": public("mallory")})
    proposal = make_proposal(charter=theirs)
    mixed = SignedProposal(proposal=proposal, signature=private("coordinator").sign(proposal.signable()).hex())
    with pytest.raises(RefusedError, match="not signed by the coordinator"):
        opened(mixed.to_bytes())


def test_a_proposal_of_another_federation_is_refused(make_proposal: MakeProposal) -> None:
    with pytest.raises(RefusedError, match="another federation"):
        opened(signed(make_proposal()), federation="other")


def test_what_is_too_large_is_not_even_parsed() -> None:
    with pytest.raises(RefusedError, match="is above 4,194,304 bytes"):
        opened(b"[" * (MAX_PROPOSAL + 1))
    with pytest.raises(RefusedError, match="is above 41,943 bytes"):
        parse_approval(b"[" * 41_944, "a.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"a":1,"a":1}', b"\xff", b"[" * 100_000, b'{"proposal":null}'])
def test_what_is_no_proposal_is_named(data: bytes) -> None:
    with pytest.raises(RefusedError, match=r"p\.json"):
        opened(data)
    with pytest.raises(RefusedError, match=r"a\.json"):
        parse_approval(data, "a.json")


def test_a_proposal_is_of_one_piece(
    make_proposal: MakeProposal, make_plan: Callable[..., Plan], small_contract: Contract, charter: Charter
) -> None:
    other = small_contract.model_copy(update={"name": "other"})
    broken: list[tuple[dict[str, Any], str]] = [
        ({"contract": other}, "the contract is not"),
        ({"plan": make_plan()}, "which code"),
        ({"federation": "other"}, "another federation"),
        ({"charter": charter}, "no key of the coordinator"),
        ({"base": "sha256:" + "0" * 64}, "base is not the model"),
        ({"made": datetime(2026, 11, 23, 12)}, "timezone"),
    ]
    for change, message in broken:
        with pytest.raises(ValidationError, match=message):
            make_proposal(**change)


def test_a_campaign_s_proposal_names_the_model_it_stands_on(
    make_proposal: MakeProposal, make_plan: Callable[..., Plan]
) -> None:
    model = "sha256:" + "a" * 64
    whole = make_plan(software=SOFTWARE).to_json()
    wanted = {name: value for name, value in whole.items() if name not in ("segments", "shares")}
    campaign = parse_plan({**wanted, "study": "lookalike", "model": model, "lookalike": {"seed": "vip"}})
    assert make_proposal(plan=campaign, base=model).base == model
    for base in (None, "sha256:" + "b" * 64):
        with pytest.raises(ValidationError, match="base is not the model"):
            make_proposal(plan=campaign, base=base)


# --- approvals -------------------------------------------------------------------------------------------------------


def test_an_approval_is_of_this_very_proposal(make_proposal: MakeProposal) -> None:
    proposal = make_proposal()
    made = sign_approval(proposal, "north", "ada", private("north"), NOW)
    assert parse_approval(made.to_bytes(), "a.json") == made
    check_approval(made, proposal, "a.json")
    said = made.approval
    assert (said.plan, said.charter) == (proposal.plan.digest, proposal.charter.digest)
    assert (said.proposal, said.federation) == (proposal.digest, "small")


def test_an_approval_is_not_replayed_for_anything_else(
    make_proposal: MakeProposal, make_plan: Callable[..., Plan], charter: Charter
) -> None:
    made = sign_approval(make_proposal(), "north", "ada", private("north"), NOW)
    whole = {**charter.to_json(), "coordinator": public("coordinator")}
    others = {
        "plan": make_proposal(plan=make_plan(software=SOFTWARE, epsilon=0.9)),
        "charter": make_proposal(charter=parse_charter({**whole, "min_customers": 999})),
        "federation": make_proposal(federation="b", charter=parse_charter({**whole, "name": "b"})),
        "proposal": make_proposal(made=NOW.replace(second=1)),
    }
    for name, other in others.items():
        with pytest.raises(RefusedError, match=f"approves another {name}"):
            check_approval(made, other, "a.json")


def test_an_approval_is_signed_by_the_institution_that_it_names(make_proposal: MakeProposal) -> None:
    proposal = make_proposal()
    with pytest.raises(RefusedError, match="no identity key of 'east'"):
        sign_approval(proposal, "east", "ada", private("east"), NOW)
    with pytest.raises(RefusedError, match="not signed by the identity key of 'south'"):
        sign_approval(proposal, "south", "ada", private("north"), NOW)
    made = sign_approval(proposal, "north", "ada", private("north"), NOW)
    for change in ({"institution": "south"}, {"approver": "bob"}, {"approved_at": NOW.replace(second=1)}):
        replayed = made.model_copy(update={"approval": made.approval.model_copy(update=change)})
        with pytest.raises(RefusedError, match="not signed by the identity key"):
            check_approval(replayed, proposal, "a.json")


def test_a_member_that_a_later_charter_lacks_does_not_approve_under_it(
    make_proposal: MakeProposal, charter: Charter
) -> None:
    made = sign_approval(make_proposal(), "west", "ada", private("west"), NOW)
    rest = [member for member in charter.to_json()["institutions"] if member["name"] != "west"]
    later = parse_charter({**charter.to_json(), "coordinator": public("coordinator"), "institutions": rest})
    with pytest.raises(RefusedError, match="approves another charter"):
        check_approval(made, make_proposal(charter=later), "a.json")
    with pytest.raises(RefusedError, match="no identity key of 'west'"):
        sign_approval(make_proposal(charter=later), "west", "ada", private("west"), NOW)


@pytest.mark.parametrize("approver", ["", "two words", "a" * 129, "ada\n"])
def test_an_approver_is_an_account(approver: str, make_proposal: MakeProposal) -> None:
    with pytest.raises(RefusedError, match="approver"):
        sign_approval(make_proposal(), "north", approver, private("north"), NOW)


def test_what_is_signed_begins_with_what_it_is(make_proposal: MakeProposal) -> None:
    """So that no signature of one kind of document is one of another kind."""
    proposal = make_proposal()
    assert proposal.signable() == b"cohortium.proposal/1\n" + proposal.to_bytes()
    digest = "sha256:" + "0" * 64
    said = StudyApproval(
        federation="small", plan=digest, charter=digest, proposal=digest, institution="a", approver="b", approved_at=NOW
    )
    assert said.signable() == b"cohortium.study-approval/1\n" + said.to_bytes()
