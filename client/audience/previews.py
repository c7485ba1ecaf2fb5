"""What an audience would be: its size by level, in bands. Nothing is recorded and no list of customers is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np

from cohortium.client.audience.activation import Activation
from cohortium.client.audience.levels import Level
from cohortium.client.audience.lists import IdList, ListMatch
from cohortium.client.audience.scores import ScoresOrigin, read_scores_facts, refuse_expired, refuse_foreign
from cohortium.client.audience.selection import Exclusions, Selector
from cohortium.client.audience.work import AUDIENCE_RESOURCES, workbench
from cohortium.client.onboarding.engine import Resources
from cohortium.governance.report.bands import size_band
from cohortium.study.errors import DataError

__all__ = ["LevelSize", "Preview", "preview"]


@dataclass(frozen=True)
class LevelSize:
    """A level, and the number of its members as people see it: a band, or `suppressed`."""

    level: Level
    size: str


@dataclass(frozen=True)
class Preview:
    """What `create` would choose.

    Args:
        model, plan: digests that the scores file names.
        expires: the model's last day.
        levels: in the order asked for.
        seed, suppressed, not_allowed: who stays out at the lowest cut-off, as bands.
        lists: how each suppression list fared; exact.
    """

    model: str
    plan: str
    expires: date
    levels: tuple[LevelSize, ...]
    seed: str
    suppressed: str
    not_allowed: str
    lists: tuple[ListMatch, ...]


def preview(
    scores: Path,
    levels: Sequence[Level],
    *,
    origin: ScoresOrigin,
    min_cell: int,
    activation: Activation,
    suppression: Sequence[IdList] = (),
    resources: Resources = AUDIENCE_RESOURCES,
    today: date | None = None,
) -> Preview:
    """Sizes by level after all exclusions.

    Args:
        scores: the scores file.
        levels: at least one.
        origin: the node and its customers as they are now.
        min_cell: the plan's; a size below it is `suppressed`, never 0.
        activation: who may be activated.
        suppression: lists of customers who stay out.
        resources: memory and threads. What does not fit spills to the system's place for temporary files.
        today: in UTC; a seam for tests of expiry.

    Raises:
        DataError: no level, a scores file or a list that cannot be read as it should be.
        RefusedError: the scores are of other customers, or the model has expired.
    """
    if not levels:
        raise DataError("no level to preview", place="levels", fix="name a level, or give a cut-off")
    facts = read_scores_facts(scores)
    refuse_foreign(facts, origin)
    refuse_expired(facts, today or datetime.now(UTC).date())
    cutoffs = np.array([level.cutoff for level in levels])
    counts, excluded = np.zeros(len(levels), dtype=np.int64), Exclusions()
    with workbench(None, resources) as engine:
        selector = Selector(engine, facts, suppression, activation)
        for chosen in selector.chosen(float(cutoffs.min())):
            ascending = np.sort(chosen.scores)
            counts += len(ascending) - np.searchsorted(ascending, cutoffs, side="left")
            excluded += chosen.excluded
    sizes = tuple(LevelSize(level, _band(int(n), min_cell)) for level, n in zip(levels, counts, strict=True))
    return Preview(
        model=facts.model,
        plan=facts.plan,
        expires=facts.expires,
        levels=sizes,
        seed=_band(excluded.seed, min_cell),
        suppressed=_band(excluded.suppressed, min_cell),
        not_allowed=_band(excluded.not_allowed, min_cell),
        lists=selector.matches,
    )


def _band(people: int, min_cell: int) -> str:
    return size_band(people if people >= min_cell else None)
