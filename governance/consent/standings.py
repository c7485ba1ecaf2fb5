"""Everybody's standing in memory, kept up with the store, and the snapshots made of it."""

from __future__ import annotations

import threading
from hashlib import sha256

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from cohortium.governance.consent import tables
from cohortium.governance.consent.columns import STORED, Columns, words
from cohortium.governance.consent.rows import ConsentRows, day, joined
from cohortium.governance.consent.snapshot import Cohort, Roll, Snapshot
from cohortium.study.errors import Defect

__all__ = ["Standings"]

_LOADED = 200_000


class Standings:
    """Who stands where, by keyed hash; loaded when the first snapshot is asked for.

    Args:
        rows: of the consent store.
    """

    def __init__(self, rows: ConsentRows) -> None:
        self._rows = rows
        self._lock = threading.RLock()
        self._columns: Columns | None = None
        self._suppressed: tuple[NDArray[np.uint64], NDArray[np.uint32]] = (words(b""), np.zeros(0, dtype=np.uint32))
        self._root = ""
        self._snapshots: dict[Cohort, Snapshot] = {}
        self._rolls: list[Roll] = []

    def snapshot(self, cohort: Cohort) -> Snapshot:
        """Who may be counted for a cohort now. Made anew only when something was recorded or the day (UTC) changed."""
        with self._lock:
            today = day(self._rows.clock())
            if self._columns is None:
                self._columns = self._load()
            self._advance(self._columns)
            made = self._snapshots.get(cohort)
            if made is None or (made.sequence, made.day) != (self._columns.sequence, today):
                made = Snapshot(cohort, today, self._columns, self._suppressed[1], self._root, self._roll)
                self._snapshots[cohort] = made
            return made

    def _load(self) -> Columns:
        """Everybody's standing, read in pieces, so that no withdrawal waits for it; `_advance` makes it consistent."""
        table, number = tables.standings, tables.standings.c.person
        with self._rows.transaction() as connection:
            sequence, last = tables.top(connection, tables.events.c.sequence), tables.top(connection, number)
            people = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        stored, filled = np.zeros(people, dtype=STORED), 0
        for start in range(0, last, _LOADED):
            within = (number > start) & (number <= min(start + _LOADED, last))
            with self._rows.transaction() as connection:
                piece = np.frombuffer(joined(connection, sa.select(tables.packed()).where(within)), dtype=STORED)
            piece = piece[: people - filled]  # more have come only since, and `_advance` brings them
            stored[filled : filled + len(piece)] = piece
            filled += len(piece)
        return Columns(stored[:filled], sequence)

    def _advance(self, columns: Columns) -> None:
        with self._rows.transaction() as connection:
            sequence = tables.top(connection, tables.events.c.sequence)
            if sequence == columns.sequence and self._root:
                return
            rows = joined(connection, sa.select(tables.packed()).where(tables.standings.c.last > columns.sequence))
            gone = connection.execute(
                sa.select(tables.events.c.principal)
                .join(tables.erasures, tables.erasures.c.sequence == tables.events.c.sequence)
                .where(tables.erasures.c.sequence > columns.sequence)
            ).all()
            if gone or not self._root:
                self._suppressed = _suppression_columns(connection)
        changed = np.frombuffer(rows, dtype=STORED)
        columns.advance(changed, words(b"".join([row[0] for row in gone])), sequence)
        tags, flags = self._suppressed
        listed = sha256(tags.astype(">u8").tobytes() + flags.astype(">u4").tobytes()).digest()
        self._root = "sha256:" + sha256(b"cohortium.consent-snapshot/1\n" + columns.root + listed).hexdigest()

    def _roll(self, ids: NDArray[np.generic]) -> Roll:
        with self._lock:
            if self._columns is None:
                raise Defect("consent: a snapshot without standings")
            self._rolls = [roll for roll in self._rolls if roll.of() is not None][-4:]
            roll = next((roll for roll in self._rolls if roll.of() is ids), None)
            if roll is None:
                roll = Roll(ids, (self._rows.lookup_key, self._rows.suppression_key))
                self._rolls.append(roll)
            roll.resolve(ids, self._columns, self._suppressed[0])
            return roll


def _suppression_columns(connection: sa.Connection) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    query = sa.select(tables.suppressions.c.tag, tables.suppressions.c.flags).order_by(tables.suppressions.c.number)
    rows = connection.execute(query).all()
    return words(b"".join([bytes(row.tag) for row in rows])), np.array([row.flags for row in rows], dtype=np.uint32)
