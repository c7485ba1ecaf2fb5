"""A lookalike campaign as it might have been released, made of invented people and the product's own arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cohortium.governance.report import (
    CampaignCost,
    ContractFacts,
    DatasetFacts,
    HeldOut,
    InstitutionFacts,
    LookalikeSummary,
    LookalikeTruth,
    Participant,
    StageTime,
    campaign_costs,
    collusion,
)
from cohortium.governance.report.lookalike_summary import Role
from cohortium.models.basis import Basis, Block
from cohortium.models.encoding import encoder_phases
from cohortium.models.features import Rows, on_weight_grid
from cohortium.models.levels import reach_curve
from cohortium.models.lookalike import lookalike_phases
from cohortium.models.programme import Phase
from cohortium.models.ranker import Ranker
from cohortium.models.reach import ScoreCurveQuery, read_score_counts
from cohortium.models.scorebins import ScoreBins
from cohortium.models.validation import Validation
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.privacy.query import SCALE, bounded_total
from cohortium.privacy.table import CustomerTable
from cohortium.study.bundle import ReleaseRecord
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import AudienceShare, EncoderModel, FrameFact, LookalikeModel
from cohortium.study.plan import Plan
from cohortium.study.reach import Measured, RankerChoice

_CONTRACT = """
schema = "cohortium.contract/1"
name = "retail-bank"
currency = "EUR"
purposes = ["CustomerSegmentation", "Lookalike"]
[window]
start = 2025-01-01
end = 2026-01-01
[[tables]]
name = "purchases"
kind = "transactions"
customer = "customer"
time = "day"
amount = "amount"
channel = "channel"
[[features]]
name = "recency"
table = "purchases"
kind = "numeric"
derive = "recency"
low = 1
high = 366
block = "behaviour"
[[features]]
name = "monetary"
table = "purchases"
kind = "money"
derive = "monetary"
low = 0
high = 50000
transform = "log1p"
block = "value"
[[features]]
name = "main_product"
table = "purchases"
kind = "category"
column = "product"
categories = ["current account", "credit card", "mortgage", "depot & <funds>", "safe-deposit box"]
block = "product"
[[features]]
name = "home_region"
table = "purchases"
kind = "category"
column = "region"
categories = ["north", "east", "south", "west"]
block = "life-stage"
[[features]]
name = "age_group"
table = "purchases"
kind = "category"
column = "age"
categories = ["18-39", "40-64", "65+"]
protected = true
"""

_NAMES = tuple(f"Bank {name}" for name in ("Ash", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Larch", "Oak"))
_SHARES = {
    "main_product": ((0.31, 0.52), (0.24, 0.22), (0.12, 0.11), (0.28, 0.10), (0.001, 0.002), (0.049, 0.048)),
    "home_region": ((0.27, 0.26), (0.18, 0.24), (0.30, 0.26), (0.25, 0.24), (0.0, 0.0)),
}
"""Of every category and of the unknown: its share in the audience, and among everybody eligible."""
_MEANS = {"recency": (31.0, 58.0), "monetary": (5120.0, 1890.0)}
_EDGES = np.linspace(-4.0, 6.0, 129)[1:-1]


@cache
def contract() -> Contract:
    return parse_contract(_CONTRACT, "test")


@dataclass(frozen=True)
class Campaign:
    """What the campaign was like; `build()` gives its summary."""

    eligible: int = 41_300
    seeds: int = 730
    apart: float = 1.4
    noise: float = 4.0
    trust: str = "distributed"
    encoder_trust: str = "distributed"
    min_cell: int = 100
    bins: int = 0
    before: tuple[tuple[str, float], ...] = ()
    levels: tuple[tuple[str, float], ...] = ()
    profile: int = 12
    contest: int = 8
    margin: float | None = 0.0121
    chosen: str | None = "balanced"
    exported: tuple[int | None, ...] = (None, 412, 3_870, None, 30, 1_204, None, 777)
    declined: bool = False
    truth: bool = True
    dataset: str = "bank-world"
    concept: str = "people whose wealth lies in funds"
    names: tuple[str, ...] = _NAMES

    def build(self) -> LookalikeSummary:
        return _built(self)

    def made(self) -> LookalikeSummary:
        """The same, not remembered."""
        encoder, start = self.encoder(), datetime(2026, 4, 7, 8, 0, tzinfo=UTC)
        plan = self.plan(encoder)
        spent, first = (_spent(document.releases) for document in (self.model(plan), encoder))
        count = len(self.names)
        return LookalikeSummary(
            version="0.2.0",
            started=start,
            finished=start + timedelta(seconds=71.3),
            stages=(StageTime(stage="encoder", seconds=51.0), StageTime(stage="campaign", seconds=20.0)),
            dataset=DatasetFacts(name=self.dataset, note="synthetic"),
            encoder=encoder,
            campaign=self.model(plan),
            contract=ContractFacts.of(contract()),
            institutions=tuple(self._institution(i, plan, spent, encoder.plan, first) for i in range(count))
            + ((self._declined(plan, encoder.plan, first),) if self.declined else ()),
            chosen=self.chosen,
            costs=_costs(first, spent, count, encoder.plan, plan),
            collusion=collusion([spent], plan, count),
            encoder_collusion=collusion([first], encoder.plan, count),
            truth=self._truth() if self.truth else None,
        )

    def encoder(self) -> EncoderModel:
        plan = EncoderPlan.model_validate(
            {**self._agreed("shared-encoder", 2.0, self.encoder_trust), "study": "encoder"}
        )
        return EncoderModel(
            plan=plan,
            run="1" * 32,
            institutions=len(self.names),
            customers=self.eligible + self.seeds + 3.7,
            features=tuple(feature.name for feature in contract().training_features),
            frames={"features": FrameFact(people=42_000.0, entry_std=0.1, mean_std=0.1)},
            arrays={},
            releases=self._releases(plan, encoder_phases(plan)),
        )

    def plan(self, encoder: EncoderModel) -> LookalikePlan:
        lookalike = {"seed": "fund_clients", "bins": self.bins, "before": dict(self.before)}
        if self.levels:
            lookalike["levels"] = [{"name": name, "share": share} for name, share in self.levels]
        shares = {"features": 60 - self.profile, "embedding": 20, "contest": self.contest, "curve": 20 - self.contest}
        if not self.contest:
            shares |= {"features": 80 - self.profile, "embedding": 0}
        return LookalikePlan.model_validate(
            {
                **self._agreed("spring-funds", 1.0, self.trust),
                "study": "lookalike",
                "model": encoder.digest,
                "lookalike": lookalike,
                "shares": {**shares, "profile": self.profile},
            }
        )

    def model(self, plan: LookalikePlan) -> LookalikeModel:
        validation = _validation(self.eligible, self.seeds, self.apart, self.noise)
        settings = plan.lookalike
        curve = reach_curve(validation, plan.min_cell, settings.targets, settings.before)
        shown = {level.name: level.point for level in curve.levels if level.point is not None}
        profiled = next((name for name in ("balanced", *shown) if name in shown), None) if self.profile else None
        seeds = validation.seeds.total
        return LookalikeModel(
            plan=plan,
            run="2" * 32,
            institutions=len(self.names),
            customers=validation.rest.total + seeds,
            features=tuple(feature.name for feature in contract().training_features),
            arrays={},
            releases=self._releases(plan, lookalike_phases(plan)),
            seeds=seeds if seeds >= plan.min_cell else None,
            choice=self._choice(),
            quality=validation.quality("features"),
            curve=curve,
            level=profiled,
            profile=_profile(self.noise) if profiled else (),
        )

    def _agreed(self, name: str, epsilon: float, trust: str) -> dict[str, object]:
        return {
            "schema": "cohortium.plan/1",
            "name": name,
            "purpose": "Lookalike",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": contract().digest,
            "expires": date(2026, 12, 31),
            "trust": trust,
            "epsilon": epsilon,
            "delta": 1e-6,
            "min_institutions": 6,
            "colluders": 2,
            "min_cell": self.min_cell,
        }

    def _releases(self, plan: Plan, phases: tuple[Phase, ...]) -> tuple[ReleaseRecord, ...]:
        budget, noised = budget_for(plan.epsilon, plan.delta), plan.trust != "unsafe-none"
        return tuple(
            ReleaseRecord(
                phase=phase.name,
                step=step,
                attempt=1,
                kind=phase.kind,
                question=f"sha256:{index * 100 + step:064x}",
                width=64 + index,
                sigma=str(int(SCALE * self.noise)) if noised else "0",
                mu2=math.floor(Fraction(budget.mu2) * phase.share / phase.rounds) if noised else 0,
                tv=1_000 if noised else 0,
                institutions=len(self.names),
            )
            for index, phase in enumerate(phases)
            for step in range(phase.rounds)
        )

    def _choice(self) -> RankerChoice:
        if not self.contest or self.margin is None:
            return RankerChoice(ranker="features")
        return RankerChoice(
            ranker="features",
            rival="embedding",
            margin=self.margin,
            margin_std=0.0043,
            probability=0.97 if self.margin > 0 else 0.56,
            regret=0.00021,
        )

    def _institution(self, index: int, plan: Plan, spent: Spend, encoder: Plan, first: Spend) -> Participant:
        roles: tuple[Role, ...] = ("seeds", "audience", "both")
        facts = _ledger(spent, first + spent.times(1 + index % 3), plan)
        facts = facts.model_copy(update={"name": self.names[index]})
        exported = self.exported[index] if index < len(self.exported) else None
        return Participant.of(facts, encoder_spent=first, encoder=encoder, role=roles[index % 3], exported=exported)

    def _declined(self, plan: Plan, encoder: Plan, first: Spend) -> Participant:
        facts = InstitutionFacts.of(
            "Harbour Mutual",
            accepted=False,
            spent=Spend(),
            lifetime=budget_for(4.0, plan.delta),
            lifetime_spent=first,
            plan=plan,
        )
        return Participant.of(facts, encoder_spent=first, encoder=encoder, role="audience")

    def _truth(self) -> LookalikeTruth:
        def held(name: str, auc: float) -> HeldOut:
            return HeldOut(ranker=name, auc=auc, recall=(0.21, 0.37, 0.58), lift=(6.2, 4.3, 3.7))

        others = (held("All customers in one place, without privacy", 0.861), held("Bank Ash alone", 0.774))
        return LookalikeTruth(concept=self.concept, campaign=held("This campaign", 0.8472), others=others)


@cache
def _built(campaign: Campaign) -> LookalikeSummary:
    return campaign.made()


@cache
def _validation(eligible: int, seeds: int, apart: float, noise: float) -> Validation:
    """Score counts of invented people, noised as a release is."""
    rng = np.random.default_rng(eligible + seeds)
    rows = Rows(Basis((Block("x", low=-8.0, high=8.0),)), np.zeros(2), 4.0)
    ranker = Ranker(rows, on_weight_grid(np.array([8.0, 0.0])))
    is_seed = np.arange(eligible + seeds) < seeds
    x = rng.normal(size=eligible + seeds) + apart * is_seed
    people = CustomerTable(("x", "@seed"), np.column_stack([x, is_seed]).astype(np.float64), np.arange(len(x)))
    query = ScoreCurveQuery((ScoreBins(ranker, _EDGES),))
    words: NDArray[np.float64] = bounded_total(query, people) / SCALE + noise * rng.normal(size=query.width)
    return Validation(*read_score_counts(query, words, max(noise, 1e-6))[0])


_KNOWN: dict[tuple[object, ...], tuple[CampaignCost, ...]] = {}


def _costs(first: Spend, spent: Spend, count: int, encoder: Plan, plan: Plan) -> tuple[CampaignCost, ...]:
    """`campaign_costs`, remembered: the cross-check by privacy loss distributions takes seconds."""
    key = (count, encoder.trust, plan.trust)  # every campaign here costs the same but for rounding
    if key not in _KNOWN:
        _KNOWN[key] = campaign_costs([first] * count, [spent] * count, encoder, plan)
    return _KNOWN[key]


_LEDGERS: dict[tuple[object, ...], InstitutionFacts] = {}


def _ledger(spent: Spend, in_all: Spend, plan: Plan) -> InstitutionFacts:
    """The facts of an institution that accepted, remembered."""
    key = (spent, in_all, plan.trust)
    if key not in _LEDGERS:
        _LEDGERS[key] = InstitutionFacts.of(
            "A", accepted=True, spent=spent, lifetime=budget_for(4.0, plan.delta), lifetime_spent=in_all, plan=plan
        )
    return _LEDGERS[key]


def _spent(releases: tuple[ReleaseRecord, ...]) -> Spend:
    return Spend(sum(record.mu2 for record in releases), sum(record.tv for record in releases))


def _profile(noise: float) -> tuple[AudienceShare, ...]:
    rows = []
    for feature, levels in _SHARES.items():
        for level, (inside, among) in enumerate(levels):
            shares = (_around(inside, 0.0023 * noise, 0.0, 1.0), _around(among, 0.0002 * noise, 0.0, 1.0))
            rows.append(AudienceShare(feature=feature, level=level, audience=shares[0], eligible=shares[1]))
    for feature, (inside, among) in _MEANS.items():
        means = (_around(inside, 0.006 * noise * inside), _around(among, 0.001 * noise * among))
        rows.append(AudienceShare(feature=feature, level=None, audience=means[0], eligible=means[1]))
    return tuple(rows)


def _around(value: float, half: float, low: float = -math.inf, high: float = math.inf) -> Measured:
    return Measured(value=value, low=max(value - half, low), high=min(value + half, high))
