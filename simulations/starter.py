"""The packaged plan of the demo, and the starter files that `cohortium init` writes."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

from cohortium.study.contract import Contract
from cohortium.study.errors import OutputError
from cohortium.study.plan import Plan, parse_plan

__all__ = ["STARTER_FILES", "demo_plan", "write_starter"]

STARTER_FILES = {"plan.toml": "starter.plan.toml", "contract.toml": "starter.contract.toml"}
"""What `write_starter` writes, and the packaged file it is a copy of."""


def demo_plan(contract: Contract) -> Plan:
    """The demo's plan for a contract."""
    document = tomllib.loads(_packaged("demo.plan.toml"))
    return parse_plan({**document, "contract": contract.digest}, place="demo.plan.toml")


def write_starter(folder: Path) -> tuple[Path, ...]:
    """Write a commented plan and contract to begin from; a file that is there already is never touched.

    Raises:
        OutputError: one of the files exists, or the folder cannot be written. Nothing is written then.
    """
    targets = {folder / name: _packaged(source) for name, source in STARTER_FILES.items()}
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


def _packaged(name: str) -> str:
    return (resources.files("cohortium.simulations") / "plans" / name).read_text(encoding="utf-8")
