"""The packaged plan of the demo, and the starter files that `cohortium init` writes."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

from cohortium.privacy.secure_sum import LEAST_CONTRIBUTIONS, MAX_PARTIES, usual_contributions
from cohortium.simulations.bank_world import bank_world_contract_text
from cohortium.simulations.datasets import contract_text
from cohortium.simulations.sources import BANK_WORLD, institutions_of
from cohortium.study.contract import Contract, parse_contract
from cohortium.study.errors import OutputError
from cohortium.study.plan import Plan, parse_plan

__all__ = ["demo_plan", "write_starter"]


def demo_plan(contract: Contract) -> Plan:
    """The demo's plan for a contract."""
    document = tomllib.loads(_packaged("demo.plan.toml"))
    return parse_plan({**document, "contract": contract.digest}, place="demo.plan.toml")


def write_starter(folder: Path, data: str | None = None, institutions: int | None = None) -> tuple[Path, ...]:
    """Write a commented plan and contract to begin from; a file that is there already is never touched.

    Args:
        folder: where to.
        data: name of a public set or of the synthetic world whose contract to write; a general one when left out.
        institutions: how many will take part; what the data splits into by itself, or 3, when left out.

    Raises:
        DataError: no set of that name.
        OutputError: one of the files exists, or the folder cannot be written. Nothing is written then.
    """
    contract = _contract_text(data)
    taking_part = institutions if institutions is not None else institutions_of(data)
    targets = {folder / "plan.toml": _plan_text(contract, taking_part), folder / "contract.toml": contract}
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
    plan = _packaged("starter.plan.toml")
    least = usual_contributions(institutions) if institutions >= LEAST_CONTRIBUTIONS else institutions
    plan = plan.replace("min_institutions = 3\n", f"min_institutions = {least}\n")
    if not LEAST_CONTRIBUTIONS <= institutions <= MAX_PARTIES:
        plan = plan.replace('trust = "distributed"', 'trust = "local"')
    derived = {feature.derive for feature in parse_contract(contract, "contract.toml").training_features}
    if {"recency", "frequency"} <= derived:
        return plan
    return plan.replace("profiles = 20 ", "profiles = 25 ").replace("rfm = 5 ", "rfm = 0 ")


def _packaged(name: str) -> str:
    return (resources.files("cohortium.simulations") / "plans" / name).read_text(encoding="utf-8")
