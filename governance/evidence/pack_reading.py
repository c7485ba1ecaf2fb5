"""Reading an evidence pack strictly: every byte of the file is compared with what the signed manifest makes of it."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cohortium.governance.evidence.pack import (
    MANIFEST,
    MANIFEST_SIGNATURE,
    MAX_JSON,
    PACK_SCHEMA,
    Manifest,
    PackedDocument,
    signable,
)
from cohortium.governance.evidence.pack_container import (
    HEADER_SIZE,
    MAX_PACK,
    Entry,
    Region,
    directory_sizes,
    layout,
    local_header,
    sizes_in_header,
)
from cohortium.governance.log import log_verifiers
from cohortium.governance.review import read_document
from cohortium.study.canonical import digest_bytes
from cohortium.study.charter import Charter, has_signed
from cohortium.study.document import validated
from cohortium.study.errors import CohortiumError, DataError, RefusedError

__all__ = ["AlteredError", "Pack", "open_pack"]

_MAX_MANIFEST = 2**24
_MAX_TAIL = 2**25
_SIGNATURE_SIZE = 128
_CHUNK = 2**20
_HEX = frozenset(b"0123456789abcdef")
_MANIFEST_AT = HEADER_SIZE + len(MANIFEST)
_SIGNATURE_HEADER = HEADER_SIZE + len(MANIFEST_SIGNATURE)


class AlteredError(RefusedError):
    """A pack that is not, byte for byte, what somebody of the charter signed.

    Args:
        where: the document in which the first altered byte lies, or which of the container's own parts.
        message: what is wrong.
    """

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message, place=where, fix="get the pack again from who built it")
        self.where = where


@dataclass(frozen=True)
class Pack:
    """A pack of which every byte was verified when it was opened; each document is again when it is read.

    Args:
        path: the file.
        manifest: what is in it.
        offsets: where every document begins.
        packed: every document as the manifest lists it, by name.
    """

    path: Path
    manifest: Manifest
    offsets: dict[str, int]
    packed: dict[str, PackedDocument]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the documents, in order."""
        return tuple(self.offsets)

    def read(self, name: str) -> bytes:
        """A document's bytes; `DataError` for one that is too large to be read at once, or changed since."""
        packed = self.packed[name]
        if packed.size > MAX_JSON:
            raise DataError("is too large to be read", place=name, fix="build the pack of fewer plans")
        try:
            with self.path.open("rb") as file:
                file.seek(self.offsets[name])
                data = file.read(packed.size)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if digest_bytes(data) != packed.sha256:
            raise AlteredError(name, "was altered while it was verified")
        return data

    def json(self, name: str) -> dict[str, Any]:
        """A document of JSON types; `DataError` when it is none."""
        return read_document(self.read(name), name)

    def unpack(self, name: str, out: Path) -> None:
        """Write a document to a file; it is verified again on the way."""
        packed, sha = self.packed[name], hashlib.sha256()
        try:
            with self.path.open("rb") as file, out.open("xb") as target:
                file.seek(self.offsets[name])
                for chunk in _pieces(file, packed.size):
                    sha.update(chunk)
                    target.write(chunk)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if f"sha256:{sha.hexdigest()}" != packed.sha256:
            raise AlteredError(name, "was altered while it was verified")


