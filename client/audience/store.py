"""An institution's audiences: who was chosen by which model, and what was handed to which destination.

Rows live in the node's database, lists of customers in private Parquet files beside it:

    ID.members.REVISION.parquet                 `id`: who is in the audience now
    ID.suppressed.REVISION.parquet              `id`: who stays out, from the lists ever given for this audience
    ID.exported.DESTINATION.SEQUENCE.parquet    `id`, `current`, `c0`, ...: what the destination holds and ever held

An audience's id is drawn at random and stays taken for ever: rows are added, and change their state in one direction.
A file that no row names is of no consequence and is swept away. Nothing of this leaves through the federation.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import (
    Column,
    Engine,
    Float,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    and_,
    delete,
    insert,
    select,
    update,
)

from cohortium.client.audience.levels import Level
from cohortium.client.audience.scores import ScoresOrigin
from cohortium.client.audience.work import SCRATCH, make_folder
from cohortium.governance.report.bands import size_band
from cohortium.privacy.randomness import fresh_key
from cohortium.study.errors import Defect, OutputError, RefusedError

__all__ = ["TABLES", "Audience", "AudienceStore", "ExportRecord", "Snapshot", "fresh_audience_id"]

TABLES = MetaData()

_audiences = Table(
    "audiences",
    TABLES,
    Column("audience", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("reason", String),
    Column("model", String, nullable=False),
    Column("plan", String, nullable=False),
    Column("level", String, nullable=False),
    Column("cutoff", Float, nullable=False),
    Column("reach", Float),
    Column("min_cell", Integer, nullable=False),
    Column("created", String, nullable=False),
    Column("expires", String, nullable=False),
    Column("state", String, nullable=False),
    Column("replaced_by", String),
    Column("revision", Integer, nullable=False),
    Column("scores", String, nullable=False),
    Column("members", Integer, nullable=False),
    Column("members_digest", String, nullable=False),
    Column("suppressed_digest", String, nullable=False),
)

_exports = Table(
    "audience_exports",
    TABLES,
    Column("audience", String, primary_key=True),
    Column("destination", String, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("state", String, nullable=False),
    Column("folder", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("kind", String),
    Column("removal", Integer),
    Column("digest", String),
    Column("files", String),
    Column("layout", String),
    Column("snapshot_digest", String),
    Column("exported", String),
)

ExportState = Literal["begun", "sealed", "done"]
"""`begun`: nothing can be seen yet. `sealed`: the folder is complete and about to appear. `done`: it has appeared."""


@dataclass(frozen=True)
class Audience:
    """One audience.

    Args:
        id: fresh and random; never given to another one.
        name: what people call it.
        reason: why a flagged name was kept; None for others.
        model: digest of the released model.
        plan: digest of the plan it was released under.
        level: where on the score it begins.
        min_cell: fewest members it may have.
        created: when (UTC, ISO 8601).
        expires: its last day.
        state: `active`, or `expired` for ever.
        replaced_by: the audience that took its place, if any.
        revision: 1, and one more each time its members are chosen anew.
        scores: digest of the scores file that its members come from.
        members: exact number of members; local.
        members_digest, suppressed_digest: of its files.
    """

    id: str
    name: str
    reason: str | None
    model: str
    plan: str
    level: Level
    min_cell: int
    created: str
    expires: date
    state: Literal["active", "expired"]
    replaced_by: str | None
    revision: int
    scores: str
    members: int
    members_digest: str
    suppressed_digest: str

    @property
    def size(self) -> str:
        """The number of members as people see it: a band."""
        return size_band(self.members if self.members >= self.min_cell else None)


@dataclass(frozen=True)
class ExportRecord:
    """One export of an audience to a destination.

    Args:
        audience, destination: of which, to which.
        sequence: 1, 2, ... without a gap for an audience and a destination.
        state: see `ExportState`.
        folder: the absolute path that the operator gave.
        revision: of the members that were exported.
        kind: `full` the first time, `delta` from then on; None while `begun`, like all that follow.
        removal: whether it removes everybody, and is the destination's last.
        digest: of the manifest.
        files: SHA-256 of every file by name.
        layout: columns and their steps, as they stand in the manifest.
        snapshot_digest: of the file that says what the destination holds.
        exported: when (UTC, ISO 8601).
    """

    audience: str
    destination: str
    sequence: int
    state: ExportState
    folder: Path
    revision: int
    kind: Literal["full", "delta"] | None = None
    removal: bool = False
    digest: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    layout: tuple[tuple[str, tuple[str, ...]], ...] = ()
    snapshot_digest: str | None = None
    exported: str | None = None

    @property
    def partial(self) -> Path:
        """Where the folder is filled before it appears."""
        return self.folder.with_name(f".{self.folder.name}.partial")


@dataclass(frozen=True)
class Snapshot:
    """A list of customers on disk, by its digest."""

    path: Path
    digest: str


class AudienceStore:
    """See the module.

    Args:
        store: the node's database.
        folder: for lists of customers; made for its owner alone.
        now: the present time in UTC; a seam for tests of expiry.
        origin: whose customers are chosen here, asked whenever they are; without it nobody can be.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        store: Engine,
        folder: Path,
        now: Callable[[], datetime] | None = None,
        *,
        origin: Callable[[], ScoresOrigin] | None = None,
    ) -> None:
        self._store = store
        self._origin = origin
        self.folder = folder
        self._now = now if now is not None else _utc_now
        try:
            make_folder(folder)
        except OSError as error:
            raise OutputError("cannot be made", place=str(folder), fix="check permissions") from error
        TABLES.create_all(store)

    def origin(self) -> ScoresOrigin:
        """The node and its customers as they are now; errors as `client.lookalike.records.NodeRecords.origin`."""
        if self._origin is None:
            raise Defect("customers are chosen in a store that does not know whose they are")
        return self._origin()

    def timestamp(self) -> str:
        """The present time (UTC, ISO 8601, seconds)."""
        return self._now().isoformat(timespec="seconds")

    def today(self) -> date:
        """Today's date (UTC)."""
        return self._now().date()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one command on audiences works at a time; `OutputError` while another one does. It sweeps in the end."""
        handle = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    "another command works on audiences", place=self.folder.name, fix="wait until it has ended"
                ) from error
            try:
                yield
            finally:
                self._sweep()
        finally:
            os.close(handle)

    # --- audiences ---------------------------------------------------------------------------------------------------

    def audience(self, audience: str) -> Audience:
        """An audience by id; `RefusedError` when there has never been one."""
        with self._store.begin() as connection:
            row = connection.execute(select(_audiences).where(_audiences.c.audience == audience)).first()
        if row is None:
            raise RefusedError("no such audience", place="audience", fix="list the audiences for their ids")
        return _audience(row)

    def audiences(self) -> tuple[Audience, ...]:
        """All audiences, expired ones included, in the order in which they were created."""
        with self._store.begin() as connection:
            rows = connection.execute(select(_audiences).order_by(_audiences.c.created, _audiences.c.audience)).all()
        return tuple(_audience(row) for row in rows)

    def is_expired(self, audience: Audience) -> bool:
        """Whether it was expired, or its last day has passed."""
        return audience.state == "expired" or self.today() > audience.expires

    def add(self, audience: Audience, replaces: str | None) -> None:
        """Record a new audience; the one it replaces expires in the same instant."""
        with self._store.begin() as connection:
            connection.execute(insert(_audiences).values(**_audience_row(audience)))
            if replaces is not None:
                gone = update(_audiences).where(_audiences.c.audience == replaces)
                connection.execute(gone.values(state="expired", replaced_by=audience.id))

    def renew(self, audience: Audience) -> None:
        """Record a new revision of an audience's members."""
        names = ("revision", "scores", "members", "members_digest", "suppressed_digest")
        values = {name: value for name, value in _audience_row(audience).items() if name in names}
        with self._store.begin() as connection:
            connection.execute(update(_audiences).where(_audiences.c.audience == audience.id).values(**values))

    def mark_expired(self, audience: str) -> None:
        """An expired audience never becomes active again."""
        with self._store.begin() as connection:
            gone = update(_audiences).where(_audiences.c.audience == audience)
            connection.execute(gone.values(state="expired"))

    # --- exports -----------------------------------------------------------------------------------------------------

    def exports(self, audience: str | None = None) -> tuple[ExportRecord, ...]:
        """Exports of one audience, or of all, by destination and sequence; unfinished ones included."""
        rule = _exports.c.audience == audience if audience is not None else _exports.c.sequence > 0
        order = (_exports.c.audience, _exports.c.destination, _exports.c.sequence)
        with self._store.begin() as connection:
            rows = connection.execute(select(_exports).where(rule).order_by(*order)).all()
        return tuple(_record(row) for row in rows)

    def last_exports(self, audience: str) -> dict[str, ExportRecord]:
        """The last finished export of an audience to each destination."""
        return {record.destination: record for record in self.exports(audience) if record.state == "done"}

    def begin_export(self, record: ExportRecord) -> None:
        """Record where an export will be filled, before anything is written there."""
        with self._store.begin() as connection:
            connection.execute(insert(_exports).values(**_export_row(record)))

    def seal_export(self, record: ExportRecord) -> None:
        """Record what an export is, before it appears."""
        self._set(record, **_export_row(record))

    def finish_export(self, record: ExportRecord) -> None:
        """Record that an export has appeared."""
        self._set(record, state="done")

    def unseal_export(self, record: ExportRecord) -> None:
        """Record that an export has not appeared and will not."""
        self._set(record, state="begun")

    def forget_export(self, record: ExportRecord) -> None:
        """Forget an export that nobody saw; its sequence number is free again."""
        with self._store.begin() as connection:
            connection.execute(delete(_exports).where(_this(record), _exports.c.state == "begun"))

    def _set(self, record: ExportRecord, **values: Any) -> None:
        with self._store.begin() as connection:
            connection.execute(update(_exports).where(_this(record)).values(**values))

    # --- lists of customers ------------------------------------------------------------------------------------------

    def members_file(self, audience: str, revision: int) -> Path:
        """Where the members of a revision are."""
        return self.folder / f"{audience}.members.{revision}.parquet"

    def suppressed_file(self, audience: str, revision: int) -> Path:
        """Where those who stay out are."""
        return self.folder / f"{audience}.suppressed.{revision}.parquet"

    def exported_file(self, record: ExportRecord) -> Path:
        """Where it stands what a destination holds after an export."""
        return self.folder / f"{record.audience}.exported.{record.destination}.{record.sequence}.parquet"

    def snapshots(self) -> Iterator[Snapshot]:
        """What every destination holds or held, one file per audience and destination; an interrupted export counts."""
        last = {(r.audience, r.destination): r for r in self.exports() if r.state != "begun"}
        for record in last.values():
            yield self.snapshot(record)

    def snapshot(self, record: ExportRecord) -> Snapshot:
        """What a destination holds after an export that is sealed or done."""
        return Snapshot(self.exported_file(record), record.snapshot_digest or "")

    def _sweep(self) -> None:
        """Delete the lists that nobody needs: of earlier revisions, of expired audiences, of runs that died.

        Only while `locked`: scratch folders of a command at work would go too.
        """
        needed = {self.exported_file(record).name for record in self.exports() if record.state != "done"}
        for audience in self.audiences():
            needed |= {self.exported_file(record).name for record in self.last_exports(audience.id).values()}
            if not self.is_expired(audience):
                needed.add(self.members_file(audience.id, audience.revision).name)
                needed.add(self.suppressed_file(audience.id, audience.revision).name)
        for file in self.folder.glob("*.parquet"):
            if file.name not in needed:
                file.unlink(missing_ok=True)
        for folder in self.folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(folder, ignore_errors=True)


