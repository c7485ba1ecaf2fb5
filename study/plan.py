"""What every plan says: what is asked, for which purpose, at what price. Institutions approve its digest alone.

A plan is TOML on disk, a frozen model in memory and one RFC 8785 digest on every wire. Its file names the feature
contract's file; its digest covers the contract's digest, so that neither can change under an approval.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from cohortium.study.contract import Contract, Feature
from cohortium.study.document import Document
from cohortium.study.errors import PlanError
from cohortium.study.software import Software
from cohortium.study.validation import first_repeat, suggestion

__all__ = [
    "MAX_EPSILON",
    "MIN_CELL",
    "PLAN_FORMS",
    "PLAN_SCHEMA",
    "LawfulBasis",
    "Plan",
    "StudyKind",
    "TrainingPlan",
    "Trust",
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

StudyKind = Literal["segments", "encoder", "lookalike", "audit"]
"""What a plan is for; `study.plans` has a kind of plan for each."""

_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"
PLAN_FORMS = {_LABEL: "use letters, digits, dots, - and _", _DIGEST: "name the contract's file; its digest is computed"}
"""What the patterns of a plan's texts mean, in words."""

_Label = Annotated[str, StringConstraints(pattern=_LABEL)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Plan(Document):
    """What every plan that institutions approve says; `study.plans` has the kinds of it.

    Args:
        schema_id: `cohortium.plan/1`; written `schema` in TOML.
        study: what it is for, see the kinds of plans.
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
        software: the code that asks and answers; written into it when it is proposed to institutions. A node outside
            simulations answers no plan that lacks it.
    """

    schema_id: Annotated[Literal["cohortium.plan/1"], Field(alias="schema")]
    study: StudyKind
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
    software: Software | None = None

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

    def check_contract(self, contract: Contract, place: str = "plan") -> None:
        """Whether this plan may be run on this contract.

        Raises:
            PlanError: another contract, or a purpose the contract does not allow; kinds of plans check more.
        """
        if contract.digest != self.contract:
            raise PlanError("the plan was made for another contract", place=place, fix="use the contract it names")
        if self.purpose not in contract.purposes:
            raise PlanError(
                f"purpose '{self.purpose}' is not one the contract allows",
                place=f"{place}: purpose",
                fix=f"use one of {', '.join(contract.purposes)}",
            )


class TrainingPlan(Plan):
    """A plan that learns from customers: of segments, an encoder or a campaign.

    Args:
        without: training features of the contract that nothing of this plan uses: no question, model, profile or
            released document. A node's table has no such column when it answers.
    """

    without: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _left_out_once(self) -> TrainingPlan:
        if repeated := first_repeat(self.without):
            raise ValueError(f"without must be distinct; '{repeated}' repeats")
        return self

    def features(self, contract: Contract) -> tuple[Feature, ...]:
        """The features that the plan uses, in the contract's order: nothing else decides which."""
        return tuple(feature for feature in contract.training_features if feature.name not in self.without)

    def refuse_left_out(self, named: Iterable[str]) -> None:
        """`ValueError` when what a plan released names a feature that the plan leaves out."""
        if used := sorted(set(named) & set(self.without)):
            raise ValueError(f"it uses '{used[0]}', which its plan leaves out")

    def check_contract(self, contract: Contract, place: str = "plan") -> None:
        """Whether this plan may be run on this contract.

        Raises:
            PlanError: as every plan; `without` names no training feature of the contract, or all of them.
        """
        super().check_contract(contract, place)
        trained = [feature.name for feature in contract.training_features]
        if strangers := [name for name in self.without if name not in trained]:
            raise PlanError(
                f"'{strangers[0]}' is no feature that is trained on",
                place=f"{place}: without",
                fix=suggestion(strangers[0], trained),
            )
        if not self.features(contract):
            raise PlanError("no feature is left to train on", place=f"{place}: without", fix="leave out fewer")
