"""One commit for several operations on a log's file: with full synchronisation a commit costs milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, Connection, Engine

__all__ = ["JoinedStore", "LogFile"]


class JoinedStore:
    """An engine whose transactions can be joined; offers what logs and witnesses use of one.

    Args:
        engine: from `privacy.ledger.open_store`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open = threading.local()

    @property
    def url(self) -> URL:
        """Of the database."""
        return self._engine.url

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction, or the joined one of this thread: then its end commits nothing yet."""
        joined: Connection | None = getattr(self._open, "connection", None)
        if joined is not None:
            yield joined
            return
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def together(self) -> Iterator[None]:
        """Everything that this thread does in it is committed at its end, or nothing is."""
        with self._engine.begin() as connection:
            self._open.connection = connection
            try:
                yield
            finally:
                self._open.connection = None

    def dispose(self) -> None:
        """Close the database."""
        self._engine.dispose()


LogFile = Engine | JoinedStore
"""Where a log or a witness keeps what it has to."""
