"""Where a table comes from, and how it becomes a DuckDB relation with known columns.

Text files are read as text, every cell of them, so that what cannot be parsed is counted rather than guessed. Lines
that do not have the header's number of fields are counted too, under the table itself.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from cohortium.client.onboarding.engine import Engine, literal, quoted
from cohortium.study.errors import DataError

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and a node has none

__all__ = ["OpenSource", "Source", "SqlSource", "open_source", "parse_source", "require_columns", "suggestion"]

_DELIMITERS = ",;\t|"
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_PARQUET_SUFFIXES = (".parquet", ".pq")
_DIGEST_UP_TO_BYTES = 256 * 2**20
_SQL_ROWS = 50_000
_LONGEST_HEADER_BYTES = 2**20


@dataclass(frozen=True)
class SqlSource:
    """A table or a query behind a SQLAlchemy URL; exactly one of `table` and `query` is set.

    Args:
        url: for example `sqlite:///shop.db` or `postgresql+psycopg://reader@host/bank`.
        table: name of a table or view, with a schema as `schema.table`.
        query: a SELECT statement.
    """

    url: str
    table: str | None = None
    query: str | None = None


Source: TypeAlias = "Path | str | SqlSource | pd.DataFrame | pa.Table"
"""CSV or Parquet file, folder of Parquet files, SQL URL (`URL#table` or `URL#SELECT …`), or a frame in memory."""


@dataclass(frozen=True)
class OpenSource:
    """A source that DuckDB can scan.

    Args:
        relation: SQL to put after FROM.
        types: DuckDB type of every column, in order.
        rejects: table in which DuckDB stores the malformed lines of every scan; None where there can be none.
        facts: what `onboarding.json` records of it: kind, sizes and digests, never a path or a password.
    """

    relation: str
    types: dict[str, str]
    rejects: str | None
    facts: dict[str, Any]


def parse_source(text: str) -> Source:
    """A command-line source: a path, or a SQL URL with `#table` or `#SELECT …`."""
    if "://" not in text:
        return Path(text)
    url, _, tail = text.partition("#")
    if tail.split(" ", 1)[0].lower() in ("select", "with"):
        return SqlSource(url, query=tail)
    return SqlSource(url, table=tail or None)


def open_source(engine: Engine, name: str, source: Source, columns: Sequence[str], scratch: Path) -> OpenSource:
    """Make a source readable under the contract's table name.

    Args:
        engine: where it is registered.
        name: the contract's name of the table.
        source: what to read.
        columns: the columns the contract reads; only these are fetched from a SQL source.
        scratch: folder for a SQL source's rows while they are read.

    Raises:
        DataError: missing file, unknown format, no header, repeated column, unreachable database.
    """
    if isinstance(source, str):
        source = parse_source(source)
    if isinstance(source, SqlSource):
        return _open_sql(engine, name, source, columns, scratch)
    if isinstance(source, Path):
        return _open_path(engine, name, source)
    return _open_frame(engine, name, source)


def _open_frame(engine: Engine, name: str, frame: pd.DataFrame | pa.Table) -> OpenSource:
    labels = [str(label) for label in (frame.column_names if isinstance(frame, pa.Table) else frame.columns)]
    _refuse_repeats(labels, name)
    view = f"frame_{name}"
    failed = False
    try:
        engine.connection.register(view, frame)
    except (duckdb.Error, pa.ArrowException, TypeError, ValueError):
        failed = True
    if failed:
        raise DataError("the frame has a column type that cannot be read", place=name, fix="convert it to text")
    relation = quoted(view)
    return OpenSource(relation, engine.columns(f"SELECT * FROM {relation}", name), None, {"kind": "frame"})


def _open_path(engine: Engine, name: str, path: Path) -> OpenSource:
    if not path.exists():
        raise DataError("no such file or folder", place=f"{name} ({path.name})", fix="check the path")
    lowered = path.name.lower()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.lower().endswith(_PARQUET_SUFFIXES))
        return _open_parquet(engine, name, files, path.name)
    if lowered.endswith(_PARQUET_SUFFIXES):
        return _open_parquet(engine, name, [path], path.name)
    if lowered.endswith(_TEXT_SUFFIXES):
        return _open_csv(engine, name, path)
    raise DataError(
        "unknown kind of file", place=f"{name} ({path.name})", fix="give .csv, .csv.gz, .parquet or a folder of Parquet"
    )


def _open_parquet(engine: Engine, name: str, files: list[Path], label: str) -> OpenSource:
    place = f"{name} ({label})"
    if not files:
        raise DataError("the folder holds no Parquet file", place=place, fix="give a folder of .parquet files")
    listed = ", ".join(literal(str(file)) for file in files)
    relation = f"read_parquet([{listed}])"
    types = engine.columns(f"SELECT * FROM {relation}", place)
    return OpenSource(relation, types, None, {"kind": "parquet", **_file_facts(files)})


def _open_csv(engine: Engine, name: str, path: Path) -> OpenSource:
    place = f"{name} ({path.name})"
    header, delimiter = _csv_header(path, place)
    _refuse_repeats(header, place)
    rejects = f"rejects_{name}"
    columns = ", ".join(f"{literal(label)}: 'VARCHAR'" for label in header)
    relation = (
        f"read_csv({literal(str(path))}, auto_detect = false, header = true, delim = {literal(delimiter)},"
        f" quote = '\"', escape = '\"', columns = {{{columns}}}, ignore_errors = true, store_rejects = true,"
        f" rejects_table = {literal(rejects)}, rejects_scan = {literal(rejects + '_scans')}, rejects_limit = 0)"
    )
    types = engine.columns(f"SELECT * FROM {relation}", place)
    return OpenSource(relation, types, rejects, {"kind": "csv", **_file_facts([path])})


def _csv_header(path: Path, place: str) -> tuple[list[str], str]:
    """Column names and the delimiter: of , ; tab and |, the one most frequent in the header line."""
    line, failed = "", False
    try:
        with _opened(path) as file:
            line = file.readline(_LONGEST_HEADER_BYTES).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        failed = True
    if failed:
        raise DataError("the first line is not UTF-8 text", place=place, fix="save the file as UTF-8")
    if not line.strip():
        raise DataError("the file is empty", place=place, fix="export it again, with a header line")
    delimiter = max(_DELIMITERS, key=line.count)
    with suppress(csv.Error):  # a lone carriage return, or a name of more than 128 KiB
        return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter)), delimiter
    raise DataError("the first line is no header line", place=place, fix="end lines as Unix or Windows do")


def _opened(path: Path) -> io.BufferedIOBase:
    """In bytes: a text reader would decode, and refuse, lines far beyond the first."""
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def require_columns(name: str, wanted: Sequence[str], source: OpenSource) -> None:
    """Raise `DataError` for the first wanted column the source lacks, with the nearest name.

    When none of them is there, no name is repeated: a file without a header line has a customer's values in its place.
    """
    missing = [column for column in wanted if column not in source.types]
    if missing and len(missing) == len(wanted):
        raise DataError(
            "none of the contract's columns is there",
            place=name,
            fix=f"check that it is the right table, and that a text file begins with names such as '{wanted[0]}'",
        )
    if missing:
        raise DataError(f"no column '{missing[0]}'", place=name, fix=suggestion(missing[0], list(source.types)))


def suggestion(name: str, known: Sequence[str]) -> str:
    """The known name that is nearest, whatever its case, or else the known names."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    return f"did you mean '{by_lower[close[0]]}'?" if close else f"there are {', '.join(known[:24])}"


