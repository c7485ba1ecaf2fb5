"""A node's audit log: the door's entries, what others cosigned of it, and what the node cosigns of others' logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.client.store import Approval
from cohortium.governance.log import (
    AuditLog,
    Ed25519Signer,
    JoinedStore,
    Verifier,
    Witness,
    WitnessError,
    log_origin,
    log_verifiers,
    parse_checkpoint,
    parse_note,
    quorum_for,
)
from cohortium.privacy.ledger import open_store
from cohortium.study.charter import Charter
from cohortium.study.errors import Defect, RefusedError
from cohortium.study.witness import Growth, Statement, ToCosign, Witnessed, WitnessReply, WitnessRequest

__all__ = ["LOG_FILE", "NodeLog"]

LOG_FILE = "log.sqlite"

_OF_RUNS = ("admission", "release")
_PAGE = 256
_NOTHING = 0, -1  # size up to which the log was searched, and index of the newest entry of a run in it
_log = logging.getLogger(__name__)


class NodeLog:
    """The audit sink of a node's door, and the node's part in witnessing.

    One log serves one federation: its origin names the charter. It is begun when the first plan is answered.

    Args:
        folder: the node's state folder.
        institution: the node's name in its charters.
        key: its identity key, which signs its checkpoints and cosigns others'.
        approved: the approval of a plan by digest; `RefusedError` when there is none or it has expired.
    """

    def __init__(
        self,
        folder: Path,
        institution: str,
        key: Ed25519PrivateKey,
        approved: Callable[[str], Approval],
    ) -> None:
        self._path = folder / LOG_FILE
        self._institution = institution
        self._key = key
        self._approved = approved
        self._engine: JoinedStore | None = None
        self._opened: tuple[AuditLog, Witness] | None = None
        self._pending: str | None = None
        self._searched = _NOTHING

    def close(self) -> None:
        """Close the log's file."""
        if self._engine is not None:
            self._engine.dispose()

    def require_witnessed(self, plan: str) -> None:
        """See `privacy.gate.AuditSink`."""
        charter = self._approved(plan).charter
        log, _ = self._parts(charter)
        quorum, cosigned = quorum_for(charter, self._institution), self._cosigned(log)
        needed = quorum.needed.witnesses
        if needed == 0:
            return
        if cosigned is None or not quorum.satisfied(cosigned):
            raise RefusedError(f"fewer than {needed} others witness the audit log", fix="resume when they answer")
        if self._last_entry(log) >= _size(cosigned):
            raise RefusedError("nobody has witnessed the audit log's newest entry", fix="resume when others answer")

    def record(self, key: str, entry: Mapping[str, str | int]) -> bytes:
        """See `privacy.gate.AuditSink`."""
        log, _ = self._parts(self._approved(str(entry["plan"])).charter)
        with self._together():
            if self._pending is not None:
                log.keep_cosigned(self._pending)
            (index,) = log.append([entry], keys=[key])
            news = self._news(log, ())
            size = _size(news.checkpoint)
            statement = Statement(
                checkpoint=news.checkpoint,
                growth=news.growth,
                index=index,
                entry=log.entry(index).leaf.to_bytes().hex(),
                inclusion=tuple(part.hex() for part in log.inclusion(index, size)),
                cosigned=self._cosigned(log),
            )
        self._pending = None
        return statement.to_bytes()

    def take(self, request: WitnessRequest) -> None:
        """Take cosignatures of the own log; they are kept with the next entry.

        Raises:
            DataError: not a checkpoint of this log, or a cosignature in it does not hold.
            RefusedError: the log no longer holds what the checkpoint committed to.
        """
        charter = self._approved(request.plan).charter
        if request.cosigned is None:
            return
        quorum_for(charter, self._institution).cosigners(request.cosigned)
        log, _ = self._parts(charter)
        said = parse_checkpoint(parse_note(request.cosigned).text)
        if said.size > log.size or log.root(said.size) != said.root:
            raise RefusedError(
                "the audit log does not hold what others witnessed of it",
                place=str(self._path),
                fix="verify the log; put back the newest copy",
            )
        kept = log.cosigned()
        if kept is None or _size(request.cosigned) >= _size(kept):
            self._pending = request.cosigned

    def cosigners(self, plan: str) -> int:
        """How many others cosigned the newest checkpoint that any of them did, by the plan's charter."""
        charter = self._approved(plan).charter
        cosigned = self._cosigned(self._parts(charter)[0])
        return 0 if cosigned is None else len(quorum_for(charter, self._institution).cosigners(cosigned))

    def answer(self, request: WitnessRequest) -> WitnessReply:
        """Take cosignatures of the own log, cosign others', and tell what is new.

        Raises:
            RefusedError: the plan is not approved here, or a checkpoint is of a log that its charter does not name.
            DataError: a cosigned checkpoint is not of this log, or a cosignature in it does not hold.
        """
        charter = self._approved(request.plan).charter
        log, witness = self._parts(charter)
        verifiers = log_verifiers(charter)
        if request.cosigned is not None:
            quorum_for(charter, self._institution).cosigners(request.cosigned)
        with self._together():
            if request.cosigned is not None:
                log.keep_cosigned(request.cosigned)
            lines = dict(self._cosign(verifiers, witness, asked) for asked in request.to_cosign)
            others = [origin for origin in verifiers if origin != log.origin]
            known = {origin: witness.known(origin) for origin in others}
            news = self._news(log, request.growth_from)
        witnessed = tuple(
            Witnessed(log=origin, size=0 if seen is None else seen.checkpoint.size, line=lines.get(origin))
            for origin, seen in known.items()
        )
        return WitnessReply(checkpoint=news.checkpoint, growth=news.growth, witnessed=witnessed)

    def _cosign(self, verifiers: Mapping[str, Verifier], witness: Witness, asked: ToCosign) -> tuple[str, str | None]:
        """A log's origin and the line that cosigns it; no line where this witness knows another past of it."""
        origin = _origin(asked.checkpoint)
        if origin not in verifiers or origin == witness.name:
            raise RefusedError("a checkpoint of a log that is not to be witnessed here")
        proof = [bytes.fromhex(part) for part in asked.growth.proof]
        try:
            return origin, witness.cosign(origin, verifiers[origin], asked.growth.old, proof, asked.checkpoint)
        except WitnessError as error:
            _log.warning("not cosigned: %s", error)
            return origin, None

    def _parts(self, charter: Charter) -> tuple[AuditLog, Witness]:
        origin = log_origin(charter.name, self._institution)
        if self._opened is None:
            if self._engine is None:
                self._engine = JoinedStore(open_store(self._path))
            log = AuditLog(self._engine, origin, Ed25519Signer(origin, self._key))
            self._opened = log, Witness(self._engine, origin, self._key)
        if self._opened[0].origin != origin:
            raise RefusedError(
                "the node's audit log belongs to another federation",
                place=str(self._path),
                fix="give a node of its own to each federation",
            )
        return self._opened

    @contextmanager
    def _together(self) -> Iterator[None]:
        """One commit for all that is done in it; after a failure the log is read anew from its file."""
        if self._engine is None:
            raise Defect("an audit log that was not opened")
        try:
            with self._engine.together():
                yield
        except BaseException:
            self._opened, self._searched = None, _NOTHING
            raise

    def _cosigned(self, log: AuditLog) -> str | None:
        """The newest checkpoint of this log that others cosigned."""
        kept = log.cosigned()
        return kept if self._pending is None else self._pending

    def _news(self, log: AuditLog, wanted: tuple[int, ...]) -> WitnessReply:
        note = log.checkpoint()
        size = _size(note)
        from_sizes = sorted({old for old in (*wanted, _size(self._cosigned(log))) if 0 < old <= size})
        growth = tuple(
            Growth(old=old, proof=tuple(part.hex() for part in log.consistency(old, size))) for old in from_sizes
        )
        return WitnessReply(checkpoint=note, growth=growth)

    def _last_entry(self, log: AuditLog) -> int:
        """Index of the newest entry of a run, whoever wrote it; -1 without one."""
        size, (searched, last) = log.size, self._searched
        for stop in range(size, searched, -_PAGE):
            entries = log.entries(max(stop - _PAGE, searched), stop)
            if found := [one.index for one in entries if one.entry.get("event") in _OF_RUNS]:
                last = found[-1]
                break
        self._searched = size, last
        return last


def _size(note: str | None) -> int:
    """Of the checkpoint in a note."""
    return 0 if note is None else parse_checkpoint(parse_note(note).text).size


def _origin(note: str) -> str:
    return parse_checkpoint(parse_note(note).text).origin
