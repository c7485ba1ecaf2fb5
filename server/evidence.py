"""The coordinator's part of an evidence pack: what it asked, whose contributions it took, and what was released."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.evidence.pack import Source
from cohortium.governance.evidence.pack_log import read_log
from cohortium.governance.evidence.pack_parts import party_folder
from cohortium.governance.log import COORDINATOR, quorum_for
from cohortium.study.charter import Charter

__all__ = ["coordinator_part"]


def coordinator_part(
    log: Path, key: Ed25519PrivateKey, charter: Charter, plans: Collection[str] | None
) -> tuple[Source, ...]:
    """The coordinator's documents.

    Args:
        log: its audit log, `log.sqlite`.
        key: signs the log's checkpoints.
        charter: of the federation.
        plans: digests of the plans that the pack is about; None for everything.

    Raises:
        DataError, RefusedError: as `governance.evidence.pack_log.read_log`.
    """
    held = read_log(log, key).part(plans, quorum_for(charter, None))
    return (Source(f"{party_folder(COORDINATOR)}log.json", held.to_bytes()),)
