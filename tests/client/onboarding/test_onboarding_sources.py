"""What a source can be, and one-line refusals of what it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cohortium.client.onboarding import Resources, SqlSource, inspect_sources, onboard, parse_source
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError


def test_command_line_texts_name_files_tables_and_queries() -> None:
    assert parse_source("a/b.csv") == Path("a/b.csv")
    assert parse_source("sqlite:///x.db#sales") == SqlSource("sqlite:///x.db", table="sales")
    assert parse_source("sqlite:///x.db#SELECT 1") == SqlSource("sqlite:///x.db", query="SELECT 1")
    assert parse_source("sqlite:///x.db") == SqlSource("sqlite:///x.db")


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("none.csv", None, "no such file"),
        ("lines.xlsx", "x", "unknown kind of file"),
        ("lines.csv", "", "the file is empty"),
        ("lines.csv", "\n", "the file is empty"),
        ("lines.csv", "cid,CID\n1,2\n", "columns 1 and 2 have the same name"),
        ("lines.csv", "cid,,day\n1,2,3\n", "column 2 has no name"),
        ("lines.csv", "cid,dya,amount\n1,2,3\n", "no column 'day' — fix: did you mean 'dya'"),
        ("lines.csv", b"\xff\xfe\x00\x01", "not UTF-8"),
        ("lines.csv.gz", "not packed", "not UTF-8"),
        ("lines.csv", "id,when\rc00001,2020-01-01\rc00002,2020-01-01\r", "no header line"),
        ("lines.csv", "c00001" * 30_000, "no header line"),
        ("lines.parquet", "no parquet", "purchases"),
    ],
)
def test_files_that_cannot_be_read(
    name: str, content: str | bytes | None, wrong: str, contract: Contract, tmp_path: Path
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        inspect_sources(contract, {"purchases": file})
    assert wrong in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "fix:" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("line", ["Zyxw9876,2024-01-01,5\n", "Zyxw9876,5,5\n", "Zyxw9876,,5\n"])
def test_a_file_without_a_header_does_not_show_its_first_customer(
    line: str, contract: Contract, tmp_path: Path
) -> None:
    (tmp_path / "lines.csv").write_text(line * 2)
    with pytest.raises(DataError, match=r"header line|begins with names") as caught:
        inspect_sources(contract, {"purchases": tmp_path / "lines.csv"})
    assert "Zyxw9876" not in str(caught.value)
    assert "2024" not in str(caught.value)


def test_resources_that_are_no_resources(contract: Contract, make_lines: Any) -> None:
    with pytest.raises(DataError, match="memory_limit or threads"):
        inspect_sources(contract, {"purchases": make_lines(1)}, resources=Resources(memory_limit="lots"))


def test_a_folder_without_parquet(contract: Contract, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no Parquet file"):
        inspect_sources(contract, {"purchases": tmp_path})


@pytest.mark.parametrize("url", ["sqlite:///{}/none.db#sales", "sqlite:///{}/none.db", "nosuch://x#y", "s3://b/k#t"])
def test_databases_that_cannot_be_read(url: str, contract: Contract, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fix: (check the URL|write URL#table)"):
        inspect_sources(contract, {"purchases": url.format(tmp_path)})


def test_a_missing_column_of_a_database_is_named(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    import sqlalchemy as sa

    db = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with db.begin() as connection:
        make_lines(1).rename(columns={"amount": "ammount"}).to_sql("sales", connection, index=False)
    db.dispose()
    with pytest.raises(DataError, match="no column 'amount' — fix: did you mean 'ammount'"):
        inspect_sources(contract, {"purchases": f"sqlite:///{tmp_path / 'x.db'}#sales"})


def test_wrong_types_are_refused_by_column(contract: Contract, make_lines: Any) -> None:
    frame = make_lines(1)
    with pytest.raises(DataError, match=r"column 'amount' holds TIMESTAMP.*, not numbers"):
        inspect_sources(contract, {"purchases": frame.assign(amount=frame["day"])})
    with pytest.raises(DataError, match="column 'day' holds DOUBLE, not dates"):
        inspect_sources(contract, {"purchases": frame.assign(day=1.5)})


def test_sources_must_match_the_tables(contract: Contract, make_lines: Any) -> None:
    with pytest.raises(DataError, match="no source for table 'purchases'"):
        inspect_sources(contract, {})
    with pytest.raises(DataError, match="no table 'purchase' — fix: did you mean 'purchases'"):
        inspect_sources(contract, {"purchase": make_lines(1)})


def test_no_line_at_all(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the sources hold no line"):
        onboard(contract, {"purchases": make_lines(1)[:0]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_single_customer_and_identical_lines_are_fine(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    line = make_lines(1)
    line = line[
        (line["amount"] > 0) & line["cid"].notna() & (line["day"] >= "2024-01-01") & (line["day"] < "2024-04-01")
    ]
    report = onboard(contract, {"purchases": pd.concat([line[:1]] * 20)}, tmp_path / "out")
    assert report.people == 1
    assert (report.tables[0].used, report.tables[0].duplicates) == (20, 19)


def test_progress_tells_stages_and_ends_at_one(contract: Contract, make_lines: Any) -> None:
    seen: list[tuple[str, float]] = []
    inspect_sources(contract, {"purchases": make_lines(1)}, progress=lambda stage, share: seen.append((stage, share)))
    assert ("reading purchases", 1.0) in seen
    assert ("counting duplicates", 1.0) in seen
    assert all(0.0 <= share <= 1.0 for _, share in seen)


def test_people_of_two_tables(make_lines: Any, make_contract: Any, tmp_path: Path) -> None:
    data = make_contract().to_json()
    data["tables"].append({"name": "people", "kind": "customers", "customer": "who"})
    data["features"].append(
        {"name": "vip", "table": "people", "kind": "numeric", "column": "vip", "low": 0, "high": 1, "missing": 0}
        | {"block": "value"}
    )
    for feature in data["features"]:
        if feature["kind"] != "category" and feature.get("missing") is None:
            feature["missing"] = feature["low"]
    contract = Contract.model_validate(data)
    people = pd.DataFrame({"who": ["c001", "c002", "nobody", "c002", None], "vip": [1, 0, 1, 0, 1]})
    report = onboard(contract, {"purchases": make_lines(4), "people": people}, tmp_path / "out")
    assert report.people == 3
    purchases, crm = report.tables
    assert purchases.lines_of_others > 0
    assert crm.lines_of_others == 0
    assert report.column("people", "who", "customer").problems == {"missing": 1}
    assert report.feature("recency").missing == 1
    assert report.feature("frequency").missing == 0
