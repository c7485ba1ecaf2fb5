"""Which cosignatures a log's checkpoint needs before anybody relies on it, read from the charter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cohortium.governance.log.checkpoint import Checkpoint, log_origin, open_checkpoint
from cohortium.governance.log.note import CosignerVerifier, Ed25519Verifier
from cohortium.study.charter import Charter, Institution, NeededWitnesses
from cohortium.study.errors import DataError, PlanError

__all__ = ["LogQuorum", "log_verifier", "member_of", "quorum_for"]


@dataclass(frozen=True)
class LogQuorum:
    """A log's key, its witnesses, and how many of them are needed.

    Args:
        verifier: the log's key.
        witnesses: the institutions that may witness, by their names in notes. Never the log's own institution.
        outside: those of them outside the institution's group.
        needed: how many of either.
    """

    verifier: Ed25519Verifier
    witnesses: Mapping[str, CosignerVerifier]
    outside: frozenset[str]
    needed: NeededWitnesses

    def cosigners(self, note: str) -> frozenset[str]:
        """The witnesses that cosigned a checkpoint of the log. Each counts once, however often it cosigned.

        Raises:
            DataError: not a checkpoint that the log signed, or with a cosignature that does not hold.
        """
        _, opened = open_checkpoint(note, self.verifier)
        return opened.signers(list(self.witnesses.values()))

    def satisfied(self, note: str) -> bool:
        """Whether enough witnesses cosigned, enough of them from outside the group; `DataError` as `cosigners`."""
        found = self.cosigners(note)
        return len(found) >= self.needed.witnesses and len(found & self.outside) >= self.needed.outside_group

    def require(self, note: str) -> Checkpoint:
        """The checkpoint in a note that the log signed and a quorum cosigned; `DataError` otherwise."""
        if not self.satisfied(note):
            raise DataError(
                f"is cosigned by {len(self.cosigners(note))} witnesses; {self.needed.witnesses} are needed, "
                f"{self.needed.outside_group} of them outside the group",
                place=self.verifier.name,
                fix="have more institutions witness the checkpoint",
            )
        return open_checkpoint(note, self.verifier)[0]


def quorum_for(charter: Charter, institution: str | None) -> LogQuorum:
    """The quorum of an institution's log, or of the coordinator's.

    Any institution may witness the coordinator's log: as many have to as the charter says, or two, or all of them where
    there are fewer. A group is no matter there.

    Args:
        charter: with the public keys of its members; those without a key cannot witness.
        institution: whose log; None for the coordinator.

    Raises:
        PlanError: the charter has no key for the log, or an institution goes by the coordinator's name.
        Defect: the charter names no such institution.
    """
    if institution is None:
        count = charter.quorum.witnesses
        needed = NeededWitnesses(min(2, len(charter.institutions)) if count is None else count, 0)
        others, outside = list(charter.institutions), list(charter.institutions)
    else:
        needed = charter.quorum_of(institution)
        group = next(member.group for member in charter.institutions if member.name == institution)
        others = [member for member in charter.institutions if member.name != institution]
        outside = [member for member in others if group is None or member.group != group]
    witnesses = [_cosigner(charter, member) for member in others if member.identity is not None]
    names = frozenset(log_origin(charter.name, member.name) for member in outside)
    by_name = {witness.name: witness for witness in witnesses}
    return LogQuorum(log_verifier(charter, institution), by_name, names, needed)


def log_verifier(charter: Charter, institution: str | None) -> Ed25519Verifier:
    """The key under which a log's checkpoints are signed, as the charter pins it.

    Args:
        charter: with public keys.
        institution: whose log; None for the coordinator.

    Raises:
        PlanError: the charter has no such key.
    """
    if institution is None:
        pinned = charter.coordinator
    else:
        pinned = next((member.identity for member in charter.institutions if member.name == institution), None)
    if pinned is None:
        whose = "the coordinator" if institution is None else f"'{institution}'"
        raise PlanError(f"has no key of {whose}", place="charter", fix="enrol its Ed25519 public key")
    return Ed25519Verifier(log_origin(charter.name, institution), bytes.fromhex(pinned))


def member_of(charter: Charter, origin: str) -> str | None:
    """Whose log an origin names: an institution, or None for the coordinator; `PlanError` for nobody's."""
    if origin == log_origin(charter.name):
        return None
    for member in charter.institutions:
        if log_origin(charter.name, member.name) == origin:
            return member.name
    raise PlanError(f"names no log '{origin}'", place="charter", fix="give the charter of the log's federation")


def _cosigner(charter: Charter, member: Institution) -> CosignerVerifier:
    return CosignerVerifier(log_origin(charter.name, member.name), bytes.fromhex(member.identity or ""))
