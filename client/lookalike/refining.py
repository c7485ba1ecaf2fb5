"""A seed list refined at a node by a released campaign model: who stays follows from each member's own row and id.

The argument, and the rule, are in `models.seed_choice`. Nothing leaves the node, and nothing is charged: the model was
paid for by the campaign that released it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cohortium.client.audience import looks_like_audience
from cohortium.client.lookalike.admission import admit_model
from cohortium.client.lookalike.records import NodeRecords
from cohortium.client.seeds import SeedRefinement
from cohortium.models.seed_choice import seed_rule

__all__ = ["RefinedList", "refine_list"]


@dataclass(frozen=True)
class RefinedList:
    """A list that has just been made of another. Exact and local.

    Args:
        refinement: what became of the members.
        model, plan: digests.
        seed: the list for whose likes the model looked.
    """

    refinement: SeedRefinement
    model: str
    plan: str
    seed: str


def refine_list(
    records: NodeRecords, name: str, model: Path, new: str, *, share: float = 1.0, today: date | None = None
) -> RefinedList:
    """Make a new seed list of an old one: without members who look like the rest, and thinned to a share.

    Args:
        records: of the node.
        name: of the list that is there.
        model: a released campaign's model, of an earlier run for customers of the same kind.
        new: name of the list to make.
        share: of the members who do not look like the rest, how many to keep, above 0 and at most 1.
        today: in UTC; a seam for tests of expiry.

    Raises:
        DataError: a model that this node does not use (`admission`), or no customers.
        CohortiumError: a share out of its range.
        RefusedError: the plan was never approved here; the curve does not tell seeds from others; as
            `SeedStore.refine`.
    """
    admitted = admit_model(records, model, today)
    document = admitted.model.document
    rule = seed_rule(admitted.ranker, document.curve, share, place=str(model))
    audiences = records.audiences()
    refinement = records.seeds.refine(
        name,
        new,
        rule,
        document.digest,
        records.people(),
        already_exported=lambda ids: looks_like_audience(ids.tolist(), audiences),
    )
    return RefinedList(refinement, document.digest, document.plan.digest, document.plan.lookalike.seed)
