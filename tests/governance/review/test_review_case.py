"""Cases: digests of the documents, risk from declared facts, and keys that nobody reads without a password."""

from __future__ import annotations

import math
import stat
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from cohortium.governance.review import (
    PARTS,
    Case,
    Subject,
    changed_parts,
    document_digest,
    open_case,
    read_document,
    read_identity,
    read_reviewer_key,
    risk_of,
    summary,
    write_reviewer_key,
)
from cohortium.study.errors import DataError, OutputError
from cohortium.study.keys import write_whole

HARMLESS = {
    "use.solely_automated": False,
    "use.significant_effect": False,
    "use.decision": "none",
    "features.special_category": 0,
    "features.special_inferred": False,
    "features.vulnerability_targeting": False,
    "features.prohibited_basis": 0,
    "data.partner_sourced": False,
    "data.record_linkage": False,
    "data.uses_ais": False,
    "data.uses_bureau": False,
    "data.uses_credit_data": False,
    "transfer.crosses_border": False,
}
PASSWORD = "four plain words here"


def subject(**changes: str) -> Subject:
    return Subject(**{part: "sha256:" + str(place) * 64 for place, part in enumerate(PARTS)} | changes)


def test_every_document_moves_the_subjects_digest() -> None:
    seen = {subject().digest, *(subject(**{part: "sha256:" + "f" * 64}).digest for part in PARTS)}
    assert len(seen) == 5
    swapped = subject(card=subject().audit, audit=subject().card)
    assert swapped.digest not in seen
    assert subject().digest != document_digest(subject().model_dump(mode="json")), "the label is missing"


@pytest.mark.parametrize("part", PARTS)
def test_what_changed_is_named(part: Any) -> None:
    assert changed_parts(subject(), subject(**{part: "sha256:" + "f" * 64})) == (part,)
    assert changed_parts(subject(), subject()) == ()
    assert changed_parts(None, subject()) == PARTS


def test_a_case_is_about_all_four_documents(world: Any) -> None:
    documents = world.documents()
    assert world.case.subject.audit == document_digest(documents["audit"])
    assert Case.model_validate_json(world.case.to_bytes()) == world.case
    for part in PARTS:
        rest = {name: text for name, text in documents.items() if name != part}
        with pytest.raises(DataError, match=f"the {part} is missing"):
            open_case(rest, HARMLESS, name="x")


@pytest.mark.parametrize(
    "changes",
    [
        {"builders": []},
        {"builders": ["bert", "bert"]},
        {"owner": "Olga Jones"},
        {"kind": "release"},
        {"name": "Spring 1"},
        {"purpose": ""},
        {"about": "two\nlines"},
        {"about": "\x1b[2J"},
        {"opened_at": datetime(2026, 3, 1)},
        {"opened_at": datetime(2026, 3, 1, microsecond=1, tzinfo=UTC)},
        {"opened_at": datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=1)))},
        {"colour": "red"},
    ],
    ids=str,
)
def test_a_mistake_in_a_case_is_one_line(world: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        world.make_case(**changes)
    assert caught.value.fix
    assert "\n" not in str(caught.value)


def test_the_risk_tier_follows_from_declared_facts() -> None:
    assert (risk_of(HARMLESS).tier, risk_of(HARMLESS).reasons) == ("low", ())
    for fact, value in {
        "use.solely_automated": True,
        "use.decision": "pricing",
        "features.special_category": 1,
        "features.vulnerability_targeting": True,
    }.items():
        found = risk_of({**HARMLESS, fact: value})
        assert found.tier == "high"
        assert fact in found.reasons[0]
    found = risk_of({**HARMLESS, "data.partner_sourced": True})
    assert (found.tier, found.reasons) == ("medium", ("data of a partner (data.partner_sourced)",))


@pytest.mark.parametrize("fact", HARMLESS)
def test_a_fact_that_is_not_declared_counts(fact: str) -> None:
    found = risk_of({name: value for name, value in HARMLESS.items() if name != fact})
    assert found.tier != "low"
    assert found.reasons == (f"not declared: {fact}",)


@pytest.mark.parametrize("value", [None, "no", "", math.nan, -1, [], {}])
def test_a_value_that_is_not_plainly_harmless_counts(value: Any) -> None:
    assert risk_of({**HARMLESS, "use.solely_automated": value}).tier == "high"


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"{", b'{"a": NaN}', b'{"a": 1e400}', b'{"a":1,"a":1}', b"\xff"])
def test_a_document_is_plain_json(text: bytes) -> None:
    with pytest.raises(DataError, match=r"audit\.json"):
        read_document(text, "audit.json")
    assert read_document(b'{"a": 1.0}', "x") == {"a": 1.0}


def test_a_summary_holds_plain_values_and_obeys_no_terminal() -> None:
    told = summary(
        {"a": "x\x1b[2J\ny", "b": {"deep": 1}, "c": [1, 2], "d": [{"e": 1, "f": {"g": 2}}] * 600, "h": "z" * 999}
    )
    assert told["a"] == "x [2J y"
    assert set(told) == {"a", "d", "h"}
    assert (len(told["d"]), told["d"][0], len(told["h"])) == (500, {"e": 1}, 200)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_file_is_encrypted_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "reviewer.pem"
    key = write_reviewer_key(path, PASSWORD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    again = read_reviewer_key(path, PASSWORD)
    assert again.private_bytes_raw() == key.private_bytes_raw()
    with pytest.raises(DataError, match="cannot be opened with this password") as caught:
        read_reviewer_key(path, PASSWORD + "!")
    assert PASSWORD not in str(caught.value)
    with pytest.raises(OutputError, match="exists already"):
        write_reviewer_key(path, PASSWORD)
    assert read_reviewer_key(path, PASSWORD).private_bytes_raw() == key.private_bytes_raw()
    assert write_reviewer_key(tmp_path / "other.pem", PASSWORD).private_bytes_raw() != key.private_bytes_raw()


@pytest.mark.parametrize("password", ["", "x" * 15, "x" * 1024, "ü" * 512])
def test_a_password_is_neither_short_nor_cut(tmp_path: Path, password: str) -> None:
    with pytest.raises(DataError, match="password"):
        write_reviewer_key(tmp_path / "reviewer.pem", password)
    assert not list(tmp_path.iterdir())


def test_what_is_no_encrypted_reviewer_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    plain = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_whole(path, plain)
    with pytest.raises(DataError, match="is no encrypted key"):
        read_reviewer_key(path, PASSWORD)
    assert read_identity(path).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) == plain
    other = generate_private_key(SECP256R1())
    for secrecy, read in (
        (BestAvailableEncryption(PASSWORD.encode()), lambda: read_reviewer_key(path, PASSWORD)),
        (NoEncryption(), lambda: read_identity(path)),
    ):
        path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secrecy))
        with pytest.raises(DataError, match="no Ed25519 key"):
            read()
    write_reviewer_key(tmp_path / "reviewer.pem", PASSWORD)
    with pytest.raises(DataError, match="holds no identity key"):
        read_identity(tmp_path / "reviewer.pem")
    with pytest.raises(DataError, match=r"nowhere\.pem"):
        read_reviewer_key(tmp_path / "nowhere.pem", PASSWORD)
