"""Evidence packs: one file with everything an outsider needs to check what was done, and a signed list of it.

A pack is a zip archive (`pack_container`) of `manifest.json`, its signature `manifest.sig`, and documents. The manifest
is canonical JSON and names every document with size, SHA-256 and CRC-32; the builder signs a label and the manifest
with an Ed25519 key that the charter pins. From a manifest follows every byte of the file that is not in a document.

The manifest's signature says who put the pack together, and that nothing was changed since. Whether the documents are
true to each other, to the logs and to the charter is for `verify` to say.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints, model_validator

from cohortium.governance.evidence.pack_container import MAX_PACK, Entry, archive_size, directory, local_header
from cohortium.study.canonical import digest_bytes
from cohortium.study.document import Agreed, Document, validated
from cohortium.study.errors import DataError, OutputError

__all__ = [
    "MANIFEST",
    "MANIFEST_SIGNATURE",
    "MAX_DOCUMENT",
    "MAX_JSON",
    "PACK_SCHEMA",
    "Manifest",
    "PackedDocument",
    "Source",
    "signable",
    "write_pack",
]

PACK_SCHEMA = "cohortium.evidence/1"
"""The schema of a manifest; another one is refused."""

MANIFEST, MANIFEST_SIGNATURE = "manifest.json", "manifest.sig"
"""The first two entries of every pack."""

MAX_DOCUMENT = 2**30
"""Bytes of the largest document."""

MAX_JSON = 2**26
"""Bytes of the largest document of JSON: those are read at once."""

_LABEL = f"{PACK_SCHEMA}\n".encode()
_MAX_DOCUMENTS = 50_000
_CHUNK = 2**20
_SEGMENT = r"[A-Za-z0-9_%~+-][A-Za-z0-9._%~+-]*"
_NAME = rf"^{_SEGMENT}(/{_SEGMENT})*$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_FORMS = {
    _NAME: "name documents by letters, digits and . _ % ~ + - in folders",
    _DIGEST: "give a digest, sha256: and 64 hexadecimal digits",
}


class PackedDocument(Agreed):
    """A document of a pack.

    Args:
        name: where it stands in the archive; relative, no part of it begins with a dot.
        size: bytes; of JSON at most `MAX_JSON`.
        sha256: its digest.
        crc32: its checksum, 8 hexadecimal digits: the archive carries it.
        media: its media type.
    """

    name: Annotated[str, StringConstraints(pattern=_NAME, max_length=1600)]
    size: Annotated[int, Field(strict=True, ge=0, le=MAX_DOCUMENT)]
    sha256: Annotated[str, StringConstraints(pattern=_DIGEST)]
    crc32: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")]
    media: Annotated[str, StringConstraints(pattern=r"^[a-z]+/[a-z0-9.+-]{1,80}$")]

    @property
    def entry(self) -> Entry:
        """As the archive lists it."""
        return Entry(self.name, self.size, int(self.crc32, 16))


class Manifest(Document):
    """What is in a pack, and who put it together.

    Args:
        schema_id: `cohortium.evidence/1`; written `schema`.
        federation: the charter's name.
        signer: the name of the key that signs, as logs have it (`governance.log.log_origin`).
        plans: digests of the plans that the pack is about, in order; None for everything that its parties hold.
        documents: in the order of their names.
    """

    schema_id: Annotated[Literal["cohortium.evidence/1"], Field(alias="schema")] = "cohortium.evidence/1"
    federation: str
    signer: str
    plans: tuple[Annotated[str, StringConstraints(pattern=_DIGEST)], ...] | None
    documents: Annotated[tuple[PackedDocument, ...], Field(max_length=_MAX_DOCUMENTS)]

    @model_validator(mode="after")
    def _one_archive(self) -> Manifest:
        names = [one.name for one in self.documents]
        if names != sorted(set(names)):
            raise ValueError("documents must have distinct names in order")
        folded = {name.lower() for name in (*names, MANIFEST, MANIFEST_SIGNATURE)}
        if len(folded) != len(names) + 2 or folded & {parent for name in folded for parent in _folders(name)}:
            raise ValueError("documents must have names that differ by more than capitals and are no folders")
        if sum(one.size for one in self.documents) > MAX_PACK:
            raise ValueError("documents are too large for one pack; give fewer plans")
        return self

    def entries(self, data: bytes, signature: bytes) -> list[Entry]:
        """The archive's entries, given the manifest's own bytes and its signature's."""
        first = [
            Entry(MANIFEST, len(data), zlib.crc32(data)),
            Entry(MANIFEST_SIGNATURE, len(signature), zlib.crc32(signature)),
        ]
        return first + [one.entry for one in self.documents]


