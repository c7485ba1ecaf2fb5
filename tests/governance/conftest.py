from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from cohortium.governance.report import (
    Comparison,
    ContractFacts,
    DatasetFacts,
    InstitutionFacts,
    LeftOut,
    RunSummary,
    StageTime,
    collusion,
    person_at,
)
from cohortium.models.rfm import RFM_NAMES, QuintileEdges
from cohortium.privacy.accounting import Spend, budget_for
from cohortium.study.bundle import AxisScale, Bundle, KChoice, MeanEstimate, ReleaseRecord, RfmCell, RfmResult, Segment
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.segment_plan import SegmentPlan

_HEAD = """
schema = "cohortium.contract/1"
name = "retail-bank"
currency = "EUR"
purposes = ["CustomerSegmentation"]
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
"""

_FEATURES = {
    "recency": 'kind = "numeric"\nderive = "recency"\nlow = 1\nhigh = 366\nblock = "behaviour"',
    "frequency": 'kind = "numeric"\nderive = "frequency"\nlow = 0\nhigh = 200\nunit = "purchase days"\nblock = "value"',
    "monetary": 'kind = "money"\nderive = "monetary"\nlow = 0\nhigh = 50000\ntransform = "log1p"\nblock = "value"',
    "basket_size": 'kind = "money"\nderive = "basket_size"\nlow = 0\nhigh = 2000\nblock = "value"',
    "online_share": 'kind = "numeric"\nderive = "channel_share"\nvalue = "online"\nlow = 0\nhigh = 1\nmissing = 0\n'
    'block = "channel"',
    "age_group": 'kind = "category"\ncolumn = "age"\ncategories = ["18-39", "40-64", "65+"]\nprotected = true',
}

_TYPICAL = {"recency": 60.0, "frequency": 14.0, "monetary": 2400.0, "basket_size": 85.0, "online_share": 0.4}
_NAMES = (
    "high monetary, low recency",
    "average",
    "high recency, low frequency",
    "high online_share",
    "low basket_size",
)


def _end(name: str) -> float:
    high = 2.2 * _TYPICAL[name]
    return math.log1p(high) if name == "monetary" else high


def _contract(features: tuple[str, ...]) -> Contract:
    parts = [f'[[features]]\nname = "{name}"\ntable = "purchases"\n{_FEATURES[name]}\n' for name in features]
    return parse_contract(_HEAD + "\n".join(parts), "test")


