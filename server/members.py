"""Who is a member of the federation: enrolled, rotated, revoked.

`members/NAME.json` in the coordinator's folder, the name percent-encoded, is all there is to know of one institution,
and what is written first. The charter, the CA's list of revocations and the log's entries follow from these files:
whoever changes one brings the others up to date, also those that an interrupted change left behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AwareDatetime, Field

from cohortium.governance.log import AuditLog, Ed25519Signer, log_origin
from cohortium.privacy.stores import open_store
from cohortium.server.authority import Authority, open_authority, write_revocations
from cohortium.server.founding import (
    MEMBERS,
    SETTINGS,
    CoordinatorIdentity,
    Settings,
    open_coordinator,
    read_coordinator,
    read_settings,
)
from cohortium.study.canonical import digest_bytes
from cohortium.study.charter import (
    CHARTER_SCHEMA,
    Charter,
    Institution,
    Quorum,
    Reviewer,
    load_charter,
    parse_charter,
)
from cohortium.study.document import Agreed, Document, read_json, validated
from cohortium.study.enrolment import (
    FORMS,
    Enrolment,
    EnrolmentRequest,
    Key,
    Name,
    Pem,
    file_name,
    require_fingerprint,
    transport_pem,
)
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.keys import require_private_folder, write_whole
from cohortium.study.validation import suggestion

__all__ = [
    "CHARTER",
    "Enrolled",
    "Issued",
    "Member",
    "active_keys",
    "add_reviewers",
    "enrol",
    "load_members",
    "revoke",
]

CHARTER = "charter.json"

_LOG, _LOCK, _JSON = "log.sqlite", ".members.lock", ".json"
_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Issued(Agreed):
    """One certificate that an institution has or had, and what it was issued on.

    Args:
        region, group, identity: as the institution asked.
        transport: public key in PEM, exactly as Flower sends it.
        certificate: PEM.
        serial: of the certificate, hexadecimal.
        issued_at, not_after: from when, and until when it is good (UTC).
        state: `active`; `rotated` when another one took its place; `revoked`.
        ended_at, reason: when and why it ended.
    """

    region: Name
    group: Name | None = None
    identity: Key
    transport: Pem
    certificate: Pem
    serial: Annotated[str, Field(pattern=r"^[0-9a-f]{1,40}$")]
    issued_at: AwareDatetime
    not_after: AwareDatetime
    state: Literal["active", "rotated", "revoked"] = "active"
    ended_at: AwareDatetime | None = None
    reason: Annotated[str, Field(max_length=500)] | None = None

    def ended(self, state: Literal["rotated", "revoked"], at: datetime, reason: str | None = None) -> Issued:
        """The same certificate, out of force."""
        return self.model_copy(update={"state": state, "ended_at": at, "reason": reason})


class Member(Document):
    """An institution that was enrolled.

    Args:
        schema_id: `cohortium.member/1`; written `schema` on disk.
        name: the institution's.
        settings: digest of the federation's thresholds when the first institution was enrolled.
        current: its newest certificate.
        former: those before, oldest first.
    """

    schema_id: Annotated[Literal["cohortium.member/1"], Field(alias="schema")] = "cohortium.member/1"
    name: Name
    settings: _Digest
    current: Issued
    former: tuple[Issued, ...] = ()

    @property
    def is_active(self) -> bool:
        """Whether it is a member still; its certificate may have run out."""
        return self.current.state == "active"

    @property
    def issued(self) -> tuple[Issued, ...]:
        """All its certificates, oldest first."""
        return (*self.former, self.current)


@dataclass(frozen=True)
class Enrolled:
    """What an enrolment led to.

    Args:
        kind: `enrolled`; `rotated` when a certificate of before was revoked; `repeated` when nothing changed.
        member: the institution as it is kept.
        enrolment: what to send back.
    """

    kind: Literal["enrolled", "rotated", "repeated"]
    member: Member
    enrolment: Enrolment


# --- reading ---------------------------------------------------------------------------------------------------------


def load_members(folder: Path) -> dict[str, Member]:
    """All institutions that were ever enrolled, by name.

    Raises:
        DataError: no coordinator's folder, or a member's file that cannot be read: nobody is a member then.
    """
    members = folder / MEMBERS
    try:
        with os.scandir(members) as entries:
            stamp = tuple(sorted(_stamp(entry) for entry in entries if entry.name.endswith(_JSON)))
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(members), fix="check the path") from error
    return dict(_read_members(members, stamp))


def active_keys(folder: Path, now: datetime) -> Mapping[bytes, str]:
    """Names of the members by their transport keys, as Flower sends these: active, and their certificates not expired.

    Cheap: the files are read again only when one has changed. Errors as `load_members`.
    """
    return {
        member.current.transport.encode(): name
        for name, member in load_members(folder).items()
        if member.is_active and now <= member.current.not_after
    }


def _stamp(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    found = entry.stat()
    return entry.name, found.st_mtime_ns, found.st_size, found.st_ino


@lru_cache(maxsize=8)
def _read_members(folder: Path, stamp: tuple[tuple[str, int, int, int], ...]) -> Mapping[str, Member]:
    members = {}
    for name, *_ in stamp:
        place = folder / name
        member = validated(Member, read_json(place, DataError), str(place), FORMS, DataError)
        if f"{file_name(member.name)}{_JSON}" != name:
            raise DataError(f"is the file of '{member.name}'", place=str(place), fix="put back the right file")
        members[member.name] = member
    return members


# --- changing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Office:
    """An opened coordinator's folder, in which nobody else changes members meanwhile."""

    folder: Path
    coordinator: CoordinatorIdentity
    key: Ed25519PrivateKey
    authority: Authority


