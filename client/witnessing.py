"""A node's audit log: the door's entries, what others cosigned of it, and what the node cosigns of others' logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.client.store import Approval, NodeStore
from cohortium.governance.log import (
    AuditLog,
    Ed25519Signer,
    LogQuorum,
    Witness,
    WitnessConflict,
    log_origin,
    log_verifiers,
    open_checkpoint,
    parse_checkpoint,
    parse_note,
)
from cohortium.privacy.ledger import open_store
from cohortium.study.charter import Charter
from cohortium.study.errors import CohortiumError, DataError, RefusedError
from cohortium.study.witness import Growth, Statement, ToCosign, Witnessed, WitnessReply, WitnessRequest

__all__ = ["LOG_FILE", "NodeLog"]

LOG_FILE = "log.sqlite"

_OF_RUNS = ("admission", "release")
_PAGE = 256


class NodeLog:
    """The audit sink of a node's door, and the node's part in witnessing.

    One log serves one federation: its origin names the charter. It is begun when the first plan is answered.

    Args:
        folder: the node's state folder.
        institution: the node's name in its charters.
        key: its identity key, which signs its checkpoints and cosigns others'.
        store: where openings of commitments are kept.
        approved: the approval of a plan by digest; `RefusedError` when there is none or it has expired.
    """

    def __init__(
        self,
        folder: Path,
        institution: str,
        key: Ed25519PrivateKey,
        store: NodeStore,
        approved: Callable[[str], Approval],
    ) -> None:
        self._path = folder / LOG_FILE
        self._institution = institution
        self._key = key
        self._store = store
        self._approved = approved
        self._opened: tuple[AuditLog, Witness] | None = None
        self._last_of_runs: int | None = None

    def require_witnessed(self, plan: str) -> None:
        """See `privacy.gate.AuditSink`."""
        charter = self._approved(plan).charter
        log, _ = self._parts(charter)
        cosigned = log.cosigned()
        missing = LogQuorum(charter, self._institution).missing(cosigned)
        if missing is not None:
            raise RefusedError(f"the audit log has no quorum of witnesses: {missing}", fix="resume when others answer")
        if self._last_entry(log) >= _size(cosigned):
            raise RefusedError("witnesses have not cosigned the newest entry of a run", fix="resume when others answer")

    def append(self, key: str, entry: Mapping[str, str | int], opening: Mapping[str, str]) -> None:
        """See `privacy.gate.AuditSink`."""
        log, _ = self._parts(self._approved(str(entry["plan"])).charter)
        self._store.keep_opening(key, opening)
        (index,) = log.append([entry], keys=[key])
        if entry["event"] in _OF_RUNS:
            self._last_of_runs = max(index, self._last_entry(log))

    def statement(self, key: str) -> bytes:
        """See `privacy.gate.AuditSink`."""
        log, _ = self._existing()
        index = log.index_of(key)
        news = self._news(log, ())
        checkpoint = parse_checkpoint(parse_note(news.checkpoint).text)
        return Statement(
            checkpoint=news.checkpoint,
            growth=news.growth,
            index=index,
            entry=log.entry(index).leaf.to_bytes().hex(),
            inclusion=tuple(part.hex() for part in log.inclusion(index, checkpoint.size)),
            cosigned=log.cosigned(),
        ).to_bytes()

    def cosigners(self, plan: str) -> int:
        """How many others have cosigned the newest cosigned checkpoint, by the plan's charter."""
        charter = self._approved(plan).charter
        return len(LogQuorum(charter, self._institution).cosigners(self._parts(charter)[0].cosigned()))

    def answer(self, request: WitnessRequest) -> WitnessReply:
        """Take cosignatures of the own log, cosign others', and tell what is new.

        Raises:
            RefusedError: the plan is not approved here, or a cosigned checkpoint is not of this log.
        """
        charter = self._approved(request.plan).charter
        log, witness = self._parts(charter)
        if request.cosigned is not None:
            LogQuorum(charter, self._institution).cosigners(request.cosigned)  # no signature of a known key is wrong
            log.keep_cosigned(request.cosigned)
        witnessed = {one.log: one for one in (self._cosign(charter, witness, asked) for asked in request.to_cosign)}
        for origin in log_verifiers(charter):
            if origin != log.origin and origin not in witnessed:
                witnessed[origin] = Witnessed(log=origin, size=witness.size(origin))
        news = self._news(log, request.growth_from)
        return WitnessReply(checkpoint=news.checkpoint, growth=news.growth, witnessed=tuple(witnessed.values()))

    def _cosign(self, charter: Charter, witness: Witness, asked: ToCosign) -> Witnessed:
        """A cosignature, or the size that this witness knows of the log."""
        origin = parse_checkpoint(parse_note(asked.checkpoint).text).origin
        verifier = log_verifiers(charter).get(origin)
        if verifier is None:
            raise RefusedError("a checkpoint of a log that the charter does not name")
        proof = [bytes.fromhex(part) for part in asked.growth.proof]
        line = None
        try:
            line = witness.cosign(verifier, asked.growth.old, proof, asked.checkpoint)
        except WitnessConflict:
            pass
        return Witnessed(log=origin, size=witness.size(origin), line=line)

    def _news(self, log: AuditLog, wanted: tuple[int, ...]) -> WitnessReply:
        note = log.checkpoint()
        size = _size(note)
        from_sizes = sorted({old for old in (*wanted, _size(log.cosigned())) if 0 < old <= size})
        growth = tuple(
            Growth(old=old, proof=tuple(part.hex() for part in log.consistency(old, size))) for old in from_sizes
        )
        return WitnessReply(checkpoint=note, growth=growth)

    def _last_entry(self, log: AuditLog) -> int:
        """Index of the newest entry of a run; -1 without one."""
        if self._last_of_runs is None:
            self._last_of_runs = -1
            for stop in range(log.size, 0, -_PAGE):
                found = [one.index for one in log.entries(max(stop - _PAGE, 0), stop) if one.entry["event"] in _OF_RUNS]
                if found:
                    self._last_of_runs = found[-1]
                    break
        return self._last_of_runs
