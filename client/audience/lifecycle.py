"""Audiences end and are listed; and whoever was handed over is recognised, so that nobody looks for their likes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cohortium.client.audience.store import Audience, AudienceStore, ExportRecord, Snapshot
from cohortium.client.audience.work import BATCH_ROWS, snapshot_relation
from cohortium.study.errors import DataError

__all__ = ["LOOKALIKE_LIMIT", "ListedAudience", "expire", "exported_ids", "list_audiences", "looks_like_audience"]

LOOKALIKE_LIMIT = 0.5
"""A seed with a larger share of exported audience members is a lookalike of a lookalike."""


@dataclass(frozen=True)
class ListedAudience:
    """An audience as it is listed.

    Args:
        audience: as recorded.
        state: `active`, or `expired` also when its last day has passed.
        size: a band.
        exports: to every destination, in order; `done` or waiting to be recovered.
        removal_due: destinations that still hold members and get a removal once the audience has expired.
    """

    audience: Audience
    state: Literal["active", "expired"]
    size: str
    exports: tuple[ExportRecord, ...]
    removal_due: tuple[str, ...]


def expire(store: AudienceStore, audience: str) -> ListedAudience:
    """End an audience for ever; its id stays taken. Expiring it again changes nothing.

    Raises:
        RefusedError: there has never been such an audience.
        OutputError: another command works on audiences.
    """
    with store.locked():
        store.mark_expired(store.audience(audience).id)
        return _listed(store, store.audience(audience))


def list_audiences(store: AudienceStore) -> tuple[ListedAudience, ...]:
    """All audiences in the order in which they were created, the expired ones included. Changes nothing."""
    return tuple(_listed(store, audience) for audience in store.audiences())


def exported_ids(store: AudienceStore) -> Iterator[str]:
    """Everybody who was ever exported, by audience and destination: somebody in several comes several times.

    Raises:
        DataError: a list that is missing or was changed.
    """
    for snapshot in store.snapshots():
        for ids in _ids(snapshot):
            yield from ids


def looks_like_audience(seed: Iterable[str], store: AudienceStore) -> float:
    """The share of different seed ids that were ever exported in an audience of this store, 0..1; 0 without seeds.

    Memory grows with the seed, not with the audiences. A registration refuses above `LOOKALIKE_LIMIT`.

    Raises:
        DataError: as `exported_ids`.
    """
    wanted = set(seed)
    found: set[str] = set()
    for snapshot in store.snapshots():
        for ids in _ids(snapshot):
            found.update(wanted.intersection(ids))
    return len(found) / len(wanted) if wanted else 0.0


def _listed(store: AudienceStore, audience: Audience) -> ListedAudience:
    exports = tuple(record for record in store.exports(audience.id) if record.state != "begun")
    last = {record.destination: record for record in exports}
    due = tuple(name for name, record in last.items() if not (record.removal and record.state == "done"))
    state: Literal["active", "expired"] = "expired" if store.is_expired(audience) else "active"
    return ListedAudience(audience, state, audience.size, exports, due if state == "expired" else ())


def _ids(snapshot: Snapshot) -> Iterator[list[str]]:
    snapshot_relation(snapshot.path, snapshot.digest)
    failed = False
    with pq.ParquetFile(snapshot.path, pre_buffer=False) as file:
        try:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=["id"], use_threads=False):
                yield batch.column(0).to_pylist()
        except (OSError, pa.ArrowException):
            failed = True
    if failed:
        raise DataError("cannot be read", place=snapshot.path.name, fix="put back the node's folder from a copy")
