"""What the report of a lookalike campaign is drawn from: two released models and the facts around them, in one file.

Every number that derives from customers is noised and paid for (the encoder's and the campaign's documents), a price
(the ledgers'), or marked as possible only in a simulation (`truth`, and the bands of what was exported).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, model_validator

from cohortium.governance.report.bands import BAND_LIMITS, Band, size_limits
from cohortium.governance.report.facts import (
    CollusionRow,
    ContractFacts,
    DatasetFacts,
    Epsilon,
    Fact,
    InstitutionFacts,
    StageTime,
    Text,
    Units,
    Written,
    bounded_epsilon,
    check_times,
    load_written,
    person_counts,
    spend_of_person,
)
from cohortium.governance.report.summary import SIMULATION_NOTE
from cohortium.privacy.accounting import Spend, epsilon_by_pld
from cohortium.study.model import AudienceShare, EncoderModel, LookalikeModel
from cohortium.study.plan import Plan
from cohortium.study.reach import CurvePoint, Measured, ReachLevel
from cohortium.study.validation import first_repeat

__all__ = [
    "LOOKALIKE_SUMMARY_SCHEMA",
    "CampaignCost",
    "ExportBand",
    "HeldOut",
    "LookalikeSummary",
    "LookalikeTruth",
    "Participant",
    "Role",
    "campaign_costs",
    "load_lookalike_summary",
]

LOOKALIKE_SUMMARY_SCHEMA = "cohortium.lookalike-summary/1"
"""The schema name this version reads and writes; any other is refused."""

_MOST = 1e15  # beyond any number of people, lift or amount of money
_SLACK = 1e-6  # people, for sums of rounded numbers

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Role = Literal["seeds", "audience", "both"]
"""What an institution is in a campaign for: it holds seeds, it receives an audience, or both."""

_Lift = Annotated[float, Field(ge=0, le=_MOST, allow_inf_nan=False)]


class ExportBand(Fact):
    """How many people were exported, as one of the report's bands or neighbouring ones; never the number itself.

    Args:
        low: where it begins, a limit of `BAND_LIMITS`.
        high: where it ends, exclusive, a limit too; None when it is open.
    """

    low: int
    high: int | None

    @classmethod
    def of(cls, people: int) -> ExportBand | None:
        """The band of a number of people; None, suppressed, below the smallest band."""
        band = size_limits(float(people))
        return None if band is None else cls(low=band.low, high=band.high)

    @model_validator(mode="after")
    def _is_a_band(self) -> ExportBand:
        if self.low not in BAND_LIMITS or (self.high is not None and self.high not in BAND_LIMITS):
            raise ValueError("a band begins and ends at the report's limits")
        if self.high is None and self.low != BAND_LIMITS[-1]:
            raise ValueError("only the last band is open")
        if self.high is not None and self.high <= self.low:
            raise ValueError("a band ends above where it begins")
        return self

    @property
    def band(self) -> Band:
        """The same as a band of the report."""
        return Band(self.low, self.high)


class Participant(Fact):
    """One institution that was asked.

    Args:
        facts: its ledger; `spent` is what the campaign cost it, `lifetime_spent` holds the encoder's price too.
        encoder: what the encoder cost it; nothing where it did not take part in that.
        encoder_epsilon: the same as an epsilon, at the encoder's delta.
        role: known in a simulation; in a deployment each institution knows its own.
        exported: the audience it exported, as a band; None when suppressed or when it exported none.
        exports: whether it exported an audience.
    """

    facts: InstitutionFacts
    encoder: Units
    encoder_epsilon: Epsilon
    role: Role
    exported: ExportBand | None = None
    exports: bool = False

    @classmethod
    def of(
        cls, facts: InstitutionFacts, *, encoder_spent: Spend, encoder: Plan, role: Role, exported: int | None = None
    ) -> Participant:
        """The facts from a ledger, and the number of people it exported; None where it exported no audience."""
        return cls(
            facts=facts,
            encoder=Units.of(encoder_spent),
            encoder_epsilon=None if encoder.trust == "unsafe-none" else bounded_epsilon(encoder_spent, encoder.delta),
            role=role,
            exported=None if exported is None else ExportBand.of(exported),
            exports=exported is not None,
        )

    @model_validator(mode="after")
    def _holds_together(self) -> Participant:
        if not (self.facts.spent.spend + self.encoder.spend).fits(self.facts.lifetime_spent.spend):
            raise ValueError("all plans together must have cost at least what encoder and campaign did")
        if self.exports and not self.facts.accepted:
            raise ValueError("an institution that declined the campaign exports no audience of it")
        if self.exports and self.role == "seeds":
            raise ValueError("an institution that only holds seeds exports no audience")
        if self.exported is not None and not self.exports:
            raise ValueError("a band of what was exported needs an export")
        return self


class CampaignCost(Fact):
    """What encoder and campaign cost a person who is a customer of `institutions` of the institutions.

    Args:
        institutions: at how many.
        encoder: epsilon of the encoder's plan, at its delta; paid once for all campaigns.
        campaign: of the campaign's plan, at its delta.
        both: of both together, at the campaign's delta. Epsilons do not add up; it comes from their sum in mu^2.
        both_pld: the same by the privacy loss distribution, an independent code path.
    """

    institutions: Annotated[int, Field(ge=1)]
    encoder: Epsilon
    campaign: Epsilon
    both: Epsilon
    both_pld: Epsilon


class HeldOut(Fact):
    """How well a ranker finds people of the true concept among those who are no seeds. Exact.

    Args:
        ranker: whose figures, and on whom, in words: "this campaign, customers of institutions without seeds".
        auc: probability that somebody of the concept scores above somebody else, ties counted half.
        recall: share of the concept among the top 5, 10 and 20% of people.
        lift: people of the concept among the top 1, 5 and 10% relative to all.
    """

    ranker: Text
    auc: _Share
    recall: tuple[_Share, _Share, _Share]
    lift: tuple[_Lift, _Lift, _Lift]


class LookalikeTruth(Fact):
    """What only a simulation can know: who is truly like the seed, and how well they are found beyond the seeds.

    Args:
        note: marks the numbers; always `SIMULATION_NOTE`.
        concept: what the seeds have in common by construction, in words.
        campaign: the released ranker's figures.
        others: other rankers', for comparison.
    """

    note: Literal["un-noised, possible only in simulation"] = SIMULATION_NOTE
    concept: Text
    campaign: HeldOut
    others: tuple[HeldOut, ...] = ()


class LookalikeSummary(Written):
    """See the module.

    Args:
        schema_id: `cohortium.lookalike-summary/1`; written `schema`.
        mode: `simulation`: all institutions ran on one machine.
        version: of cohortium.
        started, finished: UTC.
        stages: wall time by stage, in order.
        dataset: what the run was on.
        encoder: the document of the encoder's model.
        campaign: the document of the campaign's model, which names the encoder's by digest.
        contract: what is needed to print the feature contract that both plans name.
        institutions: every institution that was asked, those that declined included.
        chosen: name of the level that audiences were made of; None when none was chosen.
        costs: see `campaign_costs()`.
        collusion, encoder_collusion: see `collusion()`, of the campaign's and of the encoder's plan.
        truth: what only a simulation knows, or None.
    """

    schema_id: Annotated[Literal["cohortium.lookalike-summary/1"], Field(alias="schema")] = (
        "cohortium.lookalike-summary/1"
    )
    mode: Literal["simulation"] = "simulation"
    version: Text
    started: AwareDatetime
    finished: AwareDatetime
    stages: tuple[StageTime, ...] = ()
    dataset: DatasetFacts
    encoder: EncoderModel
    campaign: LookalikeModel
    contract: ContractFacts
    institutions: Annotated[tuple[Participant, ...], Field(min_length=1)]
    chosen: Text | None = None
    costs: Annotated[tuple[CampaignCost, ...], Field(min_length=1)]
    collusion: tuple[CollusionRow, ...] = ()
    encoder_collusion: tuple[CollusionRow, ...] = ()
    truth: LookalikeTruth | None = None

    @property
    def level(self) -> ReachLevel | None:
        """The chosen level; without one, that of the profile; without that, the first that is shown."""
        shown = {level.name: level for level in self.campaign.curve.levels if level.point is not None}
        names = (self.chosen, self.campaign.level, *shown)
        return next((shown[name] for name in names if name in shown), None)

    @model_validator(mode="after")
    def _holds_together(self) -> LookalikeSummary:
        check_times(self.started, self.finished)
        self._check_plans()
        self._check_institutions()
        self._check_people()
        self._check_levels()
        _check_rates(self.campaign)
        for row in self.campaign.profile:
            self._check_profile(row)
        return self

    def _check_plans(self) -> None:
        if self.encoder.digest != self.campaign.plan.model:
            raise ValueError("the campaign stands on another encoder")
        if {self.contract.digest} != {self.campaign.plan.contract, self.encoder.plan.contract}:
            raise ValueError("the plans name another contract")
        known = {feature.name for feature in self.contract.features if not feature.protected}
        read = (*self.encoder.features, *self.campaign.features)
        if strangers := sorted(set(read) - known):
            raise ValueError(f"'{strangers[0]}' is not a feature that the contract allows in a model")

    def _check_institutions(self) -> None:
        if repeated := first_repeat([entry.facts.name for entry in self.institutions]):
            raise ValueError(f"institutions must have distinct names; '{repeated}' repeats")
        if self.campaign.institutions > sum(entry.facts.accepted for entry in self.institutions):
            raise ValueError("more institutions answered than accepted the plan")

    def _check_people(self) -> None:
        """Nothing below the plan's smallest cell is shown, nor told by a difference."""
        curve, least = self.campaign.curve, self.campaign.plan.min_cell - _SLACK
        reaches = [point.people.value for point in curve.points]
        shown = [*reaches, *(size for size in (self.campaign.seeds, _value(curve.eligible)) if size is not None)]
        if any(size < least for size in shown):
            raise ValueError("the model shows fewer people than the plan's minimum; they must be suppressed")
        if any(second - first < least for first, second in pairwise(reaches)):
            raise ValueError("two reaches of the curve differ by less than the plan's minimum")
        if any(end > _MOST for point in curve.points for end in (point.people.high, abs(point.cutoff))):
            raise ValueError("the curve holds numbers that no federation has")
        if any(point.share <= 0 for point in curve.points):
            raise ValueError("a point of the curve reaches somebody")

    def _check_levels(self) -> None:
        names = [level.name for level in self.campaign.curve.levels]
        if repeated := first_repeat(names):
            raise ValueError(f"levels must have distinct names; '{repeated}' repeats")
        shown = [level.name for level in self.campaign.curve.levels if level.point is not None]
        for name in (self.chosen, self.campaign.level):
            if name is not None and name not in shown:
                raise ValueError(f"level '{name}' is not one that is shown")
        if self.campaign.profile and self.campaign.level is None:
            raise ValueError("a profile needs the level that it is of")

    def _check_profile(self, row: AudienceShare) -> None:
        known = {feature.name: feature for feature in self.contract.features if not feature.protected}
        feature = known.get(row.feature)
        if feature is None:
            raise ValueError(f"'{row.feature}' is not a feature that the contract allows in a model")
        if (row.level is not None) != (feature.kind == "category"):
            raise ValueError(f"'{row.feature}' must be told by shares if it is a category, by a mean if it is not")
        if row.level is not None and row.level > len(feature.categories):
            raise ValueError(f"'{row.feature}' has no category {row.level}")
        low, high = (-_MOST, _MOST) if row.level is None else (0.0, 1.0)
        if any(not low <= end <= high for found in (row.audience, row.eligible) for end in (found.low, found.high)):
            raise ValueError(f"'{row.feature}' holds a share or an amount that nobody has")


