"""Signed notes against the vectors of other implementations, and what a strict reader refuses."""

from __future__ import annotations

import base64
import contextlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cohortium.governance.log.checkpoint import Checkpoint, log_origin, open_checkpoint, parse_checkpoint
from cohortium.governance.log.note import (
    Cosigner,
    CosignerVerifier,
    Ed25519Signer,
    Ed25519Verifier,
    Note,
    parse_note,
    parse_signatures,
)
from cohortium.study.errors import DataError, Defect, PlanError

TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = (
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "\u2014 EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
PETER = Ed25519Verifier("PeterNeumann", base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:])
ENOCH = Ed25519Verifier("EnochRoot", base64.b64decode("ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop")[1:])
PETER_SECRET = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
"""Text, keys and signatures of the tests of Go's sumdb/note."""

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
COSIGNER = Cosigner("north", KEY, 1_700_000_000)


def test_key_ids_are_those_of_other_implementations() -> None:
    assert (PETER.key_id.hex(), ENOCH.key_id.hex()) == ("c74f20a3", "af0cfe78")
    assert CosignerVerifier(PETER.name, PETER.public).key_id != PETER.key_id


def test_a_signature_is_that_of_other_implementations() -> None:
    signer = Ed25519Signer("PeterNeumann", Ed25519PrivateKey.from_private_bytes(PETER_SECRET))
    assert signer.verifier == PETER
    assert Note(TEXT).signed(signer).to_text() == TEXT + "\n" + PETER_LINE


def test_who_signed() -> None:
    note = parse_note(TEXT + "\n" + PETER_LINE + ENOCH_LINE)
    assert note.text == TEXT
    assert note.signers([PETER]) == {"PeterNeumann"}
    assert note.signers([PETER, ENOCH]) == {"PeterNeumann", "EnochRoot"}
    assert note.signers([]) == set()


def test_duplicates_count_once_and_unknown_keys_not_at_all() -> None:
    note = parse_note(TEXT + "\n" + PETER_LINE + PETER_LINE)
    assert note.signers([PETER, ENOCH]) == {"PeterNeumann"}
    assert len(note.with_signatures(parse_signatures(PETER_LINE)).signatures) == 1
    renamed = parse_note(TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "EnochRoot"))
    assert renamed.signers([PETER, ENOCH]) == set()


def test_a_known_key_whose_signature_does_not_hold_voids_the_note() -> None:
    altered = parse_note("X" + TEXT + "\n" + PETER_LINE)
    with pytest.raises(DataError, match="does not hold"):
        altered.signers([PETER])
    forged = PETER_LINE.replace("x08go/ZJ", "x08go/ZK")
    with pytest.raises(DataError, match="does not hold"):
        parse_note(TEXT + "\n" + PETER_LINE + forged).signers([PETER])
    with pytest.raises(Defect):
        altered.signers([PETER, PETER])


@pytest.mark.parametrize("size", [1, 40, 1024, 1025, 100_000])
def test_a_signature_that_was_verified_holds_for_those_bytes_alone(size: int) -> None:
    text, other = b"x" * size, Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
    value, verifier = KEY.sign(text), Ed25519Verifier("log", KEY.public_key().public_bytes_raw())
    for _ in range(3):
        assert verifier.is_valid(text, value)
        assert not verifier.is_valid(text[:-1] + b"y", value)
        assert not verifier.is_valid(text + b"x", value)
        assert not verifier.is_valid(text, value[:-1] + bytes([value[-1] ^ 1]))
        assert not verifier.is_valid(text, value + b"\0")
        assert not verifier.is_valid(text, other.sign(text))
        assert not Ed25519Verifier("log", other.public_key().public_bytes_raw()).is_valid(text, value)
        assert not CosignerVerifier("log", verifier.public).is_valid(text, bytes(8) + value)


def test_cosignatures_hold_for_their_time_and_text_alone() -> None:
    note = Note("cohortium/a/b\n1\nx\n").signed(COSIGNER)
    (made,) = note.signatures
    assert note.signers([COSIGNER.verifier]) == {"north"}
    assert int.from_bytes(made.value[:8], "big") == 1_700_000_000
    KEY.public_key().verify(made.value[8:], b"cosignature/v1\ntime 1700000000\n" + note.text.encode())
    later = (1_700_000_001).to_bytes(8, "big") + made.value[8:]
    assert not COSIGNER.verifier.is_valid(note.text.encode(), later)
    assert not COSIGNER.verifier.is_valid(note.text.encode(), made.value + b"\0")
    beyond = Cosigner("north", KEY, 2**63)
    with pytest.raises(Defect):
        beyond.sign(b"")
    raw = (2**63).to_bytes(8, "big") + KEY.sign(b"cosignature/v1\ntime %d\n" % 2**63)
    assert not COSIGNER.verifier.is_valid(b"", raw)


