"""The store: what is acknowledged stays, whoever else writes and whatever fails; proofs hold; nothing is rewritten."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import event

from cohortium.governance.log import AuditLog, Cosigner, Ed25519Signer, Note, open_checkpoint, parse_note
from cohortium.governance.log.merkle import EMPTY_ROOT, Frontier, leaf_hash, verify_consistency, verify_inclusion
from cohortium.governance.log.store import BLOCK
from cohortium.governance.log.verify import verify_log
from cohortium.privacy.ledger import open_store
from cohortium.study.errors import DataError, Defect, OutputError, RefusedError

BATCHES = 15
APPENDS = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cohortium.governance.log import AuditLog, Ed25519Signer
from cohortium.privacy.ledger import open_store

path, name, batches = sys.argv[1:]
key = Ed25519PrivateKey.from_private_bytes(bytes(32))
log = AuditLog(open_store(Path(path)), "cohortium/sea/north", Ed25519Signer("cohortium/sea/north", key))
for batch in range(int(batches)):
    places = log.append([{"by": name, "batch": batch, "n": n} for n in range(7)])
    sys.stdout.write(f"{batch} {places[0]}\\n")
    sys.stdout.flush()
"""


def appender(path: Path, name: str, batches: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", APPENDS, str(path), name, str(batches)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def reopened(path: Path) -> AuditLog:
    signer = Ed25519Signer("cohortium/sea/north", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    return AuditLog(open_store(path), signer.name, signer)


def test_entries_come_back_with_salts_of_their_own(make_log: Callable[..., Any]) -> None:
    log = make_log().log
    assert log.append([{"a": 1}, {"b": [1.5, None, "\u00e9"]}]) == [0, 1]
    assert log.append([]) == []
    assert log.append([{"a": 1}]) == [2]
    assert [entry.entry for entry in log.entries(0, 9)] == [{"a": 1}, {"b": [1.5, None, "\u00e9"]}, {"a": 1}]
    assert log.entry(1).index == 1
    assert len({entry.salt for entry in log.entries(0, 3)}) == 3
    assert log.size == 3
    for index in (-1, 3):
        with pytest.raises(DataError, match="there is none"):
            log.entry(index)


@pytest.mark.parametrize(
    "entry", [{"a": float("nan")}, {"a": 2**53}, {"a": {1, 2}}, {"a": "\ud800"}, {"a": "x" * 2**20}]
)
def test_what_has_no_canonical_json_is_not_logged(make_log: Callable[..., Any], entry: dict[str, Any]) -> None:
    log = make_log(2).log
    with pytest.raises(DataError, match="the entry"):
        log.append([{"fine": 1}, entry])
    assert log.size == 2


def test_roots_and_proofs_across_blocks(make_log: Callable[..., Any]) -> None:
    """Sizes around whole blocks, appended in batches that cut across them."""
    log = make_log().log
    assert log.root() == EMPTY_ROOT
    for batch in (1, BLOCK - 2, 2, 3 * BLOCK, 5):
        log.append([{"n": n} for n in range(batch)])
    size = log.size
    hashes = [leaf_hash(entry.leaf.to_bytes()) for entry in log.entries(0, size)]
    sizes = [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7, size - 1, size]
    roots = {some: Frontier().extended(hashes[:some]).root() for some in sizes}
    again = AuditLog(log._store, log.origin, log._signer)  # knows nothing of what was appended
    for some in sizes:
        assert log.root(some) == again.root(some) == roots[some]
        for new in [other for other in sizes if other >= some]:
            assert verify_consistency(some, new, again.consistency(some, new), roots[some], roots[new])
        for index in {0, some // 2, some - 1} if some else ():
            assert verify_inclusion(hashes[index], index, some, again.inclusion(index, some), roots[some])
    assert again.append([{"n": 0}]) == [size]
    assert log.root() == Frontier().extended([*hashes, leaf_hash(log.entry(size).leaf.to_bytes())]).root()


def test_sizes_that_are_not_there(make_log: Callable[..., Any]) -> None:
    log = make_log(3).log
    for ask in (lambda: log.root(4), lambda: log.root(-1), lambda: log.inclusion(3, 3), lambda: log.inclusion(0, 4)):
        with pytest.raises(DataError):
            ask()
    for old, new in ((2, 1), (-1, 2), (1, 4)):
        with pytest.raises(DataError):
            log.consistency(old, new)


def test_a_key_logs_once(make_log: Callable[..., Any]) -> None:
    log = make_log(1).log
    assert log.append([{"a": 1}, {"b": 1}, {"a": 1}], keys=["x", "y", "x"]) == [1, 2, 1]
    assert log.append([{"c": 1}, {"b": 1}], keys=["z", "y"]) == [3, 2]
    assert log.size == 4
    root = log.root()
    with pytest.raises(RefusedError, match="another entry"):
        log.append([{"d": 1}, {"a": 2}], keys=["new", "x"])
    assert (log.size, log.root()) == (4, root)
    assert log.append([{"d": 1}], keys=["new"]) == [4]
    many = [str(n) for n in range(1200)]
    first = log.append([{"n": n} for n in range(1200)], keys=many)
    assert log.append([{"n": n} for n in range(1200)], keys=many) == first
    with pytest.raises(Defect):
        log.append([{}], keys=[])


def test_checkpoints_are_signed_kept_and_repeated(make_log: Callable[..., Any]) -> None:
    kept = make_log()
    empty, _ = open_checkpoint(kept.log.checkpoint(), kept.signer.verifier)
    assert (empty.size, empty.root) == (0, EMPTY_ROOT)
    kept.log.append([{"a": 1}])
    note = kept.log.checkpoint()
    checkpoint, _ = open_checkpoint(note, kept.signer.verifier)
    assert (checkpoint.origin, checkpoint.size, checkpoint.root) == ("cohortium/sea/north", 1, kept.log.root())
    assert kept.log.checkpoint() == note
    assert kept.log.checkpoint_at(1) == note
    kept.log.append([{"a": 2}])
    with pytest.raises(DataError, match="no checkpoint of size 2"):
        kept.log.checkpoint_at(2)


def test_cosigned_checkpoints_gather_their_cosignatures(
    make_log: Callable[..., Any], keys: dict[str, Ed25519PrivateKey]
) -> None:
    log = make_log(2).log
    assert log.cosigned() is None
    bare = parse_note(log.checkpoint())
    south, west = (bare.signed(Cosigner(name, keys[name], 7)).to_text() for name in ("south", "west"))
    log.keep_cosigned(south)
    log.keep_cosigned(west)
    both = parse_note(log.cosigned() or "")
    assert [signature.name for signature in both.signatures] == [log.origin, "south", "west"]
    assert log.checkpoint_at(2) == both.to_text()
    log.append([{"later": 1}])
    log.keep_cosigned(log.checkpoint())
    log.keep_cosigned(south)  # of an earlier size: nothing is lost by it
    kept, _ = open_checkpoint(log.cosigned() or "", log._signer.verifier)
    assert kept.size == 3


def test_another_logs_checkpoint_is_not_kept(make_log: Callable[..., Any]) -> None:
    log, other = make_log(2).log, make_log(2, "south").log
    with pytest.raises(DataError, match="another log"):
        log.keep_cosigned(other.checkpoint())
    ahead = make_log(3, file="copy.sqlite").log
    with pytest.raises(DataError, match="above the log"):
        log.keep_cosigned(ahead.checkpoint())
    fork = make_log(2, file="fork.sqlite").log
    with pytest.raises(RefusedError, match="another root"):
        log.keep_cosigned(fork.checkpoint())
    assert log.cosigned() is None


def test_a_store_belongs_to_one_log(make_log: Callable[..., Any], keys: dict[str, Ed25519PrivateKey]) -> None:
    kept = make_log(1)
    with pytest.raises(DataError, match="another institution"):
        AuditLog(kept.store, "cohortium/sea/south", Ed25519Signer("cohortium/sea/south", keys["south"]))
    with pytest.raises(Defect):
        AuditLog(kept.store, "cohortium/sea/south", kept.signer)
    with closing(sqlite3.connect(kept.path)) as raw, raw:
        raw.execute("DROP TRIGGER log_header_no_update")
        raw.execute("UPDATE log_header SET schema = 'cohortium.log/9'")
    with pytest.raises(DataError, match="this version"):
        AuditLog(kept.store, kept.log.origin, kept.signer)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log_entries SET leaf = x'00' WHERE position = 1",
        "UPDATE log_entries SET key = 'k'",
        "DELETE FROM log_entries WHERE position = 2",
        "INSERT OR REPLACE INTO log_entries SELECT position, 'k', leaf, hash FROM log_entries WHERE position = 1",
        "INSERT INTO log_entries SELECT 9, 'k', leaf, hash FROM log_entries WHERE position = 1",
        "UPDATE log_blocks SET root = x'00'",
        "DELETE FROM log_blocks",
        "INSERT OR REPLACE INTO log_blocks VALUES (0, x'00')",
        "UPDATE log_checkpoints SET note = ''",
        "DELETE FROM log_checkpoints",
        "INSERT OR REPLACE INTO log_checkpoints VALUES (256, '')",
        "INSERT INTO log_checkpoints VALUES (255, '')",
        "UPDATE log_cosigned SET note = ''",
        "DELETE FROM log_cosigned",
        "INSERT OR REPLACE INTO log_cosigned VALUES (0, 256, '')",
        "DELETE FROM log_header",
        "UPDATE log_header SET origin = 'x'",
        "INSERT INTO log_header VALUES ('x', 'x')",
    ],
)
def test_triggers_refuse_every_change(make_log: Callable[..., Any], statement: str) -> None:
    kept = make_log(BLOCK)
    kept.log.keep_cosigned(kept.log.checkpoint())
    with closing(sqlite3.connect(kept.path)) as raw, pytest.raises(sqlite3.IntegrityError, match="append-only"), raw:
        raw.execute(statement)


def test_a_log_that_was_cut_signs_nothing_more(make_log: Callable[..., Any]) -> None:
    kept = make_log(5)
    kept.log.checkpoint()
    drop_triggers(kept.path)
    with closing(sqlite3.connect(kept.path)) as raw, raw:
        raw.execute("DELETE FROM log_entries WHERE position = 4")
    with pytest.raises(RefusedError, match="altered"):
        kept.log.checkpoint()
    kept.log.append([{"event": "another"}])
    with pytest.raises(RefusedError, match="altered"):
        AuditLog(kept.store, kept.log.origin, kept.signer).checkpoint()


def drop_triggers(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            raw.execute(f"DROP TRIGGER {name}")


# --- what fails ------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_loses_nothing(make_log: Callable[..., Any]) -> None:
    kept = make_log(100)
    checkpoint = kept.log.checkpoint()
    limit = {"pages": 0}

    @event.listens_for(kept.store, "begin")
    def _full(connection: Any) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + limit['pages']}")

    before = kept.log.root()
    with pytest.raises(OutputError, match="the disk is full") as full:
        kept.log.append([{"n": n, "filler": "x" * 200} for n in range(5000)])
    assert str(kept.path) in str(full.value)
    assert (kept.log.size, kept.log.root(), kept.log.checkpoint()) == (100, before, checkpoint)
    limit["pages"] = 10_000
    assert kept.log.append([{"after": 1}]) == [100]
    assert verify_log(kept.store, kept.signer.verifier, notes=[checkpoint]).findings == ()


def test_a_locked_or_broken_file_is_named(make_log: Callable[..., Any]) -> None:
    kept = make_log(3)
    drop_triggers(kept.path)
    with closing(sqlite3.connect(kept.path)) as raw, raw:
        raw.execute("DROP TABLE log_blocks")
    with pytest.raises(OutputError, match="cannot be used"):
        kept.log.append([{"n": n} for n in range(BLOCK)])
    assert kept.log.size == 3


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    running = [appender(path, name, BATCHES) for name in ("a", "b")]
    told = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    log = reopened(path)
    entries = log.entries(0, 10**6)
    assert [entry.index for entry in entries] == list(range(2 * BATCHES * 7))
    for name, words in zip("ab", told, strict=True):
        for batch, first in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
            written = [entry.entry for entry in entries[first : first + 7]]
            assert written == [{"by": name, "batch": batch, "n": n} for n in range(7)]
    assert verify_log(path, log._signer.verifier).findings == ()


def test_threads_share_a_log(make_log: Callable[..., Any]) -> None:
    kept = make_log()
    threads = [
        threading.Thread(target=lambda n=n: [kept.log.append([{"by": n, "n": i}] * 3) for i in range(30)])
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept.log.checkpoint()
    report = verify_log(kept.store, kept.signer.verifier)
    assert (report.size, report.findings) == (270, ())


@pytest.mark.parametrize("acknowledged", [1, 30])
def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "log.sqlite"
    process = appender(path, "a", 10**9)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(acknowledged)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().splitlines(keepends=True)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    whole = [line for line in told if line.endswith("\n")]
    log = reopened(path)
    assert log.size >= 7 * len(whole) >= 7 * acknowledged
    assert log.size % 7 == 0
    assert [entry.entry["n"] for entry in log.entries(0, log.size)] == list(range(7)) * (log.size // 7)
    log.append([{"after": 1}])
    log.checkpoint()
    assert verify_log(path, log._signer.verifier).findings == ()


def test_a_note_without_a_signature_is_never_kept(make_log: Callable[..., Any]) -> None:
    log = make_log(1).log
    with pytest.raises(DataError, match="is not a signed note"):
        log.keep_cosigned(Note(parse_note(log.checkpoint()).text).to_text())
