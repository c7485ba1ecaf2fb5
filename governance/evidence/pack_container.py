"""The container of an evidence pack: a zip archive of stored entries of which every byte follows from the manifest.

Nothing is compressed, all times are zero, nothing is optional, and the archive ends with its directory: whoever knows
names, sizes and checksums of the entries knows every byte that is not an entry's own. So a file is not searched for
what a reader would make of it; it is compared with the one archive that it has to be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = [
    "HEADER_SIZE",
    "MAX_PACK",
    "Entry",
    "Region",
    "archive_size",
    "directory",
    "directory_sizes",
    "layout",
    "local_header",
    "sizes_in_header",
]

MAX_PACK = 2**32 - 1
"""Bytes of the largest pack: the archive is of the plain kind, whose sizes have 32 bits."""

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_LOCAL_MARK, _CENTRAL_MARK, _END_MARK = 0x04034B50, 0x02014B50, 0x06054B50
_VERSION, _DAY = 20, 0x21  # 2.0; 1 January 1980, the first day that the format knows

HEADER_SIZE = _LOCAL.size
"""Bytes of an entry's header before its name."""


@dataclass(frozen=True)
class Entry:
    """One entry: its name (ASCII), its size in bytes and its CRC-32."""

    name: str
    size: int
    crc: int


@dataclass(frozen=True)
class Region:
    """A part of the archive.

    Args:
        where: an entry's name, or which of the container's own parts it is, in words.
        offset, size: in bytes.
        fixed: what has to stand there; None where an entry's bytes do.
    """

    where: str
    offset: int
    size: int
    fixed: bytes | None


def local_header(entry: Entry) -> bytes:
    """What stands before an entry's bytes."""
    name = entry.name.encode("ascii")
    fields = (_LOCAL_MARK, _VERSION, 0, 0, 0, _DAY, entry.crc, entry.size, entry.size, len(name), 0)
    return _LOCAL.pack(*fields) + name


def directory(entries: Sequence[Entry]) -> tuple[bytes, bytes]:
    """The directory after the last entry, and the archive's last 22 bytes."""
    records, offset = [], 0
    for entry in entries:
        name = entry.name.encode("ascii")
        sizes = (entry.crc, entry.size, entry.size, len(name))
        fields = (_CENTRAL_MARK, _VERSION, _VERSION, 0, 0, 0, _DAY, *sizes, 0, 0, 0, 0, 0, offset)
        records.append(_CENTRAL.pack(*fields) + name)
        offset += HEADER_SIZE + len(name) + entry.size
    listed = b"".join(records)
    return listed, _END.pack(_END_MARK, 0, 0, len(entries), len(entries), len(listed), offset, 0)


def layout(entries: Sequence[Entry]) -> Iterator[Region]:
    """Every region of the archive in its order."""
    offset = 0
    for entry in entries:
        header = local_header(entry)
        yield Region(f"the container (header of {entry.name})", offset, len(header), header)
        offset += len(header)
        yield Region(entry.name, offset, entry.size, None)
        offset += entry.size
    listed, end = directory(entries)
    yield Region("the container (directory)", offset, len(listed), listed)
    yield Region("the container (end of the directory)", offset + len(listed), len(end), end)


def archive_size(entries: Sequence[Entry]) -> int:
    """Bytes of the whole archive."""
    return sum(2 * len(entry.name) + entry.size + _LOCAL.size + _CENTRAL.size for entry in entries) + _END.size


def sizes_in_header(data: bytes) -> tuple[set[int], set[int]]:
    """The sizes and the checksum that the first entry's header claims; empty where it is cut off."""
    if len(data) < _LOCAL.size:
        return set(), set()
    fields = _LOCAL.unpack_from(data)
    return {fields[7], fields[8]}, {fields[6]}


def directory_sizes(tail: bytes, start: int) -> tuple[set[int], set[int]]:
    """The same from the directory at the end.

    Args:
        tail: the last bytes of the file.
        start: the offset of the first of them.
    """
    if len(tail) < _END.size:
        return set(), set()
    offset = _END.unpack_from(tail, len(tail) - _END.size)[6] - start
    if not 0 <= offset <= len(tail) - _CENTRAL.size:
        return set(), set()
    fields = _CENTRAL.unpack_from(tail, offset)
    return {fields[8], fields[9]}, {fields[7]}
