"""Scoring: a released ranker on all customers of a node, a bounded number at a time, into a file that stays there.

A score is exact and follows from the customer's row alone: it depends neither on who else is scored nor on how the file
is cut into batches. A category that the contract does not list scores as the unknown one, which onboarding made of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cohortium.client.audience.scores import SCORES_COLUMNS, SCORES_SCHEMA, ScoresOrigin, read_scores_facts
from cohortium.client.audience.work import sync_folder
from cohortium.client.lookalike.admission import AdmittedModel, admit_model
from cohortium.client.lookalike.reasons import REASONS, contributions, leading_reasons
from cohortium.client.lookalike.records import NodeRecords
from cohortium.client.onboarding.engine import Progress
from cohortium.client.onboarding.store import CUSTOMERS_FILE, load_report
from cohortium.models.ranker import Ranker
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import CohortiumError, DataError, OutputError

__all__ = ["ScoredCustomers", "SeedListState", "score_customers_file"]

SeedListState = Literal["marked", "none", "removed"]
"""The campaign's seed list at this node: its customers are marked; there is none; it was removed since."""

_ROWS = 16_384
_BUFFER = 2**20
_REPEATING = ["reason_1", "reason_2", "reason_3"]


@dataclass(frozen=True)
class ScoredCustomers:
    """A scores file that has just been written. Exact and local.

    Args:
        path: the file.
        customers: how many were scored: all in the node's table.
        seeds: of these, how many are in the campaign's seed here.
        seed_list: why there may be none.
        model, plan: digests.
        expires: the model's last day.
    """

    path: Path
    customers: int
    seeds: int
    seed_list: SeedListState
    model: str
    plan: str
    expires: date


def score_customers_file(
    records: NodeRecords,
    model: Path,
    out: Path,
    *,
    reasons: bool = True,
    today: date | None = None,
    progress: Progress | None = None,
) -> ScoredCustomers:
    """Score every customer of a node and write the scores file (`audience.scores`), whole or not at all.

    Memory does not grow with the number of customers; it grows with the seed list. An earlier scores file is replaced.

    Args:
        records: of the node.
        model: a released campaign's model.
        out: the scores file; readable by its owner alone.
        reasons: whether to name the features that raise each score most (`reasons`); empty columns without.
        today: in UTC; a seam for tests of expiry.
        progress: called with (stage, share done).

    Raises:
        DataError: a model that this node does not use (`admission`), no finished onboarding of this contract, or a
            customer table that was changed since.
        RefusedError: the plan was never approved here.
        OutputError: `out` is no scores file, is being written by another process, or cannot be written.
    """
    say = progress or (lambda _stage, _share: None)
    admitted = admit_model(records, model, today)
    _refuse_foreign(out)
    plan = admitted.model.document.plan
    seeds, listed = _seeds(records, plan.lookalike.seed)
    with _customers(records, say) as (table, origin), _written(out) as file:
        total, done, marked = table.metadata.num_rows, 0, 0
        with pq.ParquetWriter(file, _schema(admitted, origin), use_dictionary=_REPEATING) as writer:
            for batch in _batches(table, admitted.ranker.rows.features, str(records.customers)):
                scored = _scored(batch, admitted.ranker, seeds, reasons)
                writer.write_batch(scored)
                done += scored.num_rows
                marked += pc.sum(scored.column("seed")).as_py() or 0
                say("scoring", done / max(total, 1))
    facts = read_scores_facts(out)
    return ScoredCustomers(out, facts.rows, marked, listed, facts.model, facts.plan, facts.expires)


def _scored(batch: pa.RecordBatch, ranker: Ranker, seeds: pa.Array, reasons: bool) -> pa.RecordBatch:
    """Rows of the scores file for rows of the customer table."""
    ids = batch.column(0).cast(pa.string())
    people = _people(batch, ranker.rows.features)
    named = _named(ranker, people) if reasons else [pa.nulls(len(ids), pa.string())] * REASONS
    columns = [ids, pa.array(ranker.scores(people)), *named, pc.is_in(ids, value_set=seeds)]
    return pa.RecordBatch.from_arrays(columns, schema=SCORES_COLUMNS)


