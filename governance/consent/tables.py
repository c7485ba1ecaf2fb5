"""The tables of the consent store; triggers keep what is only ever added to."""

from __future__ import annotations

import sqlalchemy as sa

from cohortium.privacy.store_forms import refuse_changes

__all__ = ["APPEND_ONLY", "metadata", "packed", "top"]

metadata = sa.MetaData()


class _Bytes(sa.LargeBinary):
    """Bytes, handed to the driver as they are: a memory view around each would take most of an import's time."""

    def bind_processor(self, dialect: sa.Dialect) -> None:
        return None


_Whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")

header = sa.Table("consent_header", metadata, sa.Column("schema", sa.String, primary_key=True))
secrets = sa.Table(
    "secrets", metadata, sa.Column("name", sa.String, primary_key=True), sa.Column("key", _Bytes, nullable=False)
)
keys = sa.Table(
    "person_keys",
    metadata,
    sa.Column("person", _Whole, primary_key=True, autoincrement=False),
    sa.Column("key", _Bytes, nullable=False),
)
standings = sa.Table(
    "standings",
    metadata,
    sa.Column("person", _Whole, primary_key=True, autoincrement=False),
    sa.Column("lookup", _Bytes, nullable=False, unique=True),
    sa.Column("principal", _Bytes, nullable=False),
    sa.Column("last", _Whole, nullable=False, index=True),
    sa.Column("latest", _Whole, nullable=False),
    sa.Column("state", _Bytes, nullable=False),
)
documents = sa.Table(
    "documents",
    metadata,
    sa.Column("number", _Whole, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String, nullable=False, unique=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("body", _Bytes, nullable=False),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("sequence", _Whole, primary_key=True, autoincrement=False),
    sa.Column("record", _Bytes, nullable=False),
    sa.Column("principal", _Bytes, nullable=False),
    sa.Column("document", _Whole, nullable=False),
    sa.Column("event_time", _Whole, nullable=False),
    sa.Column("recorded_at", _Whole, nullable=False),
    sa.Column("personal", _Bytes),
    sa.Column("previous", _Whole, nullable=False),
    sa.Column("link", _Bytes, nullable=False),
)
erasures = sa.Table("erasures", metadata, sa.Column("sequence", _Whole, primary_key=True, autoincrement=False))
suppressions = sa.Table(
    "suppressions",
    metadata,
    sa.Column("number", _Whole, primary_key=True, autoincrement=False),
    sa.Column("tag", _Bytes, nullable=False, unique=True),
    sa.Column("flags", _Whole, nullable=False),
)
rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("number", _Whole, primary_key=True, autoincrement=False),
    sa.Column("run", sa.String, nullable=False),
    sa.Column("question", sa.String, nullable=False),
    sa.Column("sequence", _Whole, nullable=False),
    sa.Column("noted_at", _Whole, nullable=False),
    sa.UniqueConstraint("run", "question"),
)
obligations = sa.Table(
    "obligations",
    metadata,
    sa.Column("sequence", _Whole, primary_key=True, autoincrement=False),
    sa.Column("duty", sa.String, primary_key=True),
    sa.Column("opened_at", _Whole, nullable=False),
    sa.Column("house_by", _Whole),
    sa.Column("law_by", _Whole),
)
closures = sa.Table(
    "closures",
    metadata,
    sa.Column("sequence", _Whole, primary_key=True, autoincrement=False),
    sa.Column("duty", sa.String, primary_key=True),
    sa.Column("closed_at", _Whole, nullable=False),
    sa.Column("how", sa.String, nullable=False),
)
imports = sa.Table(
    "imports",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("progress", _Bytes, nullable=False),
)

APPEND_ONLY = (documents, events, erasures, rounds, obligations, closures)
"""Tables of which no row is ever changed or taken away."""


def _keep(_target: object, connection: sa.Connection, **_more: object) -> None:
    for table in APPEND_ONLY:
        if connection.dialect.name != "sqlite":
            refuse_changes(table, connection)
            continue
        for act in ("UPDATE", "DELETE"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER no_{act.lower()}_of_{table.name} BEFORE {act} ON {table.name} "
                f"BEGIN SELECT RAISE(ABORT, '{table.name} are only ever added to'); END"
            )


sa.event.listen(metadata, "after_create", _keep)


def top(connection: sa.Connection, column: sa.Column[int]) -> int:
    """The greatest number in a column, 0 when there is none."""
    return int(connection.execute(sa.select(sa.func.max(column))).scalar() or 0)


def packed() -> sa.Cast[bytes]:
    """What `columns` holds of a person: keyed hash, tag and standing, as `STORED`."""
    joined = standings.c.lookup.op("||")(standings.c.principal).op("||")(standings.c.state)
    return sa.cast(joined, sa.LargeBinary)
