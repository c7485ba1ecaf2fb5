"""FederatedKMeans: as good as its noise allows, honest about its cost, strict about its arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone

from cohortium.client.node import Node
from cohortium.models.moments import MomentQuery
from cohortium.models.scaler import Scaler
from cohortium.privacy.accounting import Spend, budget_for, epsilon_spent
from cohortium.privacy.query import bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.simulations import FederatedKMeans
from cohortium.simulations import estimator as module
from cohortium.simulations.baselines import central_cost
from cohortium.study.errors import PlanError

MIDDLES = np.array([[-2.0, -2.0], [2.0, -1.5], [0.0, 2.2]])


def mixture(count: int = 1500, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return MIDDLES[rng.integers(0, 3, count)] + rng.normal(0, 0.3, (count, 2))


def model(k: int = 3, **changes: Any) -> FederatedKMeans:
    return FederatedKMeans(k, **{"bounds": (-3.0, 3.0), "random_state": 0, **changes})


# --- quality ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("institutions", [1, 5])
def test_the_cost_is_close_to_that_of_non_private_k_means(institutions: int) -> None:
    """Median of five fits at epsilon 1 on 4,000 rows: within 1%. In 24 fits none was above 1.002, for one institution
    and for five with full noise each; missing one of the three clusters would cost more than five times as much."""
    X = mixture(4000)
    best = central_cost(X / 3.0, 3)
    ratios = [model().fit(X, institutions=institutions).inertia_ / best for _ in range(5)]
    assert min(ratios) > 0.999
    assert np.median(ratios) < 1.01


def test_more_budget_costs_less_error() -> None:
    """Largest error of a centre, median of five. In 24 fits: 0.03 to 0.06 at epsilon 3, 0.3 to 4 at epsilon 0.05."""
    X = mixture(1500)

    def error(epsilon: float) -> float:
        centres = model(epsilon=epsilon).fit(X).cluster_centers_
        return float(np.linalg.norm(MIDDLES[:, np.newaxis] - centres, axis=2).min(axis=1).max())

    assert np.median([error(3.0) for _ in range(5)]) < 0.1 < np.median([error(0.05) for _ in range(5)])


# --- exact sums ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 5])
def test_however_rows_are_split_the_exact_sums_are_the_same(parts: int) -> None:
    scaler = Scaler(("x0", "x1"), np.zeros(2, dtype=np.bool_), np.full(2, -3.0), np.full(2, 3.0))
    query = MomentQuery(scaler, MIDDLES / 3.0, np.full(3, 0.2), (0.5, 1.0, 0.7))
    X = mixture(1001)
    rng = np.random.default_rng(parts)

    def total(rows: NDArray[np.intp]) -> NDArray[np.int64]:
        return bounded_total(query, CustomerTable(("x0", "x1"), X[rows], rows))

    whole = total(np.arange(len(X)))
    split = np.array_split(rng.permutation(len(X)), parts)
    assert (sum(total(rows) for rows in split) == whole).all()


def test_noise_is_never_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fits with one random_state release other sums from the very first question on; the question is the same."""
    released: list[dict[str, bytes]] = []
    real = Node.close

    def close(self: Node) -> None:
        released.append({c.question: self.ledger.replay(c.slot, c.question) or b"" for c in self.ledger.charges()})
        real(self)

    monkeypatch.setattr(Node, "close", close)
    monkeypatch.setattr(module, "uuid4", lambda: type("U", (), {"hex": "0" * 32})())
    X = mixture(300)
    one, two = model().fit(X), model().fit(X)
    common = set(released[0]) & set(released[1])
    assert len(common) == 1, "the first question depends on nothing but the plan"
    (question,) = common
    assert released[0][question] != released[1][question]
    assert not np.array_equal(one.cluster_centers_, two.cluster_centers_)


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-6), (0.1, 1e-5), (3.0, 1e-8)])
def test_the_privacy_spent_is_the_ledgers_closed_form(epsilon: float, delta: float) -> None:
    fitted = model(epsilon=epsilon, delta=delta).fit(mixture(300), institutions=4)
    spent = fitted.privacy_spent_
    records = fitted.bundle_.releases
    total = Spend(sum(record.mu2 for record in records), sum(record.tv for record in records))
    assert spent.epsilon == epsilon_spent(total, delta)
    assert 0.999 * epsilon < spent.epsilon <= epsilon
    assert total.fits(budget_for(epsilon, delta))
    assert (spent.mu_squared, spent.delta, spent.releases) == (total.mu_squared, delta, len(records))


@pytest.mark.parametrize(("institutions", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 3, 6])])
def test_a_person_at_j_institutions_costs_j_times_mu_squared(institutions: int, counts: list[int]) -> None:
    fitted = model().fit(mixture(60), institutions=institutions)
    total = Spend(sum(r.mu2 for r in fitted.bundle_.releases), sum(r.tv for r in fitted.bundle_.releases))
    expected = {j: epsilon_spent(Spend(j * total.mu2, j * total.tv), 1e-6) for j in counts}
    assert fitted.privacy_spent_.person_at == expected
    values = list(expected.values())
    assert values == sorted(values)


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, 64])
def test_every_number_of_clusters_is_delivered(k: int) -> None:
    X = mixture(200)
    fitted = model(k).fit(X)
    assert fitted.cluster_centers_.shape == (k, 2)
    assert (np.abs(fitted.cluster_centers_) <= 3.0).all()
    assert fitted.labels_.shape == (200,)
    assert set(fitted.labels_) <= set(range(k))
    assert (fitted.predict(X) == fitted.labels_).all()


