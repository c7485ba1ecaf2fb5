"""The study of a campaign: rankers learnt from the seed, the better one, its reach-dilution curve, its audience."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cohortium.models.audience_profile import AudienceProfileQuery, read_profile
from cohortium.models.basis import DEGREE, Basis, Block
from cohortium.models.contest import ContestQuery, choose_ranker, percentile_noise, percentiles, read_contest
from cohortium.models.encoder import Encoder, encoder_shapes
from cohortium.models.encoding import EncodedStudy
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.levels import reach_curve
from cohortium.models.programme import Ask, Phase, Programme
from cohortium.models.ranker import Ranker
from cohortium.models.reach import ScoreCurveQuery, read_score_counts, refined_edges
from cohortium.models.row_moments import Frame
from cohortium.models.scorebins import MAX_BINS, ScoreBins, standard_edges
from cohortium.models.seed_head import (
    FrameFacts,
    HeadState,
    first_head,
    intercept_and_curvature,
    next_head,
    row_weights,
)
from cohortium.models.seed_queries import SEED_COUNT, SeedGradientQuery, SeedSumQuery
from cohortium.models.validation import Validation
from cohortium.study.contract import Contract
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.model import AudienceShare
from cohortium.study.reach import RankerChoice, RankerQuality, ReachCurve

__all__ = ["CampaignResult", "lookalike_phases", "lookalike_programme", "lookalike_widest"]

_FIRST = Fraction(2, 5)  # of a ranker's share, for the seeds' sum, where steps follow it
_SKETCH = Fraction(3, 8)  # of the contest's share, for the coarse counts it stands on
_EVERY = 4  # of the edges are in the sketch
_PROFILED = "balanced"


@dataclass(frozen=True)
class CampaignResult:
    """What a campaign learnt.

    Args:
        ranker: the one that won.
        seeds: noisy number of seeds.
        choice, quality, curve: see there.
        level: of which level the profile is.
        profile: see `AudienceShare`; may be empty.
    """

    ranker: Ranker
    seeds: float
    choice: RankerChoice
    quality: RankerQuality
    curve: ReachCurve
    level: str | None
    profile: tuple[AudienceShare, ...]


def _rankers(plan: LookalikePlan) -> tuple[tuple[str, int], ...]:
    """Names and shares of the rankers that learn; the first is kept when noise hides which is better."""
    both = (("features", plan.shares.features), ("embedding", plan.shares.embedding))
    return tuple((name, share) for name, share in both if share)


def lookalike_phases(plan: LookalikePlan) -> tuple[Phase, ...]:
    """Everything such a plan asks, with its share of the plan's mu^2. The shares add up to 1."""
    result = []
    for name, share in _rankers(plan):
        whole = Fraction(share, 100)
        steps = plan.lookalike.steps
        first = whole * _FIRST if steps else whole
        result.append(Phase(f"{name}-seeds", SeedSumQuery.kind, first))
        if steps:
            result.append(Phase(f"{name}-steps", SeedGradientQuery.kind, whole - first, rounds=steps))
    shares = plan.shares
    if shares.contest:
        whole = Fraction(shares.contest, 100)
        result.append(Phase("sketch", ScoreCurveQuery.kind, whole * _SKETCH))
        result.append(Phase("contest", ContestQuery.kind, whole * (1 - _SKETCH)))
    result.append(Phase("curve", ScoreCurveQuery.kind, Fraction(shares.curve, 100)))
    if shares.profile:
        result.append(Phase("profile", AudienceProfileQuery.kind, Fraction(shares.profile, 100)))
    return tuple(result)


def lookalike_widest(plan: LookalikePlan, contract: Contract) -> list[Ask]:
    """A question as wide as the widest there can be, for every question of the plan."""
    features = plan.features(contract)
    basis = Basis(
        tuple(
            Block(f.name, levels=f.levels) if f.is_category else Block(f.name, low=0.0, high=1.0, degree=DEGREE)
            for f in features
        )
    )
    shapes = encoder_shapes(basis, 512, 256)
    weights = tuple(np.zeros(shape) for shape in shapes)
    encoder = Encoder(basis, np.ones(basis.width), (weights[0], weights[1], weights[2], weights[3]))
    kinds = {"features": Rows(basis, np.zeros(basis.width), 1.0), "embedding": Rows(basis, np.zeros(256), 1.0, encoder)}
    asks, scales = [], []
    for name, _share in _rankers(plan):
        rows = kinds[name]
        frame = Frame(rows, np.zeros((rows.width, rows.width)), 1.0)
        asks.append(Ask(f"{name}-seeds", SeedSumQuery(frame)))
        asks.extend([Ask(f"{name}-steps", SeedGradientQuery(frame, np.zeros(rows.width), 0.0))] * plan.lookalike.steps)
        scales.append(ScoreBins(Ranker(rows, np.zeros(rows.width)), standard_edges(0.0, 1.0, MAX_BINS)))
    if plan.shares.contest:
        tables = tuple(np.zeros(scale.bins) for scale in scales)
        asks.append(Ask("sketch", ScoreCurveQuery(tuple(scales))))
        asks.append(Ask("contest", ContestQuery(tuple(scales), tables)))
    asks.append(Ask("curve", ScoreCurveQuery(tuple(scales[:1]))))
    if plan.shares.profile:
        asks.append(Ask("profile", AudienceProfileQuery(scales[0].ranker, 0.0)))
    return asks


