"""The rows of an export as files: CSV, JSON lines or Parquet, cut after so many rows, each synced to disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cohortium.client.audience.manifest import ExportedFile
from cohortium.client.audience.work import file_digest, private_file

__all__ = ["FORMATS", "Format", "write_rows"]

Format: TypeAlias = Literal["csv", "jsonl", "parquet"]

FORMATS: tuple[Format, ...] = ("csv", "jsonl", "parquet")


def write_rows(
    folder: Path,
    operation: Literal["add", "remove"],
    batches: Iterable[pa.RecordBatch],
    names: Sequence[str],
    form: Format,
    max_rows: int | None,
) -> tuple[ExportedFile, ...]:
    """Write `OPERATION-000001.FORMAT`, `OPERATION-000002.FORMAT`, ...; no file where there is no row.

    Args:
        folder: where.
        operation: what the destination does with the rows.
        batches: rows of text, one column per name; a missing identifier is null (an empty cell in CSV).
        names: of the columns, in order.
        form: `csv` (RFC 4180, UTF-8, header line), `jsonl` (one object a line) or `parquet`.
        max_rows: most rows of a file; None for one file.

    Raises:
        OSError: a file cannot be written.
    """
    schema = pa.schema([pa.field(name, pa.string()) for name in names])
    files: list[ExportedFile] = []
    for number, part in enumerate(_parts(batches, max_rows), start=1):
        path = folder / f"{operation}-{number:06d}.{form}"
        rows = _write(path, part, schema, form)
        files.append(ExportedFile(name=path.name, operation=operation, rows=rows, sha256=file_digest(path)))
    return tuple(files)


def _parts(batches: Iterable[pa.RecordBatch], max_rows: int | None) -> Iterator[Iterator[pa.RecordBatch]]:
    """One iterator per file; each must be used up before the next is asked for."""
    rest = _Rows(batches)
    while rest.more():
        yield rest.take(max_rows)


class _Rows:
    """Batches that can be taken so many rows at a time."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._held: pa.RecordBatch | None = None

    def more(self) -> bool:
        while self._held is None or self._held.num_rows == 0:
            self._held = next(self._batches, None)
            if self._held is None:
                return False
        return True

    def take(self, rows: int | None) -> Iterator[pa.RecordBatch]:
        left = rows
        while left != 0 and self.more() and self._held is not None:
            batch = self._held if left is None else self._held.slice(0, left)
            self._held = self._held.slice(batch.num_rows)
            left = None if left is None else left - batch.num_rows
            yield batch


def _write(path: Path, batches: Iterator[pa.RecordBatch], schema: pa.Schema, form: Format) -> int:
    rows = 0
    with private_file(path) as file:
        write, close = _WRITERS[form](file, schema)
        for batch in batches:
            write(pa.RecordBatch.from_arrays([column.cast(pa.string()) for column in batch.columns], schema=schema))
            rows += batch.num_rows
        close()
        file.flush()
        os.fsync(file.fileno())
    return rows


_Writer: TypeAlias = tuple[Callable[[pa.RecordBatch], None], Callable[[], None]]


def _csv(file: Any, schema: pa.Schema) -> _Writer:
    writer = pacsv.CSVWriter(file, schema, write_options=pacsv.WriteOptions(quoting_style="needed"))
    return writer.write_batch, writer.close


def _jsonl(file: Any, schema: pa.Schema) -> _Writer:
    def write(batch: pa.RecordBatch) -> None:
        lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in batch.to_pylist())
        file.write(("\n".join(lines) + "\n").encode())

    return write, lambda: None


def _parquet(file: Any, schema: pa.Schema) -> _Writer:
    writer = pq.ParquetWriter(file, schema)
    return writer.write_batch, writer.close


_WRITERS: dict[Format, Callable[[Any, pa.Schema], _Writer]] = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}
