"""An export that dies at any moment leaves nothing half visible; repeated, it neither doubles nor skips anything."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohortium.client.audience import (
    AudienceStore,
    EverybodyAllowed,
    expire,
    export,
    export_removal,
    exports,
    list_audiences,
    read_manifest,
    recover,
    refresh,
    settle,
)
from cohortium.client.audience import recovery as export_recovery
from cohortium.study.errors import OutputError, RefusedError

KILLED = """
import json, os, shutil, signal, sys, warnings
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa, pyarrow.parquet as pq

from cohortium.client.audience import *
from cohortium.client.onboarding.engine import Resources
from cohortium.privacy.ledger import open_store
from cohortium.study.errors import OutputError

WORK = Path(sys.argv[1])
SMALL = Resources("128MB", 1)
LABELS = {
    "schema": SCORES_SCHEMA, "model": "sha256:" + "a" * 64, "plan": "sha256:" + "c" * 64, "expires": "2026-12-31",
    "node": "north", "customers": "sha256:" + "d" * 64
}

ORIGIN = ScoresOrigin("north", "sha256:" + "d" * 64)


ALL = EverybodyAllowed()


def opened(folder):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    return AudienceStore(open_store(folder / "node.sqlite"), folder / "audiences", lambda: now, origin=lambda: ORIGIN)


def scores(folder, first):
    ids = [f"c{i:03d}" for i in range(first, first + 60)]
    texts = {name: pa.array([None] * 60, pa.string()) for name in ("reason_1", "reason_2", "reason_3")}
    table = pa.table({"id": ids, "score": [0.9] * 60, **texts, "seed": [False] * 60}, schema=SCORES_COLUMNS)
    pq.write_table(table.replace_schema_metadata(LABELS), folder / "scores.parquet")
    return folder / "scores.parquet"


def ids(folder, operation):
    return {line for file in folder.glob(f"{operation}-*.csv") for line in file.read_text().splitlines()[1:]}


def prepare():
    folder = WORK / "start"
    folder.mkdir()
    store = opened(folder)
    broad = Level("broad", 0.5, 0.1)
    chosen = create(store, scores(folder, 0), broad, "a", min_cell=50, resources=SMALL, activation=ALL)
    made = chosen.audience.id
    export(store, made, folder / "1", resources=SMALL, activation=ALL)
    refresh(store, made, scores(folder, 5), resources=SMALL, activation=ALL)
    return {"audience": made}


def attempt(folder, die_at):
    # kills the process in the die_at-th moment before or after a step that touches disk or database
    moments = 0

    def wrapped(honest):
        def step(*args, **kwargs):
            nonlocal moments
            moments += 1
            if moments == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            result = honest(*args, **kwargs)
            moments += 1
            if moments == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return step

    for name in ("fsync", "rename", "mkdir"):
        setattr(os, name, wrapped(getattr(os, name)))
    for name in ("begin_export", "seal_export", "finish_export", "_sweep"):
        setattr(AudienceStore, name, wrapped(getattr(AudienceStore, name)))
    store = opened(folder)
    export(store, store.audiences()[0].id, folder / "2", resources=SMALL, activation=ALL)
    return {"moments": moments}


def after(folder):
    seen = (folder / "2").exists()
    if seen:
        read_manifest(folder / "2")  # all that can be seen is whole
    store = opened(folder)
    made = store.audiences()[0].id
    state = {r.sequence: r.state for r in store.exports(made)}.get(2)
    try:
        export(store, made, folder / "2", resources=SMALL, activation=ALL)
        again = "exported"
    except OutputError as error:
        again = error.message
    third = export(store, made, folder / "3", resources=SMALL, activation=ALL)
    manifests = [read_manifest(folder / name) for name in "123"]
    held = set()
    for name in "123":
        held = (held - ids(folder / name, "remove")) | ids(folder / name, "add")
    return {
        "seen": seen, "state": state, "again": again,
        "records": [[r.sequence, r.state, r.digest] for r in store.exports(made)],
        "digests": [[m.sequence, m.previous, m.digest] for m in manifests],
        "held": sorted(held) == [f'"c{i:03d}"' for i in range(5, 65)],
        "changes": [manifests[1].added, manifests[1].removed, len(third.files)],
        "left": sorted(p.name for p in folder.iterdir() if p.name.startswith(".")),
        "lists": sorted(".".join(p.name.split(".")[1:]) for p in (folder / "audiences").glob("*[!k]")),
    }


