"""The encoder: gradients against automatic differentiation and Opacus, exact arithmetic, what hides from itself."""

from __future__ import annotations

import tracemalloc
import warnings
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cohortium.models.basis import UNIT, Basis, Block
from cohortium.models.encoder import (
    GRADIENT_SCALE,
    WEIGHT_LIMIT,
    Encoder,
    EncoderGradientQuery,
    encoder_from_arrays,
    encoder_shapes,
    on_scale_grid,
    on_weight_grid,
)
from cohortium.models.rows import HASH, row_hashes
from cohortium.privacy.query import bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, RefusedError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

BASIS = Basis(
    (
        Block("a", low=-2.0, high=2.0),
        Block("b", levels=4),
        Block("c", high=5.0, log=True),
        Block("d", levels=3),
        Block("e", low=0.0, high=1.0),
        Block("f", low=-1.0, high=1.0),
    )
)
HIDDEN, WIDTH = 12, 5
GRADIENT_UNIT = UNIT * 2**16
_Pairs = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


def crowd(n: int = 64, seed: int = 0) -> CustomerTable:
    rng = np.random.default_rng(seed)
    columns = [
        rng.normal(0, 1.2, n),
        rng.integers(0, 4, n),
        rng.gamma(1, 20, n),
        rng.integers(0, 3, n),
        rng.random(n),
        rng.uniform(-1, 1, n),
        row_hashes(np.arange(n) + 10**6 * seed),
    ]
    return CustomerTable((*BASIS.features, HASH), np.column_stack(columns), np.arange(n))


@cache
def encoder(spread: float = 0.35, seed: int = 4) -> Encoder:
    rng = np.random.default_rng(seed)
    shapes = encoder_shapes(BASIS, HIDDEN, WIDTH)
    first, second, third, fourth = (on_weight_grid(rng.normal(0, spread, shape)) for shape in shapes)
    return Encoder(BASIS, on_scale_grid(rng.uniform(0.5, 2.0, BASIS.width)), (first, second, third, fourth))


def query(clip: float = 1.0, stream: int = 3, share: int = 90, of: Encoder | None = None) -> EncoderGradientQuery:
    return EncoderGradientQuery(of if of is not None else encoder(), stream, share, clip)


# --- against automatic differentiation -------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """The same network in float64, by another hand: no grids, no rounding."""

    def __init__(self, of: Encoder) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for matrix in of.weights:
            layer = torch.nn.Linear(matrix.shape[0] - 1, matrix.shape[1], dtype=torch.float64)
            layer.weight.data = torch.from_numpy(matrix[:-1].T.copy())
            layer.bias.data = torch.from_numpy(matrix[-1].copy())
            self.layers.append(layer)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = self.layers
        code = second(torch.relu(first(inputs)))
        result: torch.Tensor = fourth(torch.relu(third(code)))
        return result


