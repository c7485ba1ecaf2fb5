"""SQL expressions that turn one source cell into text, a number or a day, and NULL when it cannot be one.

Every expression is total: whatever stands in the cell, it gives a value or NULL and never an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from cohortium.client.onboarding.engine import literal, quoted
from cohortium.study.errors import DataError

__all__ = ["absent", "category_code", "day_number", "number", "text"]

_WHOLE = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"),
)
_FLOATING = ("FLOAT", "DOUBLE")


def text(column: str, kind: str, missing: Sequence[str] = ()) -> str:
    """The cell as text, surrounding blanks cut; NULL when empty or one of `missing`. 7 and 7.0 give the same text.

    Args:
        column: the source column.
        kind: its DuckDB type.
        missing: texts that mean "no value".
    """
    raw = quoted(column)
    if _is_text(kind):
        raw = raw if kind == "VARCHAR" else f"CAST({raw} AS VARCHAR)"
        none = ", ".join(literal(token) for token in ("", *missing))
        cut = f"CASE WHEN {raw} LIKE ' %' OR {raw} LIKE '% ' THEN trim({raw}) ELSE {raw} END"
        return f"CASE WHEN {cut} IN ({none}) THEN NULL ELSE {cut} END"
    if kind in _FLOATING:
        whole = f"{raw} = trunc({raw}) AND abs({raw}) < 1e15"
        return (
            f"CASE WHEN NOT isfinite({raw}) THEN NULL WHEN {whole} THEN CAST(CAST({raw} AS BIGINT) AS VARCHAR)"
            f" ELSE CAST({raw} AS VARCHAR) END"
        )
    if kind.startswith("DECIMAL"):
        whole = f"CAST(CAST({raw} AS HUGEINT) AS VARCHAR)"
        return f"CASE WHEN {raw} = trunc({raw}) THEN {whole} ELSE CAST({raw} AS VARCHAR) END"
    return f"CAST({raw} AS VARCHAR)"


def absent(column: str, kind: str, missing: Sequence[str] = ()) -> str:
    """Whether the cell holds nothing: NULL, the empty text or one of `missing`. NaN is not nothing."""
    return f"{text(column, kind, missing)} IS NULL" if _is_text(kind) else f"{quoted(column)} IS NULL"


def number(column: str, kind: str, place: str, missing: Sequence[str] = ()) -> str:
    """The cell as DOUBLE, possibly NaN or infinite; NULL when it is no number. `DataError` for a type that is none."""
    raw = quoted(column)
    if _is_text(kind):
        return f"TRY_CAST({text(column, kind, missing)} AS DOUBLE)"
    if kind in _FLOATING or kind in _WHOLE or kind == "BOOLEAN" or kind.startswith("DECIMAL"):
        return f"CAST({raw} AS DOUBLE)"
    raise _wrong_type(column, kind, place, "numbers", "convert it to numbers")


def day_number(column: str, kind: str, place: str, origin: date, form: str | None, missing: Sequence[str] = ()) -> str:
    """The cell's day as days after `origin` (BIGINT); NULL when it is no day.

    Args:
        column: the source column.
        kind: its DuckDB type.
        place: table that an error message names.
        origin: day 0.
        form: strptime format for text and whole numbers; without it, text is ISO 8601.
        missing: texts that mean "no value".

    Raises:
        DataError: a type that holds no days.
    """
    raw = quoted(column)
    if kind == "DATE":
        day = raw
    elif kind.startswith("TIMESTAMP"):
        day = f"CAST({raw} AS DATE)"
    elif form is not None and (_is_text(kind) or kind in _WHOLE):
        day = f"CAST(try_strptime({text(column, kind, missing)}, {literal(form)}) AS DATE)"
    elif _is_text(kind):
        day = f"CAST(TRY_CAST({text(column, kind, missing)} AS TIMESTAMP) AS DATE)"
    else:
        raise _wrong_type(column, kind, place, "dates", "convert it to dates, or state its format in the contract")
    return f"CASE WHEN isfinite({day}) THEN {day} - DATE '{origin.isoformat()}' END"


def category_code(column: str, kind: str, categories: Sequence[str], missing: Sequence[str] = ()) -> str:
    """The position of the cell's text in `categories`; NULL when it is missing or not among them."""
    members = ", ".join(literal(category) for category in categories)
    return f"CAST(enum_code(TRY_CAST({text(column, kind, missing)} AS ENUM({members}))) AS INTEGER)"


def _is_text(kind: str) -> bool:
    return kind == "VARCHAR" or kind.startswith("ENUM")


def _wrong_type(column: str, kind: str, place: str, wanted: str, fix: str) -> DataError:
    return DataError(f"column '{column}' holds {kind.split('(')[0]}, not {wanted}", place=place, fix=fix)
