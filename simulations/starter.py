"""The packaged plan of the demo, and the starter files that `cohortium init` writes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cohortium.privacy.secure_sum import LEAST_CONTRIBUTIONS, MAX_PARTIES, usual_contributions
from cohortium.simulations.bank_world import bank_world_contract_text
from cohortium.simulations.datasets import contract_text
from cohortium.simulations.sources import BANK_WORLD, institutions_of
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.bundle import Bundle
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.errors import Defect, OutputError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.segment_plan import SegmentPlan

__all__ = [
    "demo_audit_plan",
    "demo_campaign_plan",
    "demo_encoder_plan",
    "demo_monitoring_plan",
    "demo_plan",
    "write_starter",
]


def demo_plan(contract: Contract) -> SegmentPlan:
    """The demo's plan of segments for a contract."""
    plan = _demo("demo.plan.toml", contract)
    if not isinstance(plan, SegmentPlan):
        raise Defect("the demo's plan finds no segments")
    return plan


def demo_encoder_plan(contract: Contract) -> EncoderPlan:
    """The demo's plan of an encoder for a contract."""
    plan = _demo("demo.encoder.plan.toml", contract)
    if not isinstance(plan, EncoderPlan):
        raise Defect("the demo's second plan trains no encoder")
    return plan


def demo_campaign_plan(contract: Contract, model: str) -> LookalikePlan:
    """The demo's plan of a campaign for a contract and the digest of an encoder's model."""
    plan = _demo("demo.campaign.plan.toml", contract, model=model)
    if not isinstance(plan, LookalikePlan):
        raise Defect("the demo's third plan is no campaign")
    return plan


def demo_audit_plan(contract: Contract, model: str) -> AuditPlan:
    """The demo's plan of an audit, by all protected features, of the campaign's model of that digest."""
    return _audit("demo.audit.plan.toml", contract, {"model": model})


def demo_monitoring_plan(contract: Contract, bundle: Bundle) -> AuditPlan:
    """The demo's plan of an audit, by all protected features, of the segments in that bundle."""
    return _audit("demo.monitoring.plan.toml", contract, {"model": bundle.digest, "segments": len(bundle.segments)})


def _audit(name: str, contract: Contract, audited: Mapping[str, Any]) -> AuditPlan:
    attributes = [feature.name for feature in contract.protected_features]
    plan = _demo(name, contract, audit={**audited, "attributes": attributes})
    if not isinstance(plan, AuditPlan):
        raise Defect(f"{name} is no audit")
    return plan


def _demo(name: str, contract: Contract, *, audit: Mapping[str, Any] | None = None, **more: str) -> Plan:
    document = {**tomllib.loads(_packaged(name)), "contract": contract.digest, **more}
    if audit is not None:
        document["audit"] = {**document["audit"], **audit}
    return parse_plan(document, place=name)


def write_starter(
    folder: Path, data: str | None = None, institutions: int | None = None, *, lookalike: bool = False
) -> tuple[Path, ...]:
    """Write commented plans and a contract to begin from; a file that is there already is never touched.

    Args:
        folder: where to.
        data: name of a public set or of the synthetic world whose contract to write; a general one when left out.
        institutions: how many will take part; what the data splits into by itself, or 3, when left out.
        lookalike: write plans of an encoder and a campaign as well.

    Raises:
        DataError: no set of that name.
        OutputError: one of the files exists, or the folder cannot be written. Nothing is written then.
    """
    contract = _contract_text(data)
    taking_part = institutions if institutions is not None else institutions_of(data)
    targets = {folder / "plan.toml": _plan_text(contract, taking_part), folder / "contract.toml": contract}
    for study in ("encoder", "campaign") if lookalike else ():
        targets[folder / f"{study}.toml"] = _taken_part(_packaged(f"starter.{study}.plan.toml"), taking_part)
    for path in targets:
        if path.exists():
            raise OutputError("exists already", place=str(path), fix="choose another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in targets.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(folder), fix="choose another") from error
    return tuple(targets)


def _contract_text(data: str | None) -> str:
    if data is None:
        return _packaged("starter.contract.toml")
    return bank_world_contract_text() if data == BANK_WORLD else contract_text(data)


def _plan_text(contract: str, institutions: int) -> str:
    """The starter plan for so many institutions; without an RFM grid for a contract that derives none."""
    plan = _taken_part(_packaged("starter.plan.toml"), institutions)
    derived = {feature.derive for feature in parse_contract(contract, "contract.toml").training_features}
    if {"recency", "frequency"} <= derived:
        return plan
    return plan.replace("profiles = 20 ", "profiles = 25 ").replace("rfm = 5 ", "rfm = 0 ")


def _taken_part(plan: str, institutions: int) -> str:
    """A starter plan for so many institutions."""
    least = usual_contributions(institutions) if institutions >= LEAST_CONTRIBUTIONS else institutions
    plan = plan.replace("min_institutions = 3\n", f"min_institutions = {least}\n")
    if not LEAST_CONTRIBUTIONS <= institutions <= MAX_PARTIES:
        plan = plan.replace('trust = "distributed"', 'trust = "local"')
    return plan


def _packaged(name: str) -> str:
    return (resources.files("cohortium.simulations") / "plans" / name).read_text(encoding="utf-8")
