"""One DuckDB connection with bounded memory, progress, and errors that carry no customer value.

DuckDB quotes the offending cell in its messages. Nothing of them is kept: neither the text nor the exception object,
which would live on as the context of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
from numpy.typing import NDArray

from cohortium.study.errors import DataError

__all__ = ["Engine", "Progress", "Resources", "literal", "quoted"]

Progress = Callable[[str, float], None]
"""Called with (stage, share done 0..1) from a helper thread; must be quick and must not raise."""

_POLL_SECONDS = 0.25
_T = TypeVar("_T")


@dataclass(frozen=True)
class Resources:
    """How much of the machine onboarding may take.

    Args:
        memory_limit: DuckDB's size text; what does not fit spills to the temporary folder. Resident memory exceeds it
            by the process's own few hundred megabytes. The aggregates of 2 million people fit the default; below it,
            spilling costs several times the wall time.
        threads: worker threads, at least 1.
    """

    memory_limit: str = "3GB"
    threads: int = 2


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"


class Engine:
    """A private in-memory database that spills to `spill` and never reaches for the network."""

    def __init__(self, spill: Path, resources: Resources, progress: Progress | None = None) -> None:
        self._progress = progress
        settings: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "memory_limit": resources.memory_limit,
            "threads": str(resources.threads),
            "temp_directory": str(spill),
        }
        try:
            self.connection = duckdb.connect(":memory:", config=settings)
        except duckdb.Error as error:
            raise DataError(
                "memory_limit or threads is not accepted",
                place="resources",
                fix="use sizes such as '3GB', threads >= 1",
            ) from error
        self.connection.execute("SET TimeZone = 'UTC'")
        # query_progress() answers only with the bar on; nothing may be printed
        self.connection.execute("SET enable_progress_bar_print = false")
        self.connection.execute("SET enable_progress_bar = true")

    def close(self) -> None:
        """Release memory and spilled files."""
        self.connection.close()

    def run(self, stage: str, sql: str, place: str) -> list[tuple[Any, ...]]:
        """Execute one statement and return its rows.

        Args:
            stage: what the progress callback is told.
            sql: the statement.
            place: table or file that an error message names.

        Raises:
            DataError: whatever DuckDB refused, by kind alone.
        """
        return self._guarded(stage, place, lambda: self.connection.execute(sql).fetchall())

    def column(self, stage: str, sql: str, place: str) -> NDArray[Any]:
        """The only column of a statement as an array that the caller may change; arguments and errors as in `run`."""
        return self._guarded(stage, place, lambda: _only(self.connection.execute(sql).fetchnumpy()))

    def columns(self, relation: str, place: str) -> dict[str, str]:
        """Column names and DuckDB types of a relation, in order."""
        return {str(row[0]): str(row[1]) for row in self.run("reading columns", f"DESCRIBE {relation}", place)}

    def _guarded(self, stage: str, place: str, work: Callable[[], _T]) -> _T:
        failure: type[duckdb.Error] | None = None
        with self._reported(stage):
            try:
                return work()
            except duckdb.Error as error:
                failure = type(error)
        # raised out of the handler: inside it, the message with the cell would stay as the context of this one
        raise DataError(_plain(failure), place=place, fix=_fix(failure))

    @contextmanager
    def _reported(self, stage: str) -> Iterator[None]:
        if self._progress is None:
            yield
            return
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stage, done, self._progress), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _watch(self, stage: str, done: threading.Event, progress: Progress) -> None:
        progress(stage, 0.0)
        while not done.wait(_POLL_SECONDS):
            progress(stage, min(max(self.connection.query_progress() / 100, 0.0), 1.0))
        progress(stage, 1.0)


def _only(columns: dict[str, Any]) -> NDArray[Any]:
    (values,) = columns.values()
    return np.array(np.ma.getdata(values), copy=not values.flags.writeable)


def _plain(failure: type[duckdb.Error]) -> str:
    if issubclass(failure, duckdb.OutOfMemoryException):
        return "out of memory"
    if issubclass(failure, duckdb.IOException):
        return "cannot be read or written"
    return f"the database refused ({failure.__name__})"


def _fix(failure: type[duckdb.Error]) -> str:
    if issubclass(failure, duckdb.OutOfMemoryException):
        return "raise memory_limit, or free disk space for the temporary folder"
    if issubclass(failure, duckdb.IOException):
        return "check that the file exists, is complete, and that the disk has room"
    return "check that the source holds what the contract says"
