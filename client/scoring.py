"""Scoring: an institution puts its own customers into the released segments. Nothing of it leaves the institution."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cohortium.client.people import bundle_scaler
from cohortium.models.assignment import nearest_centre
from cohortium.models.rfm import QuintileEdges, rfm_names
from cohortium.privacy.table import CustomerTable
from cohortium.study.bundle import Bundle
from cohortium.study.errors import OutputError

__all__ = ["SEGMENTS_SCHEMA", "score_customers", "write_segments"]

SEGMENTS_SCHEMA = "cohortium.segments/1"
"""Schema name in the Parquet file's metadata."""


def score_customers(bundle: Bundle, people: CustomerTable) -> pd.DataFrame:
    """One row per customer: id, segment (id and name), and RFM scores with the usual name when the bundle has RFM."""
    scaler = bundle_scaler(bundle)
    centres = np.array([segment.centre for segment in bundle.segments])
    index = nearest_centre(scaler.transform(people.select(scaler.features)), centres)
    names = np.array([segment.name for segment in bundle.segments], dtype=object)
    frame = pd.DataFrame({"id": people.keys, "segment": index + 1, "segment_name": names[index]})
    return pd.concat([frame, _rfm(bundle, people)], axis=1)


def write_segments(frame: pd.DataFrame, bundle: Bundle, path: Path) -> None:
    """Write scored customers as Parquet, whole or not at all; the file names its schema and the bundle's digest.

    Raises:
        OutputError: the file cannot be written.
    """
    table = pa.Table.from_pandas(frame, preserve_index=False)
    labels = {b"schema": SEGMENTS_SCHEMA.encode(), b"bundle": bundle.digest.encode()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **labels})
    staged = path.with_suffix(".partial")
    try:
        pq.write_table(table, staged)
        os.replace(staged, path)
    except OSError as error:
        raise OutputError("cannot be written", place=str(path), fix="check space and permissions") from error


def _rfm(bundle: Bundle, people: CustomerTable) -> pd.DataFrame:
    if bundle.rfm is None:
        return pd.DataFrame(index=range(len(people)))
    rfm = bundle.rfm
    recency = _scores(QuintileEdges(rfm.recency, rfm.edges[rfm.recency], reversed=True), people)
    frequency = _scores(QuintileEdges(rfm.frequency, rfm.edges[rfm.frequency]), people)
    columns: dict[str, object] = {"recency_score": recency, "frequency_score": frequency}
    if rfm.monetary is not None:
        columns["monetary_score"] = _scores(QuintileEdges(rfm.monetary, rfm.edges[rfm.monetary]), people)
    columns["rfm_name"] = rfm_names(recency, frequency)
    return pd.DataFrame(columns)


def _scores(edges: QuintileEdges, people: CustomerTable) -> NDArray[np.int64]:
    return edges.score(people.select((edges.feature,))[:, 0])
