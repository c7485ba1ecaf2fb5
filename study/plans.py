"""Reading plans of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cohortium.study.audit_plan import AuditPlan
from cohortium.study.bundle import load_bundle
from cohortium.study.contract import Contract, load_contract
from cohortium.study.document import read_toml, validated
from cohortium.study.errors import PlanError
from cohortium.study.lookalike_plan import EncoderPlan, LookalikePlan
from cohortium.study.model import EncoderModel, LookalikeModel, load_model
from cohortium.study.plan import PLAN_FORMS, Plan
from cohortium.study.segment_plan import SegmentPlan
from cohortium.study.validation import suggestion

__all__ = ["PLAN_KINDS", "load_plan", "named_audited", "named_model", "parse_plan"]

PLAN_KINDS: Mapping[str, type[Plan]] = MappingProxyType(
    {"segments": SegmentPlan, "encoder": EncoderPlan, "lookalike": LookalikePlan, "audit": AuditPlan}
)
"""Every kind of plan by its `study`."""


def load_plan(path: Path) -> tuple[Plan, Contract]:
    """Read a plan file and the contract file it names (relative to the plan's folder).

    Raises:
        PlanError: the file cannot be read, is no TOML, or does not hold together. One line with field and fix.
        ContractError: the same, for the contract.
        DataError: the same, for the encoder's model that a campaign's plan names, or the bundle or model that an
            audit's plan names.
    """
    document = read_toml(path, PlanError)
    named = document.get("contract")
    if not isinstance(named, str):
        raise PlanError("names no contract", place=str(path), fix='add contract = "contract.toml"')
    contract = load_contract(path.parent / named)
    document["contract"] = contract.digest
    model = named_model(path)
    if model is not None:
        document["model"] = load_model(model, EncoderModel, signer=None).digest
    _name_audited(document, path)
    plan = parse_plan(document, place=str(path))
    plan.check_contract(contract, place=str(path))
    return plan, contract


def named_model(path: Path) -> Path | None:
    """The encoder's model that a campaign's plan file names by its file, relative to the plan's folder, if it does."""
    named = read_toml(path, PlanError).get("model")
    return path.parent / named if isinstance(named, str) and not named.startswith("sha256:") else None


def named_audited(path: Path) -> Path | None:
    """The bundle or campaign's model that an audit's plan file names by its file, relative to the plan's folder."""
    audit = read_toml(path, PlanError).get("audit")
    named = audit.get("model") if isinstance(audit, dict) else None
    return path.parent / named if isinstance(named, str) and not named.startswith("sha256:") else None


def _name_audited(document: dict[str, Any], path: Path) -> None:
    """The digest takes the place of the file's name."""
    file = named_audited(path)
    if file is None:
        return
    audit = document["audit"]
    bundled = audit.get("of") == "segments"
    digest = load_bundle(file).digest if bundled else load_model(file, LookalikeModel, signer=None).digest
    document["audit"] = {**audit, "model": digest}


def parse_plan(document: Mapping[str, Any], place: str = "plan") -> Plan:
    """Validate a plan of JSON or TOML types whose `contract` is a digest; `PlanError` in one line otherwise.

    `study` says which kind of plan it is; one that says nothing finds segments.
    """
    study = document.get("study", "segments")
    if not isinstance(study, str) or study not in PLAN_KINDS:
        fix = suggestion(study, PLAN_KINDS) if isinstance(study, str) else f"use one of {', '.join(PLAN_KINDS)}"
        raise PlanError("no such study", place=f"{place}: study", fix=fix)
    return validated(PLAN_KINDS[study], document, place, PLAN_FORMS, PlanError)
