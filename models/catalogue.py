"""Every kind of question this version can answer, rebuilt from its wire form by the institution's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from cohortium.models.audience_profile import AudienceProfileQuery
from cohortium.models.audit_queries import GroupCountsQuery, GroupSumsQuery
from cohortium.models.contest import ContestQuery
from cohortium.models.encoder import EncoderGradientQuery
from cohortium.models.marginals import MarginalsQuery
from cohortium.models.moments import MomentQuery
from cohortium.models.profiles import ProfileQuery
from cohortium.models.reach import ScoreCurveQuery
from cohortium.models.rfm import RfmGridQuery
from cohortium.models.row_moments import FrameSumQuery, RowMomentsQuery
from cohortium.models.seed_queries import SeedGradientQuery, SeedSumQuery
from cohortium.privacy.query import QuerySpec, SumQuery
from cohortium.study.errors import RefusedError

__all__ = ["QUERY_KINDS", "build_query"]

QUERY_KINDS: Mapping[str, Callable[[QuerySpec], SumQuery]] = MappingProxyType(
    {
        ContestQuery.kind: ContestQuery.from_spec,
        EncoderGradientQuery.kind: EncoderGradientQuery.from_spec,
        MarginalsQuery.kind: MarginalsQuery.from_spec,
        MomentQuery.kind: MomentQuery.from_spec,
        ProfileQuery.kind: ProfileQuery.from_spec,
        RfmGridQuery.kind: RfmGridQuery.from_spec,
        ScoreCurveQuery.kind: ScoreCurveQuery.from_spec,
        SeedSumQuery.kind: SeedSumQuery.from_spec,
        SeedGradientQuery.kind: SeedGradientQuery.from_spec,
        RowMomentsQuery.kind: RowMomentsQuery.from_spec,
        FrameSumQuery.kind: FrameSumQuery.from_spec,
        AudienceProfileQuery.kind: AudienceProfileQuery.from_spec,
        GroupCountsQuery.kind: GroupCountsQuery.from_spec,
        GroupSumsQuery.kind: GroupSumsQuery.from_spec,
    }
)


def build_query(spec: QuerySpec) -> SumQuery:
    """The query of a specification; `RefusedError` for an unknown kind or malformed parameters."""
    build = QUERY_KINDS.get(spec.kind)
    if build is None:
        raise RefusedError("an unknown kind of question", fix="run the same cohortium version on both sides")
    return build(spec)
