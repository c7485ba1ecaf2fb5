"""Audiences are handed over: full at first, then what changed, whole or not at all, none twice and none left out.

The order of steps, each of which may be the last one before a crash:

1. the store records `begun` with the folder's place          a later run clears `.NAME.partial` and forgets the export
2. files, then the manifest, are written and synced           the same
3. the store records `sealed` with the manifest's digest      `.NAME.partial` still there: the same
4. `.NAME.partial` is renamed to `NAME`                       `NAME` has that manifest: the export is recorded as done
5. the store records `done`

`recovery` does what stands on the right; every export does so first. Only when the folder was sealed and is neither in
its place nor beside it, somebody took it between 4 and 5 or deleted it, and has to say which (`settle`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cohortium.client.audience.activation import Activation, Clearance
from cohortium.client.audience.destination import Destination
from cohortium.client.audience.difference import (
    Identified,
    additions,
    identify,
    keep_held,
    load_held,
    removals,
    snapshot_rows,
    snapshot_schema,
)
from cohortium.client.audience.files import Format, write_rows
from cohortium.client.audience.lists import Contacts
from cohortium.client.audience.manifest import MANIFEST_FILE, ExportColumn, ExportManifest
from cohortium.client.audience.normalise import ID, Column
from cohortium.client.audience.recovery import appeared, recover_audience, undo
from cohortium.client.audience.store import Audience, AudienceStore, ExportRecord
from cohortium.client.audience.work import (
    AUDIENCE_RESOURCES,
    make_folder,
    private_file,
    snapshot_relation,
    sync_folder,
    take_folder,
    workbench,
    write_snapshot,
)
from cohortium.client.onboarding.engine import Engine, Resources
from cohortium.study.errors import CohortiumError, DataError, OutputError, RefusedError

__all__ = ["export", "export_removal", "export_withdrawals"]


def export(
    store: AudienceStore,
    audience: str,
    out: Path,
    destination: Destination | None = None,
    *,
    activation: Activation,
    contacts: Contacts | None = None,
    resources: Resources = AUDIENCE_RESOURCES,
) -> ExportRecord:
    """Write an active audience for a destination into a new folder: full the first time, afterwards what changed.

    Who may no longer be activated is left out, and removed if an earlier export had them. When nothing changed, the
    folder has a manifest and no file of rows. When an earlier call for the very same folder was interrupted after the
    folder had appeared, that export is recorded and given.

    Args:
        store: where audiences are.
        audience: id of an active one.
        out: the folder; it must not exist.
        destination: how; ids as CSV by default.
        activation: who may be activated, and whether the audience may go out.
        contacts: where sources other than `id` are.
        resources: memory and threads.

    Returns:
        The record of the finished export; `read_manifest(out)` has the counts.

    Raises:
        RefusedError: an expired audience, another layout than before, too few members, an interrupted export whose
            folder is gone, or the activation does not let it go out.
        DataError: contacts that are missing or cannot be read as they should be, a list that was changed.
        OutputError: the folder exists or cannot be written, or another command works on audiences.
    """
    to = destination or Destination()
    with store.locked():
        chosen = store.audience(audience)
        found = [record for record in recover_audience(store, chosen.id) if _is_this(record, to, out, chosen)]
        if found:
            return found[0]
        if store.is_expired(chosen):
            raise _expired(chosen)
        last = store.last_exports(chosen.id).get(to.name)
        _refuse_layout(to, last)
        _refuse_missing_contacts(to, contacts)
        work = _Export(store, chosen, to, last, out, resources)
        return work.changes(contacts, activation)


def export_removal(
    store: AudienceStore,
    audience: str,
    out: Path,
    destination: str = "default",
    *,
    format: Format = "csv",
    max_rows: int | None = None,
    resources: Resources = AUDIENCE_RESOURCES,
) -> ExportRecord:
    """Write, for an expired audience, the delta that removes everybody whom the destination still holds. Its last one.

    Raises:
        RefusedError: an active audience, nothing was ever exported there, or its removal already was.
        DataError, OutputError: as `export`.
    """
    with store.locked():
        chosen = store.audience(audience)
        recovered = [record for record in recover_audience(store, chosen.id) if record.destination == destination]
        found = [record for record in recovered if record.removal and record.folder == out.absolute()]
        if found:
            return found[0]
        if not store.is_expired(chosen):
            raise RefusedError("the audience is active", place=chosen.id, fix="expire it first")
        last = store.last_exports(chosen.id).get(destination)
        if last is None or last.removal:
            raise RefusedError(
                "the destination holds nothing of the audience", place=destination, fix="list the audience's exports"
            )
        columns = tuple(Column(name, steps[0]) for name, steps in last.layout)
        to = Destination(destination, columns, format, max_rows)
        return _Export(store, chosen, to, last, out, resources).removal()


def export_withdrawals(
    store: AudienceStore,
    audience: str,
    out: Path,
    destination: str = "default",
    *,
    activation: Activation,
    format: Format = "csv",
    max_rows: int | None = None,
    resources: Resources = AUDIENCE_RESOURCES,
) -> ExportRecord:
    """Write, for an active audience, a delta that only removes: who left it, or may no longer be activated.

    Nobody is added and no identifier is renewed, so that it asks for nobody's leave: whoever withdraws is removed at
    once, also while rules or review hold exports back, and however few are left.

    Raises:
        RefusedError: an expired audience, or the destination holds nothing of it.
        DataError, OutputError: as `export`.
    """
    with store.locked():
        chosen = store.audience(audience)
        recover_audience(store, chosen.id)
        if store.is_expired(chosen):
            raise _expired(chosen)
        last = store.last_exports(chosen.id).get(destination)
        if last is None:
            raise RefusedError(
                "the destination holds nothing of the audience", place=destination, fix="list the audience's exports"
            )
        columns = tuple(Column(name, steps[0]) for name, steps in last.layout)
        to = Destination(destination, columns, format, max_rows)
        return _Export(store, chosen, to, last, out, resources).withdrawals(activation)


class _Export:
    """One export on its way. The store is locked."""

    def __init__(
        self,
        store: AudienceStore,
        audience: Audience,
        to: Destination,
        last: ExportRecord | None,
        out: Path,
        resources: Resources,
    ) -> None:
        self._store, self._audience, self._to, self._last, self._resources = store, audience, to, last, resources
        self._record = ExportRecord(
            audience=audience.id,
            destination=to.name,
            sequence=last.sequence + 1 if last is not None else 1,
            state="begun",
            folder=out.absolute(),
            revision=audience.revision,
        )

    def changes(self, contacts: Contacts | None, activation: Activation) -> ExportRecord:
        """What changed since the last export, or everybody."""
        file = self._store.members_file(self._audience.id, self._audience.revision)
        members = snapshot_relation(file, self._audience.members_digest)
        with self._prepared() as engine:
            counts = identify(engine, members, self._to.columns, self._to.phones, contacts, activation)
            if counts.members < self._audience.min_cell:
                raise RefusedError(
                    f"fewer than {self._audience.min_cell} members can be exported",
                    place=self._audience.id,
                    fix="check the contacts, or expire the audience and export its removal",
                )
            _refuse_existing(self._record.folder, self._store.exports(self._record.audience))
            clearance = activation.cleared(self._audience, self._to.name, self._record.sequence)
            return self._written(engine, counts, clearance)

    def withdrawals(self, activation: Activation) -> ExportRecord:
        """Whoever the destination holds and must not hold any more."""
        file = self._store.members_file(self._audience.id, self._audience.revision)
        members = snapshot_relation(file, self._audience.members_digest)
        with self._prepared() as engine:
            return self._written(engine, keep_held(engine, self._width, members, activation), None)

    def removal(self) -> ExportRecord:
        """Everybody whom the destination holds."""
        with self._prepared() as engine:
            return self._written(engine, Identified(), None, removal=True)

    @contextmanager
    def _prepared(self) -> Iterator[Engine]:
        """A private database that knows what the destination holds."""
        before = None
        if self._last is not None:
            snapshot = self._store.snapshot(self._last)
            before = snapshot_relation(snapshot.path, snapshot.digest)
        with workbench(self._store.folder, self._resources) as engine:
            load_held(engine, self._width, before)
            yield engine

    @property
    def _width(self) -> int:
        return len(self._to.columns)

    def _written(
        self, engine: Engine, counts: Identified, clearance: Clearance | None, *, removal: bool = False
    ) -> ExportRecord:
        record = self._record
        _refuse_existing(record.folder, self._store.exports(record.audience))
        with _claimed(record):
            self._store.begin_export(record)
            try:
                manifest = self._fill(engine, counts, clearance, removal)
                record = self._seal(engine, manifest)
                _publish(record)
            except OSError as error:
                undo(self._store, record)
                raise _unwritable(record.folder, error) from error
            except CohortiumError:
                undo(self._store, record)
                raise
        self._store.finish_export(record)
        return replace(record, state="done")

    def _fill(self, engine: Engine, counts: Identified, clearance: Clearance | None, removal: bool) -> ExportManifest:
        """Write the files and, last, the manifest."""
        folder, to, last, audience = self._record.partial, self._to, self._last, self._audience
        names = [column.name for column in to.columns]
        form, cut = to.format, to.max_rows
        removed = write_rows(folder, "remove", removals(engine, self._width), names, form, cut)
        added = write_rows(folder, "add", additions(engine, self._width), names, form, cut)
        layout = to.layout if last is None else last.layout
        manifest = ExportManifest(
            audience=audience.id,
            name=audience.name,
            model=audience.model,
            plan=audience.plan,
            level=audience.level.name,
            cutoff=audience.level.cutoff,
            reach=audience.level.reach,
            destination=to.name,
            kind="full" if last is None else "delta",
            removal=removal,
            sequence=self._record.sequence,
            previous=None if last is None else last.digest,
            format=to.format,
            columns=tuple(ExportColumn(name=name, source=steps[0], steps=steps[1:]) for name, steps in layout),
            files=removed + added,
            added=sum(file.rows for file in added),
            removed=sum(file.rows for file in removed),
            members=counts.members,
            unmatched=counts.unmatched,
            unusable=counts.unusable,
            not_allowed=counts.not_allowed,
            decision=None if clearance is None else clearance.decision,
            case=None if clearance is None else clearance.case,
            created=audience.created,
            expires=audience.expires,
            exported=self._store.timestamp(),
        ).signed()
        with private_file(folder / MANIFEST_FILE) as file:
            file.write(manifest.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
        return manifest

    def _seal(self, engine: Engine, manifest: ExportManifest) -> ExportRecord:
        snapshot = self._store.exported_file(self._record)
        digest = write_snapshot(snapshot, snapshot_schema(self._width), snapshot_rows(engine, self._width))
        sealed = replace(
            self._record,
            state="sealed",
            kind=manifest.kind,
            removal=manifest.removal,
            digest=manifest.digest,
            files=tuple((file.name, file.sha256) for file in manifest.files),
            layout=tuple((column.name, (column.source, *column.steps)) for column in manifest.columns),
            snapshot_digest=digest,
            exported=manifest.exported,
        )
        self._store.seal_export(sealed)
        return sealed


def _refuse_existing(out: Path, earlier: tuple[ExportRecord, ...]) -> None:
    if not (out.exists() or out.is_symlink()):
        return
    for record in earlier:
        if record.state == "done" and record.folder == out and appeared(record):
            raise OutputError(
                f"this export is complete: number {record.sequence} to {record.destination}",
                place=str(out),
                fix="hand it over; choose another folder for the next one",
            )
    raise OutputError("exists", place=str(out), fix="choose another folder: an export never changes an earlier one")


@contextmanager
def _claimed(record: ExportRecord) -> Iterator[None]:
    """An empty `.NAME.partial` that nobody else fills; it goes again when it is still empty in the end."""
    out, partial = record.folder, record.partial
    try:
        make_folder(partial.parent)
        partial.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        if not take_folder(handle) or any(partial.iterdir()):
            raise OutputError("is in the way", place=str(partial), fix="remove it, or choose another folder")
        yield
    finally:
        os.close(handle)
        with suppress(OSError):
            partial.rmdir()


def _publish(record: ExportRecord) -> None:
    os.rename(record.partial, record.folder)
    sync_folder(record.folder.parent)


def _is_this(record: ExportRecord, to: Destination, out: Path, audience: Audience) -> bool:
    wanted = (to.name, out.absolute(), audience.revision)
    return not record.removal and (record.destination, record.folder, record.revision) == wanted


def _refuse_layout(to: Destination, last: ExportRecord | None) -> None:
    if last is not None and last.layout != to.layout:
        raise RefusedError(
            "earlier exports to this destination had other columns or steps",
            place=f"destination {to.name}",
            fix="use the same ones, or another name for the destination",
        )


def _refuse_missing_contacts(to: Destination, contacts: Contacts | None) -> None:
    missing = [column.name for column in to.columns if column.source != ID]
    if missing and contacts is None:
        raise DataError(
            f"column '{missing[0]}' needs contacts", place=f"destination {to.name}", fix="give the contacts file"
        )


def _expired(audience: Audience) -> RefusedError:
    return RefusedError(
        "the audience has expired", place=audience.id, fix="create a new one, and export this one's removal"
    )


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(error.strerror or "cannot be written", place=str(folder), fix="check space and permissions")
