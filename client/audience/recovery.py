"""What becomes of interrupted exports: finished when their folder has appeared, undone when it has not.

See `exports` for the steps. Everything here can itself die at any point and be repeated.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from cohortium.client.audience.manifest import read_manifest
from cohortium.client.audience.store import AudienceStore, ExportRecord
from cohortium.client.audience.work import take_folder
from cohortium.study.errors import DataError, OutputError, RefusedError

__all__ = ["appeared", "recover", "recover_audience", "settle", "undo"]


def recover(store: AudienceStore) -> tuple[ExportRecord, ...]:
    """Finish or undo every interrupted export; the ones that had appeared are given.

    Raises:
        RefusedError: a sealed folder is gone (`settle`).
        OutputError: what is left of an export cannot be cleared, or another process fills that folder.
    """
    with store.locked():
        return tuple(record for audience in store.audiences() for record in recover_audience(store, audience.id))


def settle(
    store: AudienceStore, audience: str, destination: str, outcome: Literal["delivered", "lost"]
) -> ExportRecord | None:
    """Say what became of an interrupted export whose folder is gone.

    Args:
        store: where audiences are.
        audience, destination: of which, to which.
        outcome: `delivered` when the destination took the folder: the export is recorded. `lost` when nobody did: it is
            forgotten, and the next export has its changes.

    Returns:
        The record, or None when it was forgotten.

    Raises:
        RefusedError: no such export is open, or its folder is still there.
    """
    with store.locked():
        for record in store.exports(audience):
            if record.destination == destination and record.state == "sealed" and not _is_somewhere(record):
                if outcome == "delivered":
                    store.finish_export(record)
                    return replace(record, state="done")
                store.unseal_export(record)
                store.forget_export(record)
                return None
    raise RefusedError("no interrupted export lacks its folder", place=destination, fix="export again")


def recover_audience(store: AudienceStore, audience: str) -> list[ExportRecord]:
    """Finish or undo the interrupted exports of an audience; the finished ones."""
    finished = []
    for record in store.exports(audience):
        if record.state == "sealed" and appeared(record):
            store.finish_export(record)
            finished.append(replace(record, state="done"))
        elif record.state == "sealed" and not record.partial.exists():
            raise RefusedError(
                "an interrupted export was complete, and its folder is gone",
                place=str(record.folder),
                fix="put the folder back, or settle the export as delivered or lost",
            )
        elif record.state != "done":
            with _held(record):
                undo(store, record)
    return finished


def undo(store: AudienceStore, record: ExportRecord) -> None:
    """Clear and forget an export that has not appeared. Repeating it after a crash at any point ends the same.

    Nobody else may be filling its folder. `OutputError` when the folder cannot be cleared; the export stays open.
    """
    if appeared(record):
        return
    store.unseal_export(record)
    try:
        if record.partial.exists():
            shutil.rmtree(record.partial)
    except OSError as error:
        raise _unclearable(record, error) from error
    store.forget_export(record)


@contextmanager
def _held(record: ExportRecord) -> Iterator[None]:
    """What is left of an export, which nobody else fills meanwhile: another node's may have the same place."""
    try:
        handle = os.open(record.partial, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    except OSError as error:
        raise _unclearable(record, error) from error
    try:
        if not take_folder(handle):
            raise OutputError(
                "another process fills it",
                place=str(record.partial),
                fix="wait until it has ended, and give every node a folder of its own",
            )
        yield
    finally:
        os.close(handle)


def _unclearable(record: ExportRecord, error: OSError) -> OutputError:
    fix = "check permissions and remove it, then export again"
    return OutputError(error.strerror or "cannot be removed", place=str(record.partial), fix=fix)


def appeared(record: ExportRecord) -> bool:
    """Whether an export's folder is in its place, as it was sealed."""
    try:
        return read_manifest(record.folder, files=False).digest == record.digest
    except DataError:
        return False


def _is_somewhere(record: ExportRecord) -> bool:
    return appeared(record) or record.partial.exists()