@dataclass(frozen=True)
class Scenario:
    """What the test run was like; `build()` gives its summary."""

    institutions: tuple[str, ...] = ("Northbank", "Bank of the South", "Savings House", "Hill Credit Union")
    declined: tuple[str, ...] = ("Harbour Mutual",)
    sizes: tuple[float | None, ...] = (12437.3, 8123.9, 6311.2, 4467.8, 1733.1, 642.7, None)
    names: tuple[str, ...] = ()
    features: tuple[str, ...] = (*_TYPICAL, "age_group")
    k: int | tuple[int, int] = (4, 8)
    profiles: int = 20
    rfm: bool = True
    merged: bool = True
    compared: bool = True
    dataset: str = "bank-world"
    trust: str = "local"
    epsilon: float = 1.0
    min_cell: int = 100
    prior: int = 1
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(name for name in self.features if name != "age_group")

    def build(self) -> RunSummary:
        contract = _contract(self.features)
        plan = self._plan(contract)
        spent = self._spent(plan)
        every = (*self.institutions, *self.declined)
        start = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
        return RunSummary(
            version="0.1.0",
            started=start,
            finished=start + timedelta(seconds=42.5),
            stages=(StageTime(stage="onboarding", seconds=21.0), StageTime(stage="questions", seconds=20.3)),
            dataset=DatasetFacts(name=self.dataset, note="synthetic"),
            bundle=self._bundle(plan),
            contract=ContractFacts.of(contract),
            institutions=tuple(self._institution(name, plan, spent) for name in every),
            person_at=person_at([spent] * len(self.institutions), plan),
            collusion=collusion([spent], plan, len(self.institutions)),
            left_out=tuple(self._left_out(name) for name in self.institutions),
            comparison=self._comparison() if self.compared else None,
        )

    def _plan(self, contract: Contract) -> SegmentPlan:
        document = {
            "schema": "cohortium.plan/1",
            "name": "spring-segments",
            "purpose": "CustomerSegmentation",
            "lawful_basis": "legitimate_interests",
            "regions": ["EU", "UK"],
            "contract": contract.digest,
            "expires": date(2026, 12, 31),
            "trust": self.trust,
            "epsilon": self.epsilon,
            "delta": 1e-6,
            "min_cell": self.min_cell,
            "segments": {"k": self.k},
            "shares": {
                "marginals": 15,
                "clustering": 80 - self.profiles if self.rfm else 85 - self.profiles,
                "profiles": self.profiles,
                "rfm": 5 if self.rfm else 0,
            },
        }
        return SegmentPlan.model_validate(document)

    def _records(self, plan: SegmentPlan) -> tuple[ReleaseRecord, ...]:
        budget = budget_for(plan.epsilon, plan.delta).mu2
        shares = plan.shares
        asked = [("marginals", "marginals", shares.marginals, 640), ("moments", "moments", shares.clustering / 4, 21)]
        asked += [("cells", "moments", shares.clustering / 4, 1344), ("lloyd", "moments", shares.clustering / 2, 42)]
        asked += [("profiles", "profiles", shares.profiles, 42), ("rfm", "rfm-grid", shares.rfm, 25)]
        return tuple(
            ReleaseRecord(
                phase=phase,
                step=0,
                attempt=1,
                kind=kind,
                question=f"sha256:{index:064x}",
                width=width,
                sigma=str(int(2**24 * 10 / math.sqrt(share / 100))),
                mu2=int(budget * share / 100),
                tv=4_000_000,
                institutions=len(self.institutions),
            )
            for index, (phase, kind, share, width) in enumerate(asked)
            if share
        )

    def _spent(self, plan: SegmentPlan) -> Spend:
        records = self._records(plan)
        return Spend(sum(r.mu2 for r in records), sum(r.tv for r in records))

    def _institution(self, name: str, plan: SegmentPlan, spent: Spend) -> InstitutionFacts:
        accepted = name in self.institutions
        paid = spent if accepted else Spend()
        prior = self.institutions.index(name) if accepted else self.prior
        return InstitutionFacts.of(
            name,
            accepted=accepted,
            spent=paid,
            lifetime=budget_for(3.0, plan.delta),
            lifetime_spent=paid + spent.times(min(prior, 2)),
            plan=plan,
        )

    def _bundle(self, plan: SegmentPlan) -> Bundle:
        measured = bool(plan.shares.profiles)
        return Bundle(
            plan=plan,
            run="0123456789abcdef0123456789abcdef",
            institutions=len(self.institutions),
            scaler=tuple(
                AxisScale(feature=name, log=name == "monetary", low=0.0, high=_end(name)) for name in self.trained
            ),
            segments=tuple(self._segment(i, size, measured) for i, size in enumerate(self.sizes)),
            customers=sum(size for size in self.sizes if size),
            explained=0.634,
            k_choices=()
            if isinstance(self.k, int)
            else tuple(KChoice(k=k, silhouette=0.3 + 0.01 * k, cost=2 / k) for k in range(4, 9)),
            rfm=self._rfm() if self.rfm else None,
            releases=self._records(plan),
        )

    def _segment(self, index: int, size: float | None, measured: bool) -> Segment:
        rng = np.random.default_rng(index)
        pull = rng.uniform(-0.8, 0.8, len(self.trained))
        described = size is not None and measured
        named = self.names[index] if self.names else f"{_NAMES[index % len(_NAMES)]}" + " (2)" * (index >= len(_NAMES))
        return Segment(
            id=index + 1,
            name=named if described or self.names else f"segment {index + 1}",
            centre=tuple(float(x) for x in pull),
            size=size if described else None,
            size_std=41.0 if measured else 0.0,
            means=tuple(self._mean(n, float(p), size) for n, p in zip(self.trained, pull, strict=True))
            if described and size
            else (),
            rules=("recency <= 31.4 and frequency > 12", "monetary > 3150.2") if described and self.rfm else (),
        )

    def _mean(self, name: str, pull: float, size: float) -> MeanEstimate:
        mean = _TYPICAL[name] * (1 + pull)
        half = _TYPICAL[name] * 120 / size
        return MeanEstimate(feature=name, mean=mean, low=mean - half, high=mean + half)

    def _rfm(self) -> RfmResult:
        last = 4.0 if self.merged else 9.0
        recency = QuintileEdges("recency", (9.0, 27.0, 61.0, 143.0), reversed=True)
        frequency = QuintileEdges("frequency", (1.0, 4.0, 4.0, 12.0) if last == 4.0 else (1.0, 4.0, 9.0, 20.0))
        chosen = (recency, frequency, QuintileEdges("monetary", (210.0, 640.0, 1530.0, 4100.0)))
        edges = [edge for edge in chosen if edge.feature in self.trained]
        cells = [
            RfmCell(recency=r, frequency=f, name=RFM_NAMES[(r, f)], size=None if r == f == 1 else 211.3 * (r + f * f))
            for r, f in sorted(RFM_NAMES)
            if r in recency.scores and f in frequency.scores
        ]
        return RfmResult(
            recency="recency",
            frequency="frequency",
            monetary="monetary" if "monetary" in self.trained else None,
            edges={edge.feature: edge.edges for edge in edges},
            bands={edge.feature: edge.bands for edge in edges},
            cells=tuple(cells),
            size_std=23.0,
        )

    def _left_out(self, name: str) -> LeftOut:
        return LeftOut(
            institution=name, lines=184_211, unused=1_204, duplicates=None, bad_cells=88, clipped=311, unknown=0
        )

    def _comparison(self) -> Comparison:
        alone = {name: 0.21 * (1.05 + 0.12 * index) for index, name in enumerate(self.institutions)}
        return Comparison.of(central_cost=0.21, federated_cost=0.2142, alone=alone)


@pytest.fixture
def scenario() -> Scenario:
    """A realistic run; vary it with `dataclasses.replace` and call `build()`."""
    return Scenario()
