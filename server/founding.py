"""A coordinator's folder, made once: its identity, the federation's private CA, and what the members agree on.

coordinator.json                 the federation's name, the coordinator's address and identity key
federation.toml                  the charter's thresholds; may be edited until the first enrolment
identity.pem                     the coordinator's Ed25519 private key, encrypted
authority.*, server.*            see `authority`
members/, charter.json           see `members`
log.sqlite                       its audit log
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from cohortium.governance.log import log_origin
from cohortium.privacy.keypairs import fresh_identity
from cohortium.privacy.stores import STORES_FILE
from cohortium.server.authority import (
    AUTHORITY,
    create_authority,
    create_server_certificate,
    write_revocations,
)
from cohortium.study.charter import Quorum
from cohortium.study.document import Document, read_json, read_toml, validated
from cohortium.study.enrolment import FORMS, Address, Key, Name, coordinator_fingerprint, host_of
from cohortium.study.errors import DataError, OutputError, PlanError, RefusedError
from cohortium.study.keys import (
    check_password,
    encrypted_pem,
    read_identity_file,
    require_private_folder,
    write_whole,
)
from cohortium.study.plan import MAX_EPSILON, MIN_CELL

__all__ = [
    "MEMBERS",
    "SETTINGS",
    "CoordinatorIdentity",
    "Settings",
    "found_federation",
    "open_coordinator",
    "read_coordinator",
    "read_settings",
]

MEMBERS, SETTINGS = "members", "federation.toml"

_COORDINATOR, _KEY = "coordinator.json", "identity.pem"

_SETTINGS = """\
# What no plan of this federation may undercut. Edit it now: with the first enrolment it is fixed.
schema = "cohortium.federation/1"
name = {name}

max_epsilon = {max_epsilon}       # no plan may ask for more
min_cell = {min_cell}            # no plan may release smaller cells
min_customers = {min_customers}     # every institution has at least so many

