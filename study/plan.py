"""The plan: what is asked, for which purpose, at what price. Institutions approve its digest and nothing else.

A plan is TOML on disk, a frozen model in memory and one RFC 8785 digest on every wire. Its file names the feature
contract's file; its digest covers the contract's digest, so that neither can change under an approval.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from cohortium.study.contract import Contract, load_contract
from cohortium.study.document import Agreed, Document, read_toml, validated
from cohortium.study.errors import PlanError

__all__ = [
    "MAX_EPSILON",
    "MIN_CELL",
    "PLAN_SCHEMA",
    "LawfulBasis",
    "Plan",
    "Segments",
    "Shares",
    "Trust",
    "load_plan",
    "parse_plan",
]

PLAN_SCHEMA = "cohortium.plan/1"
"""The schema name this version reads and writes; any other is refused."""

MAX_EPSILON = 3.0
"""House limit on epsilon, kept by charters and by institutions: a project choice, fixed by no law."""

MIN_CELL = 50
"""House limit: no plan may release cells of fewer people than this."""

LawfulBasis = Literal[
    "consent", "contract", "legal_obligation", "vital_interests", "public_task", "legitimate_interests"
]

Trust = Literal["distributed", "local", "unsafe-none"]
"""Whose noise protects an institution's customers."""

_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_FORMS = {_LABEL: "use letters, digits, dots, - and _", _DIGEST: "name the contract's file; its digest is computed"}
_Label = Annotated[str, StringConstraints(pattern=_LABEL)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
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


class Plan(Document):
    """What institutions approve.

    Args:
        schema_id: `cohortium.plan/1`; written `schema` in TOML.
        name: for people.
        purpose: one of the contract's purposes.
        lawful_basis: GDPR Art. 6(1) basis that the institutions rely on.
        regions: where the people are, such as EU, UK, US.
        contract: digest of the feature contract.
        expires: last day on which a question may be answered.
        trust: `distributed`: a secure sum, in which institutions share the noise; `local`: every institution adds all
            of it and nothing is masked; `unsafe-none`: no noise at all, in simulations only.
        epsilon, delta: what all questions of the plan together may cost one person at one institution.
        max_attempts: how often a step may be asked, each a full charge within the plan's budget.
        min_institutions: fewer than this do not start; with `distributed`, t: no sum of fewer is unmasked.
        colluders: c, how many institutions may collude, the curious one itself included (`distributed`).
        share_threshold: T, how many institutions together can open a key; the least safe number when left out.
        min_cell: cells with fewer (noisy) people are suppressed.
        segments, shares: see there.
    """

    schema_id: Annotated[Literal["cohortium.plan/1"], Field(alias="schema")]
    name: _Label
    purpose: _Label
    lawful_basis: LawfulBasis
    regions: Annotated[tuple[_Label, ...], Field(min_length=1)]
    contract: Annotated[str, Field(pattern=_DIGEST)]
    expires: date
    trust: Trust = "distributed"
    epsilon: Annotated[_Number, Field(gt=0, le=50)]
    delta: Annotated[_Number, Field(ge=1e-15, le=1e-4)]
    max_attempts: Annotated[int, Field(strict=True, ge=1, le=5)] = 1
    min_institutions: Annotated[int, Field(strict=True, ge=1, le=1000)] = 3
    colluders: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    share_threshold: Annotated[int, Field(strict=True, ge=2, le=1000)] | None = None
    min_cell: Annotated[int, Field(strict=True, ge=MIN_CELL, le=10**6)] = 100
    segments: Segments = Segments()
    shares: Shares = Shares()

    @model_validator(mode="after")
    def _safe_sum(self) -> Plan:
        if self.trust != "distributed":
            return self
        if self.min_institutions < 3:
            raise ValueError(
                f"min_institutions = {self.min_institutions} with a secure sum would show each institution the others' "
                'numbers; set min_institutions = 3 or more, or trust = "local"'
            )
        if self.colluders >= self.min_institutions:
            raise ValueError(
                f"colluders = {self.colluders} of min_institutions = {self.min_institutions} leaves nobody's noise; "
                f"set colluders = {self.min_institutions - 1} or less"
            )
        if self.share_threshold is not None and self.share_threshold > self.min_institutions:
            raise ValueError("share_threshold is above min_institutions; lower it, or leave it out")
        return self

    def distance_features(self, contract: Contract) -> tuple[str, ...]:
        """The features that distances use: those named, or every trainable number of the contract."""
        numbers = tuple(feature.name for feature in contract.training_features if not feature.is_category)
        return numbers if self.segments.features is None else self.segments.features

    def rfm_features(self, contract: Contract) -> dict[str, str]:
        """The features that recency, frequency and (where derived) monetary are read from, by role.

        Empty when the plan gives the RFM grid no share; the first feature of each derivation otherwise.
        """
        found: dict[str, str] = {}
        for feature in contract.training_features if self.shares.rfm else ():
            if feature.derive in ("recency", "frequency", "monetary"):
                found.setdefault(feature.derive, feature.name)
        return found

    def check_contract(self, contract: Contract, place: str = "plan") -> None:
        """Whether this plan may be run on this contract.

        Raises:
            PlanError: another contract, a purpose the contract does not allow, a feature that is no trainable number,
                or an RFM share without the features for it.
        """
        if contract.digest != self.contract:
            raise PlanError("the plan was made for another contract", place=place, fix="use the contract it names")
        if self.purpose not in contract.purposes:
            raise PlanError(
                f"purpose '{self.purpose}' is not one the contract allows",
                place=f"{place}: purpose",
                fix=f"use one of {', '.join(contract.purposes)}",
            )
        trainable = [feature.name for feature in contract.training_features if not feature.is_category]
        wrong = [name for name in self.distance_features(contract) if name not in trainable]
        if wrong or not trainable:
            raise PlanError(
                f"'{wrong[0] if wrong else ''}' is not a number that may be trained on",
                place=f"{place}: segments.features",
                fix=f"use some of {', '.join(trainable) or 'none: add numeric features to the contract'}",
            )
        if self.shares.rfm and not {"recency", "frequency"} <= set(self.rfm_features(contract)):
            raise PlanError(
                "the contract derives no recency and frequency for an RFM grid",
                place=f"{place}: shares.rfm",
                fix="set rfm = 0 and give its share to another phase",
            )


def load_plan(path: Path) -> tuple[Plan, Contract]:
    """Read a plan file and the contract file it names (relative to the plan's folder).

    Raises:
        PlanError: the file cannot be read, is no TOML, or does not hold together. One line with field and fix.
        ContractError: the same, for the contract.
    """
    document = read_toml(path, PlanError)
    named = document.get("contract")
    if not isinstance(named, str):
        raise PlanError("names no contract", place=str(path), fix='add contract = "contract.toml"')
    contract = load_contract(path.parent / named)
    plan = parse_plan({**document, "contract": contract.digest}, place=str(path))
    plan.check_contract(contract, place=str(path))
    return plan, contract


def parse_plan(document: dict[str, Any], place: str = "plan") -> Plan:
    """Validate a plan of JSON or TOML types whose `contract` is a digest; `PlanError` in one line otherwise."""
    return validated(Plan, document, place, _FORMS, PlanError)
