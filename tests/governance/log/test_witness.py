"""A witness cosigns a log that only grows, nothing else, and never two histories; a quorum counts whom it should."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.log import (
    Checkpoint,
    Cosigner,
    Note,
    ProofFailedError,
    SizeConflictError,
    Witness,
    WitnessError,
    known_logs,
    log_origin,
    log_verifier,
    member_of,
    parse_note,
    parse_signatures,
    quorum_for,
)
from cohortium.governance.log.merkle import EMPTY_ROOT
from cohortium.privacy.ledger import open_store
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.errors import DataError, Defect, PlanError

ORIGIN = log_origin("sea", "north")


@pytest.fixture
def witness(make_log: Callable[..., Any], keys: dict[str, Ed25519PrivateKey]) -> Witness:
    """South, which has a log of its own in the same file."""
    return Witness(make_log(0, "south").store, log_origin("sea", "south"), keys["south"], lambda: 1_700_000_000.9)


def test_a_growing_log_is_cosigned(make_log: Callable[..., Any], witness: Witness) -> None:
    kept = make_log()
    known = 0
    for batch in (0, 1, 6, 0, 300):
        kept.log.append([{"n": n} for n in range(batch)])
        size, note = kept.log.size, kept.log.checkpoint()
        line = witness.cosign(ORIGIN, kept.signer.verifier, known, kept.log.consistency(known, size), note)
        cosigned = parse_note(note).with_signatures(parse_signatures(line))
        assert cosigned.signers([kept.signer.verifier, witness.verifier]) == {ORIGIN, witness.name}
        assert cosigned.signatures[-1].value[:8] == (1_700_000_000).to_bytes(8, "big")
        last = witness.known(ORIGIN)
        assert last is not None
        assert (last.checkpoint.size, last.checkpoint.root, last.note) == (size, kept.log.root(), note)
        known = size
    assert [seen.checkpoint.origin for seen in known_logs(witness._store)] == [ORIGIN]


def test_another_size_is_a_conflict_that_tells_the_known_one(make_log: Callable[..., Any], witness: Witness) -> None:
    kept = make_log(5)
    first = kept.log.checkpoint()
    witness.cosign(ORIGIN, kept.signer.verifier, 0, [], first)
    kept.log.append([{"later": 1}])
    for old in (0, 4, 6):
        with pytest.raises(SizeConflictError) as conflict:
            witness.cosign(ORIGIN, kept.signer.verifier, old, kept.log.consistency(old, 6), kept.log.checkpoint())
        assert (conflict.value.status, conflict.value.known_size, conflict.value.origin) == (409, 5, ORIGIN)
    proof = kept.log.consistency(5, 6)
    assert witness.cosign(ORIGIN, kept.signer.verifier, 5, proof, kept.log.checkpoint())
    with pytest.raises(SizeConflictError) as conflict:  # a smaller log, however it is proven
        witness.cosign(ORIGIN, kept.signer.verifier, 5, [], first)
    assert conflict.value.known_size == 6


def test_a_proof_that_fails_is_422(make_log: Callable[..., Any], witness: Witness) -> None:
    kept, fork = make_log(5), make_log(7, file="fork.sqlite")
    verifier = kept.signer.verifier
    witness.cosign(ORIGIN, verifier, 0, [], kept.log.checkpoint())
    proof = fork.log.consistency(5, 7)
    with pytest.raises(ProofFailedError) as failed:
        witness.cosign(ORIGIN, verifier, 5, proof, fork.log.checkpoint())
    assert failed.value.status == 422
    kept.log.append([{"a": 1}, {"b": 1}])
    for bad in ([], proof, [*kept.log.consistency(5, 7), bytes(32)], [bytes(32)] * 64, [b""]):
        with pytest.raises(ProofFailedError):
            witness.cosign(ORIGIN, verifier, 5, bad, kept.log.checkpoint())
    known = witness.known(ORIGIN)
    assert known is not None
    assert known.checkpoint.size == 5
    with pytest.raises(ProofFailedError):
        Witness(open_store(kept.path.with_name("w.sqlite")), "w", Ed25519PrivateKey.generate()).cosign(
            ORIGIN, verifier, 0, [bytes(32)], kept.log.checkpoint()
        )


def test_two_roots_of_one_size_are_a_conflict(make_log: Callable[..., Any], witness: Witness) -> None:
    kept, fork = make_log(5), make_log(5, file="fork.sqlite")
    witness.cosign(ORIGIN, kept.signer.verifier, 0, [], kept.log.checkpoint())
    with pytest.raises(SizeConflictError, match="another root") as conflict:
        witness.cosign(ORIGIN, kept.signer.verifier, 5, [], fork.log.checkpoint())
    assert conflict.value.known_size == 5


def test_an_empty_log_has_one_root(witness: Witness, make_log: Callable[..., Any]) -> None:
    signer = make_log().signer
    forged = Note(Checkpoint(ORIGIN, 0, bytes(32)).to_text()).signed(signer).to_text()
    with pytest.raises(SizeConflictError):
        witness.cosign(ORIGIN, signer.verifier, 0, [], forged)
    honest = Note(Checkpoint(ORIGIN, 0, EMPTY_ROOT).to_text()).signed(signer).to_text()
    assert witness.cosign(ORIGIN, signer.verifier, 0, [], honest)


def test_what_is_not_the_logs_own_is_refused(
    make_log: Callable[..., Any], witness: Witness, keys: dict[str, Ed25519PrivateKey]
) -> None:
    kept, other = make_log(3), make_log(3, "west")
    verifier, note = kept.signer.verifier, kept.log.checkpoint()
    forged = note.replace("\n3\n", "\n4\n")
    cosigned_alone = Note(parse_note(note).text).signed(Cosigner(ORIGIN, keys["north"], 1)).to_text()
    cases = [
        (400, ORIGIN, verifier, 0, "no note"),
        (400, ORIGIN, verifier, 0, "no checkpoint\n\n" + note.split("\n\n")[1]),
        (400, ORIGIN, verifier, 4, note),
        (400, ORIGIN, verifier, -1, note),
        (404, ORIGIN, verifier, 0, other.log.checkpoint()),
        (404, ORIGIN, other.signer.verifier, 0, note),
        (403, ORIGIN, verifier, 0, forged),
        (403, ORIGIN, verifier, 0, cosigned_alone),
    ]
    for status, origin, key, old, text in cases:
        with pytest.raises(WitnessError) as refused:
            witness.cosign(origin, key, old, [], text)
        assert refused.value.status == status, text
    assert witness.known(ORIGIN) is None


def test_what_a_witness_knows_is_only_added_to(make_log: Callable[..., Any], witness: Witness) -> None:
    kept = make_log(3)
    witness.cosign(ORIGIN, kept.signer.verifier, 0, [], kept.log.checkpoint())
    path = kept.path.with_name("south.sqlite")
    for statement in (
        "UPDATE witness_checkpoints SET size = 1",
        "DELETE FROM witness_checkpoints",
        "INSERT OR REPLACE INTO witness_checkpoints SELECT sequence, origin, 9, note FROM witness_checkpoints",
        "INSERT INTO witness_checkpoints SELECT 1, origin, 3, note FROM witness_checkpoints",
    ):
        with closing(sqlite3.connect(path)) as raw, pytest.raises(sqlite3.IntegrityError, match="append-only"), raw:
            raw.execute(statement)


COSIGNS = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cohortium.governance.log import AuditLog, Ed25519Signer, Witness
from cohortium.privacy.ledger import open_store

here, there = map(Path, sys.argv[1:])
key = Ed25519PrivateKey.from_private_bytes(bytes(32))
log = AuditLog(open_store(here), "cohortium/sea/north", Ed25519Signer("cohortium/sea/north", key))
witness, old = Witness(open_store(there), "w", key), 0
while True:
    log.append([{"old": old}])
    line = witness.cosign(log.origin, log._signer.verifier, old, log.consistency(old, old + 1), log.checkpoint())
    old += 1
    sys.stdout.write(f"{old}\\n")
    sys.stdout.flush()
"""


