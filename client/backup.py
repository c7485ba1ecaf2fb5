"""A node as one encrypted file, made while it runs, and put back into an empty folder.

The file begins with a line of JSON that tells how its key follows from the password (scrypt, RFC 7914). What follows is
cut into pieces, each sealed by AES-256-GCM under its number and whether it is the last, so that none can be changed,
moved, left out or cut off. Inside are a manifest with the SHA-256 of every member, and the members one after another.

A store is copied as one state of it, the audit log first: the ledger of a backup is never behind its log. Customer
tables are not in it: they are read again from the institution's own tables.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import AfterValidator, Field
from sqlalchemy import Table

from cohortium.client.audience.store import TABLES as AUDIENCE_TABLES
from cohortium.client.seeds import TABLES as SEED_TABLES
from cohortium.client.store import TABLES as NODE_TABLES
from cohortium.client.store import NodeStore
from cohortium.governance.access import ACCESS_FILE, AccountStore
from cohortium.governance.access import TABLES as ACCESS_TABLES
from cohortium.governance.consent.tables import metadata as consent_tables
from cohortium.governance.log.store import TABLES as LOG_TABLES
from cohortium.governance.log.witness import TABLES as WITNESS_TABLES
from cohortium.governance.obligations.register import TABLES as OBLIGATION_TABLES
from cohortium.governance.review.store import TABLES as REVIEW_TABLES
from cohortium.privacy.ledger import TABLES as LEDGER_TABLES
from cohortium.privacy.randomness import fresh_key
from cohortium.privacy.secure_sum.state import TABLES as SUM_TABLES
from cohortium.privacy.store_forms import copy_rows, copy_store
from cohortium.privacy.stores import STORES_FILE, has_store, open_sqlite, open_store, store_url
from cohortium.study.canonical import canonical_bytes
from cohortium.study.document import Agreed, parse_json, validated
from cohortium.study.errors import DataError, OutputError, RefusedError

__all__ = ["Made", "make_backup", "restore_backup"]

_STORES = {
    "access": (ACCESS_TABLES, LOG_TABLES),
    "log": (LOG_TABLES, WITNESS_TABLES),
    "node": (LEDGER_TABLES, NODE_TABLES, SUM_TABLES, SEED_TABLES, AUDIENCE_TABLES),
    "review": (REVIEW_TABLES,),
    "obligations": (OBLIGATION_TABLES,),
    "consent": (consent_tables,),
}
"""In the order in which they are copied: the log before the ledger, and consent last, so that it knows the most."""

_LEFT_OUT = frozenset({"customers", "inbox", STORES_FILE})
_SCRATCH = ".backup-"
_COST, _BLOCK, _PARALLEL = 2**17, 8, 1
_PIECE = 2**20
_MOST_LINE, _MOST_MANIFEST = 4096, 2**24
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_ALTERED = "the password is wrong, or the file was altered or cut off"


def _is_power(cost: int) -> int:
    if cost & (cost - 1):
        raise ValueError("the cost is a power of 2; take the file that was made")
    return cost


class _Head(Agreed):
    """The line before the pieces."""

    format: Literal["cohortium.backup/1"] = Field(default="cohortium.backup/1", alias="schema")
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    cost: Annotated[int, Field(ge=2, le=_COST), AfterValidator(_is_power)]

    def to_bytes(self) -> bytes:
        return canonical_bytes(self.model_dump(mode="json", by_alias=True)) + b"\n"


class _Member(Agreed):
    name: Annotated[str, Field(pattern=f"^{_NAME.pattern}$", max_length=512)]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Manifest(Agreed):
    institution: str
    made_at: str
    members: tuple[_Member, ...]


@dataclass(frozen=True)
class Made:
    """A backup that was made or put back.

    Args:
        institution: whose.
        made_at: when it was made (UTC, ISO 8601).
        members: its files, by name.
    """

    institution: str
    made_at: str
    members: tuple[str, ...]


def make_backup(folder: Path, out: Path, password: str) -> Made:
    """Write a node's backup while it runs.

    Args:
        folder: its state folder.
        out: the file to be made, for its owner alone; nothing is ever written over.
        password: from which the key is derived.

    Raises:
        DataError: there is no node, or a store cannot be read.
        OutputError: the file is there, or cannot be written; nothing is left. Or another backup is being made.
    """
    try:
        institution = str(json.loads((folder / "node.json").read_bytes())["institution"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("holds no node", place=str(folder), fix="name a node's state folder") from error
    if out.exists():
        raise OutputError("is there already", place=str(out), fix="name a new file")
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    partial = out.with_name(f".{out.name}.partial")
    try:
        with _scratch(folder) as scratch:
            files = dict(_files(folder, scratch))
            members = tuple(
                _Member(name=name, size=path.stat().st_size, sha256=_sha256(path)) for name, path in files.items()
            )
            manifest = _Manifest(institution=institution, made_at=made_at, members=members)
            partial.unlink(missing_ok=True)
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                _seal(file, password, _stream(manifest, files))
                file.flush()
                os.fsync(file.fileno())
        os.link(partial, out)  # unlike a rename it never replaces a file
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(out), fix="check path and room") from error
    finally:
        partial.unlink(missing_ok=True)
    return Made(institution, made_at, tuple(files))


def restore_backup(file: Path, to: Path, password: str, stores: Path | None = None) -> Made:
    """Put a node back into a folder of its own; it answers nothing until `client.restored.confirm`.

    Args:
        file: from `make_backup`.
        to: the folder to be made.
        password: the backup's.
        stores: a `stores.toml` for the folder; the stores that it names are written there, where none may be yet. All
            others are SQLite files.

    Raises:
        DataError: no backup, another password, or a file that was altered; `stores` does not hold together.
        RefusedError: the folder is not empty, or a store that is named was begun.
        OutputError: it cannot be written. In any case nothing is left of the folder.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RefusedError("is there already", place=str(to), fix="name a new folder; nothing is written over")
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, mode=0o700)
        with file.open("rb") as opened:
            manifest = _unpack(_Plain(opened, password, str(file)), partial, str(file))
        if stores is not None:
            _write(partial / STORES_FILE, stores.read_bytes())
        _mark(partial, manifest.made_at)
        for name in _STORES:
            _move(partial / f"{name}.sqlite", to)
        if to.exists():
            to.rmdir()
        os.rename(partial, to)
    except OSError as error:
        raise OutputError(error.strerror or "cannot be written", place=str(to), fix="check path and room") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Made(manifest.institution, manifest.made_at, tuple(one.name for one in manifest.members))


