"""Derived features and attributes against an independent computation, from every kind of source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa

from cohortium.client.onboarding import Source, SqlSource, load_customer_table, load_protected_table, onboard
from cohortium.client.onboarding.duplicates import count_duplicates
from cohortium.client.onboarding.engine import Engine, Resources
from cohortium.client.onboarding.sources import open_source
from cohortium.study.contract import Contract

Check = Callable[[Contract, pd.DataFrame, Source], None]


@pytest.fixture
def check(oracle: Callable[..., dict[str, dict[str, float]]], tmp_path: Path) -> Check:
    """Onboard a source and compare every stored value with the oracle's of the clean frame."""

    def compare(contract: Contract, frame: pd.DataFrame, source: Source) -> None:
        out = tmp_path / "onboarded"
        report = onboard(contract, {"purchases": source}, out)
        expected = oracle(frame, contract)
        trained, protected = load_customer_table(out, contract), load_protected_table(out, contract)
        assert report.people == len(trained) == len(expected)
        assert list(trained.keys) == list(protected.keys) == sorted(expected)
        for table in (trained, protected):
            wanted = [[expected[str(key)][name] for name in table.columns] for key in table.keys]
            np.testing.assert_allclose(table.values, wanted, rtol=1e-9, atol=1e-9)

    return compare


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "changes", [{}, {"negative_amounts": "returns"}, {"basket": "basket"}], ids=["plain", "returns", "baskets"]
)
def test_features_agree_with_an_independent_computation(
    seed: int, changes: dict[str, Any], check: Check, make_contract: Any, make_lines: Any
) -> None:
    frame = make_lines(seed)
    check(make_contract(**changes), frame, frame)


def test_a_window_too_long_for_bit_words_counts_days_alike(contract: Contract, check: Check, make_lines: Any) -> None:
    start, end = pd.Timestamp("2021-01-01").date(), pd.Timestamp("2024-04-01").date()
    frame = make_lines(5)
    check(contract.with_window(start, end), frame, frame)


def test_every_kind_of_source_gives_the_same_table(
    contract: Contract, check: Check, make_lines: Any, tmp_path: Path
) -> None:
    frame = make_lines(7)
    frame.to_csv(tmp_path / "comma.csv", index=False)
    frame.to_csv(tmp_path / "semi.csv.gz", index=False, sep=";")
    folder = tmp_path / "parts"
    folder.mkdir()
    frame[:200].to_parquet(folder / "a.parquet")
    frame[200:].to_parquet(folder / "b.parquet")
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    db = sa.create_engine(url)
    with db.begin() as connection:
        frame.to_sql("sales", connection, index=False)
    db.dispose()
    sources: list[Source] = [
        tmp_path / "comma.csv",
        str(tmp_path / "semi.csv.gz"),
        folder,
        pa.Table.from_pandas(frame),
        f"{url}#sales",
        f"{url}#SELECT * FROM sales",
        SqlSource(url, table="main.sales"),
    ]
    for source in sources:
        check(contract, frame, source)


def test_ids_are_text_cut_and_the_same_from_whole_and_floating_numbers(
    contract: Contract, make_lines: Any, tmp_path: Path
) -> None:
    frame = make_lines(9)
    frame["cid"] = frame["cid"].str[1:].astype("float64")  # 7.0 and NaN, as pandas makes of 7 and nothing
    padded = frame.assign(cid=[None if pd.isna(c) else f"  {c:.0f} " for c in frame["cid"]])
    onboard(contract, {"purchases": frame}, tmp_path / "a")
    onboard(contract, {"purchases": padded}, tmp_path / "b")
    first, second = (load_customer_table(tmp_path / name, contract) for name in "ab")
    assert list(first.keys) == list(second.keys)
    assert "7" in first.keys
    np.testing.assert_array_equal(first.values, second.values)


def test_unpadded_dates_behind_a_byte_order_mark(
    check: Check, make_contract: Any, make_lines: Any, tmp_path: Path
) -> None:
    contract = make_contract(time_format="%m/%d/%Y")
    frame = make_lines(11)
    texts = frame.assign(day=[f"{d.month}/{d.day}/{d.year}" for d in frame["day"]])
    texts.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    check(contract, frame, tmp_path / "bom.csv")


def test_duplicates_are_counted_as_pandas_counts_them(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    frame = make_lines(13, lines=200)
    frame = pd.concat([frame, frame[:37], frame[:5]], ignore_index=True)
    report = onboard(contract, {"purchases": frame}, tmp_path / "out")
    assert report.tables[0].duplicates == int(frame.duplicated().sum()) == 42
    assert onboard(contract, {"purchases": frame}, tmp_path / "out", duplicates=False).tables[0].duplicates is None
    engine = Engine(tmp_path / "spill", Resources())
    source = open_source(engine, "purchases", frame, ["cid"], tmp_path)
    assert count_duplicates(engine, source, 10**9, "purchases") == 42  # sixteen parts
    engine.close()
