"""`cohortium log` from the outside: three nodes, their charter, proofs carried by hand, a log that was rewritten."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from cohortium.cli.log import app
from cohortium.governance.log import AuditLog, Ed25519Signer, SizeConflictError, log_origin
from cohortium.privacy.ledger import open_store
from cohortium.study.errors import DataError, PlanError

NAMES = ("north", "south", "west")


def cohortium(*words: object) -> Result:
    """`cohortium log ...` in this process; what `main` would turn into exit code 2 is in `exception`."""
    return CliRunner().invoke(app, [str(word) for word in words])


def told(*words: object) -> Any:
    done = cohortium(*words, "--json")
    assert done.exit_code in (0, 1), done.exception
    return {**json.loads(done.output), "code": done.exit_code}


def opened(home: Path, name: str) -> AuditLog:
    key = Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode())
    origin = log_origin("sea", name)
    return AuditLog(open_store(home / name / "log.sqlite"), origin, Ed25519Signer(origin, key))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three nodes' folders with logs of 5 entries and checkpoints of 3 and 5, and charter.toml."""
    charter = 'schema = "cohortium.charter/1"\nname = "sea"\n'
    for name in NAMES:
        key = Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode())
        (tmp_path / name).mkdir()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / name / "identity.pem").write_bytes(pem)
        identity = key.public_key().public_bytes_raw().hex()
        charter += f'[[institutions]]\nname = "{name}"\nregion = "EU"\nidentity = "{identity}"\n'
        log = opened(tmp_path, name)
        log.append([{"event": "query", "step": step} for step in range(3)])
        log.checkpoint()
        log.append([{"event": "query", "step": step} for step in (3, 4)])
        log.checkpoint()
        log._store.dispose()
    (tmp_path / "charter.toml").write_text(charter)
    return tmp_path


def witnessed(home: Path) -> tuple[Path, Path]:
    """North's log cosigned by south and west, and kept; the two notes."""
    charter = ("--charter", home / "charter.toml")
    assert cohortium("prove", home / "north", "--since", 0, "--out", home / "growth.json").exit_code == 0
    notes = []
    for name in ("south", "west"):
        notes.append(home / f"seen-by-{name}.txt")
        done = cohortium("witness", home / name, *charter, "--cosign", home / "growth.json", "--out", notes[-1])
        assert done.exit_code == 0, done.exception
        done = cohortium("witness", home / "north", *charter, "--keep", notes[-1])
        assert done.exit_code == 0, done.exception
        assert ("not yet a quorum" in done.output) == (name == "south")
    return notes[0], notes[1]


def test_show_lists_entries_and_the_checkpoint(home: Path) -> None:
    shown = cohortium("show", home / "north")
    assert shown.exit_code == 0
    for text in ("cohortium/sea/north: 5 entries", "newest checkpoint: 5 entries, cosigned by nobody", '"step": 4'):
        assert text in shown.output
    some = told("show", home / "north", "--from", 1, "--count", 2)
    assert [entry["index"] for entry in some["entries"]] == [1, 2]
    assert (some["size"], len(some["entries"][0]["salt"])) == (5, 64)
    witnessed(home)
    assert "cosigned by cohortium/sea/south, cohortium/sea/west" in cohortium("show", home / "north").output


def test_an_honest_log_is_verified(home: Path) -> None:
    charter = ("--charter", home / "charter.toml")
    report = told("verify", home / "north", *charter)
    assert (report["code"], report["verified"], report["size"], report["cosigned"]) == (0, True, 5, None)
    note, _ = witnessed(home)
    done = cohortium("verify", home / "north", *charter, "--against", note)
    assert done.exit_code == 0
    assert "5 entries, verified" in done.output
    assert "cosigned by a quorum: the first 5 entries" in done.output


def test_a_rewritten_log_is_found_with_what_a_witness_kept(home: Path) -> None:
    charter = ("--charter", home / "charter.toml")
    note, _ = witnessed(home)
    (home / "north" / "log.sqlite").unlink()  # the owner begins again, with another past
    log = opened(home, "north")
    log.append([{"event": "query", "step": step} for step in range(5)])
    log.checkpoint()
    log._store.dispose()
    assert told("verify", home / "north", *charter)["code"] == 0
    report = told("verify", home / "north", *charter, "--against", note)
    assert (report["code"], report["verified"], report["first_bad"]) == (1, False, [0, 4])
    assert "others hold" in report["findings"][0]
    cohortium("prove", home / "north", "--since", 0, "--out", home / "again.json")
    refused = cohortium("witness", home / "west", *charter, "--cosign", home / "again.json", "--out", home / "x.txt")
    assert isinstance(refused.exception, SizeConflictError)
    assert not (home / "x.txt").exists()