def campaign_costs(
    encoder_spends: Sequence[Spend], campaign_spends: Sequence[Spend], encoder: Plan, campaign: Plan
) -> tuple[CampaignCost, ...]:
    """What encoder and campaign cost a customer of 1, 2, 3 and all institutions.

    Formal guarantee: row j bounds the loss of every person at j institutions, whichever they are: it adds up the bound
    of either plan (`governance.report.person_at`) in the ledger's units. A plan without noise leaves no bound.

    Args:
        encoder_spends, campaign_spends: what each plan cost each institution that answered; at least one each.
        encoder, campaign: the plans.
    """
    return tuple(
        _cost_at(count, encoder_spends, campaign_spends, encoder, campaign)
        for count in person_counts(max(len(encoder_spends), len(campaign_spends)))
    )


def load_lookalike_summary(path: Path) -> LookalikeSummary:
    """Read a summary; `DataError` for one that is unreadable, of another schema, or does not hold together."""
    return load_written(path, LookalikeSummary)


def _cost_at(
    count: int, encoder_spends: Sequence[Spend], campaign_spends: Sequence[Spend], encoder: Plan, campaign: Plan
) -> CampaignCost:
    first, second = (
        None if plan.trust == "unsafe-none" else spend_of_person(spends, plan, min(count, len(spends)))
        for spends, plan in ((encoder_spends, encoder), (campaign_spends, campaign))
    )
    together = None if first is None or second is None else first + second
    both = None if together is None else bounded_epsilon(together, campaign.delta)
    return CampaignCost(
        institutions=count,
        encoder=None if first is None else bounded_epsilon(first, encoder.delta),
        campaign=None if second is None else bounded_epsilon(second, campaign.delta),
        both=both,
        both_pld=None if together is None or both is None else epsilon_by_pld(together, campaign.delta),
    )


