"""Gathering what goes into an evidence pack, from folders of simulated runs or from one node's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.client.evidence import node_part
from cohortium.client.node import read_contract
from cohortium.governance.evidence.pack import Source
from cohortium.governance.fairness import FAIRNESS_SCHEMA
from cohortium.governance.log import COORDINATOR, log_origin
from cohortium.governance.review import read_document, read_identity
from cohortium.server.evidence import coordinator_part
from cohortium.study.audit_tables import AUDIT_SCHEMA
from cohortium.study.bundle import BUNDLE_SCHEMA
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan

__all__ = ["Gathered", "of_node", "of_runs", "with_further"]

_RUN, _STATE = "run.json", "institutions"
_MODELS = ("encoder.safetensors", "lookalike.safetensors")
_RELEASED = {BUNDLE_SCHEMA: "bundle.json", AUDIT_SCHEMA: "audit.json"}
_MEDIA = {".json": "application/json", ".md": "text/markdown", ".csv": "text/csv", ".html": "text/html"}
_BYTES = "application/octet-stream"


@dataclass
class Gathered:
    """What goes into a pack, and who signs it.

    Args:
        charter: of the federation.
        signer, key: whose name and identity key.
        everything: whether it is all that its parties hold, and not only what they hold of the plans.
        plans: by digest.
        documents: by their names in the pack.
    """

    charter: Charter
    signer: str
    key: Ed25519PrivateKey
    everything: bool = False
    plans: dict[str, Plan] = field(default_factory=dict)
    documents: dict[str, Source] = field(default_factory=dict)

    def add(self, source: Source) -> None:
        """One more document; the same again, as runs of one contract have it, changes nothing."""
        earlier = self.documents.setdefault(source.name, source)
        if earlier.content != source.content:
            raise DataError(f"two documents are called '{source.name}'", place="evidence pack", fix="rename one")

    def add_plan(self, plan: Plan, contract: Contract | None) -> None:
        """A plan, and its contract where that is at hand."""
        self.plans[plan.digest] = plan
        self.add(Source(f"plans/{_hex(plan.digest)}.json", plan.to_bytes()))
        if contract is not None and contract.digest == plan.contract:
            self.add(Source(f"contracts/{_hex(contract.digest)}.json", contract.to_bytes()))


def of_node(folder: Path, plans: Sequence[str] | None) -> Gathered:
    """One node's documents: of these plans, or of all that it holds."""
    part = node_part(folder, plans or None)
    origin = log_origin(part.charter.name, part.institution)
    gathered = Gathered(part.charter, origin, part.key, everything=not plans)
    contract = read_contract(folder)
    gathered.add(Source("charter.json", part.charter.to_bytes()))
    for plan in part.plans.values():
        gathered.add_plan(plan, contract)
    for document in part.documents:
        gathered.add(document)
    return gathered


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
    for folder in folders:
        _add_run(gathered, folder)
    wanted = list(gathered.plans)
    for document in coordinator_part(home / COORDINATOR / "log.sqlite", key, charter, wanted):
        gathered.add(document)
    for member in charter.institutions:
        if (home / member.name).is_dir():
            for document in node_part(home / member.name, wanted).documents:
                gathered.add(document)
    return gathered


def _add_run(gathered: Gathered, folder: Path) -> None:
    plan = parse_plan(_json(folder / "plan.json"), str(folder / "plan.json"))
    gathered.add_plan(plan, read_contract(folder))
    place = f"released/{_hex(plan.digest)}/"
    for model in _MODELS:
        if (folder / model).is_file():
            gathered.add(Source(f"{place}{model}", folder / model, _BYTES))
    for file in sorted(folder.glob("*.json")):
        schema = _schema(file)
        if schema in _RELEASED:
            gathered.add(Source(f"{place}{_RELEASED[schema]}", file.read_bytes()))
        elif schema == FAIRNESS_SCHEMA:
            gathered.add(Source(f"fairness/{_hex(plan.digest)}.json", _json_file(file)))


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


def with_further(gathered: Gathered, attack_audit: Path | None, files: Sequence[Path]) -> Gathered:
    """The same with an attack audit and further documents; `DataError` for one that cannot be read."""
    if attack_audit is not None:
        gathered.add(Source("attack-audit.json", _json_file(attack_audit)))
    for file in files:
        gathered.add(_added(file))
    return gathered


def _added(file: Path) -> Source:
    """A fairness result goes where it is checked; of everything else the bytes are."""
    if file.suffix == ".json":
        data = _json_file(file)
        folder = "fairness" if read_document(data, str(file)).get("schema") == FAIRNESS_SCHEMA else "added"
        return Source(f"{folder}/{file.name}", data)
    return Source(f"added/{file.name}", file, _MEDIA.get(file.suffix, _BYTES))


def _schema(file: Path) -> str | None:
    """What a JSON file says that it is; None for one that says nothing."""
    try:
        document = json.loads(_read(file))
    except ValueError:
        return None
    schema = document.get("schema") if isinstance(document, dict) else None
    return schema if isinstance(schema, str) else None


def _json(path: Path) -> dict[str, Any]:
    return read_document(_read(path), str(path))


def _json_file(path: Path) -> bytes:
    data = _read(path)
    read_document(data, str(path))
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(path), fix="check the path") from error


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
