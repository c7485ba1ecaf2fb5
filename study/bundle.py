"""The released bundle: everything a run makes known, as one JSON document. All of it was paid for; none of it is raw.

Institutions score their own customers from it; reviewers read it; a report is drawn from it. Numbers of people are
noisy. Whatever is below the plan's minimum cell is absent and marked `suppressed`, never 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from cohortium.study.document import Agreed, Document
from cohortium.study.errors import DataError
from cohortium.study.segment_plan import SegmentPlan

__all__ = [
    "BUNDLE_SCHEMA",
    "AxisScale",
    "Bundle",
    "KChoice",
    "MeanEstimate",
    "ReleaseRecord",
    "RfmCell",
    "RfmResult",
    "Segment",
    "load_bundle",
]

BUNDLE_SCHEMA = "cohortium.bundle/1"
"""The schema name this version reads and writes; any other is refused."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Edges = tuple[_Finite, _Finite, _Finite, _Finite]


class AxisScale(Agreed):
    """How one feature enters distances: on `log(1 + x)` or as it is, from [low, high] to [-1, 1], clipped."""

    feature: str
    log: bool
    low: _Finite
    high: _Finite


class MeanEstimate(Agreed):
    """A noised mean in the contract's unit with its 95% interval for the noise."""

    feature: str
    mean: _Finite
    low: _Finite
    high: _Finite


class Segment(Agreed):
    """One segment.

    Args:
        id: stable within the bundle: segments are numbered from 1 by descending noisy size.
        name: two or three words from its profile.
        centre: in the scaled space, one number per axis of the bundle's scaler.
        size: noisy number of people, or None when suppressed.
        size_std: standard deviation of the noise in `size`.
        means: one per described feature, in order; empty when suppressed.
        rules: threshold rules in the contract's units that describe most of the segment; empty when there are none.
    """

    id: Annotated[int, Field(ge=1)]
    name: str
    centre: tuple[_Finite, ...]
    size: _Finite | None
    size_std: _Finite
    means: tuple[MeanEstimate, ...] = ()
    rules: tuple[str, ...] = ()

    @property
    def suppressed(self) -> bool:
        """Whether the segment is below the minimum cell."""
        return self.size is None


class RfmCell(Agreed):
    """People with one pair of scores; None when suppressed."""

    recency: Annotated[int, Field(ge=1, le=5)]
    frequency: Annotated[int, Field(ge=1, le=5)]
    name: str
    size: _Finite | None


class RfmResult(Agreed):
    """Quintile edges in the contract's units, the score bands left after ties, and the grid of people."""

    recency: str
    frequency: str
    monetary: str | None
    edges: dict[str, _Edges]
    bands: dict[str, tuple[str, ...]]
    cells: tuple[RfmCell, ...]
    size_std: _Finite


class KChoice(Agreed):
    """One number of segments that was considered, judged on statistics released anyway."""

    k: Annotated[int, Field(ge=1)]
    silhouette: _Finite | None
    cost: _Finite


class ReleaseRecord(Agreed):
    """One question as it was asked of every institution, and what each paid for it.

    Args:
        phase, step, attempt, kind, question: which.
        width: words of the answer.
        sigma: standard deviation of the noise that was priced, in integer units; 0 without noise.
        mu2, tv: the price in the ledger's units.
        institutions: how many the sum is of; 0 for an attempt that came to nothing: whoever answered has paid for it.
    """

    phase: str
    step: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=1)]
    kind: str
    question: str
    width: Annotated[int, Field(ge=1)]
    sigma: str
    mu2: Annotated[int, Field(ge=0)]
    tv: Annotated[int, Field(ge=0)]
    institutions: Annotated[int, Field(ge=0)]


class Bundle(Document):
    """See the module.

    Args:
        schema_id: `cohortium.bundle/1`; written `schema`.
        plan: the approved plan.
        run: identifies the run.
        institutions: how many answered to the end.
        scaler: one entry per distance feature, in order.
        segments: by descending noisy size, suppressed ones last.
        customers: noisy number of people over all segments that are not suppressed.
        explained: estimated share of the variance that the segments explain, 0..1, or None when noise hides it.
        k_choices: what was considered; one entry when the plan fixes k.
        rfm: None when the plan or the contract has no RFM.
        releases: every question in order.
    """

    schema_id: Annotated[Literal["cohortium.bundle/1"], Field(alias="schema")] = "cohortium.bundle/1"
    plan: SegmentPlan
    run: str
    institutions: Annotated[int, Field(ge=1)]
    scaler: tuple[AxisScale, ...]
    segments: tuple[Segment, ...]
    customers: _Finite
    explained: _Finite | None
    k_choices: tuple[KChoice, ...]
    rfm: RfmResult | None
    releases: tuple[ReleaseRecord, ...]

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _shapes(self) -> Bundle:
        if any(len(segment.centre) != len(self.scaler) for segment in self.segments):
            raise ValueError("a centre does not have one number per axis of the scaler")
        shown = {mean.feature for segment in self.segments for mean in segment.means}
        grid = (self.rfm.recency, self.rfm.frequency, self.rfm.monetary or "") if self.rfm else ()
        self.plan.refuse_left_out({*(axis.feature for axis in self.scaler), *shown, *grid})
        if [segment.id for segment in self.segments] != list(range(1, len(self.segments) + 1)):
            raise ValueError("segment ids must count from 1")
        return self


def load_bundle(path: Path) -> Bundle:
    """Read a bundle; `DataError` for one that is unreadable, of another schema, or does not hold together."""
    try:
        bundle = Bundle.model_validate(json.loads(path.read_bytes()))
        bundle.to_bytes()  # an integer that JSON cannot hold exactly has no digest
    except OSError as error:
        raise DataError("cannot be read", place=str(path), fix="check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError("is not a bundle of this version", place=str(path), fix="export it again") from error
    return bundle
