"""The plan of a segmentation study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cohortium.study.contract import Contract
from cohortium.study.document import Agreed
from cohortium.study.errors import PlanError
from cohortium.study.plan import TrainingPlan

__all__ = ["SegmentPlan", "Segments", "Shares"]

_Percent = Annotated[int, Field(strict=True, ge=0, le=100)]
_Segments = Annotated[int, Field(strict=True, ge=1, le=64)]


class Shares(Agreed):
    """How the plan's privacy budget (its mu^2) is divided, in percent; together 100.

    Args:
        marginals: distributions of every feature: scaler, RFM edges, described ranges.
        clustering: everything that finds the segments.
        profiles: sizes and feature means of the segments; 0 leaves every segment undescribed.
        rfm: people per RFM cell; 0 leaves the grid out.
    """

    marginals: _Percent = 15
    clustering: _Percent = 60
    profiles: _Percent = 20
    rfm: _Percent = 5

    @model_validator(mode="after")
    def _all_of_it(self) -> Shares:
        total = self.marginals + self.clustering + self.profiles + self.rfm
        if total != 100:
            raise ValueError(f"shares add up to {total}, not 100; every look at data needs its share")
        if 0 in (self.marginals, self.clustering):
            raise ValueError("marginals and clustering need a share above 0")
        return self


class Segments(Agreed):
    """What segments are wanted.

    Args:
        k: number of segments, or [least, most] to let released statistics choose (no extra budget).
        features: features that distances use; every trainable number of the contract when left out.
        scale: distances stretch each feature from its released 1% to its 99% quantile, or over its public bounds.
        seed: seed of the post-processing (restarts of k-means); no seed ever influences noise.
    """

    k: _Segments | tuple[_Segments, _Segments] = (4, 8)
    features: tuple[str, ...] | None = None
    scale: Literal["quantiles", "bounds"] = "quantiles"
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _sensible(self) -> Segments:
        least, most = self.k_range
        if least > most:
            raise ValueError("k = [least, most] must ascend")
        if self.features is not None and (not self.features or len(set(self.features)) != len(self.features)):
            raise ValueError("features must be distinct and at least one")
        return self

    @property
    def k_range(self) -> tuple[int, int]:
        """(least, most) segments."""
        return (self.k, self.k) if isinstance(self.k, int) else self.k


class SegmentPlan(TrainingPlan):
    """A plan that finds segments.

    Args:
        study: `segments`, which may be left out.
        segments, shares: see there.
    """

    study: Literal["segments"] = "segments"
    segments: Segments = Segments()
    shares: Shares = Shares()

    @model_validator(mode="after")
    def _named_or_left_out(self) -> SegmentPlan:
        if both := [name for name in self.segments.features or () if name in self.without]:
            raise ValueError(f"'{both[0]}' is in segments.features and in without; remove it from one of the two")
        return self

    def distance_features(self, contract: Contract) -> tuple[str, ...]:
        """The features that distances use: those named, or every number that the plan uses."""
        numbers = tuple(feature.name for feature in self.features(contract) if not feature.is_category)
        return numbers if self.segments.features is None else self.segments.features

    def rfm_features(self, contract: Contract) -> dict[str, str]:
        """The features that recency, frequency and (where derived) monetary are read from, by role.

        Empty when the plan gives the RFM grid no share; the first feature of each derivation otherwise.
        """
        found: dict[str, str] = {}
        for feature in self.features(contract) if self.shares.rfm else ():
            if feature.derive in ("recency", "frequency", "monetary"):
                found.setdefault(feature.derive, feature.name)
        return found

    def check_contract(self, contract: Contract, place: str = "plan") -> None:
        """Whether this plan may be run on this contract.

        Raises:
            PlanError: as every plan that learns; a distance of a feature that is no trainable number, or of none; an
                RFM share without the features for it.
        """
        super().check_contract(contract, place)
        trainable = [feature.name for feature in self.features(contract) if not feature.is_category]
        wrong = [name for name in self.distance_features(contract) if name not in trainable]
        if wrong or not trainable:
            raise PlanError(
                f"'{wrong[0] if wrong else ''}' is not a number that may be trained on",
                place=f"{place}: segments.features",
                fix=f"use some of {', '.join(trainable) or 'none: add numeric features to the contract'}",
            )
        if self.shares.rfm and not {"recency", "frequency"} <= set(self.rfm_features(contract)):
            raise PlanError(
                f"the {'plan leaves' if self.without else 'contract derives'} no recency and frequency for an RFM grid",
                place=f"{place}: shares.rfm",
                fix="set rfm = 0 and give its share to another phase",
            )
