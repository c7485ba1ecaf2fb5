"""What a party of a secure sum remembers: values that are written once, durably, and erased as a whole."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Column, Engine, Integer, LargeBinary, MetaData, String, Table, delete, insert, select

__all__ = ["OnceStore", "SqlOnceStore"]


class OnceStore(Protocol):
    """Values by run, round and item, each written at most once: what makes a party answer at most once."""

    def keep(self, run: str, number: int, item: str, value: bytes) -> bytes:
        """Store a value durably unless there is one; returns the one that is stored."""
        ...

    def find(self, run: str, number: int, item: str) -> bytes | None:
        """The stored value."""
        ...

    def erase(self, run: str, before: int, items: tuple[str, ...]) -> None:
        """Erase these items of all rounds below `before`."""
        ...


_metadata = MetaData()

_values = Table(
    "secure_sum",
    _metadata,
    Column("run", String, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("item", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)


class SqlOnceStore:
    """The store in a database opened by `privacy.ledger.open_store`, beside the ledger."""

    def __init__(self, store: Engine) -> None:
        self._store = store
        _metadata.create_all(store)

    def keep(self, run: str, number: int, item: str, value: bytes) -> bytes:
        """Store a value durably unless there is one; returns the one that is stored."""
        with self._store.begin() as connection:
            stored = connection.execute(select(_values.c.value).where(_key(run, number, item))).scalar_one_or_none()
            if stored is not None:
                return bytes(stored)
            connection.execute(insert(_values).values(run=run, round=number, item=item, value=value))
        return value

    def find(self, run: str, number: int, item: str) -> bytes | None:
        """The stored value."""
        with self._store.begin() as connection:
            stored = connection.execute(select(_values.c.value).where(_key(run, number, item))).scalar_one_or_none()
        return None if stored is None else bytes(stored)

    def erase(self, run: str, before: int, items: tuple[str, ...]) -> None:
        """Erase these items of all rounds below `before`."""
        chosen = (_values.c.run == run) & (_values.c.round < before) & _values.c.item.in_(items)
        with self._store.begin() as connection:
            connection.execute(delete(_values).where(chosen))


def _key(run: str, number: int, item: str):  # type: ignore[no-untyped-def] # SQLAlchemy's own type is private
    return (_values.c.run == run) & (_values.c.round == number) & (_values.c.item == item)