def child(work, *args):
    # a fork of a process in which no thread has begun; its answer, or the signal that ended it
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        os.write(writer, json.dumps(work(*args)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    status = os.waitpid(process, 0)[1]
    return json.loads(text) if text else {"signal": os.WTERMSIG(status)}


child(prepare)
moment, ended = 0, {}
while "moments" not in ended:
    moment += 1
    folder = WORK / str(moment)
    shutil.copytree(WORK / "start", folder)
    ended = child(attempt, folder, moment)
    print(json.dumps({"moment": moment, "ended": ended, **child(after, folder)}), flush=True)
"""
"""Kills an export at its first moment, its second, and so on until one lives; and tells how each went on."""


class Died(BaseException):
    """What no handler of errors catches, as a kill; `finally` still runs."""


@pytest.fixture
def begun(house: Any) -> str:
    """An audience whose first export is done and whose members have changed."""
    scores = {f"c{i:03d}": 0.9 for i in range(100)}
    made = house.create(scores).audience.id
    export(house.store, made, house.folder / "1", activation=EverybodyAllowed())
    refresh(house.store, made, house.scores(scores | {"c000": 0.1, "d000": 0.9}), activation=EverybodyAllowed())
    return made


def test_an_export_killed_at_any_moment_goes_on_as_one_export(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    stories = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(stories) > 25, done.stderr
    assert [story["ended"] for story in stories[:-1]] == [{"signal": 9}] * (len(stories) - 1)
    assert {(story["state"], story["seen"]) for story in stories} == {
        (None, False),
        ("begun", False),
        ("sealed", False),
        ("sealed", True),
        ("done", True),
    }
    for story in stories:
        sequence, states, digests = zip(*story["records"], strict=True)
        assert (sequence, set(states)) == ((1, 2, 3), {"done"}), story
        assert story["digests"] == [[n + 1, digests[n - 1] if n else None, digests[n]] for n in range(3)], story
        assert story["held"], story
        assert story["changes"] == [5, 5, 0], story
        assert story["left"] == [], story
        assert story["lists"] == ["exported.default.3.parquet", "members.2.parquet", "suppressed.2.parquet"], story
        complete = "this export is complete: number 2 to default"
        assert story["again"] == (complete if story["state"] == "done" else "exported"), story


STEPS: dict[str, tuple[Any, str, int]] = {
    "first file": (os, "fsync", 1),
    "second file": (os, "fsync", 2),
    "manifest": (os, "fsync", 3),
    "folder": (os, "fsync", 4),
    "snapshot": (os, "fsync", 5),
    "rename": (os, "rename", 1),
}


def failing(honest: Callable[..., Any], count: int, error: BaseException) -> Callable[..., Any]:
    left = count

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise error
        return honest(*args, **kwargs)

    return step


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    house: Any, begun: str, step: str, monkeypatch: pytest.MonkeyPatch, rows: Any
) -> None:
    place, name, count = STEPS[step]
    before = {p.name for p in house.store.folder.iterdir()}
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(place, name, failing(getattr(place, name), count, full))
        with pytest.raises(OutputError, match="No space left on device — fix: check space and permissions"):
            export(house.store, begun, house.folder / "2", activation=EverybodyAllowed())
    assert not (house.folder / "2").exists()
    assert not (house.folder / ".2.partial").exists()
    assert {p.name for p in house.store.folder.iterdir()} == before
    assert [record.sequence for record in house.store.exports(begun)] == [1]
    assert export(house.store, begun, house.folder / "2", activation=EverybodyAllowed()).sequence == 2
    assert (rows(house.folder / "2", "add"), rows(house.folder / "2", "remove")) == ([("d000",)], [("c000",)])


@pytest.mark.parametrize("step", ["begin_export", "seal_export", "finish_export", "rename"])
def test_after_a_death_another_folder_goes_on_where_the_first_ended(
    house: Any, begun: str, step: str, monkeypatch: pytest.MonkeyPatch, rows: Any
) -> None:
    place: Any = os if step == "rename" else AudienceStore
    with monkeypatch.context() as patch:
        patch.setattr(place, step, failing(getattr(place, step), 1, Died()))
        with pytest.raises(Died):
            export(house.store, begun, house.folder / "2", activation=EverybodyAllowed())
    appeared = step == "finish_export"
    assert (house.folder / "2").exists() == appeared
    done = export(house.store, begun, house.folder / "elsewhere", activation=EverybodyAllowed())
    assert done.sequence == (3 if appeared else 2)
    assert rows(house.folder / "elsewhere", "add") == ([] if appeared else [("d000",)])
    assert not (house.folder / ".2.partial").exists()
    assert read_manifest(house.folder / "elsewhere").previous == house.store.exports(begun)[-2].digest


@pytest.mark.parametrize(
    ("died_at", "dies_again_at"),
    [
        ((AudienceStore, "seal_export"), (export_recovery.shutil, "rmtree")),
        ((os, "rename"), (AudienceStore, "unseal_export")),
        ((os, "rename"), (export_recovery.shutil, "rmtree")),
        ((os, "rename"), (AudienceStore, "forget_export")),
        ((AudienceStore, "finish_export"), (AudienceStore, "finish_export")),
    ],
)
def test_a_recovery_that_dies_is_taken_up_again(
    house: Any, begun: str, died_at: Any, dies_again_at: Any, monkeypatch: pytest.MonkeyPatch, rows: Any
) -> None:
    for (place, name), call in (
        (died_at, lambda: export(house.store, begun, house.folder / "2", activation=EverybodyAllowed())),
        (dies_again_at, lambda: recover(house.store)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, failing(getattr(place, name), 1, Died()))
            with pytest.raises(Died):
                call()
    done = export(house.store, begun, house.folder / "2", activation=EverybodyAllowed())
    assert (done.sequence, done.state) == (2, "done")
    assert (rows(house.folder / "2", "add"), rows(house.folder / "2", "remove")) == ([("d000",)], [("c000",)])
    assert not (house.folder / ".2.partial").exists()


def test_a_parent_folder_that_cannot_be_synced_keeps_what_appeared(
    house: Any, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        error = OSError(errno.EIO, "Input/output error")
        patch.setattr(exports, "sync_folder", failing(exports.sync_folder, 2, error))
        with pytest.raises(OutputError, match="Input/output error"):
            export(house.store, begun, house.folder / "2", activation=EverybodyAllowed())
    (done,) = recover(house.store)
    assert (done.sequence, done.state, done.digest) == (2, "done", read_manifest(house.folder / "2").digest)
    assert recover(house.store) == ()


def test_every_folder_that_was_made_survives_a_power_cut(
    house: Any, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, honest = set(), os.fsync

    def fsync(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    export(house.store, begun, house.folder / "ads" / "spring" / "2", activation=EverybodyAllowed())
    AudienceStore(house.engine, house.folder / "new" / "audiences")
    parents = [house.folder, house.folder / "ads", house.folder / "ads" / "spring", house.folder / "new"]
    assert {folder.stat().st_ino for folder in parents} <= synced
    assert {folder.stat().st_mode & 0o777 for folder in parents[1:]} == {0o700}


def test_what_cannot_be_cleared_is_one_line_and_is_cleared_later(
    house: Any, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full, denied = OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "Denied")
        patch.setattr(os, "fsync", failing(os.fsync, 1, full))
        patch.setattr(export_recovery.shutil, "rmtree", failing(shutil.rmtree, 1, denied))
        with pytest.raises(OutputError, match=r"\.2\.partial: Denied .* fix: check permissions and remove it"):
            export(house.store, begun, house.folder / "2", activation=EverybodyAllowed())
    assert [record.state for record in house.store.exports(begun)] == ["done", "begun"]
    assert export(house.store, begun, house.folder / "2", activation=EverybodyAllowed()).sequence == 2


def test_what_another_node_fills_is_not_cleared(house: Any, begun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(AudienceStore, "seal_export", failing(AudienceStore.seal_export, 1, Died()))
        with pytest.raises(Died):
            export(house.store, begun, house.folder / "2", activation=EverybodyAllowed())
    partial = house.folder / ".2.partial"
    theirs = {path.name for path in partial.iterdir()}
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=r"another process fills it .* fix: wait until it has ended"):
            export(house.store, begun, house.folder / "3", activation=EverybodyAllowed())
        assert {path.name for path in partial.iterdir()} == theirs != set()
    finally:
        os.close(handle)
    assert export(house.store, begun, house.folder / "2", activation=EverybodyAllowed()).sequence == 2


@pytest.fixture
def taken(house: Any, begun: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An export that died after it had appeared, and whose folder somebody then took away."""
    with monkeypatch.context() as patch:
        patch.setattr(AudienceStore, "finish_export", failing(AudienceStore.finish_export, 1, Died()))
        with pytest.raises(Died):
            export(house.store, begun, house.folder / "2", activation=EverybodyAllowed())
    with pytest.raises(RefusedError, match="no interrupted export lacks its folder"):
        settle(house.store, begun, "default", "lost")
    shutil.move(house.folder / "2", house.folder / "taken")
    return begun


def test_a_folder_that_was_taken_has_to_be_settled_or_put_back(house: Any, taken: str) -> None:
    for call in (
        lambda: export(house.store, taken, house.folder / "3", activation=EverybodyAllowed()),
        lambda: recover(house.store),
    ):
        with pytest.raises(RefusedError, match="fix: put the folder back, or settle the export as delivered or lost"):
            call()
    shutil.move(house.folder / "taken", house.folder / "2")
    assert export(house.store, taken, house.folder / "2", activation=EverybodyAllowed()).sequence == 2


@pytest.mark.parametrize(("outcome", "sequence", "added"), [("delivered", 3, []), ("lost", 2, [("d000",)])])
def test_what_was_delivered_is_not_exported_twice_and_what_was_lost_is(
    house: Any, taken: str, outcome: Any, sequence: int, added: list[tuple[str]], rows: Any
) -> None:
    settle(house.store, taken, "default", outcome)
    assert export(house.store, taken, house.folder / "3", activation=EverybodyAllowed()).sequence == sequence
    assert rows(house.folder / "3", "add") == added


def test_an_interrupted_removal_goes_on(house: Any, begun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expire(house.store, begun)
    with monkeypatch.context() as patch:
        patch.setattr(AudienceStore, "finish_export", failing(AudienceStore.finish_export, 1, Died()))
        with pytest.raises(Died):
            export_removal(house.store, begun, house.folder / "2")
    assert list_audiences(house.store)[0].removal_due == ("default",)
    done = export_removal(house.store, begun, house.folder / "2")
    assert (done.sequence, done.state, done.removal) == (2, "done", True)
    assert list_audiences(house.store)[0].removal_due == ()
