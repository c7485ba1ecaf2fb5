"""The scores file: what a released model says of an institution's own customers. It never leaves the institution.

Parquet, in any order, read by record batches:

    id                            text, not empty, each once
    score                         float64, finite; higher is more alike
    reason_1, reason_2, reason_3  text, may be null
    seed                          bool: the customer is in the campaign's seed here

Metadata: `schema`, `model` (digest of the released model document), `plan` (digest), `expires` (ISO date), `node` (the
institution's name), `customers` (SHA-256 of the customer table that was scored).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cohortium.study.errors import DataError, RefusedError

__all__ = [
    "SCORES_COLUMNS",
    "SCORES_SCHEMA",
    "ScoresFacts",
    "ScoresOrigin",
    "iterate_scores",
    "read_scores_facts",
    "refuse_expired",
    "refuse_foreign",
]

SCORES_SCHEMA = "cohortium.scores/2"
"""Schema name in the Parquet file's metadata; any other is refused."""

SCORES_COLUMNS = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("reason_1", pa.string()),
        pa.field("reason_2", pa.string()),
        pa.field("reason_3", pa.string()),
        pa.field("seed", pa.bool_()),
    ]
)
"""Columns and types, in order."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_AGAIN = "score the customers again"
_BATCH_ROWS = 65_536
_READ_BYTES = 2**20


@dataclass(frozen=True)
class ScoresOrigin:
    """Whose customers were scored, and as which onboarding left them.

    Args:
        node: the institution's name.
        customers: SHA-256 of the customer table.
    """

    node: str
    customers: str


@dataclass(frozen=True)
class ScoresFacts:
    """What a scores file says of itself.

    Args:
        path: the file.
        rows: customers in it.
        model: digest of the released model document.
        plan: digest of the plan it was released under.
        expires: the last day on which the model may be used.
        origin: whose customers they are.
    """

    path: Path
    rows: int
    model: str
    plan: str
    expires: date
    origin: ScoresOrigin


def read_scores_facts(path: Path) -> ScoresFacts:
    """The facts of a scores file, without reading its rows.

    Raises:
        DataError: missing, no Parquet, other columns or types, another schema, malformed metadata.
    """
    with _opened(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    labels = schema.metadata or {}
    named = labels.get(b"schema")
    if named != SCORES_SCHEMA.encode():
        raise DataError(f"is not of schema {SCORES_SCHEMA}", place=path.name, fix=f"{_AGAIN} with this version")
    _refuse_columns(schema, path)
    return ScoresFacts(
        path=path,
        rows=rows,
        model=_digest(labels, "model", path),
        plan=_digest(labels, "plan", path),
        expires=_expires(labels, path),
        origin=ScoresOrigin(_node(labels, path), _digest(labels, "customers", path)),
    )


def refuse_expired(facts: ScoresFacts, today: date) -> None:
    """`RefusedError` when the model's last day has passed."""
    if today > facts.expires:
        raise RefusedError(
            f"the model expired on {facts.expires.isoformat()}",
            place=facts.path.name,
            fix="run the campaign again and score with its new model",
        )


def refuse_foreign(facts: ScoresFacts, origin: ScoresOrigin) -> None:
    """`RefusedError` unless exactly these customers were scored: another node's ids would be taken for this one's."""
    if facts.origin.node != origin.node:
        raise RefusedError(
            "the scores are of another institution's customers",
            place=facts.path.name,
            fix="score this node's own customers",
        )
    if facts.origin.customers != origin.customers:
        raise RefusedError(
            "the node's customers were onboarded anew since they were scored", place=facts.path.name, fix=_AGAIN
        )


def iterate_scores(path: Path, columns: tuple[str, ...] = ("id", "score", "seed")) -> Iterator[pa.RecordBatch]:
    """The rows of a scores file, a bounded number at a time: memory does not grow with the file.

    Args:
        path: a file that `read_scores_facts` accepts.
        columns: which, `id`, `score` and `seed` at least.

    Raises:
        DataError: a missing or empty id, a score that is missing or not finite, a missing seed flag, a damaged file.
    """
    read_scores_facts(path)
    with _opened(path) as file:
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns), use_threads=False)
        while (batch := _next(batches, path)) is not None:
            _refuse_rows(batch, path)
            yield batch


def _opened(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataError("no such file", place=path.name, fix="check the path of the scores file")
    with suppress(OSError, ValueError, pa.ArrowException):  # a name that is not UTF-8 is a ValueError
        return pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False)
    raise _damaged(path)


def _next(batches: Iterator[pa.RecordBatch], path: Path) -> pa.RecordBatch | None:
    with suppress(OSError, pa.ArrowException):
        batch = next(batches, None)
        if batch is not None:
            batch.validate(full=True)  # the reader takes text that is not UTF-8
        return batch
    raise _damaged(path)  # out of the handler: a reader's message may hold a cell


def _damaged(path: Path) -> DataError:
    return DataError("is no readable Parquet file", place=path.name, fix=_AGAIN)


def _refuse_columns(schema: pa.Schema, path: Path) -> None:
    for wanted in SCORES_COLUMNS:
        index = schema.get_field_index(wanted.name)
        if index < 0:
            raise DataError(f"no column '{wanted.name}'", place=path.name, fix=_AGAIN)
        if schema.field(index).type != wanted.type:
            raise DataError(f"column '{wanted.name}' does not hold {wanted.type}", place=path.name, fix=_AGAIN)
    if schema.names != SCORES_COLUMNS.names:
        raise DataError("has other columns than a scores file", place=path.name, fix=_AGAIN)


def _digest(labels: dict[bytes, bytes], key: str, path: Path) -> str:
    text = labels.get(key.encode(), b"").decode("ascii", "replace")
    if not _DIGEST.fullmatch(text):
        raise DataError(f"its metadata '{key}' is no digest", place=path.name, fix=_AGAIN)
    return text


def _node(labels: dict[bytes, bytes], path: Path) -> str:
    with suppress(UnicodeDecodeError):
        if name := labels.get(b"node", b"").decode():
            return name
    raise DataError("its metadata 'node' is no name", place=path.name, fix=_AGAIN)


def _expires(labels: dict[bytes, bytes], path: Path) -> date:
    text = labels.get(b"expires", b"").decode("ascii", "replace")
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        with suppress(ValueError):
            return date.fromisoformat(text)
    raise DataError("its metadata 'expires' is no date", place=path.name, fix=_AGAIN)


def _refuse_rows(batch: pa.RecordBatch, path: Path) -> None:
    ids, scores, seeds = (batch.column(name) for name in ("id", "score", "seed"))
    if ids.null_count or pc.any(pc.equal(pc.binary_length(ids), 0)).as_py():
        raise DataError("column 'id' has empty cells", place=path.name, fix=_AGAIN)
    if scores.null_count or not pc.all(pc.is_finite(scores)).as_py():
        raise DataError("column 'score' has cells that are no finite number", place=path.name, fix=_AGAIN)
    if seeds.null_count:
        raise DataError("column 'seed' has empty cells", place=path.name, fix=_AGAIN)
