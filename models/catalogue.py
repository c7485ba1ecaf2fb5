"""Every kind of question this version can answer, rebuilt from its wire form by the institution's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from cohortium.models.head import HeadGradientQuery
from cohortium.models.marginals import MarginalsQuery
from cohortium.models.moments import MomentQuery
from cohortium.models.profiles import ProfileQuery
from cohortium.models.rfm import RfmGridQuery
from cohortium.privacy.query import QuerySpec, SumQuery
from cohortium.study.errors import RefusedError

__all__ = ["QUERY_KINDS", "build_query"]

QUERY_KINDS: Mapping[str, Callable[[QuerySpec], SumQuery]] = MappingProxyType(
    {
        HeadGradientQuery.kind: HeadGradientQuery.from_spec,
        MarginalsQuery.kind: MarginalsQuery.from_spec,
        MomentQuery.kind: MomentQuery.from_spec,
        ProfileQuery.kind: ProfileQuery.from_spec,
        RfmGridQuery.kind: RfmGridQuery.from_spec,
    }
)


def build_query(spec: QuerySpec) -> SumQuery:
    """The query of a specification; `RefusedError` for an unknown kind or malformed parameters."""
    build = QUERY_KINDS.get(spec.kind)
    if build is None:
        raise RefusedError("an unknown kind of question", fix="run the same cohortium version on both sides")
    return build(spec)
