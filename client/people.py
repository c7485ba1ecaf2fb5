"""An institution's customers as each plan asks about them: the table, and what the node adds to it.

An encoder's plan needs every row's hash, a campaign's also who is in its seed. Both are columns of the node's own
making beside the contract's; the door, and nobody else, reads them.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from cohortium.client.seeds import SeedStore
from cohortium.models.rows import HASH, SEED, row_hashes
from cohortium.privacy.table import CustomerTable
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.plan import Plan

__all__ = ["PlanPeople"]

_KEPT = 4


class PlanPeople:
    """Gives the customers as a plan asks about them.

    Args:
        people: the institution's customer table.
        seeds: the institution's seed lists.
    """

    def __init__(self, people: CustomerTable, seeds: SeedStore) -> None:
        self._people = people
        self._seeds = seeds
        self._made: OrderedDict[str, CustomerTable] = OrderedDict()

    def of(self, plan: Plan) -> CustomerTable:
        """The customers with the columns that such a plan's questions read.

        The same at every call, but for a list that was removed since: its people may be marked until the node's next
        start, and are not after it.
        """
        if plan.digest not in self._made:
            self._made[plan.digest] = self._make(plan)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return self._made[plan.digest]

    def _make(self, plan: Plan) -> CustomerTable:
        if not isinstance(plan, EncoderPlan | LookalikePlan):
            return self._people
        table = self._people.with_column(HASH, row_hashes(self._people.keys))
        if not isinstance(plan, LookalikePlan):
            return table
        marked = np.zeros(len(table))
        name = plan.lookalike.seed
        if self._seeds.use(name, plan.digest) is not None:  # neither list nor absence changes from here on
            marked = self._seeds.mask(name, self._people).astype(np.float64)
        return table.with_column(SEED, marked)