def _value(found: Measured | None) -> float | None:
    return None if found is None else found.value


def _check_rates(model: LookalikeModel) -> None:
    """Rates lie within 0 and 1, lifts are none below 0."""
    quality, points = model.quality, model.curve.points
    rates = [quality.auc, *quality.recall, *(found for point in points for found in _rates(point))]
    lifts = [*quality.lift, *quality.deciles, *(point.lift for point in points)]
    for found, most in [*((rate, 1.0) for rate in rates), *((lift, _MOST) for lift in lifts)]:
        if found is not None and not 0.0 <= found.low <= found.high <= most:
            raise ValueError("a rate lies outside 0 and 1, or a lift below 0")
    if (len(quality.recall), len(quality.lift), len(quality.deciles)) != (3, 3, 10):
        raise ValueError("quality needs three recalls, three lifts and ten deciles")
    choice = model.choice
    if any(odds is not None and not 0.0 <= odds <= 1.0 for odds in (choice.probability, choice.regret)):
        raise ValueError("the choice of the ranker holds a probability or a loss outside 0 and 1")
    if any(lead is not None and abs(lead) > 1.0 for lead in (choice.margin, choice.margin_std)):
        raise ValueError("AUCs do not differ by more than 1")
    if choice.ranker != quality.ranker:
        raise ValueError("the quality is of another ranker than the one that was taken")


def _rates(point: CurvePoint) -> Iterator[Measured | None]:
    yield from (point.recall, point.precision, point.relevance)