def open_pack(path: Path, charter: Charter) -> Pack:
    """A pack, once every byte of it was verified under a key of the charter.

    Formal guarantee: the file is byte for byte the one archive that follows from a manifest which the party that it
    names signed with the key that the charter pins for it, and from documents of that manifest's digests. Nothing
    else is in it: no second name, no compression, no comment, no byte before, between or after.

    Args:
        path: the file.
        charter: got from elsewhere than the pack.

    Raises:
        AlteredError: it is not; names the document in which the first altered byte lies. Where that is the manifest
            or its signature, nothing can be said of the rest.
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _opened(path, file, charter)
    except OSError as error:
        raise _unreadable(path, error) from error


def _opened(path: Path, file: BinaryIO, charter: Charter) -> Pack:
    size = file.seek(0, 2)
    head = _read(file, 0, _MANIFEST_AT)
    start = max(0, size - _MAX_TAIL)
    claims = [sizes_in_header(head), directory_sizes(_read(file, start, size - start), start)]
    sizes = Counter(claimed for found, _ in claims for claimed in found if 0 < claimed <= _MAX_MANIFEST)
    for claimed in sorted(sizes):
        data, signature = _first_two(file, claimed)
        manifest = _signed_manifest(data, signature, charter)
        if manifest is not None:
            packed = {one.name: one for one in manifest.documents}
            return Pack(path, manifest, _compared(file, size, packed, manifest.entries(data, signature)), packed)
    raise _unsigned(file, size, [claimed for claimed, _ in sizes.most_common(1)], claims, charter)


def _first_two(file: BinaryIO, size: int) -> tuple[bytes, bytes]:
    """The manifest, if it has that size, and its signature."""
    data = _read(file, _MANIFEST_AT, size)
    return data, _read(file, _MANIFEST_AT + size + _SIGNATURE_HEADER, _SIGNATURE_SIZE)


def _signed_manifest(data: bytes, signature: bytes, charter: Charter) -> Manifest | None:
    """The manifest, if the party that it names signed it; its form is looked at first, because it names the key."""
    if len(signature) != _SIGNATURE_SIZE or not set(signature) <= _HEX:
        return None
    try:
        manifest = validated(Manifest, read_document(data, MANIFEST), MANIFEST, {}, DataError)
    except CohortiumError:
        return None
    verifier = log_verifiers(charter).get(manifest.signer)
    if verifier is None or manifest.federation != charter.name or manifest.to_bytes() != data:
        return None
    return manifest if has_signed(verifier.public.hex(), signature.decode(), signable(data)) else None


def _compared(file: BinaryIO, size: int, packed: dict[str, PackedDocument], entries: list[Entry]) -> dict[str, int]:
    """Where every document begins, once the whole file was compared; `AlteredError` at the first difference."""
    offsets: dict[str, int] = {}
    end = 0
    for region in layout(entries):
        end = region.offset + region.size
        if region.fixed is not None:
            _compare_fixed(file, region)
        elif region.where in packed:
            one = packed[region.where]
            offsets[one.name] = region.offset
            if _digests(file, region) != (one.sha256, int(one.crc32, 16)):
                what = "is cut off" if size < end else "was altered"
                raise AlteredError(one.name, what)
    if size != end:
        raise AlteredError("the container (after its end)", f"{size - end} bytes were added")
    return offsets


def _compare_fixed(file: BinaryIO, region: Region) -> None:
    if _read(file, region.offset, region.size) != region.fixed:
        raise AlteredError(region.where, "is not what the manifest makes it")


def _digests(file: BinaryIO, region: Region) -> tuple[str, int]:
    sha, crc = hashlib.sha256(), 0
    file.seek(region.offset)
    for chunk in _pieces(file, region.size):
        sha.update(chunk)
        crc = zlib.crc32(chunk, crc)
    return f"sha256:{sha.hexdigest()}", crc


def _unsigned(
    file: BinaryIO, size: int, likely: list[int], claims: Iterable[tuple[set[int], set[int]]], charter: Charter
) -> AlteredError:
    """Why no manifest could be verified; which of manifest and signature was altered is told by their checksums."""
    if not likely or not HEADER_SIZE <= size <= MAX_PACK:
        return AlteredError("the container", f"this is no evidence pack of this version ({PACK_SCHEMA})")
    data, signature = _first_two(file, likely[0])
    if len(data) < likely[0]:
        return AlteredError(MANIFEST, "is cut off")
    if zlib.crc32(data) not in {crc for _, found in claims for crc in found}:
        return AlteredError(MANIFEST, "was altered")
    if len(signature) < _SIGNATURE_SIZE:
        return AlteredError(MANIFEST_SIGNATURE, "is cut off")
    at = _MANIFEST_AT + likely[0]
    expected = local_header(Entry(MANIFEST_SIGNATURE, _SIGNATURE_SIZE, zlib.crc32(signature)))
    if _read(file, at, _SIGNATURE_HEADER) != expected:
        return AlteredError(MANIFEST_SIGNATURE, "was altered")
    try:
        manifest = validated(Manifest, read_document(data, MANIFEST), MANIFEST, {}, DataError)
    except CohortiumError as error:
        return AlteredError(MANIFEST, f"is no manifest of this version: {error.message}")
    if manifest.federation != charter.name:
        return AlteredError(MANIFEST, "is of another federation than the charter")
    if manifest.signer not in log_verifiers(charter):
        return AlteredError(MANIFEST, "names a signer whose key the charter does not have")
    return AlteredError(MANIFEST_SIGNATURE, f"is not of {manifest.signer} by the key that the charter pins")


def _pieces(file: BinaryIO, size: int) -> Iterable[bytes]:
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        size -= len(chunk)
        yield chunk


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(error.strerror or "cannot be read", place=str(path), fix="check the path")
