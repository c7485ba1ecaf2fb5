"""Gathering what goes into an evidence pack: what the parties bring, and whatever is given besides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.evidence.pack import Manifest, Source, write_pack
from cohortium.governance.fairness import FAIRNESS_SCHEMA
from cohortium.governance.review import read_document
from cohortium.study.charter import Charter
from cohortium.study.contract import Contract
from cohortium.study.errors import DataError
from cohortium.study.plan import Plan
from cohortium.study.proposal import Proposal, parse_approval

__all__ = ["Gathered", "file_bytes", "further_document", "json_bytes", "released_sources", "study_sources"]

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

    def add_all(self, sources: Iterable[Source]) -> None:
        """Every one of them; see `add`."""
        for source in sources:
            self.add(source)

    def add_plan(self, plan: Plan, contract: Contract | None) -> None:
        """A plan, and its contract where that is at hand."""
        self.plans[plan.digest] = plan
        self.add(Source(f"plans/{_bare(plan.digest)}.json", plan.to_bytes()))
        if contract is not None and contract.digest == plan.contract:
            self.add(Source(f"contracts/{_bare(contract.digest)}.json", contract.to_bytes()))

    def add_further(self, attack_audit: Path | None, files: Sequence[Path]) -> None:
        """An attack audit and further documents besides; `DataError` for one that cannot be read."""
        if attack_audit is not None:
            self.add(Source("attack-audit.json", json_bytes(attack_audit)))
        for file in files:
            self.add(further_document(file))

    def write(self, out: Path) -> Manifest:
        """Write and sign the pack; errors as `write_pack`."""
        return write_pack(
            out,
            list(self.documents.values()),
            federation=self.charter.name,
            signer=self.signer,
            key=self.key,
            plans=None if self.everything else list(self.plans),
        )


def study_sources(proposal: Proposal, signed: bytes, approvals: Iterable[bytes]) -> list[Source]:
    """A proposal as it was signed, and approvals of it as they were; `RefusedError` for one that is malformed."""
    made = [Source(f"proposals/{_bare(proposal.digest)}.json", signed)]
    for data in approvals:
        digest = parse_approval(data, "approval").approval.digest
        made.append(Source(f"approvals/{_bare(digest)}.json", data))
    return made


def released_sources(plan: str, files: Iterable[tuple[str, Path]]) -> list[Source]:
    """What a run of a plan released, by the names of the files; `DataError` for one that cannot be read."""
    made = []
    for name, file in files:
        place, media = f"released/{_bare(plan)}/{name}", _MEDIA.get(file.suffix, _BYTES)
        made.append(Source(place, file_bytes(file) if media == _MEDIA[".json"] else file, media))
    return made


def further_document(file: Path) -> Source:
    """A fairness result goes where it is checked; of everything else the bytes are."""
    if file.suffix == ".json":
        data = json_bytes(file)
        folder = "fairness" if read_document(data, str(file)).get("schema") == FAIRNESS_SCHEMA else "added"
        return Source(f"{folder}/{file.name}", data)
    return Source(f"added/{file.name}", file, _MEDIA.get(file.suffix, _BYTES))


def json_bytes(path: Path) -> bytes:
    """A JSON document's bytes as they are; `DataError` when it cannot be read."""
    data = file_bytes(path)
    read_document(data, str(path))
    return data


def file_bytes(path: Path) -> bytes:
    """A file's bytes; `DataError` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(path), fix="check the path") from error


def _bare(digest: str) -> str:
    """A digest as part of a name."""
    return digest.removeprefix("sha256:")
