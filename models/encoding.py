"""The study that trains an encoder: marginals, moments of the basis, the encoder's rounds, moments of its embedding.

What it releases serves every later campaign. The first weights are the principal axes of the released moments, written
in pairs of rectifiers, so that training starts from the best linear code; the rounds are Adam (Kingma, Ba, ICLR 2015)
on noised sums of clipped gradients, and the mean of the second half of the iterates is what is kept (Polyak, Juditsky,
1992). Nothing is chosen by looking at data: rounds, rates and norms stand in the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cohortium.models.basis import UNIT, Basis, basis_axes, fit_basis
from cohortium.models.encoder import (
    GRADIENT_SCALE,
    Encoder,
    EncoderGradientQuery,
    encoder_shapes,
    on_scale_grid,
    on_weight_grid,
)
from cohortium.models.features import MAX_CENTRE, MAX_RADIUS, Rows, on_row_grid
from cohortium.models.marginals import MarginalsQuery, estimate_marginals
from cohortium.models.programme import Ask, Phase, Programme
from cohortium.models.row_moments import (
    FrameSumQuery,
    RowMoments,
    RowMomentsQuery,
    make_frame,
    read_row_moments,
)
from cohortium.models.seed_head import FrameFacts
from cohortium.privacy.query import SCALE
from cohortium.study.contract import Contract
from cohortium.study.lookalike_plan import EncoderPlan

__all__ = ["EncodedStudy", "encoder_phases", "encoder_programme", "encoder_widest"]

_RADIUS = 0.9  # of the root of the covariance's trace
_LEAST_RADIUS = 0.25  # below it the noise of moments could be too small for its grid, half-way through a plan
_LEAST_VARIANCE = 2.0**-9
_BETAS = (0.9, 0.99)
_WARM_UP = 3
_LAST_RATE = 0.1
_KEPT = 0.5
_DRAWS = 4_000


@dataclass(frozen=True)
class EncodedStudy:
    """What the study learnt.

    Args:
        encoder: the encoder.
        features, embedding: the frames of the basis and of the embedding, with what was released about them.
    """

    encoder: Encoder
    features: FrameFacts
    embedding: FrameFacts


def encoder_phases(plan: EncoderPlan) -> tuple[Phase, ...]:
    """Everything such a plan asks, with its share of the plan's mu^2. The shares add up to 1."""
    shares = plan.shares
    result = [
        Phase("marginals", MarginalsQuery.kind, Fraction(shares.marginals, 100)),
        Phase("moments", RowMomentsQuery.kind, Fraction(shares.moments, 100), rounds=2),
        Phase("centres", FrameSumQuery.kind, Fraction(shares.centres, 100), rounds=2),
    ]
    if shares.training:
        training = Phase("training", EncoderGradientQuery.kind, Fraction(shares.training, 100), plan.encoder.rounds)
        result.insert(2, training)
    return tuple(result)


def encoder_widest(plan: EncoderPlan, contract: Contract) -> list[Ask]:
    """A question as wide as the widest there can be, for every question of the plan."""
    axes = basis_axes(plan.features(contract))
    marginals = MarginalsQuery(axes)
    basis, centre, trace = fit_basis(
        plan.features(contract),
        {m.axis.name: m for m in estimate_marginals(marginals, np.zeros(marginals.width), 1.0)},
    )
    settings = plan.encoder
    shapes = encoder_shapes(basis, settings.hidden, settings.width)
    weights = tuple(np.zeros(shape) for shape in shapes)
    encoder = Encoder(basis, np.ones(basis.width), (weights[0], weights[1], weights[2], weights[3]))
    rows = _rows(basis, centre, trace)
    code = Rows(basis, np.zeros(settings.width), 1.0, encoder)
    asks = [Ask("marginals", marginals)]
    if plan.shares.training:
        step = EncoderGradientQuery(encoder, 0, 1, settings.clip)
        asks.extend([Ask("training", step)] * settings.rounds)
    for kind in (rows, code):
        moments = RowMoments(1.0, np.zeros(kind.width), np.zeros((kind.width, kind.width)), 0.0)
        asks.append(Ask("moments", RowMomentsQuery(kind)))
        asks.append(Ask("centres", FrameSumQuery(make_frame(kind, moments)[0])))
    return asks