def training_data(
    question: EncoderGradientQuery, people: CustomerTable
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets, and which columns are hidden, of an autoencoder that sees one flag per hidden feature."""
    rows = np.rint(BASIS.rows(people) * question.encoder.scales) / UNIT
    flags = question._hidden(people)
    hidden = flags[:, BASIS.feature_of]
    inputs = np.hstack([np.where(hidden, 0.0, rows), flags])
    return torch.from_numpy(inputs), torch.from_numpy(rows), torch.from_numpy(hidden.astype(np.float64))


def losses(net: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, rows, hidden = data
    result: torch.Tensor = (0.5 * ((net(inputs) - rows) * hidden) ** 2).sum(dim=1)
    return result


@cache
def smooth_crowd() -> CustomerTable:
    """People of whom no rectifier stands within 2^-9 of its kink, where a rounding would choose the slope."""
    people, net = crowd(), Net(encoder())
    inputs, _, _ = training_data(query(), people)
    with torch.no_grad():
        first, second, third, _ = net.layers
        before = first(inputs)
        opened = third(second(torch.relu(before)))
    nearest = torch.minimum(before.abs().amin(dim=1), opened.abs().amin(dim=1)).numpy()
    return people.take(nearest > 2.0**-9)


def flat(gradients: list[torch.Tensor]) -> NDArray[np.float64]:
    """Of weight and bias of every layer, in the order of the query's words."""
    parts = []
    for weight, bias in zip(gradients[::2], gradients[1::2], strict=True):
        parts += [weight.T.reshape(-1), bias.reshape(-1)]
    return np.asarray(torch.cat(parts).numpy())


@cache
def differentiated() -> NDArray[np.float64]:
    """Everybody's gradient, one by one, shape (people, weights)."""
    net, rows = Net(encoder()), []
    for loss in losses(net, training_data(query(), smooth_crowd())):
        rows.append(flat(list(torch.autograd.grad(loss, list(net.parameters()), retain_graph=True))))
    return np.array(rows)


def gradients_of(question: EncoderGradientQuery, people: CustomerTable) -> NDArray[np.float64]:
    """What the factors say before clipping, shape (people, weights)."""
    factors = question.encoder.gradient_factors(question.encoder.basis.rows(people), question._hidden(people))
    return np.hstack(
        [np.einsum("ij,ik->ijk", left, right).reshape(len(people), -1) / GRADIENT_UNIT for left, right in factors]
    )


# Activations stand in steps of 2^-10, so that a rounding moves one by at most 2^-11; a gradient is made of two of at
# most five roundings, over 12 units, weighted by weights of 0.35 and activations around 1: 2^-11 * 5 * sqrt(12) is 0.8%
# of an activation of 1, and measured is half a percent of a gradient at most.
TOLERANCE = 0.008


def test_every_persons_gradient_is_that_of_automatic_differentiation() -> None:
    expected, found = differentiated(), gradients_of(query(), smooth_crowd())
    norms = np.linalg.norm(expected, axis=1)
    assert (np.linalg.norm(found - expected, axis=1) <= TOLERANCE * np.maximum(norms, 0.1)).all()
    assert (norms > 0.5).sum() > 30
    assert len(norms) < len(crowd())


@pytest.mark.parametrize("clip", [0.25, 1.0, 100.0])
def test_the_sum_is_that_of_the_clipped_gradients(clip: float) -> None:
    expected = differentiated()
    norms = np.linalg.norm(expected, axis=1, keepdims=True)
    clipped = expected * np.minimum(1.0, clip / np.maximum(norms, 1e-12))
    found = query(clip).gradient(bounded_total(query(clip), smooth_crowd()).astype(np.float64))
    assert np.linalg.norm(found - clipped.sum(axis=0)) <= TOLERANCE * np.linalg.norm(clipped, axis=1).sum()
    if clip < 100.0:
        assert 0 < (norms > clip).sum() < len(norms)
        assert np.linalg.norm(found - expected.sum(axis=0)) > 10 * TOLERANCE * np.linalg.norm(clipped.sum(axis=0))


@pytest.mark.parametrize("clip", [0.25, 1.0])
def test_the_sum_is_that_of_opacus_ghost_clipping(clip: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hooks on inputs that need no gradient
        net = GradSampleModuleFastGradientClipping(
            Net(encoder()), max_grad_norm=clip, use_ghost_clipping=True, loss_reduction="sum"
        )
        per_person = losses(net, training_data(query(), smooth_crowd()))
        per_person.sum().backward(retain_graph=True)
        share = net.get_clipping_coef().detach()
        net.zero_grad()
        net.disable_hooks()
        (share * per_person).sum().backward()
    expected = flat([parameter.grad for parameter in net.parameters()])
    found = query(clip).gradient(bounded_total(query(clip), smooth_crowd()).astype(np.float64))
    assert 0 < int((share < 1).sum()) < len(share)
    scale = float((share * net.get_norm_sample()).sum())
    assert np.linalg.norm(found - expected) <= TOLERANCE * scale
    assert np.linalg.norm(expected) > 10 * TOLERANCE * scale, "a sum that cancels out would pass anything"


# --- exact, whatever the weights -------------------------------------------------------------------------------------


def exact_factors(of: Encoder, rows: NDArray[np.float64], hide: NDArray[np.bool_]) -> _Pairs:
    """The same arithmetic in 64-bit integers, which are exact where float64 need not be."""

    def forward(inputs: NDArray[np.float64], matrix: NDArray[np.float64], least: int) -> NDArray[np.float64]:
        summed = inputs.astype(np.int64) @ (matrix * 2**16).astype(np.int64)
        return with_bias(np.clip(np.rint(summed / 2**16), least, 2**13))

    def backward(error: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((error.astype(np.int64) @ (matrix[:-1] * 2**16).astype(np.int64).T) / 2**16)

    def with_bias(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.hstack([values, np.full((len(values), 1), float(UNIT))])

    def limited(error: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(np.rint(error), -(2.0**21), 2.0**21)

    first, second, third, fourth = of.weights
    scaled = np.rint(rows * of.scales)
    hidden = hide[:, of.basis.feature_of]
    inputs = with_bias(np.hstack([np.where(hidden, 0.0, scaled), hide * float(UNIT)]))
    layer = forward(inputs, first, 0)
    code = forward(layer, second, -(2**13))
    opened = forward(code, third, 0)
    error4 = np.where(hidden, forward(opened, fourth, -(2**13))[:, :-1] - scaled, 0.0) * 2**6
    error3 = limited(backward(error4, fourth) * (opened[:, :-1] > 0))
    error2 = limited(backward(error3, third))
    error1 = limited(backward(error2, second) * (layer[:, :-1] > 0))
    return [(inputs, error1), (layer, error2), (code, error3), (opened, error4)]


@pytest.mark.parametrize("spread", [0.3, 3.0, 1e9])
def test_the_arithmetic_is_exact(spread: float) -> None:
    people, of = crowd(), encoder(spread)
    hide = query(of=of)._hidden(people)
    found = of.gradient_factors(BASIS.rows(people), hide)
    for (left, right), (exact_left, exact_right) in zip(
        found, exact_factors(of, BASIS.rows(people), hide), strict=True
    ):
        assert (left == exact_left).all()
        assert (right == exact_right).all()


@pytest.mark.parametrize("sign", ["all", "random"])
def test_the_widest_network_with_the_largest_weights_is_exact_and_keeps_its_bound(sign: str) -> None:
    """As wide as the wire allows: every sum in it comes as near to 2^53 as it can."""
    basis = Basis((Block("a", levels=1022), Block("b", low=-2.0, high=2.0)))
    rng = np.random.default_rng(0)
    shapes = encoder_shapes(basis, 2047, 2047)
    signs = [np.ones(shape) if sign == "all" else rng.choice([-1.0, 1.0], shape) for shape in shapes]
    less = [np.where(rng.random(shape) < 0.5, 2.0**-16, 0.0) for shape in shapes]
    first, second, third, fourth = (s * (WEIGHT_LIMIT - small) for s, small in zip(signs, less, strict=True))
    of = Encoder(basis, np.full(1024, 8.0), (first, second, third, fourth))
    rows = np.array([[500.0, -2.0, row_hashes([3])[0]]])
    people = CustomerTable(("a", "b", HASH), rows, np.arange(1))
    question = EncoderGradientQuery(of, 0, 255, 2.0**-10)
    hide = question._hidden(people)
    assert hide.all()
    found = of.gradient_factors(basis.rows(people), hide)
    for (left, right), (exact_left, exact_right) in zip(
        found, exact_factors(of, basis.rows(people), hide), strict=True
    ):
        assert (left == exact_left).all()
        assert (right == exact_right).all()
    for square in squared_norms(question, people):
        assert 0.9 < square / question.bound_squared <= 1, "what 2,047 truncations towards zero leave of it"


def squared_norms(question: EncoderGradientQuery, people: CustomerTable) -> list[int]:
    """Of everybody's words, in unbounded integers."""
    pairs = question.contribute(people).outers
    whole = [[(row.astype(object) ** 2).sum(axis=1) for row in pair] for pair in pairs]
    return [int(total) for total in sum(left * right for left, right in whole)]


@pytest.mark.parametrize("spread", [0.35, 3.0, 1e9])
@pytest.mark.parametrize("clip", [2.0**-10, 0.3, 2.0**10])
def test_nobody_passes_the_sensitivity_and_the_clipped_reach_it(spread: float, clip: float) -> None:
    people, question = crowd(), query(clip, of=encoder(spread))
    norms = np.linalg.norm(gradients_of(question, people), axis=1)
    for square, norm in zip(squared_norms(question, people), norms, strict=True):
        assert square <= GRADIENT_SCALE**2
        # truncation takes up to a step of every error, times its input: 2^13 * 5 * sqrt(13) of 2^30
        assert square**0.5 / GRADIENT_SCALE == pytest.approx(min(1.0, norm / clip), abs=1.4e-4)


# --- rows alone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.35, 3.0])
def test_an_embedding_does_not_depend_on_batch_or_company(spread: float) -> None:
    people, of = crowd(700), encoder(spread)
    rows = BASIS.rows(people)
    whole = of.embed(rows)
    assert (np.vstack([of.embed(rows[i : i + 1]) for i in range(700)]) == whole).all()
    assert (of.embed(rows[::-1])[::-1] == whole).all()
    assert (of.embed(np.asfortranarray(rows)) == whole).all()
    assert (np.vstack([of.embed(part) for part in np.array_split(rows, 13)]) == whole).all()
    assert (whole == np.rint(whole)).all()
    assert np.abs(whole).max() <= 2**13
    assert of.embed(rows[:0]).shape == (0, WIDTH)


def test_an_embedding_is_that_of_the_network_with_nothing_hidden() -> None:
    people = crowd()
    rows = np.rint(BASIS.rows(people) * encoder().scales) / UNIT
    net = Net(encoder())
    with torch.no_grad():
        first, second = net.layers[0], net.layers[1]
        code = second(torch.relu(first(torch.from_numpy(np.hstack([rows, np.zeros((64, 6))])))))
    np.testing.assert_allclose(encoder().embed(BASIS.rows(people)) / UNIT, code.numpy(), atol=2.0**-10 * 3)


def test_contributions_are_the_same_alone_and_in_company() -> None:
    people, question = crowd(300), query(0.3)
    company = question.contribute(people).outers
    for person in range(0, 300, 7):
        alone = question.contribute(people.take(slice(person, person + 1))).outers
        for (left, right), (own_left, own_right) in zip(company, alone, strict=True):
            assert (left[person] == own_left[0]).all()
            assert (right[person] == own_right[0]).all()


def test_memory_is_that_of_one_block() -> None:
    peaks = []
    for n in (2_000, 20_000):
        people, question = crowd(n), query()
        tracemalloc.start()
        bounded_total(question, people)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


# --- hiding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1, 77, 255])
def test_features_are_hidden_as_often_as_stated_and_independently(share: int) -> None:
    people = crowd(20_000)
    hidden = np.stack([query(share=share, stream=stream)._hidden(people) for stream in (0, 1)])
    assert hidden.shape == (2, 20_000, 6)
    part = share / 256
    error = 5 * np.sqrt(part * (1 - part) / 20_000)
    np.testing.assert_allclose(hidden.mean(axis=1), part, atol=error)
    draws = hidden.transpose(0, 2, 1).reshape(12, -1)
    together = (draws[:, np.newaxis] & draws).mean(axis=2)[~np.eye(12, dtype=np.bool_)]
    np.testing.assert_allclose(together, part**2, atol=5 * np.sqrt(part**2 * (1 - part**2) / 20_000))


def test_many_features_draw_from_words_of_their_own() -> None:
    """More than eight features need more than one word of the stream; no word serves two rounds."""
    basis = Basis(tuple(Block(f"f{i}", low=0.0, high=1.0) for i in range(19)))
    first, second, third, fourth = (np.zeros(shape) for shape in encoder_shapes(basis, 2, 1))
    of = Encoder(basis, np.ones(38), (first, second, third, fourth))
    rows = np.column_stack([np.zeros((4000, 19)), row_hashes(range(4000))])
    people = CustomerTable((*basis.features, HASH), rows, np.arange(4000))
    rounds = [EncoderGradientQuery(of, stream, 128, 1.0)._hidden(people) for stream in range(3)]
    columns = np.hstack(rounds).T
    assert columns.shape == (57, 4000)
    agree = (columns[:, np.newaxis] == columns).mean(axis=2)[~np.eye(57, dtype=np.bool_)]
    assert np.abs(agree - 0.5).max() < 0.05


def test_what_a_person_hides_follows_from_hash_and_round_alone() -> None:
    people = crowd(50)
    moved = CustomerTable(people.columns, people.values * ([0.0] * 6 + [1.0]), people.keys)
    assert (query()._hidden(people) == query()._hidden(moved)).all()
    assert (query()._hidden(people) != query(stream=4)._hidden(people)).any()
    assert (query()._hidden(people.take(slice(9, 10))) == query()._hidden(people)[9]).all()


def test_who_hides_nothing_adds_nothing() -> None:
    people = crowd(200)
    hides = query(share=40)._hidden(people).any(axis=1)
    assert 0 < (~hides).sum() < 200
    question = query(share=40)
    assert (bounded_total(question, people.take(~hides)) == 0).all()
    assert (bounded_total(question, people) == bounded_total(question, people.take(hides))).all()
    squares = np.array(squared_norms(question, people), dtype=np.float64)
    assert (squares[~hides] == 0).all()
    assert (squares[hides] > 0).all()


def test_the_loss_falls_along_the_answers() -> None:
    """Twelve steps along exact sums, on people and hiding that no step saw."""
    people, other, of = crowd(2000), crowd(2000, seed=1), encoder()
    found = []
    for step in range(12):
        question = query(1.0, stream=step, of=of)
        net = Net(of)
        with torch.no_grad():
            found.append(float(losses(net, training_data(query(stream=99, of=of), other)).mean()))
        moved = question.gradient(bounded_total(question, people).astype(np.float64)) / len(people)
        parts, start = [], 0
        for matrix in of.weights:
            step_of = moved[start : start + matrix.size].reshape(matrix.shape)
            parts.append(on_weight_grid(matrix - 0.3 * step_of))
            start += matrix.size
        of = Encoder(BASIS, of.scales, (parts[0], parts[1], parts[2], parts[3]))
    assert all(later < earlier for earlier, later in pairwise(found))
    assert found[-1] < 0.8 * found[0]


# --- shapes and wire -------------------------------------------------------------------------------------------------


def test_weights_off_their_grid_or_of_other_shapes_are_a_defect() -> None:
    of = encoder()
    first, second, third, fourth = of.weights
    for weights in (
        (first, second, third),
        (first, second, third, fourth[:-1]),
        (first, second, third.T, fourth),
        (first + 2.0**-17, second, third, fourth),
        (first, second, third, np.full_like(fourth, 33.0)),
        (first, second, third, np.full_like(fourth, np.nan)),
        (first.ravel(), second, third, fourth),
    ):
        with pytest.raises(Defect):
            Encoder(BASIS, of.scales, weights)  # type: ignore[arg-type] # on purpose
    for scales in (np.ones(3), np.full(BASIS.width, 8.5), np.zeros(BASIS.width), np.full(BASIS.width, 1.001)):
        with pytest.raises(Defect):
            Encoder(BASIS, scales, of.weights)


def test_an_encoder_travels_without_change() -> None:
    arrays = query().spec().arrays
    again = encoder_from_arrays(list(BASIS.features), arrays)
    assert (again.embed(BASIS.rows(crowd())) == encoder().embed(BASIS.rows(crowd()))).all()
    assert again.size == query().width


@pytest.mark.parametrize(
    ("scalars", "arrays"),
    [
        ({"stream": -1}, {}),
        ({"stream": 2**20}, {}),
        ({"stream": True}, {}),
        ({"stream": 1.0}, {}),
        ({"hide_share": 0}, {}),
        ({"hide_share": 256}, {}),
        ({"hide_share": "90"}, {}),
        ({"features": ["a"]}, {}),
        ({}, {"clip": np.array([0.0])}),
        ({}, {"clip": np.array([2000.0])}),
        ({}, {"clip": np.array([np.nan])}),
        ({}, {"clip": np.ones((1, 1))}),
        ({}, {"scales": np.full(13, 1e308)}),
        ({}, {"weights0": np.zeros((20, 2048)), "weights1": np.zeros((2049, 5)), "weights2": np.zeros((6, 2048))}),
        ({}, {"weights0": np.zeros((20, 0)), "weights1": np.zeros((1, 5)), "weights2": np.zeros((6, 0))}),
        ({}, {"weights1": np.zeros((13, 0)), "weights2": np.zeros((1, 12))}),
        ({}, {"weights3": np.full((13, 13), 1e308)}),
    ],
    ids=range(17),
)
def test_a_malformed_question_is_refused(scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    spec = query().spec()
    EncoderGradientQuery.from_spec(spec)
    widths = {"weights3": np.zeros((arrays["weights2"].shape[1] + 1, BASIS.width))} if "weights2" in arrays else {}
    changed = type(spec)(spec.kind, {**spec.scalars, **scalars}, {**spec.arrays, **widths, **arrays})
    with pytest.raises(RefusedError):
        EncoderGradientQuery.from_spec(changed)