@dataclass(frozen=True)
class Source:
    """A document to be packed.

    Args:
        name: where it goes.
        content: its bytes, or the file that has them, which is read twice and must not change in between.
        media: its media type.
    """

    name: str
    content: bytes | Path
    media: str = "application/json"


def signable(manifest: bytes) -> bytes:
    """What the signature covers."""
    return _LABEL + manifest


def write_pack(
    out: Path,
    documents: Sequence[Source],
    *,
    federation: str,
    signer: str,
    key: Ed25519PrivateKey,
    plans: Sequence[str] | None,
) -> Manifest:
    """Write a pack, whole or not at all, durably; the same documents and key make the same bytes.

    Args:
        out: the file, which must not be there yet.
        documents: what goes into it, in any order.
        federation: the charter's name.
        signer, key: who signs.
        plans: digests of the plans that it is about; None for everything.

    Raises:
        OutputError: the file is there already or cannot be written.
        DataError: two documents of one name, one that is too large, cannot be read or changes meanwhile, or all are
            too large for one pack.
    """
    if out.exists():
        raise _exists(out)
    packed = sorted((_measured(one) for one in documents), key=lambda one: one.name)
    raw = {
        "schema": PACK_SCHEMA,
        "federation": federation,
        "signer": signer,
        "plans": None if plans is None else sorted(set(plans)),
        "documents": [one.model_dump() for one in packed],
    }
    manifest = validated(Manifest, raw, "evidence pack", _FORMS, DataError)
    data = manifest.to_bytes()
    signature = key.sign(signable(data)).hex().encode()
    entries = manifest.entries(data, signature)
    if archive_size(entries) > MAX_PACK:
        raise DataError("is too large for one pack", place="evidence pack", fix="give fewer plans")
    by_name = {one.name: one for one in documents}
    contents = [data, signature, *(by_name[one.name].content for one in packed)]
    _write(out, entries, contents, [digest_bytes(data), digest_bytes(signature), *(one.sha256 for one in packed)])
    return manifest


def _write(out: Path, entries: Sequence[Entry], contents: Sequence[bytes | Path], digests: Sequence[str]) -> None:
    """Into a file beside it, which then gets its name unless something has that already."""
    staged: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        staged = Path(name)
        with os.fdopen(handle, "wb") as file:
            for entry, content, digest in zip(entries, contents, digests, strict=True):
                file.write(local_header(entry))
                _copy(file, content, digest, entry.name)
            for part in directory(entries):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.link(staged, out)
    except FileExistsError as error:
        raise _exists(out) from error
    except OSError as error:
        raise OutputError(
            error.strerror or "cannot be written", place=str(out), fix="check the path, space and permissions"
        ) from error
    finally:
        if staged is not None:
            with suppress(OSError):
                staged.unlink()


def _measured(source: Source) -> PackedDocument:
    size, crc, sha = 0, 0, hashlib.sha256()
    most = MAX_JSON if source.media == "application/json" else MAX_DOCUMENT
    for chunk in _chunks(source.content):
        size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        sha.update(chunk)
        if size > most:
            raise DataError(
                f"is above the {most:,} bytes that a pack takes", place=source.name, fix="build the pack of fewer plans"
            )
    raw = {
        "name": source.name,
        "size": size,
        "sha256": f"sha256:{sha.hexdigest()}",
        "crc32": f"{crc:08x}",
        "media": source.media,
    }
    return validated(PackedDocument, raw, f"evidence pack: '{source.name}'", _FORMS, DataError)


def _copy(file: BinaryIO, content: bytes | Path, digest: str, name: str) -> None:
    sha = hashlib.sha256()
    for chunk in _chunks(content):
        sha.update(chunk)
        file.write(chunk)
    if f"sha256:{sha.hexdigest()}" != digest:
        raise DataError("changed while it was packed", place=name, fix="build the pack again when nothing writes to it")


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    try:
        with content.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", place=str(content), fix="check the path") from error


def _folders(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _exists(out: Path) -> OutputError:
    return OutputError("exists already", place=str(out), fix="name a new file; no pack is overwritten")