def encoder_programme(plan: EncoderPlan, contract: Contract) -> Programme[EncodedStudy]:
    """Ask what the plan foresees. The questions are a function of plan, contract and earlier answers alone."""
    features = plan.features(contract)
    query = MarginalsQuery(basis_axes(features))
    answer = yield Ask("marginals", query)
    marginals = {m.axis.name: m for m in estimate_marginals(query, answer.values, answer.std)}
    basis, centre, trace = fit_basis(features, marginals)
    rows = _rows(basis, centre, trace)
    moments = yield from _moments(rows)
    encoder = _first_encoder(plan, rows, moments)
    if plan.shares.training:
        encoder = yield from _trained(plan, encoder, moments.people)
    code = _code_rows(plan, encoder, rows, moments)
    code_moments = yield from _moments(code)
    own = yield from _facts(rows, moments)
    embedding = yield from _facts(code, code_moments)
    return EncodedStudy(encoder, own, embedding)


def _rows(basis: Basis, centre: NDArray[np.float64], trace: float) -> Rows:
    return Rows(basis, on_row_grid(centre), max(_RADIUS * math.sqrt(trace), _LEAST_RADIUS))


def _moments(rows: Rows) -> Programme[RowMoments]:
    query = RowMomentsQuery(rows)
    answer = yield Ask("moments", query)
    return read_row_moments(query, answer.values, answer.std)


def _facts(rows: Rows, moments: RowMoments) -> Programme[FrameFacts]:
    frame, variances, factors = make_frame(rows, moments)
    answer = yield Ask("centres", FrameSumQuery(frame))
    unit = frame.radius / moments.people
    return FrameFacts(
        frame=frame,
        people=moments.people,
        variances=variances,
        factors=factors,
        entry_std=moments.entry_std,
        row_mean=moments.mean,
        mean=answer.values * unit,
        mean_std=answer.std * unit,
    )