def test_a_log_signs_nothing_that_reads_as_a_cosignature() -> None:
    with pytest.raises(Defect):
        Ed25519Signer("north", KEY).sign(b"cosignature/v1\ntime 1\norigin\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT,
        TEXT + "\n",
        TEXT + "\n" + PETER_LINE[:-1],
        TEXT + PETER_LINE,
        "\n\n" + PETER_LINE,
        "\x01" + TEXT + "\n" + PETER_LINE,
        "\r" + TEXT + "\n" + PETER_LINE,
        "\ud800" + TEXT + "\n" + PETER_LINE,
        TEXT + "\n" + PETER_LINE.replace("Peter", "Peter "),
        TEXT + "\n" + PETER_LINE.replace("Peter", "Peter\u00a0"),
        TEXT + "\n" + PETER_LINE.replace("Peter", "Peter+"),
        TEXT + "\n" + PETER_LINE.replace("Peter", "Peter\x7f"),
        TEXT + "\n" + PETER_LINE.replace("Peter", "Peter\ud800"),
        TEXT + "\n" + PETER_LINE.replace("\u2014", "-"),
        TEXT + "\n" + PETER_LINE.replace("nAM=", "nAN="),
        TEXT + "\n" + PETER_LINE.replace("nAM=", "nAM"),
        TEXT + "\n\u2014 PeterNeumann x08gow==\n",
        TEXT + "\n" + PETER_LINE + "Unexpected line.\n",
        TEXT + "\n" + PETER_LINE + "\n",
        TEXT + "\n" + PETER_LINE * 2049,
        "x" * 2**20 + TEXT + "\n" + PETER_LINE,
    ],
)
def test_a_malformed_note_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="is not a signed note"):
        parse_note(text)


def test_a_note_may_have_empty_lines() -> None:
    assert parse_note("a\n\nb\n\n\n" + PETER_LINE).text == "a\n\nb\n\n"


@given(st.data())
def test_whatever_is_read_is_its_own_serialisation(data: st.DataObject) -> None:
    """Mutations of a note are refused with the promised error or are notes themselves."""
    whole = TEXT + "\n" + PETER_LINE + ENOCH_LINE
    at = data.draw(st.integers(0, len(whole)))
    upto = min(len(whole), at + data.draw(st.integers(0, 60)))
    piece = data.draw(st.sampled_from(["", "\n", "\u2014 ", " ", "=", "A", "+", "\n\n"]) | st.text(max_size=4))
    mutated = whole[:at] + piece + whole[upto:]
    with contextlib.suppress(DataError):
        assert parse_note(mutated).to_text() == mutated


@pytest.mark.parametrize(
    ("name", "public"), [("", bytes(32)), ("a b", bytes(32)), ("a+b", bytes(32)), ("a", bytes(31))]
)
def test_a_key_is_well_formed(name: str, public: bytes) -> None:
    for kind in (Ed25519Verifier, CosignerVerifier):
        with pytest.raises(Defect):
            kind(name, public)


# --- checkpoints -----------------------------------------------------------------------------------------------------

CHECKPOINT = Checkpoint("cohortium/north%20sea/bank", 20852163, bytes(range(32)))


def test_a_checkpoint_is_three_lines() -> None:
    text = "cohortium/north%20sea/bank\n20852163\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    assert CHECKPOINT.to_text() == text
    assert parse_checkpoint(text) == CHECKPOINT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("20852163", "020852163"),
        ("20852163", ""),
        ("20852163", "-1"),
        ("20852163", "\u0661"),
        ("20852163", str(2**63)),
        ("cohortium/north%20sea/bank", ""),
        ("=\n", "=\nextension\n"),
        ("=\n", "="),
        ("Hh8=", "Hh9="),
        ("AAEC", ""),
        ("AAEC", "!!!!"),
    ],
)
def test_a_malformed_checkpoint_is_refused(old: str, new: str) -> None:
    with pytest.raises(DataError, match="is not a checkpoint"):
        parse_checkpoint(CHECKPOINT.to_text().replace(old, new))


def test_a_checkpoint_is_the_logs_own() -> None:
    signer = Ed25519Signer(CHECKPOINT.origin, KEY)
    note = Note(CHECKPOINT.to_text()).signed(signer)
    assert open_checkpoint(note.to_text(), signer.verifier)[0] == CHECKPOINT
    with pytest.raises(DataError, match="another log"):
        open_checkpoint(note.to_text(), Ed25519Verifier("cohortium/x/y", signer.verifier.public))
    with pytest.raises(DataError, match="not signed by the log"):
        open_checkpoint(note.to_text(), Ed25519Verifier(CHECKPOINT.origin, bytes(32)))
    cosigned_alone = Note(CHECKPOINT.to_text()).signed(Cosigner(CHECKPOINT.origin, KEY, 1)).to_text()
    with pytest.raises(DataError, match="not signed by the log"):
        open_checkpoint(cosigned_alone, signer.verifier)


def test_origins_are_escaped_and_none_is_the_coordinators() -> None:
    assert log_origin("north sea/1", "b+c") == "cohortium/north%20sea%2F1/b%2Bc"
    assert log_origin("north") == "cohortium/north/coordinator"
    with pytest.raises(PlanError, match="rename"):
        log_origin("north", "coordinator")
