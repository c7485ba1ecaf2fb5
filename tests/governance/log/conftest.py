"""Logs on files of their own, and a federation of four whose keys are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Engine

from cohortium.governance.log import AuditLog, Ed25519Signer, log_origin
from cohortium.privacy.ledger import open_store
from cohortium.study.charter import Charter, parse_charter

NAMES = ("north", "south", "west", "east")
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode()) for name in (*NAMES, "coordinator")}


@dataclass(frozen=True)
class Kept:
    """A log and where it is."""

    log: AuditLog
    store: Engine
    path: Path
    signer: Ed25519Signer


@pytest.fixture
def keys() -> dict[str, Ed25519PrivateKey]:
    return KEYS


@pytest.fixture
def federation() -> Charter:
    """Four institutions, of which north and south are one group."""
    public = {name: key.public_key().public_bytes_raw().hex() for name, key in KEYS.items()}
    members = [{"name": name, "region": "EU", "identity": public[name]} for name in NAMES]
    for member in members[:2]:
        member["group"] = "coast"
    document = {"schema": "cohortium.charter/1", "name": "sea", "institutions": members}
    return parse_charter({**document, "coordinator": public["coordinator"]})


@pytest.fixture
def make_log(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    """The log of an institution with a number of entries, in a file of that name."""
    opened: list[Engine] = []

    def make(entries: int = 0, name: str = "north", file: str | None = None) -> Kept:
        path = tmp_path / (file or f"{name}.sqlite")
        opened.append(open_store(path))
        signer = Ed25519Signer(log_origin("sea", name), KEYS[name])
        log = AuditLog(opened[-1], signer.name, signer)
        log.append([{"event": "query", "step": step} for step in range(entries)])
        return Kept(log, opened[-1], path, signer)

    yield make
    for store in opened:
        store.dispose()
