"""From the aggregates of all tables to one bounded row per person.

`people` holds the raw features, NULL where a person has none. What is stored is that value rounded if whole numbers
were agreed, clipped to the public bounds, or the public fill value; a category is its code, and no category the code
`len(categories)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cohortium.client.onboarding.aggregate import AMOUNT_UNITS, TableSql, day_words
from cohortium.client.onboarding.engine import quoted
from cohortium.study.contract import Contract, Feature

__all__ = ["FEATURE_COUNTS", "count_features", "create_people", "select_features"]

FEATURE_COUNTS: tuple[str, ...] = ("missing", "clipped_low", "clipped_high", "at_low", "at_high")
"""What `count_features` counts per feature, in order. `at_low` and `at_high` include the clipped, not the missing."""


def create_people(contract: Contract, tables: Sequence[TableSql], conflicts: frozenset[str]) -> str:
    """CREATE TABLE people: id and every raw feature as DOUBLE.

    Args:
        contract: the features.
        tables: the tables whose aggregates exist.
        conflicts: names of the features whose modes were created.
    """
    by_name = {table.table.name: table for table in tables}
    columns = [
        f"CAST({_raw(by_name[feature.table], feature, conflicts)} AS DOUBLE) AS {quoted(feature.name)}"
        for feature in contract.features
    ]
    joins = [f"LEFT JOIN {table.name} AS {quoted(table.table.name)} ON {_key(table)} = p.id" for table in tables]
    for feature in contract.features:
        if feature.name in conflicts:
            modes = by_name[feature.table].modes(feature)
            joins.append(f"LEFT JOIN {modes} ON {modes}.key = p.id")
    return (
        f"CREATE TEMP TABLE people AS\nSELECT p.id,\n  {', '.join(columns)}\nFROM ({_person_set(tables)}) AS p\n"
        + "\n".join(joins)
    )


def count_features(contract: Contract) -> str:
    """SELECT of one row: people, then FEATURE_COUNTS of every feature in the contract's order."""
    counts = ["count(*)"]
    for feature in contract.features:
        low, high = feature.bounds
        value = _rounded(feature)
        conditions = ["IS NULL", f"< {low!r}", f"> {high!r}", f"<= {low!r}", f">= {high!r}"]
        if feature.is_category:
            conditions = ["IS NULL"]
        # not count_if: over nothing but NULL it gives NULL rather than 0
        counts += [f"count(*) FILTER ({value} {condition})" for condition in conditions]
        counts += ["0"] * (len(FEATURE_COUNTS) - len(conditions))
    return f"SELECT {', '.join(counts)} FROM people"


def select_features(features: Sequence[Feature]) -> str:
    """SELECT of id and the stored value of some features, people in the order of their ids."""
    columns = ["id", *(f"{_stored(feature)} AS {quoted(feature.name)}" for feature in features)]
    return f"SELECT {', '.join(columns)} FROM people ORDER BY id"


def _person_set(tables: Sequence[TableSql]) -> str:
    deciding = [table for table in tables if table.table.kind == "customers"] or list(tables)
    return " UNION ".join(f"SELECT key AS id FROM {table.name} WHERE key NOT LIKE ' %'" for table in deciding)


def _key(table: TableSql) -> str:
    return f"{quoted(table.table.name)}.key"


def _raw(table: TableSql, feature: Feature, conflicts: frozenset[str]) -> str:
    if feature.derive is None:
        low = _of(table, f"{feature.name}.low")
        return f"coalesce({table.modes(feature)}.value, {low})" if feature.name in conflicts else low
    return _derived(table, feature)


def _derived(table: TableSql, feature: Feature) -> str:
    """SQL of the glossary in `study/contract.py`; NULL for people without a used line, but 0 for counts and sums."""
    days = table.contract.window.days
    first, last, units = _of(table, "first_day"), _of(table, "last_day"), _of(table, "units")
    match feature.derive:
        case "recency":
            return f"{days} - {last}"
        case "tenure":
            return f"{days} - {first}"
        case "frequency":
            return f"coalesce({_purchases(table)}, 0)"
        case "monetary":
            return f"coalesce({units}, 0) / {AMOUNT_UNITS}.0::DOUBLE"
        case "basket_size":
            return f"{units} / {AMOUNT_UNITS}.0::DOUBLE / {_purchases(table)}"
        case "gap":
            return f"CASE WHEN {_days(table)} > 1 THEN ({last} - {first}) / CAST({_days(table)} - 1 AS DOUBLE) END"
        case "trend":
            second = _of(table, "units.second")
            return f"CASE WHEN {units} > 0 THEN CAST(2 * {second} - {units} AS DOUBLE) / CAST({units} AS DOUBLE) END"
        case _:
            part = _of(table, f"{feature.name}.units")
            return f"CASE WHEN {units} > 0 THEN CAST({part} AS DOUBLE) / CAST({units} AS DOUBLE) END"


def _purchases(table: TableSql) -> str:
    return _of(table, "baskets") if table.table.basket is not None else _days(table)


def _days(table: TableSql) -> str:
    words = day_words(table.contract)
    if words == 0:
        return _of(table, "days")
    bits = (f"CAST(bit_count(coalesce({_of(table, f'days.{word}')}, 0)) AS INTEGER)" for word in range(words))
    # people without any line have no count rather than none
    return f"CASE WHEN {_of(table, 'lines')} IS NOT NULL THEN {' + '.join(bits)} END"


def _of(table: TableSql, name: str) -> str:
    return f"{quoted(table.table.name)}.{quoted(name)}"


def _rounded(feature: Feature) -> str:
    return f"round({quoted(feature.name)})" if feature.integer else quoted(feature.name)


def _stored(feature: Feature) -> str:
    if feature.is_category:
        return f"CAST(coalesce({quoted(feature.name)}, {feature.unknown_code}) AS INTEGER)"
    low, high = feature.bounds
    clipped = f"least(greatest({_rounded(feature)}, {low!r}), {high!r})"
    fill = low if feature.missing is None else feature.missing
    return f"CAST(CASE WHEN {quoted(feature.name)} IS NULL THEN {fill!r} ELSE {clipped} END AS DOUBLE)"