def fresh_audience_id() -> str:
    """`aud-` and 32 hexadecimal digits from the operating system's CSPRNG: it says nothing and repeats never."""
    return "aud-" + fresh_key().hex()[:32]


def _this(record: ExportRecord) -> Any:
    return and_(
        _exports.c.audience == record.audience,
        _exports.c.destination == record.destination,
        _exports.c.sequence == record.sequence,
    )


def _audience(row: Row[Any]) -> Audience:
    values = dict(row._mapping)
    level = Level(values.pop("level"), values.pop("cutoff"), values.pop("reach"))
    expires = date.fromisoformat(values.pop("expires"))
    return Audience(id=values.pop("audience"), level=level, expires=expires, **values)


def _audience_row(audience: Audience) -> dict[str, Any]:
    values = dict(vars(audience))
    level = values.pop("level")
    return values | {
        "audience": values.pop("id"),
        "level": level.name,
        "cutoff": level.cutoff,
        "reach": level.reach,
        "expires": audience.expires.isoformat(),
    }


def _record(row: Row[Any]) -> ExportRecord:
    values = dict(row._mapping)
    values["folder"], values["removal"] = Path(values["folder"]), bool(values["removal"])
    values["files"] = tuple((name, digest) for name, digest in json.loads(values["files"] or "[]"))
    values["layout"] = tuple((name, tuple(steps)) for name, steps in json.loads(values["layout"] or "[]"))
    return ExportRecord(**values)


def _export_row(record: ExportRecord) -> dict[str, Any]:
    values = dict(vars(record))
    values["folder"], values["removal"] = str(record.folder), int(record.removal)
    values["files"], values["layout"] = json.dumps(record.files), json.dumps(record.layout)
    return values


def _utc_now() -> datetime:
    return datetime.now(UTC)
