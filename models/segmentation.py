"""The segmentation study: marginals, segments, their profiles, and the RFM grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cohortium.models.clustering import Clustering, cluster, clustering_phases, widest_questions
from cohortium.models.marginals import Marginal, MarginalsQuery, estimate_marginals, feature_axis
from cohortium.models.personas import segment_names, threshold_rules
from cohortium.models.profiles import ProfileQuery, ProfileRange, SegmentProfile, estimate_profiles, profile_ranges
from cohortium.models.programme import Ask, Phase, Programme
from cohortium.models.rfm import RFM_NAMES, QuintileEdges, RfmGridQuery, quintile_edges
from cohortium.models.scaler import Scaler, bounds_scaler, fit_scaler
from cohortium.study.bundle import (
    AxisScale,
    KChoice,
    MeanEstimate,
    RfmCell,
    RfmResult,
    Segment,
)
from cohortium.study.contract import Contract
from cohortium.study.segment_plan import SegmentPlan

__all__ = ["StudyResult", "segmentation_phases", "segmentation_programme", "segmentation_widest"]


def segmentation_phases(plan: SegmentPlan) -> tuple[Phase, ...]:
    """Everything such a plan asks, with its share of the plan's mu^2. The shares add up to 1."""
    shares = plan.shares
    result = [Phase("marginals", MarginalsQuery.kind, Fraction(shares.marginals, 100))]
    result.extend(clustering_phases(Fraction(shares.clustering, 100)))
    if shares.profiles:
        result.append(Phase("profiles", ProfileQuery.kind, Fraction(shares.profiles, 100)))
    if shares.rfm:
        result.append(Phase("rfm", RfmGridQuery.kind, Fraction(shares.rfm, 100)))
    return tuple(result)


def segmentation_widest(plan: SegmentPlan, contract: Contract) -> list[Ask]:
    """A question as wide as the widest there can be, for every question of the plan."""
    axes = tuple(feature_axis(feature) for feature in plan.features(contract) if not feature.is_category)
    by_name = {axis.name: axis for axis in axes}
    scaler = bounds_scaler([by_name[name] for name in plan.distance_features(contract)])
    most = plan.segments.k_range[1]
    asks = [Ask("marginals", MarginalsQuery(axes)), *widest_questions(scaler, most)]
    if plan.shares.profiles:
        ranges = tuple(ProfileRange(axis.name, axis.low, axis.high) for axis in axes)
        asks.append(Ask("profiles", ProfileQuery(scaler, np.zeros((most, len(scaler.features))), ranges)))
    if plan.shares.rfm:
        by_role = plan.rfm_features(contract)
        edges = [QuintileEdges(by_role[role], (1.0, 2.0, 3.0, 4.0)) for role in ("recency", "frequency")]
        asks.append(Ask("rfm", RfmGridQuery(edges[0], edges[1])))
    return asks


@dataclass(frozen=True)
class StudyResult:
    """What the study learnt: the fields of a bundle that are not known before the run."""

    scaler: tuple[AxisScale, ...]
    segments: tuple[Segment, ...]
    customers: float
    explained: float | None
    k_choices: tuple[KChoice, ...]
    rfm: RfmResult | None


def segmentation_programme(plan: SegmentPlan, contract: Contract) -> Programme[StudyResult]:
    """Ask what the plan foresees, in the order of its phases.

    The questions are a function of plan, contract and earlier answers alone.
    """
    rng = np.random.default_rng(plan.segments.seed)
    numbers = tuple(feature for feature in plan.features(contract) if not feature.is_category)
    query = MarginalsQuery(tuple(feature_axis(feature) for feature in numbers))
    answer = yield Ask("marginals", query)
    marginals = {m.axis.name: m for m in estimate_marginals(query, answer.values, answer.std)}

    used = [marginals[name] for name in plan.distance_features(contract)]
    scaler = fit_scaler(used) if plan.segments.scale == "quantiles" else bounds_scaler([m.axis for m in used])
    share = Fraction(plan.shares.clustering, 100)
    clustering = yield from cluster(used, scaler, plan.segments.k_range, share, rng)
    centres = _large_enough(clustering, plan)

    profiles: tuple[SegmentProfile, ...] | None = None
    if plan.shares.profiles:
        profile = ProfileQuery(scaler, centres, profile_ranges(list(marginals.values())))
        answer = yield Ask("profiles", profile)
        profiles = estimate_profiles(profile, answer.values, answer.std, plan.min_cell)
    rfm = None
    if plan.shares.rfm:
        rfm = yield from _rfm(marginals, contract, plan)
    return _result(scaler, clustering, centres, profiles, rfm)


