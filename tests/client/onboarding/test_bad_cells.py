"""Bad cells are counted by column, never dropped in silence; no value reaches a message, report or exception."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium.client.onboarding import (
    OnboardingReport,
    inspect_sources,
    load_customer_table,
    load_protected_table,
    onboard,
)
from cohortium.study.contract import Contract
from cohortium.study.errors import CohortiumError, DataError

SECRET = "Zyxw9876"
"""Stands in every bad cell: it must turn up nowhere."""

_IDS = ("p1", "p2", "p3", " p1 ", "", "   ", None)
_DAYS = ("2024-01-01", "2024-02-30", "2024-03-31", "2024-04-01", "2023-12-31", "", SECRET, "infinity", None)
_AMOUNTS = ("1.5", "12", "-3", "0", "1e9", "1e400", "NaN", "inf", "-inf", "", SECRET, "12,50", None)
_SCORES = ("0", "4.5", "-99", "1000000000", "NaN", "inf", "", SECRET, None)
_BANDS = ("a", "b", " c ", "", SECRET, None)
_BORN = ("1980-01-01", "2050-01-01", "1700-01-01", "1980-13-01", SECRET, "", None)

_LINES = st.lists(
    st.fixed_dictionaries(
        {
            "cid": st.sampled_from(_IDS),
            "day": st.sampled_from(_DAYS),
            "amount": st.sampled_from(_AMOUNTS),
            "aisle": st.sampled_from(("toys", SECRET, None)),
            "channel": st.sampled_from(("web", "", None)),
            "score": st.sampled_from(_SCORES),
            "band": st.sampled_from(_BANDS),
            "born": st.sampled_from(_BORN),
            "sex": st.sampled_from(("f", "m", "x", None)),
        }
    ),
    min_size=1,
    max_size=25,
)


def _id_ok(cell: str | None) -> bool:
    return cell is not None and cell.strip() != ""


def _in_window(cell: str | None) -> bool:
    return cell in ("2024-01-01", "2024-03-31")


def _amount_ok(cell: str | None) -> bool:
    return cell in ("1.5", "12", "0")


def _used(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [c for c in lines if _id_ok(c["cid"]) and _in_window(c["day"]) and _amount_ok(c["amount"])]


def _count(lines: list[dict[str, Any]], column: str, *cells: str | None) -> int:
    return sum(line[column] in cells for line in lines)


def _nonzero(**counts: int) -> dict[str, int]:
    return {kind.replace("_", " "): count for kind, count in counts.items() if count}


def _frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(lines, dtype="string")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=_LINES)
def test_counts_add_up_whatever_stands_in_the_cells(
    lines: list[dict[str, Any]], contract: Contract, tmp_path: Path
) -> None:
    used = _used(lines)
    if not used:
        with pytest.raises(DataError, match="no line can be used") as caught:
            inspect_sources(contract, {"purchases": _frame(lines)})
        assert SECRET not in _everything(caught.value)
        return
    report = onboard(contract, {"purchases": _frame(lines)}, tmp_path / "out")
    table = report.tables[0]
    assert (table.lines, table.used) == (len(lines), len(used))
    _check_role_columns(report, lines)
    _check_attributes(report, used)
    assert SECRET not in report.model_dump_json()
    _check_bounds(contract, tmp_path / "out", report.people)


def _check_role_columns(report: OnboardingReport, lines: list[dict[str, Any]]) -> None:
    assert report.column("purchases", "cid", "customer").problems == _nonzero(
        missing=_count(lines, "cid", "", "   ", None)
    )
    assert report.column("purchases", "day", "time").problems == _nonzero(
        missing=_count(lines, "day", "", None),
        not_a_date=_count(lines, "day", "2024-02-30", SECRET, "infinity"),
        before_the_window=_count(lines, "day", "2023-12-31"),
        after_the_window=_count(lines, "day", "2024-04-01"),
    )
    amount = report.column("purchases", "amount", "amount")
    assert amount.problems == {
        kind: count
        for kind, count in {
            "missing": _count(lines, "amount", "", None),
            "not a number": _count(lines, "amount", SECRET, "12,50"),
            "not finite": _count(lines, "amount", "1e400", "NaN", "inf", "-inf"),
            "negative": _count(lines, "amount", "-3"),
            "above max_amount": _count(lines, "amount", "1e9"),
        }.items()
        if count
    }
    assert amount.bad == sum(amount.problems.values())


def _check_attributes(report: OnboardingReport, used: list[dict[str, Any]]) -> None:
    score = report.column("purchases", "score", "score")
    assert score.problems == _nonzero(
        missing=_count(used, "score", "", None),
        not_a_number=_count(used, "score", SECRET),
        not_finite=_count(used, "score", "NaN", "inf"),
    )
    assert score.bad == _count(used, "score", SECRET, "NaN", "inf")
    assert report.column("purchases", "band", "band").problems == _nonzero(
        missing=_count(used, "band", "", None), not_in_the_categories=_count(used, "band", SECRET)
    )
    assert report.column("purchases", "born", "born").problems == _nonzero(
        missing=_count(used, "born", "", None), not_a_date=_count(used, "born", "1980-13-01", SECRET)
    )
    assert report.column("purchases", "aisle", "category").problems == _nonzero(missing=_count(used, "aisle", None))


def _check_bounds(contract: Contract, folder: Path, people: int) -> None:
    for table in (load_customer_table(folder, contract), load_protected_table(folder, contract)):
        assert len(table) == people
        assert np.isfinite(table.values).all()
        for position, name in enumerate(table.columns):
            low, high = contract.feature(name).bounds
            assert ((table.values[:, position] >= low) & (table.values[:, position] <= high)).all()


def _everything(error: BaseException) -> str:
    """All text an error reporter could show: the chain with contexts that `from None` only hides."""
    seen, texts = set(), []
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        texts.append("".join(traceback.format_exception_only(link)) + repr(link.args))
        link = link.__cause__ or link.__context__
    return "\n".join(texts)


def test_a_huge_value_in_a_bounded_column_is_clipped_and_counted(contract: Contract, make_lines: Any) -> None:
    frame = make_lines(1, lines=50)
    frame["score"] = 1e9
    report = inspect_sources(contract, {"purchases": frame})
    assert report.feature("score").clipped_high == report.feature("score").at_high == report.people


def test_a_bad_share_above_the_limit_refuses_and_writes_nothing(make_contract: Any, tmp_path: Path) -> None:
    contract = Contract.model_validate(make_contract().to_json() | {"max_bad_share": 0.2})
    line = {"cid": "p", "day": "2024-01-05", "amount": "5", "aisle": "toys", "channel": "web"}
    line |= {"score": "1", "band": "a", "born": "1980-01-01", "sex": "f"}
    lines = [line] * 7 + [line | {"amount": SECRET}] * 3
    with pytest.raises(DataError, match=r"purchases, column 'amount': 3 of 10 are bad.*20.0%.*fix") as caught:
        onboard(contract, {"purchases": _frame(lines)}, tmp_path / "out")
    assert SECRET not in _everything(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert inspect_sources(contract, {"purchases": _frame(lines)}).column("purchases", "amount", "amount").bad == 3
    report = onboard(contract, {"purchases": _frame([line] * 8 + lines[-2:])}, tmp_path / "out")
    assert report.column("purchases", "amount", "amount").bad_share == 0.2


def test_unused_lines_outside_the_window_are_not_bad(make_contract: Any) -> None:
    contract = Contract.model_validate(make_contract().to_json() | {"max_bad_share": 0.0})
    line = {"cid": "p", "day": "2024-01-05", "amount": "5", "aisle": "toys", "channel": "web"}
    line |= {"score": "1", "band": "a", "born": "1980-01-01", "sex": "f"}
    report = inspect_sources(contract, {"purchases": _frame([line, line | {"day": "2020-01-01"}])})
    assert list(report.beyond(0.0)) == []
    assert report.column("purchases", "day", "time").problems == {"before the window": 1}


def test_malformed_lines_of_a_text_file_are_counted(contract: Contract, make_lines: Any, tmp_path: Path) -> None:
    file = tmp_path / "lines.csv"
    make_lines(2, lines=40).to_csv(file, index=False)
    whole = inspect_sources(contract, {"purchases": file})
    with file.open("ab") as stream:
        stream.write(f"{SECRET},too,few\n".encode())
        stream.write(f"{SECRET},1,2,3,4,5,6,7,8,9,10,11,12\n".encode())
        stream.write(SECRET.encode() + b"\xff\xfe,1,2,3,4,5,6,7,8,9\n")
    report = inspect_sources(contract, {"purchases": file})
    assert report.tables[0].malformed == 3
    assert report.tables[0].lines == whole.tables[0].lines + 3
    assert report.tables[0].used == whole.tables[0].used
    assert SECRET not in report.model_dump_json()
    assert ("purchases", "malformed lines", 3, 43) in list(report.beyond(0.05))


def test_an_error_of_the_database_is_passed_on_without_its_text(
    contract: Contract, make_lines: Any, tmp_path: Path
) -> None:
    file = tmp_path / "broken.parquet"
    make_lines(3, lines=300).assign(aisle=SECRET).to_parquet(file, compression="none")
    content = bytearray(file.read_bytes())
    content[200:2000] = SECRET.encode() * 225
    file.write_bytes(content)
    with pytest.raises(CohortiumError) as caught:
        inspect_sources(contract, {"purchases": file})
    assert SECRET not in _everything(caught.value)


def test_a_person_with_several_values_gets_the_most_frequent_and_is_counted(contract: Contract, tmp_path: Path) -> None:
    line = {"cid": "p", "day": "2024-01-05", "amount": "5", "aisle": "toys", "channel": "web", "born": "1980-01-01"}
    bands = ["b", "b", "a", None, SECRET, SECRET, SECRET]
    lines = [line | {"band": band, "score": score, "sex": "f"} for band, score in zip(bands, "2134455", strict=True)]
    report = onboard(contract, {"purchases": _frame(lines)}, tmp_path / "out")
    table = load_customer_table(tmp_path / "out", contract)
    assert table.select(("band", "score")).tolist() == [[1.0, 4.0]]
    assert report.feature("band").conflicts == report.feature("score").conflicts == 1
    assert report.feature("sex").conflicts == 0
