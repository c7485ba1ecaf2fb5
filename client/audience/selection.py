"""Who is chosen: customers at or above a cut-off, less the seed's own, the suppressed and the not allowed.

One pass over the scores file by record batches; memory holds a batch, the suppression list and what the private
database keeps of a sort before it spills.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cohortium.client.audience.activation import Activation, allowed_flags
from cohortium.client.audience.lists import IdList, ListMatch, load_lists
from cohortium.client.audience.scores import ScoresFacts, iterate_scores
from cohortium.client.audience.work import append
from cohortium.client.onboarding.engine import Engine, literal
from cohortium.study.errors import DataError

__all__ = ["Chosen", "Exclusions", "Selector"]


@dataclass(frozen=True)
class Exclusions:
    """Customers at or above the cut-off who stay out, each counted for the first reason that holds. Exact and local.

    Args:
        seed: they are the seed: the audience is people like them.
        suppressed: on a list.
        not_allowed: by the activation.
    """

    seed: int = 0
    suppressed: int = 0
    not_allowed: int = 0

    def __add__(self, other: Exclusions) -> Exclusions:
        return Exclusions(
            self.seed + other.seed, self.suppressed + other.suppressed, self.not_allowed + other.not_allowed
        )


@dataclass(frozen=True)
class Chosen:
    """The chosen of one batch: ids, scores of the same length, and who of the batch stays out."""

    ids: pa.Array
    scores: NDArray[np.float64]
    excluded: Exclusions


class Selector:
    """Chooses from one scores file.

    Args:
        engine: a fresh private database.
        scores: the file's facts.
        lists: suppression lists.
        activation: who may be activated.
        kept: relation with the `id` of those who were suppressed before, if any.

    Raises:
        DataError: an id that the scores file has twice, or a list that cannot be read (`lists.load_lists`).
    """

    def __init__(
        self,
        engine: Engine,
        scores: ScoresFacts,
        lists: Sequence[IdList],
        activation: Activation,
        kept: str | None = None,
    ) -> None:
        self._engine, self._scores, self._activation = engine, scores, activation
        scored = f"read_parquet({literal(str(scores.path))})"
        self._refuse_repeats(scored)
        self._run("CREATE TABLE suppressed (id VARCHAR)")
        if kept is not None:
            self._run(f"INSERT INTO suppressed SELECT id FROM {kept}")
        self.matches: tuple[ListMatch, ...] = load_lists(engine, lists, scored)
        """How each list fared."""
        self._nobody_suppressed = not self._run("SELECT 1 FROM suppressed LIMIT 1")

    def chosen(self, cutoff: float) -> Iterator[Chosen]:
        """Those with a score of at least the cut-off, batch by batch; errors as `iterate_scores`."""
        for batch in iterate_scores(self._scores.path):
            above = batch.filter(pc.greater_equal(batch.column("score"), cutoff))
            yield self._choose(above)

    def _choose(self, above: pa.RecordBatch) -> Chosen:
        unseeded = above.filter(pc.invert(above.column("seed")))
        listed = unseeded.filter(self._unsuppressed(unseeded.column("id")))
        ids = listed.column("id")
        flags = allowed_flags(self._activation, ids.to_pylist())
        excluded = Exclusions(
            above.num_rows - unseeded.num_rows, unseeded.num_rows - listed.num_rows, int(np.count_nonzero(~flags))
        )
        return Chosen(ids.filter(pa.array(flags)), listed.column("score").to_numpy()[flags], excluded)

    def _unsuppressed(self, ids: pa.Array) -> pa.Array:
        if self._nobody_suppressed or len(ids) == 0:
            return pa.array(np.ones(len(ids), dtype=np.bool_))
        self._run("CREATE OR REPLACE TABLE asked (id VARCHAR)")
        append(self._engine, "asked", {"id": ids}, self._scores.path.name)
        out = self._engine.column(
            "excluding", "SELECT id FROM asked SEMI JOIN suppressed USING (id)", "suppression lists"
        )
        return pc.invert(pc.is_in(ids, value_set=pa.array(out, type=pa.string())))

    def _refuse_repeats(self, scored: str) -> None:
        different = self._run(f"SELECT count(*) FROM (SELECT id FROM {scored} GROUP BY id)")[0][0]
        if different != self._scores.rows:
            raise DataError(
                "column 'id' has an id more than once", place=self._scores.path.name, fix="score the customers again"
            )

    def _run(self, sql: str) -> list[tuple[object, ...]]:
        return self._engine.run("choosing", sql, self._scores.path.name)