def test_an_edited_entry_is_named(home: Path) -> None:
    with closing(sqlite3.connect(home / "north" / "log.sqlite")) as raw, raw:
        raw.execute("DROP TRIGGER log_entries_no_update")
        raw.execute("UPDATE log_entries SET leaf = x'7b7d' WHERE position = 3")
    done = cohortium("verify", home / "north", "--charter", home / "charter.toml")
    assert done.exit_code == 1
    assert "entry 3 was edited" in done.output
    assert "NOT verified" in done.output


def test_proofs_are_verified_with_the_charter_alone(home: Path) -> None:
    charter, proof = ("--charter", home / "charter.toml"), home / "proof.json"
    assert cohortium("prove", home / "north", "--entry", 4, "--out", proof).exit_code == 0
    before = told("verify", proof, *charter)
    assert (before["code"], before["cosigned"]) == (1, None)
    assert "too few witnesses" in before["findings"][0]
    witnessed(home)
    assert cohortium("prove", home / "north", "--entry", 4, "--out", proof).exit_code == 0
    after = told("verify", proof, *charter)
    assert (after["code"], after["index"], after["entry"]) == (0, 4, {"event": "query", "step": 4})
    growth = home / "growth.json"
    assert cohortium("prove", home / "north", "--since", 3, "--out", growth).exit_code == 0
    assert told("verify", growth, *charter)["code"] == 0
    forged = json.loads(proof.read_text())
    proof.write_text(json.dumps({**forged, "entry": {"event": "query", "step": 5}}))
    report = told("verify", proof, *charter)
    assert (report["code"], report["cosigned"]) == (1, None)
    assert "does not show this entry" in report["findings"][0]


def test_a_witness_tells_what_it_knows(home: Path) -> None:
    assert "witnessed no log yet" in cohortium("witness", home / "west").output
    witnessed(home)
    assert "cohortium/sea/north: 5 entries" in cohortium("witness", home / "west").output
    (known,) = told("witness", home / "west")["logs"]
    assert (known["origin"], known["size"]) == ("cohortium/sea/north", 5)
    assert told("witness", home / "north")["logs"] == []


def test_mistakes_are_named(home: Path) -> None:
    charter, out = ("--charter", home / "charter.toml"), ("--out", home / "out")
    cohortium("prove", home / "north", "--entry", 0, "--out", home / "entry.json")
    cohortium("prove", home / "north", "--since", 3, "--out", home / "late.json")
    cohortium("prove", home / "north", "--since", 0, "--out", home / "growth.json")
    other = home / "other.toml"
    other.write_text((home / "charter.toml").read_text().replace('"sea"', '"lake"'))
    (home / "bytes").write_bytes(b"\xff")
    (home / "nokey").mkdir()
    log = opened(home, "nokey")
    log._store.dispose()
    cases: list[tuple[str, type[Exception], tuple[object, ...]]] = [
        ("holds no audit log", DataError, ("show", home)),
        ("names no log", PlanError, ("verify", home / "north", "--charter", other)),
        ("cannot be read", DataError, ("verify", home / "none.json", *charter)),
        ("is not JSON", DataError, ("verify", home / "charter.toml", *charter)),
        ("cannot be read as text", DataError, ("verify", home / "north", *charter, "--against", home / "bytes")),
        ("say what to prove", DataError, ("prove", home / "north", *out)),
        ("say what to prove", DataError, ("prove", home / "north", "--entry", 1, "--since", 1, *out)),
        ("there is none", DataError, ("prove", home / "north", "--entry", 5, *out)),
        ("no checkpoint of size 4", DataError, ("prove", home / "north", "--since", 4, *out)),
        ("no checkpoint was made", DataError, ("prove", home / "nokey", "--since", 0, *out)),
        ("is needed here", DataError, ("witness", home / "west", "--cosign", home / "growth.json", *out)),
        ("is needed here", DataError, ("witness", home / "west", *charter, "--cosign", home / "growth.json")),
        ("proof of an entry", DataError, ("witness", home / "west", *charter, *out, "--cosign", home / "entry.json")),
        ("own log", DataError, ("witness", home / "north", *charter, *out, "--cosign", home / "growth.json")),
        (
            "size 0 is known",
            SizeConflictError,
            ("witness", home / "west", *charter, *out, "--cosign", home / "late.json"),
        ),
        ("no usable key", DataError, ("witness", home / "nokey", *charter, *out, "--cosign", home / "growth.json")),
    ]
    for message, kind, words in cases:
        done = cohortium(*words)
        assert isinstance(done.exception, kind), words
        assert message in str(done.exception), words
    assert not (home / "out").exists()
