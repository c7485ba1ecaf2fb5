"""Small releases and audits that documents are made of."""

from __future__ import annotations

from datetime import date
from functools import cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.fairness import (
    CHOSEN,
    REST,
    Audited,
    AuditTerms,
    FairnessResult,
    LookalikeTables,
    audit_lookalike,
)
from cohortium.governance.rules import Facts
from cohortium.models.group_table import GroupTable
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.bundle import AxisScale, Bundle, KChoice, MeanEstimate, ReleaseRecord, Segment
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.lookalike_plan import LookalikePlan
from cohortium.study.model import EncoderModel, LookalikeModel, Model
from cohortium.study.segment_plan import SegmentPlan

from ..campaign import Campaign, contract  # noqa: TID252 - tests are no installed package


def segment_plan(**changed: object) -> SegmentPlan:
    document: dict[str, object] = {
        "schema": "cohortium.plan/1",
        "name": "spring-segments",
        "purpose": "CustomerSegmentation",
        "lawful_basis": "legitimate_interests",
        "regions": ["EU", "UK"],
        "contract": contract().digest,
        "expires": date(2026, 12, 31),
        "trust": "distributed",
        "min_institutions": 3,
        "epsilon": 1.0,
        "delta": 1e-6,
        "shares": {"marginals": 15, "clustering": 65, "profiles": 20, "rfm": 0},
    }
    return SegmentPlan.model_validate(document | changed)


def bundle(*, names: tuple[str, str] = ("loyal", "lapsed"), trust: str = "distributed") -> Bundle:
    means = (MeanEstimate(feature="recency", mean=40.0, low=39.0, high=41.0),)
    return Bundle(
        plan=segment_plan(trust=trust),
        run="0" * 32,
        institutions=4,
        scaler=(
            AxisScale(feature="recency", log=False, low=1.0, high=366.0),
            AxisScale(feature="monetary", log=True, low=0.5, high=9000.0),
        ),
        segments=(
            Segment(id=1, name=names[0], centre=(0.1, 0.2), size=1200.5, size_std=41.0, means=means),
            Segment(id=2, name=names[1], centre=(-0.1, -0.2), size=None, size_std=41.0),
        ),
        customers=1200.5,
        explained=0.63,
        k_choices=(KChoice(k=2, silhouette=0.41, cost=1.0), KChoice(k=3, silhouette=0.33, cost=0.9)),
        rfm=None,
        releases=tuple(
            ReleaseRecord(
                phase=phase,
                step=step,
                attempt=1,
                kind=kind,
                question=f"sha256:9{index:063x}",
                width=10,
                sigma="4096",
                mu2=2**52,
                tv=2**40,
                institutions=answered,
            )
            for index, (phase, step, kind, answered) in enumerate(
                (
                    ("marginals", 0, "marginals", 4),
                    ("lloyd", 0, "moments", 5),
                    ("lloyd", 1, "moments", 0),
                    ("lloyd", 1, "moments", 4),
                )
            )
        ),
    )


@cache
def campaign() -> Model[LookalikeModel]:
    made = Campaign(eligible=9_000, seeds=400, bins=0, min_cell=300)
    return Model(made.model(made.plan(made.encoder())), {})


@cache
def encoder() -> Model[EncoderModel]:
    return Model(Campaign().encoder(), {})


def audit(model: str, *, level: str | None = "balanced", unfair: bool = True, groups: int = 1) -> FairnessResult:
    """Of an audience: women are chosen less often when unfair, every other group so that it is hard to say; who has no
    value is too few."""
    women = [(800.0 if index % 2 else 600.0) if unfair else 995.0 for index in range(groups)]
    counts = np.array([[1_000.0, 4_000.0], *([chosen, 5_000.0 - chosen] for chosen in women), [10.0, 30.0]])
    names = (("m",), *((f"w{index}",) for index in range(groups)), ("unknown",))
    audience = GroupTable(("sex",), names, (CHOSEN, REST), counts, 9.0)
    result = audit_lookalike(
        [LookalikeTables(audience)],
        Audited(model, "sha256:" + "a" * 64, 0.5, 1e-6, date(2026, 11, 23)),
        AuditTerms(minimum_cell=50),
    )
    return result.model_copy(update={"level": level})


def charter(*regions: str) -> Charter:
    """North, west and south."""
    members = zip(("north", "west", "south"), regions or ("EU", "UK", "EU"), strict=True)
    institutions = [{"name": name, "region": region, "identity": _identity(name)} for name, region in members]
    return parse_charter({"schema": "cohortium.charter/1", "name": "group", "institutions": institutions})


def _identity(name: str) -> str:
    key = Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32))
    return key.public_key().public_bytes_raw().hex()


def lookalike_plan() -> LookalikePlan:
    return campaign().document.plan


def audit_plan() -> AuditPlan:
    document = segment_plan().to_json() | {
        "study": "audit",
        "audit": {"of": "segments", "model": bundle().digest, "segments": 2, "attributes": ["age_group"]},
        "shares": {"outcomes": 100},
    }
    del document["segments"], document["without"]
    return AuditPlan.model_validate(document)


def facts(**stated: object) -> Facts:
    """Declared facts, '__' in names for the dot."""
    return Facts.of({name.replace("__", "."): value for name, value in stated.items()}, "privacy office, 2026-11-23")
