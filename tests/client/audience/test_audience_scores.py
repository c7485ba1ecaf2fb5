"""The scores file is read strictly and by batches; levels are valid once made."""

from __future__ import annotations

import math
import traceback
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cohortium.client.audience import (
    SCORES_COLUMNS,
    Level,
    ScoresOrigin,
    custom_level,
    iterate_scores,
    read_scores_facts,
)
from cohortium.study.errors import DataError

LABELS = {
    "schema": "cohortium.scores/2",
    "model": "sha256:" + "a" * 64,
    "plan": "sha256:" + "c" * 64,
    "expires": "2026-12-31",
    "node": "Kröger & Söhne",
    "customers": "sha256:" + "d" * 64,
}


def write(path: Path, labels: dict[str, str] | None = None, rows: int = 3, **columns: Any) -> Path:
    values = {
        "id": [f"secret-{i}" for i in range(rows)],
        "score": [0.25] * rows,
        "reason_1": ["often here"] * rows,
        "reason_2": [None] * rows,
        "reason_3": [None] * rows,
        "seed": [False] * rows,
    }
    fields = [pa.array(columns.get(f.name, values[f.name]), type=f.type) for f in SCORES_COLUMNS]
    table = pa.table(fields, schema=SCORES_COLUMNS)
    pq.write_table(table.replace_schema_metadata(LABELS | (labels or {})), path, row_group_size=1000)
    return path


def test_facts_are_read_without_rows(tmp_path: Path) -> None:
    facts = read_scores_facts(write(tmp_path / "scores.parquet"))
    assert (facts.rows, facts.model, facts.plan) == (3, LABELS["model"], LABELS["plan"])
    assert facts.expires.isoformat() == "2026-12-31"
    assert facts.origin == ScoresOrigin(LABELS["node"], LABELS["customers"])


def test_rows_come_in_batches_with_the_columns_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "scores.parquet", rows=150_000)
    batches = list(iterate_scores(path, ("id", "score", "seed", "reason_1")))
    assert max(batch.num_rows for batch in batches) <= 65_536
    assert sum(batch.num_rows for batch in batches) == 150_000
    assert set(batches[0].schema.names) == {"id", "score", "seed", "reason_1"}
    assert batches[-1].column("id")[-1].as_py() == "secret-149999"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"schema": "cohortium.scores/1"}, "is not of schema cohortium.scores/2"),
        ({"model": "sha256:short"}, "its metadata 'model' is no digest"),
        ({"plan": "none"}, "its metadata 'plan' is no digest"),
        ({"customers": ""}, "its metadata 'customers' is no digest"),
        ({"node": ""}, "its metadata 'node' is no name"),
        ({"expires": "2026-02-30"}, "its metadata 'expires' is no date"),
        ({"expires": "20261231"}, "its metadata 'expires' is no date"),
    ],
)
def test_metadata_is_strict(tmp_path: Path, labels: dict[str, str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_scores_facts(write(tmp_path / "scores.parquet", labels))
    assert (caught.value.message, caught.value.place) == (message, "scores.parquet")


def test_columns_are_strict(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    table = pq.read_table(write(path))
    cases = {
        "no column 'seed'": table.drop_columns("seed"),
        "column 'score' does not hold double": table.set_column(1, "score", table["score"].cast(pa.float32())),
        "has other columns than a scores file": table.append_column("income", table["score"]),
    }
    for message, other in cases.items():
        pq.write_table(other, path)
        with pytest.raises(DataError) as caught:
            read_scores_facts(path)
        assert caught.value.message == message


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("id", ["secret-0", None, "secret-2"], "column 'id' has empty cells"),
        ("id", ["secret-0", "", "secret-2"], "column 'id' has empty cells"),
        ("score", [0.1, math.nan, 0.3], "column 'score' has cells that are no finite number"),
        ("score", [0.1, math.inf, 0.3], "column 'score' has cells that are no finite number"),
        ("score", [0.1, None, 0.3], "column 'score' has cells that are no finite number"),
        ("seed", [True, None, False], "column 'seed' has empty cells"),
    ],
)
def test_bad_rows_are_refused_without_naming_anybody(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    path = write(tmp_path / "scores.parquet", **{column: values})
    with pytest.raises(DataError) as caught:
        list(iterate_scores(path))
    assert caught.value.message == message
    assert "secret" not in str(caught.value)


def test_what_is_no_parquet_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "scores.parquet").write_bytes(b"secret-1,0.5\n" * 20)
    for name, message in (("scores.parquet", "is no readable Parquet file"), ("absent.parquet", "no such file")):
        with pytest.raises(DataError, match=message) as caught:
            read_scores_facts(tmp_path / name)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", [b"\x18\x08reason_3", b"secret-1"])
def test_text_that_is_not_utf_8_is_said_in_one_line(tmp_path: Path, text: bytes) -> None:
    path = write(tmp_path / "scores.parquet", id=["secret-1", "secret-2", "secret-3"])
    data = path.read_bytes()
    assert text in data
    path.write_bytes(data.replace(text, text[:-3] + b"\xff" + text[-2:]))
    with pytest.raises(DataError, match="is no readable Parquet file") as caught:
        list(iterate_scores(path))
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_damaged_page_is_said_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "scores.parquet", rows=5000)
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    with pytest.raises(DataError, match="is no readable Parquet file"):
        list(iterate_scores(path))


@pytest.mark.parametrize(
    ("name", "cutoff", "reach"),
    [("", 0.5, 0.1), ("Broad", 0.5, 0.1), ("broad", math.nan, 0.1), ("broad", 0.5, 0.0), ("broad", 0.5, 1.1)],
)
def test_a_level_is_valid_once_made(name: str, cutoff: float, reach: float) -> None:
    with pytest.raises(DataError):
        Level(name, cutoff, reach)


def test_the_reach_of_a_custom_cut_off_is_not_known() -> None:
    assert custom_level(-1.5) == Level("custom", -1.5, None)
