"""The empirical privacy audit of the product's releases: which claims are attacked, and the audit as a whole.

Everything is asked of a synthetic crowd by the product's own queries: tree histograms, the seven rounds of a private
clustering as its own programme asks them, gradient steps of the linear head, and training steps of the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cohortium.models.assignment import squared_distances
from cohortium.models.basis import Basis, Block
from cohortium.models.clustering import Clustering, cluster, clustering_phases
from cohortium.models.encoder import Encoder, EncoderGradientQuery, encoder_shapes
from cohortium.models.encoder import on_weight_grid as on_encoder_grid
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.marginals import Axis, MarginalsQuery, estimate_marginals
from cohortium.models.programme import NoisySum, Programme
from cohortium.models.row_moments import Frame
from cohortium.models.rows import HASH, SEED, row_hashes
from cohortium.models.scaler import Scaler, fit_scaler
from cohortium.models.seed_queries import SeedGradientQuery
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.audit.many_runs import Asked, AuditedRelease, ClaimFinding, audit_release, with_worst_case
from cohortium.privacy.audit.mechanism import DoorArithmetic, Mechanism
from cohortium.privacy.audit.membership import MembershipFinding, membership_inference
from cohortium.privacy.audit.noise import NoiseFinding, examine_noise
from cohortium.privacy.discrete_gaussian import sample_discrete_gaussian
from cohortium.privacy.query import SCALE
from cohortium.privacy.randomness import OsBitSource
from cohortium.privacy.sharing import NoiseShare
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import PlanError

__all__ = [
    "EPSILONS",
    "FALSE_ALARM",
    "FULL_RUNS",
    "QUICK_RUNS",
    "AuditOrder",
    "AuditReport",
    "audited_releases",
    "claim_line",
    "run_privacy_audit",
]

DELTA = 1e-6
FULL_RUNS, QUICK_RUNS = 20_000, 2_000
EPSILONS = (1.0, 2.0, 4.0)
FALSE_ALARM = 1e-6
"""Probability with which an audit of a sound build flags anything at all, shared out evenly among all its tests."""

_LEAST_RUNS, _MOST_RUNS = 200, 10_000_000
_NOISE_DRAWS = 100_000
_FEATURES = ("a", "b", "c")
_COLUMNS = (*_FEATURES, HASH, SEED)
_LOW, _HIGH = 0.0, 100.0
_MEMBERS, _OTHERS = 2_000, 20_000
_CLUSTERS = 4
_HEAD_ROUNDS = 3
_HEAD_CLIP, _HEAD_STEP, _HEAD_INTERCEPT = 0.5, 4.0, -6.0  # where seeds are rare, each is a surprise
_ENCODER_ROUNDS = 2
_HIDDEN, _WIDTH = 4, 2
_ENCODER_CLIP, _ENCODER_STEP, _HIDE_SHARE = 2.0, 0.3, 128
_SHARED = NoiseShare(contributions=3, colluders=1)


@dataclass(frozen=True)
class AuditOrder:
    """What to audit.

    Args:
        runs: releases of each of two neighbouring tables, for every claim.
        epsilons: plans' budgets, each above 0 and at most 16, distinct.

    Raises:
        PlanError: out of range.
    """

    runs: int = FULL_RUNS
    epsilons: tuple[float, ...] = EPSILONS

    def __post_init__(self) -> None:
        if not _LEAST_RUNS <= self.runs <= _MOST_RUNS:
            raise PlanError(f"runs must be from {_LEAST_RUNS} to {_MOST_RUNS}", fix=f"leave it out for {FULL_RUNS}")
        if not self.epsilons or len(set(self.epsilons)) < len(self.epsilons):
            raise PlanError("an epsilon is there twice, or none at all", fix="name each epsilon once")
        if not all(0.1 <= epsilon <= 16 for epsilon in self.epsilons):
            raise PlanError("an audited epsilon must be from 0.1 to 16", fix="state epsilons such as 1, 2 and 4")


class AuditReport(BaseModel):
    """What the audit found; docs/privacy-audit.md explains every field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["cohortium.privacy-audit/1"] = "cohortium.privacy-audit/1"
    runs: int
    false_alarm: float
    claims: tuple[ClaimFinding, ...]
    noise: tuple[NoiseFinding, ...]
    membership: tuple[MembershipFinding, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """What is refuted, in words; nothing when all is well."""
        claims = (
            f"{c.release} at epsilon {c.plan_epsilon:g}: leaks more than it claims" for c in self.claims if c.flagged
        )
        noise = (f"noise of sigma {n.sigma}: not what it should be" for n in self.noise if n.flagged)
        return (*claims, *noise)


def run_privacy_audit(
    order: AuditOrder, say: Callable[[str], None], mechanisms: Callable[[NoiseShare], Mechanism] = DoorArithmetic
) -> AuditReport:
    """Attack every release at every epsilon, test the noise at every scale that they used, and try to infer members.

    Formal guarantee: a build whose claims are all true is flagged with probability at most `FALSE_ALARM`.

    Args:
        order: what to audit.
        say: is told about progress.
        mechanisms: makes what is attacked, given whose noise protects it.
    """
    alone, shared = mechanisms(NoiseShare()), mechanisms(_SHARED)
    prepared: list[tuple[AuditedRelease, Mechanism]] = []
    membership: list[MembershipFinding] = []
    for epsilon in order.epsilons:
        say(f"epsilon {epsilon:g}: preparing the questions and their worst cases")
        releases, inferred = audited_releases(epsilon, alone)
        prepared += [(release, alone) for release in releases]
        prepared.append((replace(releases[0], name=f"{releases[0].name}, shared noise"), shared))
        membership += inferred
    full = {asked.sigma for release, _ in prepared for asked in release.questions}
    parts = {_SHARED.sigma_of(asked.sigma) for release, by in prepared if by is shared for asked in release.questions}
    sigmas = sorted(full | parts)
    alarm = FALSE_ALARM / (len(prepared) + len(sigmas))
    bits = OsBitSource()
    noise = [examine_noise(sample_discrete_gaussian(sigma, _NOISE_DRAWS, bits), sigma, alarm) for sigma in sigmas]
    say(f"noise: {len(sigmas)} scales tested with {_NOISE_DRAWS:,} draws each")
    claims = []
    for release, mechanism in prepared:
        finding = audit_release(release, mechanism, order.runs, alarm)
        claims.append(finding)
        say(claim_line(finding))
    return AuditReport(
        runs=order.runs, false_alarm=FALSE_ALARM, claims=tuple(claims), noise=tuple(noise), membership=tuple(membership)
    )


def audited_releases(
    epsilon: float, mechanism: Mechanism
) -> tuple[tuple[AuditedRelease, ...], tuple[MembershipFinding, ...]]:
    """Histogram, clustering, head and encoder, each for the whole budget, with the canary worst for this mechanism.

    Also what a membership inference on one clustering and one head made of these answers finds.
    """
    crowd, others = _crowd(_MEMBERS, 1), _crowd(_OTHERS, 2)
    clustering, by_distance = _clustering(epsilon, crowd, others, mechanism)
    head, by_loss = _head(epsilon, crowd, others, mechanism)
    first, last = _histogram(epsilon, crowd, mechanism), _encoder(epsilon, crowd, mechanism)
    return (first, clustering, head, last), (by_distance, by_loss)


def claim_line(finding: ClaimFinding) -> str:
    """One line for people about one claim."""
    lower = "above 200" if finding.epsilon_lower is None else f"{finding.epsilon_lower:.2f}"
    verdict = "REFUTED, it leaks more" if finding.flagged else "not refuted"
    return (
        f"{finding.release}: epsilon claimed {finding.claimed_epsilon:.2f}, measured at least {lower} "
        f"({_percent(finding.ratio)} of it): {verdict}"
    )


def _percent(ratio: float | None) -> str:
    return "far above 100%" if ratio is None else f"{ratio:.0%}"


# --- a crowd, and whom the attacker may add to it ---------------------------------------------------------------------


def _crowd(people: int, seed: int) -> CustomerTable:
    """Four groups in the public box; whoever scores high on a feature is more often a seed. One law for any `seed`."""
    rng = np.random.default_rng(seed)
    middles = np.array([[30.0, 30, 40], [70, 35, 60], [45, 70, 30], [60, 60, 70]])
    points = middles[rng.integers(0, len(middles), people)] + rng.normal(0.0, 6.0, (people, len(_FEATURES)))
    seeds = rng.random(people) < 1 / (1 + np.exp((60.0 - points[:, 0]) / 8))
    rows = np.column_stack([np.clip(points, _LOW, _HIGH), row_hashes(range(people)), seeds])
    return CustomerTable(_COLUMNS, rows, np.arange(people))


def _candidates() -> CustomerTable:
    """People an attacker may add: on the edge of the public box, far beyond it, anywhere inside; seeds and others."""
    inside = np.random.default_rng(3).uniform(_LOW, _HIGH, (32, len(_FEATURES)))
    edge = np.array(list(product((_LOW, 0.5 * (_LOW + _HIGH), _HIGH), repeat=len(_FEATURES))))
    beyond = np.array(list(product((-1e9, 1e9), repeat=len(_FEATURES))))
    points = np.vstack([edge, beyond, inside])
    twice = np.vstack([points, points])
    rows = np.column_stack([twice, row_hashes(range(len(twice))), np.repeat([0.0, 1.0], len(points))])
    return CustomerTable(_COLUMNS, rows, np.arange(len(rows)))


def _axes() -> tuple[Axis, ...]:
    return tuple(Axis(name, _LOW, _HIGH) for name in _FEATURES)


def _basis() -> Basis:
    """By public bounds: nothing about it depends on data."""
    return Basis(tuple(Block(name, low=_LOW, high=_HIGH) for name in _FEATURES))


def _claim(
    name: str, epsilon: float, questions: Sequence[Asked], crowd: CustomerTable, mechanism: Mechanism
) -> AuditedRelease:
    canary = with_worst_case(questions, mechanism, _candidates())
    return AuditedRelease(name, epsilon, DELTA, tuple(questions), crowd, canary)


# --- the releases -----------------------------------------------------------------------------------------------------


def _histogram(epsilon: float, crowd: CustomerTable, mechanism: Mechanism) -> AuditedRelease:
    """The marginals: one question for the whole budget."""
    asked = Asked(MarginalsQuery(_axes()), budget_for(epsilon, DELTA).mu2)
    return _claim("histogram", epsilon, [asked], crowd, mechanism)


def _clustering(
    epsilon: float, crowd: CustomerTable, others: CustomerTable, mechanism: Mechanism
) -> tuple[AuditedRelease, MembershipFinding]:
    """The seven rounds of a clustering, and membership inference by the distance to its centres.

    The questions are those of one run of the product's programme, which are then held fixed: the budget composes over
    questions however they are chosen, so a fixed sequence may cost as much as any.
    """
    budget = budget_for(epsilon, DELTA).mu2
    histogram = MarginalsQuery(_axes())
    released = _answer(Asked(histogram, budget), crowd, mechanism)
    marginals = estimate_marginals(histogram, released.values, released.std)
    scaler = fit_scaler(marginals)
    whole = Fraction(1)
    allotments = {p.name: math.floor(p.share * budget / p.rounds) for p in clustering_phases(whole)}
    programme = cluster(marginals, scaler, (_CLUSTERS, _CLUSTERS), whole, np.random.default_rng(0))
    questions, learnt = _driven(programme, allotments, crowd, mechanism)
    scores = [_nearness(table, scaler, learnt) for table in (crowd, others)]
    attack = f"distance to the nearest centre, epsilon {epsilon:g}"
    return _claim("clustering", epsilon, questions, crowd, mechanism), membership_inference(attack, *scores)


def _head(
    epsilon: float, crowd: CustomerTable, others: CustomerTable, mechanism: Mechanism
) -> tuple[AuditedRelease, MembershipFinding]:
    """Gradient steps of the linear head, and membership inference by its loss."""
    allotment = budget_for(epsilon, DELTA).mu2 // _HEAD_ROUNDS
    rows = Rows(_basis(), np.zeros(_basis().width), math.sqrt(len(_FEATURES)))
    frame = Frame(rows, np.eye(rows.width), _HEAD_CLIP)
    weights, questions = np.zeros(rows.width), []
    for _ in range(_HEAD_ROUNDS):
        query = SeedGradientQuery(frame, weights, _HEAD_INTERCEPT)
        questions.append(Asked(query, allotment))
        gradient = query.read(_answer(questions[-1], crowd, mechanism).values)
        weights = on_weight_grid(np.clip(weights + _HEAD_STEP * gradient / _MEMBERS, -1.0, 1.0))
    scores = [-_loss(table, rows, weights) for table in (crowd, others)]
    attack = f"loss of the head, epsilon {epsilon:g}"
    return _claim("head", epsilon, questions, crowd, mechanism), membership_inference(attack, *scores)


def _encoder(epsilon: float, crowd: CustomerTable, mechanism: Mechanism) -> AuditedRelease:
    """Training steps of the encoder: clipped gradients of what rows hide from themselves."""
    allotment = budget_for(epsilon, DELTA).mu2 // _ENCODER_ROUNDS
    rng = np.random.default_rng(4)
    encoder = _with_weights(rng.normal(0.0, 0.5, sum(rows * columns for rows, columns in _shapes())))
    questions = []
    for stream in range(_ENCODER_ROUNDS):
        query = EncoderGradientQuery(encoder, stream, _HIDE_SHARE, _ENCODER_CLIP)
        questions.append(Asked(query, allotment))
        gradient = query.gradient(_answer(questions[-1], crowd, mechanism).values * SCALE)
        flat = np.concatenate([matrix.ravel() for matrix in encoder.weights])
        encoder = _with_weights(flat - _ENCODER_STEP * gradient / _MEMBERS)
    return _claim("encoder", epsilon, questions, crowd, mechanism)


def _shapes() -> tuple[tuple[int, int], ...]:
    return encoder_shapes(_basis(), _HIDDEN, _WIDTH)


def _with_weights(flat: NDArray[np.float64]) -> Encoder:
    ends = np.cumsum([rows * columns for rows, columns in _shapes()])[:-1]
    parts = [part.reshape(shape) for part, shape in zip(np.split(flat, ends), _shapes(), strict=True)]
    first, second, third, fourth = (on_encoder_grid(part) for part in parts)
    return Encoder(_basis(), np.ones(_basis().width), (first, second, third, fourth))


_Learnt = TypeVar("_Learnt")


def _driven(
    programme: Programme[_Learnt], allotments: dict[str, int], crowd: CustomerTable, mechanism: Mechanism
) -> tuple[list[Asked], _Learnt]:
    """Answer a programme to its end; its questions, and what it learnt."""
    questions: list[Asked] = []
    ask = next(programme)
    while True:
        questions.append(Asked(ask.query, allotments[ask.phase]))
        try:
            ask = programme.send(_answer(questions[-1], crowd, mechanism))
        except StopIteration as done:
            return questions, done.value


def _answer(asked: Asked, people: CustomerTable, mechanism: Mechanism) -> NoisySum:
    """One release, decoded."""
    vector = mechanism.releaser(asked.query, people, asked.allotment)()
    return NoisySum(vector / SCALE, asked.sigma / SCALE, institutions=1)


def _nearness(people: CustomerTable, scaler: Scaler, learnt: Clustering) -> NDArray[np.float64]:
    points = scaler.transform(people.select(_FEATURES))
    return -np.asarray(squared_distances(points, learnt.centres).min(axis=1))


def _loss(people: CustomerTable, rows: Rows, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic loss of every person."""
    logits = rows.of(people) @ weights + _HEAD_INTERCEPT
    side = 1.0 - 2.0 * people.select((SEED,))[:, 0]
    return np.asarray(np.logaddexp(0.0, side * logits))
