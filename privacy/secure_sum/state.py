"""What a party of a secure sum remembers: values that are written once, durably, and erased as a whole."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Column, Engine, Integer, LargeBinary, MetaData, String, Table, bindparam, delete, insert, select

from cohortium.privacy.store_forms import drop_leftovers

__all__ = ["TABLES", "OnceStore", "SqlOnceStore"]


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


TABLES = MetaData()

_values = Table(
    "secure_sum",
    TABLES,
    Column("run", String, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("item", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

# made once: building a statement costs more than running it
_RUN, _ITEM = bindparam("key_run", type_=String()), bindparam("key_item", type_=String())
_ROUND = bindparam("key_round", type_=Integer())
_FIND = select(_values.c.value).where(_values.c.run == _RUN, _values.c.round == _ROUND, _values.c.item == _ITEM)
_KEEP = insert(_values).values(run=_RUN, round=_ROUND, item=_ITEM, value=bindparam("value"))


class SqlOnceStore:
    """The store in a database opened by `privacy.ledger.open_store`, beside the ledger."""

    def __init__(self, store: Engine) -> None:
        self._store = store
        TABLES.create_all(store)

    def keep(self, run: str, number: int, item: str, value: bytes) -> bytes:
        """Store a value durably unless there is one; returns the one that is stored."""
        with self._store.begin() as connection:
            stored = connection.execute(_FIND, _key(run, number, item)).scalar_one_or_none()
            if stored is not None:
                return bytes(stored)
            connection.execute(_KEEP, {**_key(run, number, item), "value": value})
        return value

    def find(self, run: str, number: int, item: str) -> bytes | None:
        """The stored value."""
        with self._store.begin() as connection:
            stored = connection.execute(_FIND, _key(run, number, item)).scalar_one_or_none()
        return None if stored is None else bytes(stored)

    def erase(self, run: str, before: int, items: tuple[str, ...]) -> None:
        """Erase these items of all rounds below `before`, from the database's files too, as far as it lets one.

        See `privacy.stores.drop_leftovers`. While somebody else reads, SQLite leaves it for the next time.
        """
        chosen = (_values.c.run == run) & (_values.c.round < before) & _values.c.item.in_(items)
        with self._store.begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA secure_delete=ON")  # not every build of it does so unasked
            erased = connection.execute(delete(_values).where(chosen)).rowcount
        if erased:
            drop_leftovers(self._store, _values)


def _key(run: str, number: int, item: str) -> dict[str, str | int]:
    return {"key_run": run, "key_round": number, "key_item": item}
