"""Scoring at home: nearest released centre, RFM scores, a file that is whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cohortium.client.scoring import SEGMENTS_SCHEMA, bundle_scaler, score_customers, write_segments
from cohortium.privacy.table import CustomerTable
from cohortium.study.bundle import AxisScale, Bundle, RfmResult, Segment
from cohortium.study.errors import OutputError

COLUMNS = ("visits", "spend", "recency")


@pytest.fixture
def bundle(make_plan: Any) -> Bundle:
    return Bundle(
        plan=make_plan(),
        run="0" * 32,
        institutions=1,
        scaler=(
            AxisScale(feature="spend", log=True, low=0.0, high=float(np.log1p(1000.0))),
            AxisScale(feature="visits", log=False, low=0.0, high=10.0),
        ),
        segments=(
            Segment(id=1, name="low spend", centre=(-1.0, -1.0), size=100.0, size_std=1.0),
            Segment(id=2, name="segment 2", centre=(1.0, 1.0), size=None, size_std=1.0),
        ),
        customers=100.0,
        explained=0.5,
        k_choices=(),
        rfm=None,
        releases=(),
    )


RFM = RfmResult(
    recency="recency",
    frequency="visits",
    monetary="spend",
    edges={"recency": (10, 20, 30, 40), "visits": (1, 1, 2, 5), "spend": (10, 50, 100, 500)},
    bands={},
    cells=(),
    size_std=1.0,
)


def people(*rows: tuple[float, float, float]) -> CustomerTable:
    values = np.array(rows, dtype=np.float64).reshape(len(rows), 3)
    return CustomerTable(COLUMNS, values, np.array([f"c{i}" for i in range(len(rows))], dtype=np.str_))


def test_everybody_gets_the_nearest_centre_of_the_scaled_space(bundle: Bundle) -> None:
    frame = score_customers(bundle, people((0, 0, 1), (10, 1000, 1), (4, 0.5, 1), (1e9, 1e9, 1), (-5, -5, 1)))
    assert list(frame.columns) == ["id", "segment", "segment_name"]
    assert frame["id"].tolist() == ["c0", "c1", "c2", "c3", "c4"]
    assert frame["segment"].tolist() == [1, 2, 1, 2, 1]
    assert frame["segment_name"].tolist() == ["low spend", "segment 2", "low spend", "segment 2", "low spend"]


def test_the_bundle_s_scaler_maps_ends_to_the_box(bundle: Bundle) -> None:
    scaler = bundle_scaler(bundle)
    assert scaler.features == ("spend", "visits")
    assert scaler.transform(np.array([[0.0, 0.0], [1000.0, 10.0]])) == pytest.approx(np.array([[-1, -1], [1, 1]]))
    assert scaler.inverse(np.array([[1.0, 1.0]])) == pytest.approx(np.array([[1000.0, 10.0]]))


def test_rfm_scores_follow_the_released_edges(bundle: Bundle) -> None:
    scored = bundle.model_copy(update={"rfm": RFM})
    frame = score_customers(scored, people((0, 5, 5), (2, 60, 35), (9, 9999, 400)))
    assert frame["recency_score"].tolist() == [5, 2, 1]
    assert frame["frequency_score"].tolist() == [1, 3, 5]
    assert frame["monetary_score"].tolist() == [1, 3, 5]
    assert frame["rfm_name"].notna().all()


def test_without_monetary_value_there_is_no_such_column(bundle: Bundle) -> None:
    scored = bundle.model_copy(update={"rfm": RFM.model_copy(update={"monetary": None})})
    assert "monetary_score" not in score_customers(scored, people((0, 5, 5))).columns


@pytest.mark.parametrize("rfm", [None, RFM])
def test_an_institution_without_customers_gets_an_empty_table(bundle: Bundle, rfm: RfmResult | None) -> None:
    frame = score_customers(bundle.model_copy(update={"rfm": rfm}), people())
    assert len(frame) == 0
    assert {"id", "segment", "segment_name"} <= set(frame.columns)


def test_the_file_names_its_schema_and_bundle_and_reads_back(bundle: Bundle, tmp_path: Path) -> None:
    frame = score_customers(bundle, people((0, 0, 1), (10, 1000, 1)))
    path = tmp_path / "segments.parquet"
    write_segments(frame, bundle, path)
    labels = pq.read_schema(path).metadata
    assert labels[b"schema"].decode() == SEGMENTS_SCHEMA
    assert labels[b"bundle"].decode() == bundle.digest
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame, check_dtype=False)
    assert [file.name for file in tmp_path.iterdir()] == ["segments.parquet"]


def test_a_failed_write_keeps_the_earlier_file(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "segments.parquet"
    write_segments(score_customers(bundle, people((0, 0, 1))), bundle, path)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for target, name in ((pq, "write_table"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            with pytest.raises(OutputError, match="cannot be written"):
                write_segments(score_customers(bundle, people((9, 9, 9))), bundle, path)
        assert path.read_bytes() == before
    with pytest.raises(OutputError):
        write_segments(score_customers(bundle, people((0, 0, 1))), bundle, tmp_path / "nowhere" / "s.parquet")