@pytest.mark.parametrize(
    "X",
    [mixture(1), mixture(4), np.repeat(mixture(1), 300, axis=0), mixture(50)[:, :1], np.full((20, 2), 99.0)],
    ids=["one customer", "fewer than k", "all alike", "one feature", "all outside the bounds"],
)
def test_odd_tables_give_finite_centres_within_the_bounds(X: NDArray[np.float64]) -> None:
    fitted = model(8).fit(X)
    assert fitted.cluster_centers_.shape == (8, X.shape[1])
    assert np.isfinite(fitted.cluster_centers_).all()
    assert (np.abs(fitted.cluster_centers_) <= 3.0).all()
    assert math.isfinite(fitted.inertia_)
    assert fitted.privacy_spent_.epsilon <= 1.0


def test_bounds_of_each_feature_are_its_own_unit() -> None:
    X = mixture(3000) * [1.0, 1000.0] + [0.0, 5000.0]
    fitted = model(bounds=([-3, 2000], [3, 8000]), epsilon=3.0).fit(X)
    found = fitted.cluster_centers_[np.argsort(fitted.cluster_centers_[:, 0])]
    assert found == pytest.approx(np.array([[-2, 3000], [0, 7200], [2, 3500]]), abs=150)
    assert found[:, 0] == pytest.approx([-2, 0, 2], abs=0.1)


def test_labels_say_which_institution_a_row_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    X, labels = mixture(90), np.array(["b", "a", "c"] * 30)
    sizes: list[tuple[str, int, list[int]]] = []
    real = module._node

    def node(folder: Any, contract: Any, plan: Any, values: NDArray[np.float64], rows: NDArray[np.intp]) -> Node:
        sizes.append((folder.name, len(values), rows.tolist()[:3]))
        return real(folder, contract, plan, values, rows)

    monkeypatch.setattr(module, "_node", node)
    fitted = model().fit(X, institutions=labels)
    assert fitted.bundle_.institutions == 3
    assert sizes == [("0", 30, [1, 4, 7]), ("1", 30, [0, 3, 6]), ("2", 30, [2, 5, 8])]
    assert model().fit(X, institutions=np.int64(3)).bundle_.institutions == 3


@pytest.mark.parametrize(("rows", "institutions"), [(7, 1), (7, 3), (7, 7), (100, 9)])
def test_every_row_is_at_exactly_one_institution(rows: int, institutions: int) -> None:
    parts = module._split(rows, institutions, 0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert {len(part) for part in parts} <= {rows // institutions, rows // institutions + 1}


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    X = mixture(20)
    X[3, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        model().fit(X)


@pytest.mark.parametrize("X", [np.zeros((0, 2)), np.zeros(5), np.zeros((2, 2, 2)), [["a", "b"]]])
def test_what_is_no_matrix_is_refused(X: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        model().fit(X)


@pytest.mark.parametrize(
    "bounds",
    [None, (1, 2, 3), (3, -3), (0, 0), (-3, np.nan), (-np.inf, 3), ([-3, -3, -3], 3), 3, "ab", (-1.7e308, 1.7e308)],
    ids=str,
)
def test_bounds_must_be_public_finite_and_ascend(bounds: Any) -> None:
    with pytest.raises(PlanError, match="bounds"):
        model(bounds=bounds).fit(mixture(20))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_clusters": 0},
        {"n_clusters": 65},
        {"n_clusters": 2.0},
        {"n_clusters": True},
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": 51.0},
        {"epsilon": np.nan},
        {"epsilon": 40.0},
        {"delta": 0.0},
        {"delta": 0.1},
        {"delta": 1e-20},
        {"trust": "none"},
        {"random_state": -1},
        {"random_state": 2**31},
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((PlanError, ValueError)) as caught:
        model(changes.pop("n_clusters", 3), **changes).fit(mixture(20))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "institutions", [0, -1, 21, ["a"] * 19, [["a"]] * 20, [None, "a"] * 10, np.array([1.0, np.nan] * 10)], ids=str
)
def test_institutions_must_fit_the_rows(institutions: Any) -> None:
    with pytest.raises(ValueError, match="institutions must"):
        model().fit(mixture(20), institutions=institutions)


def test_it_is_a_scikit_learn_estimator() -> None:
    one = model(epsilon=0.7)
    twin = clone(one)
    assert twin.get_params() == one.get_params()
    assert set(one.get_params()) == {"n_clusters", "epsilon", "delta", "bounds", "trust", "random_state"}
    assert twin.set_params(n_clusters=np.int64(2)).fit(mixture(50)).cluster_centers_.shape == (2, 2)
    assert model().fit_predict(mixture(50)).shape == (50,)
    with pytest.raises(Exception, match="not fitted"):
        model().predict(mixture(5))
    with pytest.raises(ValueError, match="features"):
        twin.predict(np.zeros((3, 5)))


def test_nothing_is_left_on_disk(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model().fit(mixture(30), institutions=2)
    assert list(tmp_path.iterdir()) == []
