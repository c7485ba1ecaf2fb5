"""From raw files to the tables of a set's contract: ids where there are none, headers where there are none.

Nothing is cleaned here that onboarding would count: cells stay as they are, and outcomes stay beside the features for
experiments (the contracts leave them out).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb

from cohortium.client.onboarding.engine import literal
from cohortium.simulations.datasets.catalogue import DataSet
from cohortium.study.errors import DataError

__all__ = ["prepare"]

_ADULT_COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship"),
    *("race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income_over_50k"),
)

_READ = "auto_detect = false, quote = '\"', escape = '\"'"


def prepare(about: DataSet, raw: Path, ready: Path) -> None:
    """Write the files of `about.tables` into `ready`.

    Raises:
        DataError: the files do not hold what the catalogue says.
    """
    if about.name == "ta-feng":
        for name in about.tables.values():
            shutil.move(raw / name, ready / name)
        return
    with duckdb.connect(":memory:") as connection:
        try:
            for name, sql in _statements(about, raw).items():
                target = literal(str(ready / name))
                connection.execute(f"COPY ({sql}) TO {target} (FORMAT parquet, COMPRESSION zstd)")
            people = _count(connection, ready / next(iter(about.tables.values())))
        except duckdb.Error as error:
            raise DataError("the raw files cannot be read", place=about.name, fix="fetch it again") from error
    if people != about.people:
        raise DataError(f"{people} people instead of {about.people}", place=about.name, fix="fetch it again")


def _count(connection: duckdb.DuckDBPyConnection, file: Path) -> int:
    return int(connection.execute(f"SELECT count(*) FROM read_parquet({literal(str(file))})").fetchall()[0][0])


def _statements(about: DataSet, raw: Path) -> dict[str, str]:
    """SELECT of every file to write, rows in the raw file's order."""
    match about.name:
        case "adult":
            return {"customers.parquet": _adult(raw / "adult-uci.csv.gz")}
        case "bank-marketing":
            return {"customers.parquet": _numbered(_headed(raw / "bankmarketing.csv.gz", ";"))}
        case "pakdd2009-credit":
            return {"customers.parquet": _pakdd(raw / "creditscoring2.csv.gz")}
        case "hillstrom":
            return {"customers.parquet": _numbered(_headed(raw / "hillstrom.csv", ","))}
        case _:
            return _complete_journey(raw)


def _numbered(relation: str, columns: str = "*") -> str:
    return f"SELECT CAST(row_number() OVER () AS VARCHAR) AS id, {columns} FROM {relation}"


def _headed(file: Path, delimiter: str) -> str:
    return f"read_csv({literal(str(file))}, header = true, all_varchar = true, delim = '{delimiter}', quote = '\"')"


def _adult(file: Path) -> str:
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in _ADULT_COLUMNS)
    cut = ", ".join(f"trim({name}) AS {name}" for name in _ADULT_COLUMNS)
    return _numbered(
        f"read_csv({literal(str(file))}, header = false, delim = ',', {_READ}, columns = {{{columns}}})", cut
    )


def _pakdd(file: Path) -> str:
    """Twelve lines have a cell too many, which shifts all that follow it: they alone fill the nameless last column."""
    relation = (
        f"(SELECT * FROM read_csv({literal(str(file))}, header = true, all_varchar = true, delim = '\t', quote = '',"
        " null_padding = true) WHERE column27 IS NULL)"
    )
    return _numbered(relation, '* EXCLUDE (column27, "TARGET_LABEL_BAD=1"), "TARGET_LABEL_BAD=1" AS bad_payer')


def _complete_journey(raw: Path) -> dict[str, str]:
    """Every household with its demographics, if known; every basket line with its product's department."""
    lines, products, known = (
        f"read_parquet({literal(str(raw / f'{name}.parquet'))})"
        for name in ("transactions", "products", "demographics")
    )
    households = f"(SELECT DISTINCT household_id FROM {lines}) AS h"
    return {
        "households.parquet": (
            f"SELECT * FROM {households} LEFT JOIN {known} AS d USING (household_id) ORDER BY household_id"
        ),
        "baskets.parquet": (
            "SELECT household_id, store_id, basket_id, product_id, department, quantity, sales_value, retail_disc,"
            f" coupon_disc, transaction_timestamp FROM {lines} AS l LEFT JOIN {products} AS p USING (product_id)"
            " ORDER BY transaction_timestamp, basket_id, product_id"
        ),
    }