def enrol(
    folder: Path, password: str, request: EnrolmentRequest, fingerprint: str, now: datetime, place: str = "request"
) -> Enrolled:
    """Enrol an institution, or give a member a certificate of its new transport key and revoke the one before.

    The same request again, as after a crash, gets the same enrolment: one certificate of a member is in force.

    Args:
        folder: the coordinator's.
        password: of its keys.
        request: from `study.enrolment.load_request`, which verified its signature.
        fingerprint: the request's, as the institution confirmed it.
        now: the time (UTC).
        place: name of the request's file, for messages.

    Raises:
        RefusedError: another fingerprint or federation, a name, an identity or a transport key that is taken or was
            revoked, a certificate that has run out, or thresholds that were changed after the first enrolment.
        DataError, PlanError: files of the coordinator that cannot be read, another password, or a member that the
            charter cannot hold.
    """
    with _office(folder, password) as office:
        require_fingerprint(fingerprint, request.fingerprint, place)
        name, federation = request.institution, office.coordinator.federation
        if request.federation != federation:
            raise RefusedError(
                f"is for the federation '{request.federation}', and this is '{federation}'",
                place=place,
                fix="have a request made for this one: cohortium node init --federation",
            )
        key = request.transport_key(place)
        members = load_members(folder)
        settings = _settings(office, members)
        transport = transport_pem(key).decode()
        _require_unused(office, request, transport, members, place)
        known = members.get(name)
        if known is not None and known.is_active and known.current.transport == transport:
            _require_same(request, known, now, place)
            _settle(office, members, now)
            return Enrolled("repeated", known, _enrolment(office, known))
        now = now.replace(microsecond=0)
        certificate = office.authority.issue_member(federation, name, key, now)
        issued = Issued(
            region=request.region,
            group=request.group,
            identity=request.identity,
            transport=transport,
            certificate=certificate.public_bytes(Encoding.PEM).decode(),
            serial=f"{certificate.serial_number:x}",
            issued_at=now,
            not_after=certificate.not_valid_after_utc,
        )
        rotates = known is not None and known.is_active
        former = () if known is None else _former(known, now)
        member = Member(name=name, settings=settings.digest, current=issued, former=former)
        members = {**members, name: member}
        _charter(office, settings, members)  # whatever the charter cannot hold is refused before anything is written
        _write(folder, member)
        _settle(office, members, now)
        return Enrolled("rotated" if rotates else "enrolled", member, _enrolment(office, member))


def revoke(folder: Path, password: str, name: str, reason: str, now: datetime) -> Member:
    """Revoke a member: its key is refused at once, and it is in no charter from now on.

    Args:
        folder, password: the coordinator's.
        name: the institution's.
        reason: for the log.
        now: the time (UTC).

    Raises:
        RefusedError: nobody of that name was enrolled; or, after the revocation, thresholds that were changed.
        DataError: files of the coordinator that cannot be read, or another password.
    """
    with _office(folder, password) as office:
        members = load_members(folder)
        if name not in members:
            raise RefusedError(
                f"nobody called '{name}' was enrolled",
                place=str(folder),
                fix=suggestion(name, members) if members else "enrol it first",
            )
        member = members[name]
        if member.is_active:
            ended = member.current.ended("revoked", now.replace(microsecond=0), reason)
            member = Member(name=name, settings=member.settings, current=ended, former=member.former)
            _write(folder, member)
        _settle(office, {**members, name: member}, now)
        return member


