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
from cohortium.simulations import local_federation as module
from cohortium.simulations.baselines import central_cost
from cohortium.study.errors import PlanError

MIDDLES = np.array([[-2.0, -2.0], [2.0, -1.5], [0.0, 2.2]])


def mixture(count: int = 1500, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return MIDDLES[rng.integers(0, 3, count)] + rng.normal(0, 0.3, (count, 2))


def model(k: int = 3, **changes: Any) -> FederatedKMeans:
    return FederatedKMeans(k, **{"bounds": (-3.0, 3.0), "random_state": 0, **changes})


# --- quality ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("institutions", "trust"), [(1, "local"), (5, "local"), (3, "distributed")])
def test_the_cost_is_close_to_that_of_non_private_k_means(institutions: int, trust: str) -> None:
    """Median of five fits at epsilon 1 on 4,000 rows: within 1%. In 24 fits none was above 1.002, for one institution
    and for five with full noise each (a secure sum has less); missing one of the three clusters would cost more than
    five times as much."""
    X = mixture(4000)
    best = central_cost(X / 3.0, 3)
    ratios = [model(trust=trust).fit(X, institutions=institutions).inertia_ / best for _ in range(5)]
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


@pytest.mark.parametrize(
    ("institutions", "counts", "trust"),
    [
        (1, [1], None),
        (2, [1, 2], None),
        (2, [1, 2], "distributed"),
        (3, [1, 2, 3], None),
        (3, [1, 2, 3], "local"),
        (6, [1, 2, 3, 6], "local"),
        (6, [1, 2, 3, 6], "distributed"),
    ],
)
def test_a_person_at_j_institutions_costs_j_times_mu_squared_alone_and_its_square_in_a_sum(
    institutions: int, counts: list[int], trust: str | None
) -> None:
    """Independent noise of j institutions adds up j times; one shared noise protects j contributions at once."""
    if trust == "distributed" and institutions < 3:
        with pytest.raises(PlanError, match="secure sum"):
            model(trust=trust).fit(mixture(60), institutions=institutions)
        return
    fitted = model(trust=trust).fit(mixture(60), institutions=institutions)
    shared = institutions >= 3 if trust is None else trust == "distributed"
    assert fitted.bundle_.plan.trust == ("distributed" if shared else "local")
    total = Spend(sum(r.mu2 for r in fitted.bundle_.releases), sum(r.tv for r in fitted.bundle_.releases))
    spends = {j: Spend(j * j * total.mu2, total.tv) if shared else Spend(j * total.mu2, j * total.tv) for j in counts}
    expected = {j: epsilon_spent(spend, 1e-6) for j, spend in spends.items()}
    assert fitted.privacy_spent_.person_at == expected
    values = list(expected.values())
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("institutions", "changes", "least"),
    [
        (3, {}, 3),
        (4, {}, 4),
        (5, {}, 4),
        (10, {}, 8),
        (5, {"colluders": 2}, 4),
        (5, {"colluders": 3}, 5),
        (6, {"min_institutions": 4}, 4),
        (6, {"min_institutions": np.int64(5), "colluders": np.int64(2)}, 5),
    ],
)
def test_four_fifths_of_the_institutions_make_a_sum(institutions: int, changes: dict[str, Any], least: int) -> None:
    plan = model(**changes)._plan(module.matrix_contract(np.full(2, -3.0), np.full(2, 3.0)), institutions)
    assert (plan.trust, plan.min_institutions) == ("distributed", least)
    assert plan.colluders == changes.get("colluders", 1)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"min_institutions": 2}, "min_institutions"),
        ({"min_institutions": 3}, "min_institutions"),
        ({"min_institutions": 7}, "min_institutions"),
        ({"colluders": 6}, "colluders"),
        ({"colluders": 0}, "colluders"),
    ],
    ids=str,
)
def test_six_institutions_are_not_summed_unsafely(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(PlanError, match=line):
        model(**changes).fit(mixture(60), institutions=6)


def test_without_noise_the_promise_is_nothing() -> None:
    """And the result the same whenever it is asked for: nothing in it is random."""
    X = mixture(600)
    one, two = (model(trust="unsafe-none").fit(X, institutions=4) for _ in range(2))
    assert (one.cluster_centers_ == two.cluster_centers_).all()
    assert (one.privacy_spent_.epsilon, one.privacy_spent_.mu_squared) == (math.inf, math.inf)
    assert one.privacy_spent_.person_at == dict.fromkeys((1, 2, 3, 4), math.inf)
    assert {(r.sigma, r.mu2, r.tv) for r in one.bundle_.releases} == {("0", 0, 0)}
    assert one.inertia_ <= 1.001 * central_cost(X / 3.0, 3)


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
    seen: list[tuple[str, int, list[int]]] = []
    real = module.open_node

    def open_node(folder: Any, table: CustomerTable) -> Node:
        rows = table.keys.tolist()
        seen.append((folder.name, len(table), rows[:3]))
        assert (table.values == np.clip(X[rows], -3.0, 3.0)).all()
        return real(folder, table)

    monkeypatch.setattr(module, "open_node", open_node)
    fitted = model().fit(X, institutions=labels)
    assert fitted.bundle_.institutions == 3
    assert seen == [("0", 30, [1, 4, 7]), ("1", 30, [0, 3, 6]), ("2", 30, [2, 5, 8])]


@pytest.mark.parametrize(("rows", "institutions"), [(7, 1), (7, 3), (7, 7), (100, 9)])
def test_every_row_is_at_exactly_one_institution(rows: int, institutions: int) -> None:
    parts = module.split_rows(rows, institutions, 0)
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
        {"epsilon": 1e-15, "delta": 1e-15},
        {"delta": 0.0},
        {"delta": 0.1},
        {"delta": 1e-20},
        {"trust": "none"},
        {"colluders": 1.5},
        {"min_institutions": 3.0},
        {"min_institutions": 0},
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
    numbers = {"n_clusters", "epsilon", "delta", "min_institutions", "colluders", "random_state"}
    assert set(one.get_params()) == {"bounds", "trust", *numbers}
    assert twin.set_params(n_clusters=np.int64(2)).fit(mixture(50)).cluster_centers_.shape == (2, 2)
    assert model().fit_predict(mixture(50)).shape == (50,)
    with pytest.raises(Exception, match="not fitted"):
        model().predict(mixture(5))
    with pytest.raises(ValueError, match="features"):
        twin.predict(np.zeros((3, 5)))


def test_nothing_is_left_on_disk(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for trust in ("local", "distributed", "unsafe-none"):
        fitted = model(trust=trust).fit(mixture(30), institutions=np.int64(3))
        assert fitted.bundle_.institutions == 3
        assert list(tmp_path.iterdir()) == []
