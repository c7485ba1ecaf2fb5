"""Rankers: exact scores, the same in any company and any block, a strict wire form."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium.models.basis import Basis, Block
from cohortium.models.encoder import Encoder, encoder_shapes
from cohortium.models.encoder import on_weight_grid as on_encoder_grid
from cohortium.models.features import Rows, on_row_grid, on_weight_grid
from cohortium.models.ranker import Ranker
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import RefusedError

BASIS = Basis((Block("a", low=-1.0, high=3.0), Block("b", levels=3)))
RNG = np.random.default_rng(0)
_FIRST, _SECOND, _THIRD, _FOURTH = (on_encoder_grid(RNG.normal(0, 0.5, shape)) for shape in encoder_shapes(BASIS, 6, 3))
ENCODER = Encoder(BASIS, np.ones(5), (_FIRST, _SECOND, _THIRD, _FOURTH))
PLAIN = Ranker(Rows(BASIS, on_row_grid(np.linspace(-0.5, 0.5, 5)), 0.75), on_weight_grid(RNG.normal(0, 30, 5)))
ENCODED = Ranker(Rows(BASIS, np.zeros(3), 2.0, ENCODER), on_weight_grid(RNG.normal(0, 30, 3)))

each_ranker = pytest.mark.parametrize("ranker", [PLAIN, ENCODED], ids=["basis", "encoder"])


def crowd(n: int = 300) -> CustomerTable:
    rng = np.random.default_rng(1)
    return CustomerTable(("b", "a"), np.column_stack([rng.integers(-1, 4, n), rng.normal(0, 3, n)]), np.arange(n))


@each_ranker
def test_a_score_is_the_exact_product_of_row_and_weights(ranker: Ranker) -> None:
    people = crowd()
    exact = [
        sum(Fraction(a) * Fraction(b) for a, b in zip(row, ranker.weights, strict=True))
        for row in ranker.rows.of(people)
    ]
    scores = ranker.scores(people)
    assert [Fraction(score) for score in scores] == exact
    assert len(np.unique(scores)) > 3
    assert (scores * 2.0**32 == np.rint(scores * 2.0**32)).all()


@each_ranker
def test_a_score_is_the_same_alone_and_in_company(ranker: Ranker) -> None:
    people = crowd()
    alone = [float(ranker.scores(people.take(slice(i, i + 1)))[0]) for i in range(len(people))]
    assert ranker.scores(people).tolist() == alone
    assert ranker.scores(people.take(slice(0, 0))).shape == (0,)


def test_few_rows_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question about scores has a word or two per person, so that its blocks hold millions of people."""
    seen: list[int] = []
    original = Rows.of

    def spied(rows: Rows, people: CustomerTable) -> NDArray[np.float64]:
        seen.append(len(people))
        return original(rows, people)

    whole = PLAIN.scores(crowd(50_000))
    monkeypatch.setattr(Rows, "of", spied)
    assert (PLAIN.scores(crowd(50_000)) == whole).all()
    assert sum(seen) == 50_000
    assert max(seen) <= 2**14


@each_ranker
def test_a_ranker_travels_without_change(ranker: Ranker) -> None:
    scalars, arrays = ranker.parts()
    again = Ranker.from_parts(scalars, arrays)
    assert (again.scores(crowd()) == ranker.scores(crowd())).all()
    assert set(again.parts()[1]) == set(arrays)


@pytest.mark.parametrize(
    ("scalars", "arrays"),
    [
        ({"more": 1}, {}),
        ({"features": ["a"]}, {}),
        ({"features": ["a", "a"]}, {}),
        ({}, {"more": np.zeros(1)}),
        ({}, {"rows_weights0": np.zeros((2, 2))}),
        ({}, {"ranker": np.zeros(4)}),
        ({}, {"ranker": np.zeros((5, 1))}),
        ({}, {"ranker": np.full(5, 2.0**-21)}),
        ({}, {"ranker": np.full(5, 257.0)}),
        ({}, {"ranker": np.full(5, np.nan)}),
        ({}, {"ranker": None}),
        ({}, {"rows_centre": None}),
    ],
    ids=str,
)
def test_a_malformed_ranker_is_refused(scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    own, parts = PLAIN.parts()
    merged = {name: values for name, values in {**parts, **arrays}.items() if values is not None}
    with pytest.raises(RefusedError):
        Ranker.from_parts({**own, **scalars}, merged)