# --- making ----------------------------------------------------------------------------------------------------------


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A private folder for copies of the stores; those that a killed process left go first."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        for left in folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch:
            yield Path(scratch)
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError("another backup is being made", place=str(folder), fix="wait for it") from error


def _files(folder: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """What a backup holds, by name: copies of the stores, then the other files of the folder."""
    for name, parts in _STORES.items():
        path = folder / f"{name}.sqlite"
        if has_store(path):
            copy_store(path, scratch / path.name, _tables(parts))
            yield path.name, scratch / path.name
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if hidden or name.split("/")[0] in _LEFT_OUT or ".sqlite" in path.name or not path.is_file():
            continue
        if not _NAME.fullmatch(name):
            raise DataError("has a name that a backup cannot hold", place=str(path), fix="move it out of the folder")
        yield name, path


def _tables(parts: Sequence[Any]) -> list[Table]:
    return [table for metadata in parts for table in metadata.sorted_tables]


def _stream(manifest: _Manifest, files: dict[str, Path]) -> Iterator[bytes]:
    told = canonical_bytes(manifest.model_dump(mode="json"))
    yield len(told).to_bytes(4, "big") + told
    for one in manifest.members:
        digest = hashlib.sha256()
        with files[one.name].open("rb") as file:
            while data := file.read(_PIECE):
                digest.update(data)
                yield data
        if digest.hexdigest() != one.sha256:
            raise DataError("changed while it was read", place=str(files[one.name]), fix="make the backup again")


def _seal(file: BinaryIO, password: str, parts: Iterator[bytes]) -> None:
    head = _Head(salt=fresh_key().hex(), cost=_COST)
    file.write(head.to_bytes())
    cipher, number, held = _cipher(head, password), 0, b""
    for part in parts:
        held += part
        while len(held) > _PIECE:
            file.write(cipher.encrypt(_nonce(number, last=False), held[:_PIECE], head.to_bytes()))
            number, held = number + 1, held[_PIECE:]
    file.write(cipher.encrypt(_nonce(number, last=True), held, head.to_bytes()))


def _cipher(head: _Head, password: str) -> AESGCM:
    derive = Scrypt(salt=bytes.fromhex(head.salt), length=32, n=head.cost, r=_BLOCK, p=_PARALLEL)
    return AESGCM(derive.derive(password.encode()))


def _nonce(number: int, *, last: bool) -> bytes:
    """Never used twice: a key is derived with a fresh salt for each backup."""
    return number.to_bytes(11, "big") + bytes([last])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- putting back ----------------------------------------------------------------------------------------------------


class _Plain:
    """The plain text of a backup, piece after piece; `DataError` for one that does not hold."""

    def __init__(self, file: BinaryIO, password: str, place: str) -> None:
        self._place = place
        line = file.readline(_MOST_LINE)
        head = validated(_Head, parse_json(line, place, DataError), place, {}, DataError)
        if head.to_bytes() != line:
            raise self.broken("is no backup of this version")
        self._file, self._head, self._cipher = file, line, _cipher(head, password)
        self._next, self._number, self._held = file.read(_PIECE + 16), 0, b""

    def read(self, size: int) -> bytes:
        """So many bytes and no fewer."""
        while len(self._held) < size:
            if not self._next:
                raise self.broken(_ALTERED)
            piece, self._next = self._next, self._file.read(_PIECE + 16)
            try:
                self._held += self._cipher.decrypt(_nonce(self._number, last=not self._next), piece, self._head)
            except InvalidTag:
                raise self.broken(_ALTERED) from None
            self._number += 1
        data, self._held = self._held[:size], self._held[size:]
        return data

    def end(self) -> None:
        """Nothing may follow."""
        if self._held or self._next:
            raise self.broken(_ALTERED)

    def broken(self, message: str) -> DataError:
        return DataError(message, place=self._place, fix="give the right password, or another backup")


def _unpack(plain: _Plain, folder: Path, place: str) -> _Manifest:
    size = int.from_bytes(plain.read(4), "big")
    if size > _MOST_MANIFEST:
        raise plain.broken(_ALTERED)
    manifest = validated(_Manifest, parse_json(plain.read(size), place, DataError), place, {}, DataError)
    if STORES_FILE in {one.name for one in manifest.members}:
        raise plain.broken(f"holds {STORES_FILE}, which belongs to the folder it was made of")
    for one in manifest.members:
        path = folder / one.name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        digest, left = hashlib.sha256(), one.size
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            while left:
                data = plain.read(min(left, _PIECE))
                digest.update(data)
                file.write(data)
                left -= len(data)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != one.sha256:
            raise plain.broken(f"{one.name}: is not what the manifest says")
    plain.end()
    return manifest


def _mark(folder: Path, made_at: str) -> None:
    engine = open_sqlite(folder / "node.sqlite", folder, create=False, read_only=False)
    try:
        NodeStore(engine).mark_restored(made_at)
    finally:
        engine.dispose()
    if has_store(folder / ACCESS_FILE):
        engine = open_store(folder / ACCESS_FILE, create=False)
        try:
            AccountStore(engine).note_restored(made_at)
        finally:
            engine.dispose()


def _move(path: Path, to: Path) -> None:
    """Put a store where the folder's `stores.toml` wants it."""
    if not path.is_file() or store_url(path) is None:
        return
    if has_store(path):
        raise RefusedError(
            f"the {path.stem} store that {STORES_FILE} names was begun already",
            place=str(to),
            fix="name a fresh schema; a store is never written over",
        )
    tables = _tables(_STORES[path.stem])
    source, target = open_sqlite(path, path.parent, create=False, read_only=True), open_store(path)
    try:
        with source.begin() as reading, target.begin() as writing:
            for metadata in dict.fromkeys(table.metadata for table in tables):
                metadata.create_all(writing)
            copy_rows(reading, writing, tables)
    finally:
        source.dispose()
        target.dispose()
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def _write(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
