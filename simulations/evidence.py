"""An evidence pack of simulated runs: the coordinator's part and every institution's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cohortium.client.evidence import node_part
from cohortium.client.node import read_contract
from cohortium.governance.evidence.gathering import Gathered, file_bytes, json_bytes, released_sources
from cohortium.governance.evidence.pack import Source
from cohortium.governance.fairness import FAIRNESS_SCHEMA
from cohortium.governance.log import COORDINATOR, log_origin
from cohortium.governance.review import read_document, read_identity
from cohortium.server.evidence import coordinator_part
from cohortium.study.audit_tables import AUDIT_SCHEMA
from cohortium.study.bundle import BUNDLE_SCHEMA
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.errors import DataError
from cohortium.study.plans import parse_plan

__all__ = ["of_runs"]

_RUN, _STATE = "run.json", "institutions"
_MODELS = ("encoder.safetensors", "lookalike.safetensors")
_RELEASED = {BUNDLE_SCHEMA: "bundle.json", AUDIT_SCHEMA: "tables.json"}


def of_runs(given: Sequence[Path], state: Path | None) -> Gathered:
    """Every run's documents, then what each party holds of all their plans.

    Args:
        given: folders of runs on one state; runs directly inside of them are taken too.
        state: where the institutions are; looked for in the folders and beside them when left out.

    Raises:
        DataError: no run there, runs of several federations, no institutions, or a document that cannot be read.
    """
    folders = _with_inner(given)
    charters = [_charter_in(folder) for folder in folders]
    charter = charters[-1]
    if {(one.name, one.coordinator, one.institutions) for one in charters} != {
        (charter.name, charter.coordinator, charter.institutions)
    }:
        raise DataError("are runs of several federations", place=str(folders[0]), fix="give runs on one state")
    home = _state_of(folders, state)
    key = read_identity(home / COORDINATOR / "coordinator.pem")
    gathered = Gathered(charter, log_origin(charter.name), key)
    gathered.add(Source("charter.json", charter.to_bytes()))
    journals: dict[str, Path] = {}
    for folder in folders:
        journals.setdefault(_add_run(gathered, folder), folder / "coordinator.sqlite")
    wanted = list(gathered.plans)
    gathered.add_all(coordinator_part(home / COORDINATOR / "log.sqlite", key, charter, wanted, journals))
    for member in charter.institutions:
        if (home / member.name).is_dir():
            gathered.add_all(node_part(home / member.name, wanted).documents)
    return gathered


def _add_run(gathered: Gathered, folder: Path) -> str:
    """Add what is in a run's folder; the plan's digest."""
    plan = parse_plan(_json(folder / "plan.json"), str(folder / "plan.json"))
    gathered.add_plan(plan, read_contract(folder))
    released = [(model, folder / model) for model in _MODELS if (folder / model).is_file()]
    for file in sorted(folder.glob("*.json")):
        schema = _schema(file)
        if schema in _RELEASED:
            released.append((_RELEASED[schema], file))
        elif schema == FAIRNESS_SCHEMA:
            gathered.add(Source(f"fairness/{plan.digest.removeprefix('sha256:')}.json", json_bytes(file)))
    gathered.add_all(released_sources(plan.digest, released))
    return plan.digest


def _with_inner(folders: Sequence[Path]) -> list[Path]:
    """The folders and the runs directly inside of them, such as the demo's; each once."""
    for folder in folders:
        if not (folder / _RUN).is_file():
            raise DataError("holds no run", place=str(folder), fix="give a folder that `cohortium simulate` wrote")
    inner = [path.parent for folder in folders for path in sorted(folder.glob(f"*/{_RUN}"))]
    return list({folder.resolve(): folder for folder in (*folders, *inner)}.values())


def _state_of(folders: Sequence[Path], given: Path | None) -> Path:
    places = [given] if given is not None else [folder / _STATE for folder in (*folders, *(f.parent for f in folders))]
    for place in places:
        if (place / COORDINATOR).is_dir():
            return place
    raise DataError("the institutions are not there", place=str(places[0]), fix="name their folder with --state")


def _charter_in(folder: Path) -> Charter:
    return parse_charter(_json(folder / "charter.json"), str(folder / "charter.json"))


def _schema(file: Path) -> str | None:
    """What a JSON file says that it is; None for one that says nothing."""
    try:
        document = json.loads(file_bytes(file))
    except ValueError:
        return None
    schema = document.get("schema") if isinstance(document, dict) else None
    return schema if isinstance(schema, str) else None


def _json(path: Path) -> dict[str, Any]:
    return read_document(json_bytes(path), str(path))