def _large_enough(clustering: Clustering, plan: SegmentPlan) -> NDArray[np.float64]:
    """The centres whose pooled noisy size reaches the minimum cell, the largest in any case.

    Customers of the others fall to their nearest remaining centre. A plan without profiles describes nobody and keeps
    all centres.
    """
    if not plan.shares.profiles:
        return clustering.centres
    kept = clustering.counts >= plan.min_cell
    kept[int(np.argmax(clustering.counts))] = True
    return clustering.centres[kept]


def _rfm(marginals: dict[str, Marginal], contract: Contract, plan: SegmentPlan) -> Programme[RfmResult]:
    """Quintile edges from the marginals, and the 25 cells as one question."""
    by_role = plan.rfm_features(contract)
    recency = quintile_edges(marginals[by_role["recency"]], is_recency=True)
    frequency = quintile_edges(marginals[by_role["frequency"]])
    edges = [recency, frequency]
    monetary = by_role.get("monetary")
    if monetary is not None:
        edges.append(quintile_edges(marginals[monetary]))
    answer = yield Ask("rfm", RfmGridQuery(recency, frequency))
    return RfmResult(
        recency=recency.feature,
        frequency=frequency.feature,
        monetary=monetary,
        edges={edge.feature: edge.edges for edge in edges},
        bands={edge.feature: edge.bands for edge in edges},
        cells=tuple(_cells(answer.values, recency, frequency, plan.min_cell)),
        size_std=answer.std,
    )


def _cells(
    sizes: NDArray[np.float64], recency: QuintileEdges, frequency: QuintileEdges, min_cell: int
) -> list[RfmCell]:
    """The cells whose scores can occur (ties merge some), suppressed below the minimum cell."""
    result = []
    for r, f in RFM_NAMES:
        if r in recency.scores and f in frequency.scores:
            size = float(sizes[5 * (r - 1) + f - 1])
            shown = size if size >= min_cell else None
            result.append(RfmCell(recency=r, frequency=f, name=RFM_NAMES[(r, f)], size=shown))
    return sorted(result, key=lambda cell: (cell.recency, cell.frequency))


def _result(
    scaler: Scaler,
    clustering: Clustering,
    centres: NDArray[np.float64],
    profiles: tuple[SegmentProfile, ...] | None,
    rfm: RfmResult | None,
) -> StudyResult:
    sizes = [profile.size for profile in profiles] if profiles else [0.0] * len(centres)
    names = segment_names(centres, sizes, scaler.features)
    rules = threshold_rules(clustering.particles, centres, scaler)
    order = sorted(range(len(centres)), key=lambda i: -sizes[i])
    segments = tuple(
        _segment(position, centres[i], names[i], rules[i], profiles[i] if profiles else None)
        for position, i in enumerate(order, start=1)
    )
    return StudyResult(
        scaler=tuple(
            AxisScale(feature=name, log=bool(log), low=float(low), high=float(high))
            for name, log, low, high in zip(scaler.features, scaler.logs, scaler.lows, scaler.highs, strict=True)
        ),
        segments=segments,
        customers=max(math.fsum(_shown(profiles)) if profiles else math.fsum(clustering.counts), 0.0),
        explained=_explained(clustering.particles, centres),
        k_choices=tuple(KChoice(k=c.k, silhouette=c.silhouette, cost=c.cost) for c in clustering.candidates),
        rfm=rfm,
    )


def _shown(profiles: tuple[SegmentProfile, ...]) -> list[float]:
    """Sizes that are not suppressed: their sum must not let one that is be computed."""
    return [profile.size for profile in profiles if not profile.suppressed]


def _segment(
    position: int, centre: NDArray[np.float64], name: str, rules: tuple[str, ...], profile: SegmentProfile | None
) -> Segment:
    """A segment as it is released; one below the minimum cell keeps its centre alone."""
    described = profile is not None and not profile.suppressed
    return Segment(
        id=position,
        name=name if described else f"segment {position}",
        centre=tuple(float(x) for x in centre),
        size=profile.size if profile is not None and described else None,
        size_std=profile.size_std if profile is not None else 0.0,
        means=tuple(
            MeanEstimate(feature=m.feature, mean=m.mean, low=m.low, high=m.high)
            for m in (profile.means if profile is not None else ())
        ),
        rules=rules if described else (),
    )


def _explained(particles: NDArray[np.float64], centres: NDArray[np.float64]) -> float | None:
    """Share of the particles' variance that the centres explain: an estimate made of released numbers."""
    total = float(((particles - particles.mean(axis=0)) ** 2).sum())
    if total <= 1e-9:
        return None
    from_centres = ((particles[:, np.newaxis, :] - centres[np.newaxis]) ** 2).sum(axis=2).min(axis=1)
    return min(max(1.0 - float(from_centres.sum()) / total, 0.0), 1.0)