def lookalike_programme(plan: LookalikePlan, base: EncodedStudy) -> Programme[CampaignResult]:
    """Ask what the plan foresees. The questions are a function of plan, encoder and earlier answers alone."""
    facts = {"features": base.features, "embedding": base.embedding}
    names = [name for name, _share in _rankers(plan)]
    scales, seeds = [], 0.0
    for name in names:
        state = yield from _learnt(name, facts[name], plan.lookalike.steps)
        seeds = seeds or state.seeds
        scales.append(_binned(facts[name], state))
    choice, scale = RankerChoice(ranker=names[0]), scales[0]
    if plan.shares.contest:
        choice, scale = yield from _compared(names, scales)
    counted = ScoreCurveQuery((scale,))
    answer = yield Ask("curve", counted)
    validation = Validation(*read_score_counts(counted, answer.values, answer.std)[0])
    settings = plan.lookalike
    curve = reach_curve(validation, plan.min_cell, settings.targets, settings.before)
    level: str | None = None
    profile: tuple[AudienceShare, ...] = ()
    if plan.shares.profile:
        level, profile = yield from _profiled(plan, scale.ranker, curve)
    return CampaignResult(
        ranker=scale.ranker,
        seeds=seeds,
        choice=choice,
        quality=validation.quality(choice.ranker),
        curve=curve,
        level=level,
        profile=profile,
    )


def _learnt(name: str, facts: FrameFacts, steps: int) -> Programme[HeadState]:
    """A ranker's belief after the seeds' sum and every gradient."""
    total = SeedSumQuery(facts.frame)
    answer = yield Ask(f"{name}-seeds", total)
    summed, count = total.read(answer.values)
    radius = facts.frame.radius
    state = first_head(facts, summed, count, answer.std * radius, answer.std / SEED_COUNT)
    for _step in range(steps):
        intercept, curvature = intercept_and_curvature(facts, state)
        placed = float(on_weight_grid(np.array([intercept]))[0])
        query = SeedGradientQuery(facts.frame, row_weights(facts, state.weights), placed)
        answer = yield Ask(f"{name}-steps", query)
        state = next_head(facts, state, curvature, query.read(answer.values), answer.std * radius)
    return state


def _compared(names: list[str], scales: list[ScoreBins]) -> Programme[tuple[RankerChoice, ScoreBins]]:
    """Which ranker is better: coarse counts of everybody's scores, then the seeds' percentiles in them, in pairs.

    Returns:
        the choice, and the ranker that won with bins at the quantiles of its scores.
    """
    coarse = tuple(ScoreBins(scale.ranker, scale.edges[_EVERY - 1 :: _EVERY]) for scale in scales)
    sketch = ScoreCurveQuery(coarse)
    answer = yield Ask("sketch", sketch)
    known = [rest for _seeds, rest in read_score_counts(sketch, answer.values, answer.std)]
    query = ContestQuery(coarse, tuple(percentiles(rest) for rest in known))
    answer = yield Ask("contest", query)
    contest = read_contest(query, answer.values, answer.std, [percentile_noise(rest) for rest in known])
    choice = choose_ranker(names, contest.leads)
    won = names.index(choice.ranker)
    return choice, ScoreBins(scales[won].ranker, refined_edges(known[won], MAX_BINS))


def _binned(facts: FrameFacts, state: HeadState) -> ScoreBins:
    """The ranker, with bins for scores of the mean and variance that released moments give them."""
    mean = float(state.weights @ facts.axis_mean)
    spread = math.sqrt(max(float((state.weights**2 * facts.kept).sum()), 1e-9))
    ranker = Ranker(facts.frame.rows, row_weights(facts, state.weights))
    return ScoreBins(ranker, standard_edges(mean, spread, MAX_BINS))


def _profiled(
    plan: LookalikePlan, ranker: Ranker, curve: ReachCurve
) -> Programme[tuple[str | None, tuple[AudienceShare, ...]]]:
    """The profile of the balanced level, or of the first that is not suppressed."""
    shown = [level for level in curve.levels if level.point is not None]
    chosen = next((level for level in shown if level.name == _PROFILED), shown[0] if shown else None)
    cutoff = chosen.point.cutoff if chosen is not None and chosen.point is not None else 0.0
    query = AudienceProfileQuery(ranker, cutoff)
    answer = yield Ask("profile", query)
    profile = read_profile(query, answer.values, answer.std, plan.min_cell) if chosen is not None else ()
    return (chosen.name if chosen is not None and profile else None), profile