def _people(batch: pa.RecordBatch, features: tuple[str, ...]) -> CustomerTable:
    values = np.empty((batch.num_rows, len(features)))
    for position in range(len(features)):
        values[:, position] = batch.column(position + 1).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return CustomerTable(features, values, np.arange(batch.num_rows))  # ids are not looked at


def _named(ranker: Ranker, people: CustomerTable) -> list[pa.Array]:
    leading = leading_reasons(contributions(ranker, people))
    names = pa.array(ranker.rows.features, type=pa.string())
    return [_texts(leading[:, rank], names) for rank in range(REASONS)]


def _texts(positions: NDArray[np.int64], names: pa.Array) -> pa.Array:
    return names.take(pa.array(positions, mask=positions < 0))


def _batches(table: pq.ParquetFile, features: tuple[str, ...], place: str) -> Iterator[pa.RecordBatch]:
    """`id`, then the features, some rows at a time."""
    columns = ["id", *features]
    batches = table.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False)
    while (batch := _next(batches, place)) is not None:
        yield batch.select(columns)


def _next(batches: Iterator[pa.RecordBatch], place: str) -> pa.RecordBatch | None:
    with suppress(OSError, pa.ArrowException):
        return next(batches, None)
    raise DataError(f"{CUSTOMERS_FILE} cannot be read", place=place, fix="check the disk, and onboard again")


@contextmanager
def _customers(records: NodeRecords, say: Progress) -> Iterator[tuple[pq.ParquetFile, ScoresOrigin]]:
    """The node's customer table, found to be the one that onboarding wrote. The very file that is checked is read."""
    folder = records.customers
    report, place = load_report(folder), str(folder)
    if report.contract_digest != records.contract.digest:
        raise DataError("was onboarded under another contract than this node's", place=place, fix="onboard again")
    with _opened(folder / CUSTOMERS_FILE, place) as stream:
        say("checking the table", 0.0)
        digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != report.outputs.get(CUSTOMERS_FILE):
            raise DataError(f"{CUSTOMERS_FILE} was changed", place=place, fix="onboard again")
        stream.seek(0)
        with pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False) as table:
            yield table, ScoresOrigin(records.identity.institution, digest)


def _opened(path: Path, place: str) -> BufferedReader:
    with suppress(OSError):
        return path.open("rb")
    raise DataError(f"{CUSTOMERS_FILE} is missing", place=place, fix="onboard again")


def _seeds(records: NodeRecords, name: str) -> tuple[pa.Array, SeedListState]:
    """The ids of the campaign's seed here, and what became of the list."""
    known = next((entry for entry in records.seeds.lists() if entry.name == name), None)
    ids = pa.array(records.seeds.members(name).tolist(), type=pa.string())
    if known is None:
        return ids, "none"
    return ids, "removed" if known.removed else "marked"


def _schema(admitted: AdmittedModel, origin: ScoresOrigin) -> pa.Schema:
    document = admitted.model.document
    labels = {
        "schema": SCORES_SCHEMA,
        "model": document.digest,
        "plan": document.plan.digest,
        "expires": document.expires.isoformat(),
        "node": origin.node,
        "customers": origin.customers,
    }
    return SCORES_COLUMNS.with_metadata(labels)


def _refuse_foreign(out: Path) -> None:
    if not out.parent.is_dir():
        raise OutputError("its folder does not exist", place=str(out), fix="make the folder, or choose another")
    if not (out.exists() or out.is_symlink()):
        return
    try:
        read_scores_facts(out)
    except CohortiumError:
        raise OutputError(
            "exists and is no scores file of this version", place=str(out), fix="choose another name"
        ) from None


@contextmanager
def _written(out: Path) -> Iterator[Any]:
    """A private file beside `out` that takes its place, durably, when the block ends well, and goes when it does not.

    A lock keeps two processes from filling it at once. What a killed process left is filled anew.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        with _locked(partial, out) as file:
            try:
                file.truncate(0)
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, out)
            except BaseException:
                with suppress(OSError):
                    partial.unlink()
                raise
        sync_folder(out.parent)
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place=str(out), fix="check space and permissions"
        ) from error


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[Any]:
    with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(file.fileno()).st_ino == partial.stat().st_ino
        except OSError:
            mine = False
        if not mine:
            raise OutputError("another process writes it", place=str(out), fix="wait until it has ended")
        yield file
