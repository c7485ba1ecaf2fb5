"""The container of evidence packs: every byte is covered, and the document of the first altered one is named."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from cohortium.governance.evidence import pack as pack_module
from cohortium.governance.evidence.pack import MANIFEST, MANIFEST_SIGNATURE, Manifest, Source, signable, write_pack
from cohortium.governance.evidence.pack_container import Region, archive_size, directory, layout, local_header
from cohortium.governance.evidence.pack_reading import AlteredError, open_pack
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.errors import DataError, OutputError

KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.ljust(32).encode()) for name in ("north", "south", "west")}
SIGNER = "cohortium/sea/north"
DOCUMENTS = (
    Source("parties/north/log.json", b'{"a":[1,2,3]}'),
    Source("charter.json", b"{}"),
    Source("released/model.bin", bytes(range(64)), "application/octet-stream"),
    Source("empty.txt", b"", "text/plain"),
)


@pytest.fixture(scope="module")
def charter() -> Charter:
    members = [
        {"name": name, "region": "EU", "identity": key.public_key().public_bytes_raw().hex()}
        for name, key in KEYS.items()
    ]
    return parse_charter({"schema": "cohortium.charter/1", "name": "sea", "institutions": members})


def packed(out: Path, documents: tuple[Source, ...] = DOCUMENTS, key: str = "north", signer: str = SIGNER) -> bytes:
    write_pack(out, documents, federation="sea", signer=signer, key=KEYS[key], plans=None)
    return out.read_bytes()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return packed(tmp_path_factory.mktemp("pack") / "good.zip")


@pytest.fixture(scope="module")
def regions(good: bytes) -> list[Region]:
    archive = zipfile.ZipFile(io.BytesIO(good))
    data = archive.read(MANIFEST)
    return list(layout(Manifest.model_validate_json(data).entries(data, archive.read(MANIFEST_SIGNATURE))))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("altered") / "pack.zip"


def where(data: bytes, place: Path, charter: Charter) -> str | None:
    """What is named as altered; None where the file is taken for the pack."""
    place.write_bytes(data)
    try:
        open_pack(place, charter)
    except AlteredError as error:
        return error.where
    return None


def test_a_pack_is_read_by_us_and_by_any_reader_of_zip(good: bytes, tmp_path: Path, charter: Charter) -> None:
    (tmp_path / "pack.zip").write_bytes(good)
    pack = open_pack(tmp_path / "pack.zip", charter)
    assert pack.manifest.signer == SIGNER
    assert {name: pack.read(name) for name in pack.names} == {one.name: one.content for one in DOCUMENTS}
    pack.unpack("released/model.bin", tmp_path / "model.bin")
    assert (tmp_path / "model.bin").read_bytes() == bytes(range(64))
    with zipfile.ZipFile(tmp_path / "pack.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [MANIFEST, MANIFEST_SIGNATURE, *sorted(one.name for one in DOCUMENTS)]
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}


def test_every_altered_byte_is_found_and_its_document_named(
    good: bytes, regions: list[Region], place: Path, charter: Charter
) -> None:
    assert regions[-1].offset + regions[-1].size == len(good)
    for region in regions:
        for at in range(region.offset, region.offset + region.size):
            altered = bytearray(good)
            altered[at] ^= 1 << at % 8
            assert where(bytes(altered), place, charter) == region.where, at


def test_a_change_that_no_checksum_sees_is_found(
    good: bytes, regions: list[Region], place: Path, charter: Charter
) -> None:
    """A multiple of the polynomial of CRC-32, lowest bit first, changes data and leaves the checksum as it was."""
    pattern = sum(int(bit) << place for place, bit in enumerate(f"{0x104C11DB7:b}")).to_bytes(5, "little")
    model = next(region for region in regions if region.where == "released/model.bin")
    for at in (model.offset, model.offset + model.size - len(pattern)):
        altered = bytearray(good)
        for place_in, byte in enumerate(pattern):
            altered[at + place_in] ^= byte
        data = bytes(altered[model.offset : model.offset + model.size])
        assert zlib.crc32(data) == zlib.crc32(bytes(range(64)))
        assert where(bytes(altered), place, charter) == "released/model.bin"


def test_every_truncation_is_found(good: bytes, regions: list[Region], place: Path, charter: Charter) -> None:
    after = next(
        region.offset for region in regions if region.where == f"the container (header of {DOCUMENTS[1].name})"
    )
    for size in range(len(good)):
        named = where(good[:size], place, charter)
        assert named is not None, size
        if size >= after:
            assert named == next(one.where for one in regions if one.size and size < one.offset + one.size), size


@given(at=st.integers(0, 2000), gone=st.integers(0, 40), put=st.binary(max_size=40))
@example(at=2000, gone=0, put=b"\0")
@example(at=0, gone=0, put=b"PK")
def test_whatever_is_cut_out_or_put_in_is_found(
    good: bytes, place: Path, charter: Charter, at: int, gone: int, put: bytes
) -> None:
    at = min(at, len(good))
    altered = good[:at] + put + good[at + gone :]
    assert (where(altered, place, charter) is None) == (altered == good)


def test_appended_bytes_are_named(good: bytes, place: Path, charter: Charter) -> None:
    assert where(good + b"\n", place, charter) == "the container (after its end)"
    with_comment = good[:-2] + b"\1\0!"
    assert where(with_comment, place, charter) == "the container (end of the directory)"


def test_documents_under_a_manifest_of_a_strange_key_are_refused(
    good: bytes, tmp_path: Path, place: Path, charter: Charter
) -> None:
    forged = packed(tmp_path / "forged.zip", (Source("charter.json", b"[]"),), key="south")
    assert where(forged, place, charter) == MANIFEST_SIGNATURE
    stranger = packed(tmp_path / "stranger.zip", signer="cohortium/sea/nobody")
    assert where(stranger, place, charter) == MANIFEST
    other = charter.model_copy(update={"name": "lake"})
    assert where(good, place, other) == MANIFEST


def test_other_archives_are_refused(tmp_path: Path, place: Path, charter: Charter) -> None:
    for name, kind in (("deflated", zipfile.ZIP_DEFLATED), ("stored", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(tmp_path / name, "w", kind) as archive:
            archive.writestr(MANIFEST, "{}" * 1000)
            archive.writestr(MANIFEST_SIGNATURE, "0" * 128)
        assert where((tmp_path / name).read_bytes(), place, charter) is not None
    for data in (b"", b"PK", b"PK\3\4" + bytes(40), bytes(500), b"not a zip at all\n" * 20):
        assert where(data, place, charter) is not None
    with pytest.raises(DataError, match="No such file"):
        open_pack(tmp_path / "nowhere.zip", charter)


def resigned(manifest: bytes, documents: list[bytes], place: Path) -> bytes:
    """An archive with this manifest, genuinely signed."""
    signature = KEYS["north"].sign(signable(manifest)).hex().encode()
    entries = Manifest.model_validate_json(manifest).entries(manifest, signature)
    parts = [manifest, signature, *documents]
    data = b"".join(local_header(entry) + part for entry, part in zip(entries, parts, strict=True))
    data += b"".join(directory(entries))
    assert len(data) == archive_size(entries)
    place.write_bytes(data)
    return data


def test_a_signed_manifest_has_to_be_canonical(good: bytes, place: Path, charter: Charter) -> None:
    archive = zipfile.ZipFile(io.BytesIO(good))
    contents = [archive.read(name) for name in archive.namelist()[2:]]
    assert where(resigned(archive.read(MANIFEST), contents, place), place, charter) is None
    spaced = archive.read(MANIFEST).replace(b'"plans":null', b'"plans": null')
    assert where(resigned(spaced, contents, place), place, charter) is not None


def test_json_that_nobody_could_read_again_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "MAX_JSON", 9)
    assert packed(tmp_path / "good.zip", (Source("a.json", b"123456789"), Source("a.bin", bytes(10), "x/y")))
    with pytest.raises(DataError, match="above the 9 bytes that a pack takes"):
        packed(tmp_path / "pack.zip", (Source("a.json", b"1234567890"),))


def test_documents_have_one_order(good: bytes) -> None:
    held = json.loads(zipfile.ZipFile(io.BytesIO(good)).read(MANIFEST))
    assert Manifest.model_validate(held)
    with pytest.raises(ValidationError, match="distinct names in order"):
        Manifest.model_validate({**held, "documents": held["documents"][::-1]})


@pytest.mark.parametrize(
    "names",
    [
        ("../charter.json",),
        ("/etc/passwd",),
        ("a//b",),
        ("a/./b",),
        ("a/../b",),
        ("a\\b",),
        (".hidden",),
        ("a b",),
        ("ü.json",),
        ("a\0b",),
        ("",),
        ("x" * 1601,),
        ("a", "A"),
        ("a", "a"),
        ("a", "a/b"),
        (MANIFEST,),
        ("Manifest.json",),
        (f"{MANIFEST_SIGNATURE}/x",),
    ],
)
def test_names_that_could_mean_two_things_are_not_packed(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        packed(tmp_path / "pack.zip", tuple(Source(name, b"x") for name in names))
    assert list(tmp_path.iterdir()) == []


def test_the_same_documents_make_the_same_file(tmp_path: Path, good: bytes) -> None:
    assert packed(tmp_path / "again.zip", tuple(reversed(DOCUMENTS))) == good
    (tmp_path / "file").write_bytes(bytes(range(64)))
    files = tuple(
        Source(one.name, tmp_path / "file", one.media) if one.name == "released/model.bin" else one for one in DOCUMENTS
    )
    assert packed(tmp_path / "files.zip", files) == good


def test_a_pack_is_written_whole_or_not_at_all(tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "pack.zip"
    with pytest.raises(DataError, match="No such file"):
        packed(out, (*DOCUMENTS, Source("z", tmp_path / "missing")))
    assert list(tmp_path.iterdir()) == []
    assert packed(out) == good
    with pytest.raises(OutputError, match="exists already"):
        packed(out)
    assert out.read_bytes() == good
    with pytest.raises(OutputError):
        packed(tmp_path / "no" / "such" / "folder.zip")
    moving = tmp_path / "moving"
    moving.write_bytes(b"before")
    measured = Manifest.entries

    def meanwhile(self: Manifest, data: bytes, signature: bytes) -> object:
        moving.write_bytes(b"after!")
        return measured(self, data, signature)

    def taken(self: Manifest, data: bytes, signature: bytes) -> object:
        (tmp_path / "taken.zip").write_bytes(b"somebody else's")
        return measured(self, data, signature)

    monkeypatch.setattr(Manifest, "entries", taken)
    with pytest.raises(OutputError, match="exists already"):
        packed(tmp_path / "taken.zip")
    assert (tmp_path / "taken.zip").read_bytes() == b"somebody else's"
    monkeypatch.setattr(Manifest, "entries", meanwhile)
    with pytest.raises(DataError, match="changed while it was packed"):
        packed(tmp_path / "other.zip", (Source("moving", moving),))
    assert {path.name for path in tmp_path.iterdir()} == {"pack.zip", "moving", "taken.zip"}