def add_reviewers(folder: Path, password: str, reviewers: Iterable[Reviewer], now: datetime) -> Charter:
    """Add reviewers, enrolled by their institutions, to the charter; those that it has are left as they are.

    Raises:
        PlanError: an enrolment that does not verify in this federation; nothing is changed.
        RefusedError: no institution is enrolled.
        DataError: files of the coordinator that cannot be read, or another password.
    """
    with _office(folder, password) as office:
        members = load_members(folder)
        before = _settle(office, members, now)
        if before is None:
            raise RefusedError("has no members", place=str(folder), fix="enrol the reviewers' institutions first")
        charter = before.with_reviewers([one for one in reviewers if one not in before.reviewers])
        _write_charter(office, charter)
        return charter


@contextmanager
def _office(folder: Path, password: str) -> Iterator[_Office]:
    read_coordinator(folder)
    require_private_folder(folder)
    with open(os.open(folder / _LOCK, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        coordinator, key = open_coordinator(folder, password)
        yield _Office(folder, coordinator, key, open_authority(folder, password))


def _write(folder: Path, member: Member) -> None:
    write_whole(folder / MEMBERS / f"{file_name(member.name)}{_JSON}", member.to_bytes())


def _require_unused(
    office: _Office, request: EnrolmentRequest, transport: str, members: Mapping[str, Member], place: str
) -> None:
    """No key is anybody else's, or was used before."""
    new_keys = "have it make new keys: cohortium node init in a new folder"
    if request.identity == office.coordinator.identity:
        raise RefusedError("has the coordinator's own identity key", place=place, fix=new_keys)
    for name, member in members.items():
        identities = {one.identity for one in member.issued}
        if name != request.institution and request.identity in identities:
            raise RefusedError(f"has the identity key of '{name}'", place=place, fix=new_keys)
        if name != request.institution and transport in {one.transport for one in member.issued}:
            raise RefusedError(f"has the transport key of '{name}'", place=place, fix=new_keys)
    known = members.get(request.institution)
    if known is None:
        return
    if known.is_active and request.identity != known.current.identity:
        raise RefusedError(
            f"'{request.institution}' is enrolled under another identity key",
            place=place,
            fix="ask it; if it lost its key, revoke it first: cohortium federation revoke",
        )
    if transport in {one.transport for one in known.issued if one.state == "rotated"}:
        raise RefusedError(
            "asks for a certificate of a transport key that was replaced",
            place=place,
            fix="this is an old request; have a new one made: cohortium node rotate",
        )
    revoked = [one for one in known.issued if one.state == "revoked"]
    if request.identity in {one.identity for one in revoked} or transport in {one.transport for one in revoked}:
        raise RefusedError(f"has keys of '{request.institution}' that were revoked", place=place, fix=new_keys)


def _require_same(request: EnrolmentRequest, known: Member, now: datetime, place: str) -> None:
    """A request that was granted before is good for nothing but what was granted."""
    rotate = "have it ask for a new one: cohortium node rotate"
    if now > known.current.not_after:
        raise RefusedError("the certificate that was issued on this request has expired", place=place, fix=rotate)
    if (request.region, request.group) != (known.current.region, known.current.group):
        raise RefusedError(
            "asks for another region or group under a transport key that has a certificate", place=place, fix=rotate
        )


def _former(known: Member, now: datetime) -> tuple[Issued, ...]:
    last = known.current.ended("rotated", now) if known.is_active else known.current
    return (*known.former, last)


def _enrolment(office: _Office, member: Member) -> Enrolment:
    return Enrolment(
        federation=office.coordinator.federation,
        institution=member.name,
        region=member.current.region,
        group=member.current.group,
        identity=member.current.identity,
        address=office.coordinator.address,
        coordinator=office.coordinator.identity,
        authority=office.authority.pem,
        certificate=member.current.certificate,
    ).signed(office.key)


# --- what follows from the members' files ----------------------------------------------------------------------------


def _settle(office: _Office, members: Mapping[str, Member], now: datetime) -> Charter | None:
    """Bring the CA's list, the log and the charter up to date; the charter, None when nobody is a member."""
    ended = {int(one.serial, 16): one.ended_at for member in members.values() for one in member.issued if one.ended_at}
    write_revocations(office.folder, office.authority, ended, now)
    _log(office, [event for member in members.values() for event in _events(member)])
    charter = _charter(office, _settings(office, members), members)
    if charter is None:
        (office.folder / CHARTER).unlink(missing_ok=True)
        return None
    _write_charter(office, charter)
    return charter


def _write_charter(office: _Office, charter: Charter) -> None:
    write_whole(office.folder / CHARTER, charter.to_bytes())
    _log(office, [_event("reviewer-enrolled", one.key, one.model_dump(mode="json")) for one in charter.reviewers])


def _settings(office: _Office, members: Mapping[str, Member]) -> Settings:
    """The thresholds, as they were when the first institution was enrolled."""
    settings = read_settings(office.folder, office.coordinator)
    if {member.settings for member in members.values()} - {settings.digest}:
        raise RefusedError(
            "was changed after the first enrolment",
            place=str(office.folder / SETTINGS),
            fix="put it back as it was; other thresholds are another federation",
        )
    return settings


def _charter(office: _Office, settings: Settings, members: Mapping[str, Member]) -> Charter | None:
    """The charter of the active members, with the reviewers of theirs that it had; `PlanError` where it cannot be."""
    institutions = [
        Institution(
            name=name, region=member.current.region, group=member.current.group, identity=member.current.identity
        )
        for name, member in members.items()
        if member.is_active
    ]
    if not institutions:
        return None
    for one in institutions:
        log_origin(settings.name, one.name)
    document = {
        **settings.model_dump(mode="json", exclude={"schema_id", "quorum"}),
        "schema": CHARTER_SCHEMA,
        "institutions": [one.model_dump(mode="json") for one in institutions],
        "coordinator": office.coordinator.identity,
        "quorum": _reachable(settings.quorum, institutions).model_dump(mode="json"),
    }
    charter = parse_charter(document, str(office.folder / CHARTER))
    if not (office.folder / CHARTER).exists():
        return charter
    identities = {one.name: one.identity or "" for one in institutions}
    before = load_charter(office.folder / CHARTER).reviewers
    return charter.with_reviewers(
        one
        for one in before
        if one.institution in identities and one.is_vouched_for(settings.name, identities[one.institution])
    )


def _reachable(quorum: Quorum, institutions: Sequence[Institution]) -> Quorum:
    """The quorum, lowered to what there are institutions for: with the first of them nobody could witness."""
    others = len(institutions) - 1
    outside = min(
        sum(one is not member and (member.group is None or one.group != member.group) for one in institutions)
        for member in institutions
    )
    witnesses = None if quorum.witnesses is None else min(quorum.witnesses, others)
    most = min(outside, others if witnesses is None else witnesses, 2 if witnesses is None else others)
    return Quorum(
        witnesses=witnesses,
        outside_group=None if quorum.outside_group is None else min(quorum.outside_group, most),
    )


_Event = tuple[str, dict[str, Any]]


def _events(member: Member) -> Iterator[_Event]:
    """What befell a member, each with a key under which the log takes it once."""
    before: Issued | None = None
    for one in member.issued:
        verb = "member-rotated" if before is not None and before.state == "rotated" else "member-enrolled"
        told = {
            "institution": member.name,
            "region": one.region,
            "group": one.group,
            "identity": one.identity,
            "transport": digest_bytes(one.transport.encode()),
            "serial": one.serial,
            "not_after": one.not_after.isoformat(),
            "at": one.issued_at.isoformat(),
        }
        yield _event(verb, one.serial, told)
        if one.state == "revoked" and one.ended_at is not None:
            ended = {"institution": member.name, "serial": one.serial, "reason": one.reason}
            yield _event("member-revoked", one.serial, {**ended, "at": one.ended_at.isoformat()})
        before = one


def _event(event: str, key: str, told: dict[str, Any]) -> _Event:
    return f"{event} {key}", {"event": event, **told}


def _log(office: _Office, events: Sequence[_Event]) -> None:
    origin = log_origin(office.coordinator.federation)
    engine = open_store(office.folder / _LOG)
    try:
        log = AuditLog(engine, origin, Ed25519Signer(origin, office.key))
        log.append([entry for _, entry in events], keys=[key for key, _ in events])
    finally:
        engine.dispose()
