"""The seed doctor at a node: what a campaign's noise would leave of a seed list, before any epsilon is spent.

It looks at the first question of a campaign, the noised sum of the seeds' rows in the released frame of features, from
which everybody's mean is taken. What the campaign does afterwards with a noisy direction makes it better, not worse, so
the forecast is cautious. That mean has noise as well; what it explains of the seeds' distance is not taken for theirs.
The forecast is made from exact statistics of the seeds: it stays at the institution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohortium.client.lookalike.admission import check_basis, load_approved
from cohortium.client.lookalike.records import NodeRecords
from cohortium.models.lookalike import lookalike_phases
from cohortium.models.released import read_encoded
from cohortium.models.row_moments import CONSTANT
from cohortium.models.seed_doctor import SeedForecast, SeedMoments, forecast_seed, seed_moments, seed_noise
from cohortium.models.seed_head import FrameFacts
from cohortium.models.seed_queries import SeedSumQuery
from cohortium.privacy.query import SCALE, quantise
from cohortium.privacy.sharing import noise_share
from cohortium.privacy.table import CustomerTable
from cohortium.study.errors import Defect, RefusedError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import EncoderModel
from cohortium.study.plans import parse_plan

__all__ = ["forecast_list"]


def forecast_list(
    records: NodeRecords,
    name: str,
    model: Path,
    *,
    epsilon: float = 1.0,
    wanted: float = 0.9,
    elsewhere: Sequence[int] = (),
    today: date | None = None,
) -> SeedForecast:
    """Predict how true to a seed list its noised direction will be in a campaign with the usual shares.

    Delta, trust and the least number of institutions are taken from the encoder's plan, and so many institutions to
    answer as trained the encoder.

    Args:
        records: of the node.
        name: of the list.
        model: the released encoder that the campaign will stand on.
        epsilon: of the campaign.
        wanted: expected cosine to reach, above 0 and below 1.
        elsewhere: matched seeds of the other institutions, as far as they tell.
        today: in UTC; a seam for tests of expiry.

    Raises:
        DataError, RefusedError: as `admission.load_approved`; no such list; no customers.
        CohortiumError: an argument out of its range, or more features than the doctor takes.
    """
    released = load_approved(records, model, EncoderModel, today)
    facts = read_encoded(released, str(model)).features
    check_basis(facts.frame.rows.basis, released.document.plan.features(records.contract), model)
    people = records.people()
    marked = records.seeds.mask(name, people)
    if not marked.any():
        raise RefusedError("no seed list of that name", place=name, fix="add one, or list those that are there")
    plan = _campaign(released.document.plan, name, epsilon, released.digest)
    first = lookalike_phases(plan)[0]
    noise = seed_noise(
        epsilon,
        plan.delta,
        float(first.share) / plan.max_attempts,
        institutions=max(released.document.institutions, plan.min_institutions),
        noise=noise_share(plan),
        bound_squared=SeedSumQuery(facts.frame).bound_squared,
    )
    return forecast_seed(_moments(facts, people.take(marked)), noise, elsewhere=elsewhere, wanted=wanted)


def _moments(facts: FrameFacts, seeds: CustomerTable) -> SeedMoments:
    """Of the seeds' coordinates as the campaign sums them, seen from everybody's released mean, in units of the radius.

    Words are quantised towards zero, so that their norm in units of the radius is at most 1.
    """
    frame = facts.frame
    words = quantise(frame.coordinates(frame.rows.of(seeds)), frame.radius) / SCALE
    moments, mean = seed_moments(words), facts.mean / frame.radius
    return SeedMoments(moments.people, moments.mean - mean, moments.covariance, _mean_noise(facts, mean))


def _mean_noise(facts: FrameFacts, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of the noise in everybody's mean: that of the sum, alike along all axes, and that of the number of
    people, which stretches the mean."""
    own = facts.mean_std / facts.frame.radius
    count = math.sqrt(2.0) * facts.entry_std / (CONSTANT * facts.frame.rows.radius) ** 2
    return own**2 * np.eye(len(mean)) + count**2 * np.outer(mean, mean)


def _campaign(plan: EncoderPlan, seed: str, epsilon: float, model: str) -> LookalikePlan:
    """A campaign like the encoder's plan, for its shares; `PlanError` for an epsilon that no plan may have."""
    common = {key: value for key, value in plan.to_json().items() if key not in ("encoder", "shares")}
    own = {"study": "lookalike", "epsilon": epsilon, "model": model, "lookalike": {"seed": seed}}
    campaign = parse_plan({**common, **own}, place="campaign")
    if not isinstance(campaign, LookalikePlan):
        raise Defect("a campaign's plan is of another kind")
    return campaign