def _first_encoder(plan: EncoderPlan, rows: Rows, moments: RowMoments) -> Encoder:
    """The principal axes of the blocks, each brought to a leading variance of 1 (multiple factor analysis)."""
    settings, basis = plan.encoder, rows.basis
    scales = _block_scales(basis, moments)
    covariance = moments.covariance * np.outer(scales, scales)
    middle = (rows.centre + moments.mean) * scales
    variances, vectors = np.linalg.eigh(covariance)
    pairs = min(settings.width, settings.hidden // 2, basis.width)
    order = np.argsort(-variances)[:pairs]
    variances, vectors = np.maximum(variances[order], _LEAST_VARIANCE), _signed(vectors[:, order])
    down, up = vectors / np.sqrt(variances), (vectors * np.sqrt(variances)).T
    rng = np.random.default_rng(settings.seed)
    first, second, third, fourth = (np.zeros(shape) for shape in encoder_shapes(basis, settings.hidden, settings.width))
    spare = settings.hidden - 2 * pairs
    inner = np.hstack([down, -down, down @ rng.normal(0.0, pairs**-0.5, (pairs, spare))])
    first[: basis.width] = inner
    for index in range(len(basis.blocks)):  # what is hidden is put back at its mean
        own = basis.feature_of == index
        first[basis.width + index] = middle[own] @ inner[own]
    first[-1] = -middle @ inner
    unit = np.eye(pairs, settings.width)
    second[:pairs], second[pairs : 2 * pairs] = unit, -unit
    second[2 * pairs : -1] = rng.normal(0.0, 0.05, (spare, settings.width))
    third[:pairs, :pairs], third[:pairs, pairs : 2 * pairs] = np.eye(pairs), -np.eye(pairs)
    third[:-1, 2 * pairs :] = rng.normal(0.0, settings.width**-0.5, (settings.width, spare))
    fourth[:pairs], fourth[pairs : 2 * pairs], fourth[-1] = up, -up, middle
    return Encoder(basis, scales, tuple(on_weight_grid(m) for m in (first, second, third, fourth)))  # type: ignore[arg-type] # four


def _signed(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eigenvectors whose largest entry is positive."""
    largest = np.argmax(np.abs(vectors), axis=0)
    return np.asarray(vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])]))


def _block_scales(basis: Basis, moments: RowMoments) -> NDArray[np.float64]:
    """For every column one over the root of its block's leading variance, with room for its noise."""
    scales = np.ones(basis.width)
    for index in range(len(basis.blocks)):
        own = np.flatnonzero(basis.feature_of == index)
        leading = float(np.linalg.eigvalsh(moments.covariance[np.ix_(own, own)])[-1])
        scales[own] = (max(leading, 0.0) + 2.0 * moments.entry_std * math.sqrt(len(own)) + 0.02) ** -0.5
    return on_scale_grid(scales)


def _trained(plan: EncoderPlan, encoder: Encoder, people: float) -> Programme[Encoder]:
    """The plan's rounds of Adam; the mean of the second half of the iterates."""
    settings = plan.encoder
    weights = np.concatenate([matrix.ravel() for matrix in encoder.weights])
    first, second, kept = np.zeros_like(weights), np.zeros_like(weights), np.zeros_like(weights)
    averaged = 0
    hide_share = max(round(settings.hide * 256 / 100), 1)
    for step in range(settings.rounds):
        query = EncoderGradientQuery(_with(encoder, weights), step, hide_share, settings.clip)
        answer = yield Ask("training", query)
        gradient = answer.values * (SCALE / GRADIENT_SCALE) / people  # in units of the clipping norm
        first = _BETAS[0] * first + (1.0 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1.0 - _BETAS[1]) * gradient**2
        mean, square = first / (1.0 - _BETAS[0] ** (step + 1)), second / (1.0 - _BETAS[1] ** (step + 1))
        rate = settings.learning_rate * min((step + 1) / _WARM_UP, 1.0)
        rate *= 1.0 - (1.0 - _LAST_RATE) * step / settings.rounds
        weights = weights - rate * mean / (np.sqrt(square) + 1e-8)
        if step + 1 > settings.rounds * (1.0 - _KEPT):
            averaged += 1
            kept += (weights - kept) / averaged
    return _with(encoder, kept)


def _with(encoder: Encoder, weights: NDArray[np.float64]) -> Encoder:
    """The encoder with other weights, flat, brought to their grid."""
    parts: list[NDArray[np.float64]] = []
    start = 0
    for matrix in encoder.weights:
        parts.append(on_weight_grid(weights[start : start + matrix.size].reshape(matrix.shape)))
        start += matrix.size
    return Encoder(encoder.basis, encoder.scales, (parts[0], parts[1], parts[2], parts[3]))


def _code_rows(plan: EncoderPlan, encoder: Encoder, rows: Rows, moments: RowMoments) -> Rows:
    """Centre and radius of the embedding without asking anybody: of normal rows with the released moments."""
    variances, vectors = np.linalg.eigh(moments.covariance)
    rng = np.random.default_rng(plan.encoder.seed)
    drawn = rng.normal(size=(_DRAWS, len(variances))) * np.sqrt(np.maximum(variances, 0.0))
    made = (rows.centre + moments.mean + drawn @ vectors.T) * UNIT
    code = encoder.embed(np.rint(made)) / UNIT
    centre = np.clip(code.mean(axis=0), -MAX_CENTRE, MAX_CENTRE)
    spread = math.sqrt(float(((code - centre) ** 2).sum(axis=1).mean()))
    return Rows(encoder.basis, on_row_grid(centre), min(max(_RADIUS * spread, _LEAST_RADIUS), MAX_RADIUS), encoder)
