"""The head's gradient as a sum query: against the textbook formula, clipped exactly, decoded in the loss's unit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from cohortium.models.catalogue import build_query
from cohortium.models.head import HeadGradientQuery, read_head_gradient, sigmoid
from cohortium.models.scaler import Scaler
from cohortium.privacy.query import SCALE, QuerySpec, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, RefusedError

BOX = Scaler(("a", "b"), np.zeros(2, dtype=np.bool_), np.array([0.0, -4.0]), np.array([10.0, 4.0]))
WEIGHTS = np.array([0.7, -1.1, 0.2])


def query(weights: NDArray[np.float64] = WEIGHTS, clip: float = 1.0, count: float = 0.25) -> HeadGradientQuery:
    return HeadGradientQuery(BOX, "seed", weights, clip, count)


def people(n: int = 500, seed: int = 0) -> CustomerTable:
    rng = np.random.default_rng(seed)
    values = np.column_stack([rng.uniform(0, 10, n), rng.uniform(-4, 4, n), np.zeros(n)])
    values[:, 2] = rng.random(n) < 1 / (1 + np.exp(-(values[:, 0] - 6)))
    return CustomerTable(("a", "b", "seed"), values, np.arange(n))


def gradients(table: CustomerTable, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per person, by the textbook formula."""
    x = np.column_stack([BOX.transform(table.values[:, :2]), np.ones(len(table))])
    return np.asarray((1 / (1 + np.exp(-(x @ weights))) - table.values[:, 2])[:, np.newaxis] * x)


def decoded(question: HeadGradientQuery, table: CustomerTable) -> Any:
    return read_head_gradient(question, bounded_total(question, table) / SCALE)


def test_without_clipping_the_sum_is_the_gradient_of_the_loss_and_the_count() -> None:
    answer = decoded(query(clip=math.sqrt(3)), people())
    assert answer.people == pytest.approx(500, abs=1e-3)
    np.testing.assert_allclose(answer.gradient, gradients(people(), WEIGHTS).sum(axis=0), atol=500 * 5e-7)


def test_clipping_shortens_each_person_to_the_norm_and_keeps_the_direction() -> None:
    rows = gradients(people(), WEIGHTS)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    assert (norms > 0.4).any()
    assert (norms < 0.4).any()
    expected = (rows * np.minimum(1.0, 0.4 / norms)).sum(axis=0)
    np.testing.assert_allclose(decoded(query(clip=0.4), people()).gradient, expected, atol=500 * 5e-7)


def test_the_bound_is_reached_by_a_clipped_person() -> None:
    question = query(np.zeros(3), clip=0.5)
    corner = CustomerTable(("a", "b", "seed"), np.array([[10.0, 4.0, 0.0]]), np.arange(1))
    squares = int((bounded_total(question, corner).astype(object) ** 2).sum())
    assert 0.9999 < squares / question.bound_squared <= 1


def test_steps_along_the_answers_learn_what_scikit_learn_learns() -> None:
    table, weights = people(4000), np.zeros(3)
    for _ in range(400):
        answer = decoded(query(weights, clip=math.sqrt(3)), table)
        weights = weights - 3.0 * answer.gradient / answer.people
    oracle = LogisticRegression(C=np.inf).fit(BOX.transform(table.values[:, :2]), table.values[:, 2])
    np.testing.assert_allclose(weights, [*oracle.coef_[0], oracle.intercept_[0]], atol=0.02)


def test_the_sigmoid_is_within_its_error_monotone_and_from_0_to_1() -> None:
    logits = np.linspace(-40, 40, 200_001)
    values = sigmoid(logits)
    np.testing.assert_allclose(values, 1 / (1 + np.exp(-logits)), atol=2e-7)
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values.max() <= 1
    assert sigmoid(np.array([0.0, -np.inf, np.inf])).tolist() == pytest.approx([0.5, 0, 1], abs=1e-10)


@pytest.mark.parametrize("order", ["C", "F"])
def test_people_have_the_same_words_in_any_company_and_any_memory_order(order: Any) -> None:
    table, question = people(257), query(clip=0.3)
    laid = CustomerTable(table.columns, np.asarray(table.values, order=order), table.keys)
    company = question.contribute(laid).values
    alone = np.vstack([question.contribute(table.take(slice(i, i + 1))).values for i in range(len(table))])
    assert (company == alone).all()


def test_any_number_above_one_half_is_a_seed() -> None:
    rows = np.array([[3.0, 1.0, y] for y in (0.0, -7.0, 0.5, 1.0, 0.51, 1e300)])
    table = CustomerTable(("a", "b", "seed"), rows, np.arange(6))
    signs = np.sign(query().contribute(table).values[:, -1])
    assert signs.tolist() == [1, 1, 1, -1, -1, -1]


def test_nobody_gives_zeros_and_a_table_without_seeds_is_a_defect() -> None:
    nobody = people().take(slice(0, 0))
    assert bounded_total(query(), nobody).tolist() == [0, 0, 0, 0]
    with pytest.raises(Defect, match="no column seed"):
        bounded_total(query(), CustomerTable(("a", "b"), np.zeros((0, 2)), np.zeros(0)))


@pytest.mark.parametrize(
    ("scalars", "arrays"),
    [
        ({"seed": "a"}, {}),
        ({"seed": 3}, {}),
        ({}, {"weights": np.zeros(2)}),
        ({}, {"weights": np.array([0.0, 0.0, 1025.0])}),
        ({}, {"limits": np.array([0.0, 0.5])}),
        ({}, {"limits": np.array([1.74, 0.5])}),
        ({}, {"limits": np.array([1.0, 1.1])}),
        ({}, {"limits": np.array([1.0, 0.0])}),
        ({}, {"limits": np.array([1.0])}),
    ],
)
def test_parameters_out_of_range_are_refused(scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    spec = query().spec()
    assert build_query(spec).bound_squared == query().bound_squared
    with pytest.raises(RefusedError):
        build_query(QuerySpec(spec.kind, {**spec.scalars, **scalars}, {**spec.arrays, **arrays}))
