"""Tables of groups: exact counts, one unit a table for every person, nothing that a hostile value can move further."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.audit_queries import MAX_LEVELS, Cells, GroupCountsQuery, GroupSumsQuery
from cohortium.models.catalogue import build_query
from cohortium.privacy.query import SCALE, QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

COLUMNS = ("sex", "age", "outcome", "far")
CELLS = Cells(COLUMNS[:3], (3, 4, 2), ((0, 2), (1, 2), (0, 1, 2)))


def people(count: int = 500, seed: int = 0) -> CustomerTable:
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, levels, count) for levels in (3, 4, 2)]
    return CustomerTable(COLUMNS, np.column_stack([*codes, rng.uniform(0, 1.2, count)]), np.arange(count))


def test_counts_are_those_of_everybody_in_every_cell() -> None:
    crowd = people()
    parts = CELLS.counted(bounded_total(GroupCountsQuery(CELLS), crowd) / SCALE)
    for table, part in zip(CELLS.tables, parts, strict=True):
        expected = np.zeros(part.shape)
        for row in crowd.values[:, :3].astype(int):
            expected[tuple(row[column] for column in table)] += 1
        assert (part == expected).all()
        assert part.sum() == 500


def test_a_person_adds_one_unit_to_each_table_and_reaches_the_bound() -> None:
    query = GroupCountsQuery(CELLS)
    for person in range(20):
        words = bounded_total(query, people().take(slice(person, person + 1)))
        assert [int(part.sum()) for part in CELLS.counted(words.astype(np.float64))] == [SCALE] * 3
        assert sum(int(word) ** 2 for word in words) == query.bound_squared == 3 * SCALE**2


def test_sums_are_of_the_clipped_measure_truncated_towards_zero() -> None:
    crowd, query = people(), GroupSumsQuery(CELLS, "far")
    words = np.floor(np.minimum(crowd.values[:, 3], 1.0) * SCALE).astype(np.int64)
    parts = CELLS.counted(bounded_total(query, crowd).astype(np.float64))
    expected = np.zeros(parts[0].shape)
    for row, word in zip(crowd.values.astype(int), words, strict=True):
        expected[row[0], row[2]] += word
    assert (parts[0] == expected).all()
    ends = CustomerTable(COLUMNS, np.array([[0, 0, 0, 1e300], [0, 0, 0, -1e300]]), np.arange(2))
    most, least = (bounded_total(query, ends.take(slice(i, i + 1))) for i in range(2))
    assert sum(int(word) ** 2 for word in most) == query.bound_squared
    assert not least.any()


@pytest.mark.parametrize("value", [-1.0, -0.5, 0.5, 3.0, 1e300, -1e300])
def test_whatever_is_no_code_counts_as_the_last_one(value: float) -> None:
    odd = CustomerTable(COLUMNS, np.array([[value, 0.0, 0.0, 0.0]]), np.arange(1))
    part = CELLS.counted(bounded_total(GroupCountsQuery(CELLS), odd) / SCALE)[0]
    assert part.tolist() == [[0, 0], [0, 0], [1, 0]]


SPEC = GroupCountsQuery(CELLS).spec()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("levels", np.array([3.0, 4.0])),
        ("levels", np.array([3.0, 4.0, 0.0])),
        ("levels", np.array([3.0, 4.0, 1.5])),
        ("levels", np.array([3.0, 4.0, MAX_LEVELS + 1.0])),
        ("levels", np.array([4096.0, 4096.0, 2.0])),  # more cells than an answer may have
        ("tables", np.zeros((0, 4))),
        ("tables", np.array([[0.0, 2.0, -1.0]])),
        ("tables", np.array([[0.0, 3.0, -1.0, -1.0]])),
        ("tables", np.array([[0.0, 0.0, -1.0, -1.0]])),
        ("tables", np.array([[0.0, -1.0, 2.0, -1.0]])),
        ("tables", np.array([[-1.0, -1.0, -1.0, -1.0]])),
        ("tables", np.array([[0.0, 2.0, -1.0, -1.0]] * 2)),
    ],
)
def test_malformed_tables_are_refused(name: str, values: NDArray[np.float64]) -> None:
    with pytest.raises(RefusedError):
        build_query(QuerySpec(SPEC.kind, SPEC.scalars, {**SPEC.arrays, name: values}))


@pytest.mark.parametrize("columns", [["sex", "sex", "outcome"], ["sex", "age"], ["sex", "age", 3], "sex", None])
def test_malformed_columns_are_refused(columns: object) -> None:
    with pytest.raises(RefusedError):
        build_query(QuerySpec(SPEC.kind, {"columns": columns}, SPEC.arrays))
    with pytest.raises(RefusedError):
        build_query(QuerySpec("group-sums", {"columns": columns, "measure": "far"}, SPEC.arrays))