# Cosignatures that a log needs before anybody relies on it: 2, one of them from outside the group, when left out.
# While too few are enrolled, the charter asks for as many as there are.
# [quorum]
# witnesses = 2
# outside_group = 1
"""


class Settings(Document):
    """`federation.toml`: the charter's thresholds.

    Args:
        schema_id: `cohortium.federation/1`; written `schema` on disk.
        name: the federation's name, as it was founded under.
        max_epsilon, min_cell, min_customers, quorum: as in `study.charter.Charter`, which checks them.
    """

    schema_id: Annotated[Literal["cohortium.federation/1"], Field(alias="schema")]
    name: Name
    max_epsilon: Annotated[float, Field(strict=True, gt=0, le=50, allow_inf_nan=False)] = MAX_EPSILON
    min_cell: Annotated[int, Field(strict=True, ge=MIN_CELL, le=10**6)] = MIN_CELL
    min_customers: Annotated[int, Field(strict=True, ge=1, le=10**10)] = 1000
    quorum: Quorum = Quorum()


class CoordinatorIdentity(Document):
    """`coordinator.json`: who the coordinator is.

    Args:
        schema_id: `cohortium.coordinator/1`; written `schema` on disk.
        federation: its name.
        address: where nodes connect to.
        identity: its Ed25519 public key.
    """

    schema_id: Annotated[Literal["cohortium.coordinator/1"], Field(alias="schema")] = "cohortium.coordinator/1"
    federation: Name
    address: Address
    identity: Key

    def fingerprint(self, folder: Path) -> str:
        """What institutions compare before they join (`study.enrolment.coordinator_fingerprint`)."""
        authority = (folder / AUTHORITY).read_text(encoding="ascii")
        return coordinator_fingerprint(self.federation, self.identity, authority)


def found_federation(
    folder: Path, federation: str, address: str, password: str, now: datetime, names: tuple[str, ...] = ()
) -> CoordinatorIdentity:
    """Make a coordinator's folder, readable by its owner alone. What was interrupted is finished by the same call.

    Args:
        folder: does not exist yet, or is empty but for `stores.toml`.
        federation: the federation's name.
        address: HOST:PORT where nodes will connect to.
        password: of all keys in it.
        now: the time (UTC).
        names: further host names and IP addresses under which the coordinator is reached; IPv6 in brackets.

    Raises:
        OutputError: the folder holds something else, or a coordinator already.
        DataError: a name, an address or a password of the wrong form; a folder that is open to others.
    """
    for one in (address, *(f"{name}:1" for name in names)):
        asked = {"federation": federation, "address": one, "identity": "0" * 64}
        validated(CoordinatorIdentity, asked, "coordinator", FORMS, DataError)
    log_origin(federation)
    check_password(password, "password")
    _claim(folder)
    if not (folder / _KEY).exists():
        write_whole(folder / _KEY, encrypted_pem(fresh_identity(), password, str(folder / _KEY)))
    key = read_identity_file(folder / _KEY, password)
    authority = create_authority(folder, federation, password, now)
    hosts = tuple(dict.fromkeys((host_of(address), *(name.strip("[]") for name in names))))
    create_server_certificate(folder, authority, federation, hosts, password, now)
    write_revocations(folder, authority, {}, now)
    (folder / MEMBERS).mkdir(exist_ok=True, mode=0o700)
    settings = _SETTINGS.format(
        name=json.dumps(federation, ensure_ascii=False),
        max_epsilon=MAX_EPSILON,
        min_cell=MIN_CELL,
        min_customers=1000,
    )
    write_whole(folder / SETTINGS, settings.encode())
    made = CoordinatorIdentity(
        federation=federation, address=address, identity=key.public_key().public_bytes_raw().hex()
    )
    write_whole(folder / _COORDINATOR, made.to_bytes())  # last: a folder that has it has everything
    return made


def _claim(folder: Path) -> None:
    begun = {_KEY, SETTINGS, MEMBERS, STORES_FILE, "authority.pem", "authority.crt", "authority.crl"}
    begun |= {"server.pem", "server.crt"}
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        there = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise OutputError(error.strerror or "cannot be made", place=str(folder), fix="choose another") from error
    if _COORDINATOR in there:
        raise OutputError("holds a coordinator already", place=str(folder), fix="choose a new folder")
    if strangers := sorted(name for name in there - begun if not name.endswith(".partial")):
        raise OutputError(f"is not empty: it has '{strangers[0]}'", place=str(folder), fix="choose a new folder")
    require_private_folder(folder)


def read_coordinator(folder: Path) -> CoordinatorIdentity:
    """Who the coordinator of that folder is; `DataError` when it holds none."""
    if not (folder / _COORDINATOR).is_file():
        raise DataError("holds no coordinator", place=str(folder), fix="make one with `cohortium federation init`")
    place = folder / _COORDINATOR
    return validated(CoordinatorIdentity, read_json(place, DataError), str(place), FORMS, DataError)


def open_coordinator(folder: Path, password: str) -> tuple[CoordinatorIdentity, Ed25519PrivateKey]:
    """Who the coordinator of that folder is, and its identity key.

    Raises:
        DataError: no coordinator there, files that others may read, another password, or another coordinator's key.
    """
    coordinator = read_coordinator(folder)
    require_private_folder(folder)
    key = read_identity_file(folder / _KEY, password)
    if key.public_key().public_bytes_raw().hex() != coordinator.identity:
        raise DataError("is not the coordinator's key", place=str(folder / _KEY), fix="put back the right file")
    return coordinator, key


def read_settings(folder: Path, coordinator: CoordinatorIdentity) -> Settings:
    """The federation's thresholds.

    Raises:
        PlanError: `federation.toml` cannot be read or does not hold together.
        RefusedError: it names another federation.
    """
    place = folder / SETTINGS
    found = validated(Settings, read_toml(place, PlanError), str(place), FORMS, PlanError)
    if found.name != coordinator.federation:
        raise RefusedError(
            f"the federation was founded as '{coordinator.federation}'",
            place=f"{place}: name",
            fix="put that name back: certificates and signatures say it",
        )
    return found
