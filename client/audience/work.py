"""Scratch work on more rows than memory holds: a private database that spills, and files that are whole and private.

The only module of this package that knows how rows are sorted, joined and written.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cohortium.client.onboarding.engine import Engine, Resources, literal
from cohortium.study.errors import DataError, OutputError

__all__ = [
    "AUDIENCE_RESOURCES",
    "BATCH_ROWS",
    "SCRATCH",
    "append",
    "file_digest",
    "make_folder",
    "private_file",
    "snapshot_relation",
    "stream",
    "sync_folder",
    "take_folder",
    "workbench",
    "write_snapshot",
]

AUDIENCE_RESOURCES = Resources(memory_limit="512MB", threads=2)
"""Memory and threads of a command on audiences; what does not fit spills."""

BATCH_ROWS = 65_536
"""Rows that are held at a time."""


SCRATCH = "scratch-"
"""How the name of a folder for spilled rows begins."""


@contextmanager
def workbench(folder: Path | None, resources: Resources) -> Iterator[Engine]:
    """A private database in memory that spills into a private folder, which goes when the block ends.

    Args:
        folder: where the folder is made; the system's place for temporary files when None.
        resources: memory and threads.

    Raises:
        OutputError: the folder cannot be made.
    """
    try:
        scratch = tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        place = str(folder) if folder is not None else "temporary files"
        raise OutputError(error.strerror or "cannot be written", place=place, fix="check permissions") from None
    with scratch as name:
        engine = Engine(Path(name), resources)
        try:
            yield engine
        finally:
            engine.close()


def stream(engine: Engine, sql: str, place: str) -> Iterator[pa.RecordBatch]:
    """The rows of a SELECT, a bounded number at a time, while the engine stays free for other work.

    Raises:
        DataError: whatever the database refused, by kind alone.
    """
    cursor = engine.connection.cursor()
    failed: type[BaseException] | None = None
    try:
        reader: Any = cursor.sql(sql).to_arrow_reader(BATCH_ROWS)
        yield from reader
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        failed = type(error)
    finally:
        cursor.close()
    if failed is not None:  # out of the handler: the database's message may hold a cell
        raise _unreadable(failed, place)


def _unreadable(failed: type[BaseException], place: str) -> DataError:
    if issubclass(failed, duckdb.OutOfMemoryException):
        return DataError("out of memory", place=place, fix="raise memory_limit, or free disk space for spilled rows")
    return DataError(f"the rows could not be read ({failed.__name__})", place=place, fix="check the file and the disk")


def append(engine: Engine, table: str, columns: Mapping[str, Any], place: str) -> None:
    """Add rows of text or flags, given as columns of equal length, to a table of the engine."""
    batch = pa.RecordBatch.from_pydict(dict(columns))
    engine.connection.register("incoming", batch)
    try:
        engine.run("collecting", f"INSERT INTO {table} SELECT {', '.join(columns)} FROM incoming", place)
    finally:
        engine.connection.unregister("incoming")


def private_file(path: Path) -> Any:
    """A new binary file that its owner alone can read; `FileExistsError` when it is there."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def sync_folder(folder: Path) -> None:
    """Make a folder's entries survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, all for their owner alone and such that they survive a power cut.

    One that is there is left as it is; `OSError` when it cannot be made.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def take_folder(handle: int) -> bool:
    """Lock an open folder until it is closed; False when another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def file_digest(path: Path) -> str:
    """`sha256:...` of a file's bytes."""
    with path.open("rb") as stream_:
        return "sha256:" + hashlib.file_digest(stream_, "sha256").hexdigest()


def write_snapshot(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> str:
    """Write a private Parquet file, durably, and give its digest. A file nobody refers to is of no consequence.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.unlink(missing_ok=True)  # of a run that died before it recorded the file
        with private_file(path) as file:
            with pq.ParquetWriter(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch.cast(schema))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place=str(path), fix="check space and permissions"
        ) from (error)
    return file_digest(path)


def snapshot_relation(path: Path, digest: str) -> str:
    """SQL to put after FROM for a snapshot; `DataError` when it is gone or not what was written."""
    if not path.is_file() or file_digest(path) != digest:
        raise DataError(
            "is missing or was changed",
            place=path.name,
            fix="put back the node's folder from a copy, or expire the audience",
        )
    return f"read_parquet({literal(str(path))})"