def test_a_kill_never_leaves_a_cosignature_without_its_record(tmp_path: Path) -> None:
    words = [sys.executable, "-c", COSIGNS, str(tmp_path / "log.sqlite"), str(tmp_path / "w.sqlite")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().splitlines(keepends=True)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    given = max(int(line) for line in told if line.endswith("\n"))
    (known,) = known_logs(open_store(tmp_path / "w.sqlite"))
    assert known.checkpoint.size >= given >= 5


# --- quorum ----------------------------------------------------------------------------------------------------------


def cosigned(note: str, keys: dict[str, Ed25519PrivateKey], *names: str) -> str:
    opened = parse_note(note)
    for number, name in enumerate(names):
        opened = opened.signed(Cosigner(log_origin("sea", name), keys[name], number))
    return opened.to_text()


@pytest.mark.parametrize(
    ("names", "enough"),
    [
        ((), False),
        (("west",), False),
        (("south",), False),
        (("west", "west"), False),
        (("west", "north"), False),
        (("south", "west"), True),
        (("west", "east"), True),
        (("south", "west", "east"), True),
    ],
)
def test_two_others_one_of_them_outside_the_group(
    make_log: Callable[..., Any],
    federation: Charter,
    keys: dict[str, Ed25519PrivateKey],
    names: tuple[str, ...],
    enough: bool,
) -> None:
    quorum = quorum_for(federation, "north")
    note = cosigned(make_log(2).log.checkpoint(), keys, *names)
    assert quorum.satisfied(note) == enough
    assert quorum.cosigners(note) == {log_origin("sea", name) for name in names if name != "north"}
    if enough:
        assert quorum.require(note).size == 2
    else:
        with pytest.raises(DataError, match="2 are needed"):
            quorum.require(note)


def test_a_group_does_not_witness_for_itself(
    make_log: Callable[..., Any], federation: Charter, keys: dict[str, Ed25519PrivateKey]
) -> None:
    members = [{**member.model_dump(), "group": "coast"} for member in federation.institutions[:3]]
    grouped = parse_charter(
        {**federation.to_json(), "institutions": [*members, federation.institutions[3].model_dump()]}
    )
    quorum, note = quorum_for(grouped, "north"), make_log(2).log.checkpoint()
    assert not quorum.satisfied(cosigned(note, keys, "south", "west"))
    assert quorum.satisfied(cosigned(note, keys, "south", "east"))


def test_a_key_that_is_not_the_witnesss_counts_for_nobody(
    make_log: Callable[..., Any], federation: Charter, keys: dict[str, Ed25519PrivateKey]
) -> None:
    swapped = {**keys, "west": keys["south"], "east": keys["south"]}
    note = cosigned(make_log(2).log.checkpoint(), swapped, "south", "west", "east")
    assert quorum_for(federation, "north").cosigners(note) == {log_origin("sea", "south")}


def test_a_cosignature_that_does_not_hold_voids_the_note(
    make_log: Callable[..., Any], federation: Charter, keys: dict[str, Ed25519PrivateKey]
) -> None:
    kept = make_log(2)
    west = parse_note(cosigned(kept.log.checkpoint(), keys, "west")).signatures[-1]
    kept.log.append([{"another": 1}])
    stolen = parse_note(cosigned(kept.log.checkpoint(), keys, "south")).with_signatures([west]).to_text()
    with pytest.raises(DataError, match="does not hold"):
        quorum_for(federation, "north").satisfied(stolen)


def test_the_coordinators_log_is_witnessed_by_any_two(federation: Charter, keys: dict[str, Ed25519PrivateKey]) -> None:
    quorum = quorum_for(federation, None)
    signed = Note(Checkpoint(log_origin("sea"), 0, EMPTY_ROOT).to_text())
    from cohortium.governance.log import Ed25519Signer

    note = signed.signed(Ed25519Signer(log_origin("sea"), keys["coordinator"])).to_text()
    assert not quorum.satisfied(cosigned(note, keys, "north"))
    assert quorum.satisfied(cosigned(note, keys, "north", "south"))


def test_who_a_log_belongs_to(federation: Charter) -> None:
    assert member_of(federation, log_origin("sea")) is None
    assert member_of(federation, ORIGIN) == "north"
    with pytest.raises(PlanError, match="names no log"):
        member_of(federation, "cohortium/sea/nobody")
    with pytest.raises(Defect):
        quorum_for(federation, "nobody")
    bare = parse_charter({**federation.to_json(), "coordinator": None})
    with pytest.raises(PlanError, match="no key"):
        log_verifier(bare, None)


def test_one_institution_alone_needs_nobody(make_log: Callable[..., Any], federation: Charter) -> None:
    alone = parse_charter({**federation.to_json(), "institutions": [federation.institutions[0].model_dump()]})
    assert quorum_for(alone, "north").satisfied(make_log(1).log.checkpoint())