def _refuse_repeats(labels: Sequence[str], place: str) -> None:
    """Columns are named by their number: without a header line, the labels would be a customer's values."""
    first: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if not label.strip():
            raise DataError(f"column {number} has no name", place=place, fix="name every column in the header line")
        earlier = first.setdefault(label.lower(), number)
        if earlier != number:
            raise DataError(
                f"columns {earlier} and {number} have the same name",
                place=place,
                fix="rename one of them (case is ignored), or add the header line if it is missing",
            )


def _file_facts(files: Sequence[Path]) -> dict[str, Any]:
    """Sizes of all files; SHA-256 of those up to 256 MiB (hashing larger ones would cost more than reading them)."""
    facts = []
    for file in files:
        size = file.stat().st_size
        digest = _sha256(file) if size <= _DIGEST_UP_TO_BYTES else None
        facts.append({"name": file.name, "bytes": size, "sha256": digest})
    return {"files": facts}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _open_sql(engine: Engine, name: str, source: SqlSource, columns: Sequence[str], scratch: Path) -> OpenSource:
    """Stream the contract's columns into a scratch Parquet file, as text, a few thousand rows at a time."""
    if (source.table is None) == (source.query is None):
        raise DataError("a SQL source needs a table or a query", place=name, fix="write URL#table or URL#SELECT …")
    file = scratch / f"sql-{name}.parquet"
    failure: str | None = None
    try:
        rows = _copy_sql(source, columns, file)
    except (SQLAlchemyError, OSError, ImportError, pa.ArrowException) as error:
        failure = type(error).__name__
    if failure is not None:
        raise DataError(
            f"the database could not be read ({failure})",
            place=f"{name} (SQL)",
            fix="check the URL, the driver, the table's name and your rights to read it",
        )
    relation = f"read_parquet({literal(str(file))})"
    types = engine.columns(f"SELECT * FROM {relation}", name)
    return OpenSource(relation, types, None, {"kind": "sql", "rows": rows})


def _copy_sql(source: SqlSource, columns: Sequence[str], file: Path) -> int:
    db = sa.create_engine(source.url)
    try:
        with db.connect().execution_options(stream_results=True, yield_per=_SQL_ROWS) as connection:
            result = connection.execute(_select(db, source, columns))
            return _write_text(result, columns, file)
    finally:
        db.dispose()


def _select(db: sa.Engine, source: SqlSource, columns: Sequence[str]) -> sa.Executable:
    if source.query is not None:
        return sa.text(source.query)
    schema, _, table = (source.table or "").rpartition(".")
    present = [column["name"] for column in sa.inspect(db).get_columns(table, schema or None)]
    wanted = columns if set(columns) <= set(present) else present
    return sa.select(*(sa.column(column) for column in wanted)).select_from(sa.table(table, schema=schema or None))


def _write_text(result: sa.CursorResult[Any], columns: Sequence[str], file: Path) -> int:
    """Rows as text. When a column is missing: all names and no row, so that the caller can say which is near."""
    found = list(result.keys())
    complete = set(columns) <= set(found)
    keys = list(columns) if complete else found
    schema = pa.schema([(key, pa.string()) for key in keys])
    written = 0
    with pq.ParquetWriter(file, schema) as writer:
        for part in result.mappings().partitions(_SQL_ROWS) if complete else ():
            texts = {key: [_text(row[key]) for row in part] for key in keys}
            writer.write_table(pa.table(texts, schema=schema))
            written += len(part)
    return written


def _text(value: object) -> str | None:
    if value is None or isinstance(value, bool):
        return None if value is None else str(value).lower()
    return str(value)
