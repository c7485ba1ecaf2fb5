"""The manifest of an export: what was handed over, so that whoever takes it can check it. It stays in the house.

`manifest.json` is written last; a folder without one is no export. Its counts are exact, unlike any number that leaves
through the federation: it goes where the customers themselves go, and nowhere else.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from cohortium.client.audience.work import file_digest
from cohortium.study.canonical import digest_json
from cohortium.study.document import Agreed
from cohortium.study.errors import DataError

__all__ = ["EXPORT_SCHEMA", "MANIFEST_FILE", "ExportColumn", "ExportManifest", "ExportedFile", "read_manifest"]

EXPORT_SCHEMA = "cohortium.audience-export/1"
"""The schema name this version reads and writes; any other is refused."""

MANIFEST_FILE = "manifest.json"

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class ExportedFile(Agreed):
    """One file.

    Args:
        name: in the manifest's folder.
        operation: what the destination does with its rows.
        rows: how many, without a header line.
        sha256: digest of the file's bytes.
    """

    name: Annotated[str, Field(pattern=r"^(add|remove)-[0-9]{6,12}\.(csv|jsonl|parquet)$")]
    operation: Literal["add", "remove"]
    rows: _Count
    sha256: _Digest


class ExportColumn(Agreed):
    """One column.

    Args:
        name: what the destination calls it.
        source: column of the contacts file, or `id`.
        steps: what each value passed through, in order.
    """

    name: str
    source: str
    steps: tuple[str, ...]


class ExportManifest(Agreed):
    """See the module.

    Args:
        schema_id: `cohortium.audience-export/1`; written `schema`.
        audience: its id, under which a destination keeps it.
        name: what people call it.
        model, plan: digests of the released model and of its plan.
        level, cutoff, reach: where on the score the audience begins; `reach` is null for a custom cut-off.
        destination: whom the export is for.
        kind: `full` for the first export to the destination, `delta` afterwards.
        removal: whether everybody is removed; the last export to the destination.
        sequence: 1, 2, ... for this audience and destination. Apply them in order, none left out.
        previous: digest of the manifest before; null for the first.
        format: of the files.
        columns: in the order of the files.
        files: every file beside the manifest; removals first. Their rows share no identifier with the additions.
        added, removed: rows over all files.
        members: customers in the audience who have an identifier for this destination, after this export.
        unmatched: members without a line in the contacts file.
        unusable: by column, members whose cell is empty or no such identifier.
        not_allowed: members who may no longer be activated, and are left out.
        decision, case: digests of the policy decision and the approved case of review that let it go out; null for a
            removal, and in a simulation without rules.
        created: when the audience was created (UTC).
        expires: its last day; remove everybody afterwards.
        exported: when this was written (UTC).
        digest: of the canonical JSON (RFC 8785) of all other fields.
    """

    schema_id: Annotated[Literal["cohortium.audience-export/1"], Field(alias="schema")] = "cohortium.audience-export/1"
    audience: str
    name: str
    model: _Digest
    plan: _Digest
    level: str
    cutoff: Annotated[float, Field(allow_inf_nan=False)]
    reach: Annotated[float, Field(gt=0, le=1)] | None
    destination: str
    kind: Literal["full", "delta"]
    removal: bool
    sequence: Annotated[int, Field(ge=1)]
    previous: _Digest | None
    format: Literal["csv", "jsonl", "parquet"]
    columns: tuple[ExportColumn, ...]
    files: tuple[ExportedFile, ...]
    added: _Count
    removed: _Count
    members: _Count
    unmatched: _Count
    unusable: dict[str, _Count]
    not_allowed: _Count
    decision: _Digest | None
    case: _Digest | None
    created: str
    expires: date
    exported: str
    digest: str = ""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """JSON types, `schema` by its name on disk, the digest included."""
        return self.model_dump(mode="json", by_alias=True)

    def body_digest(self) -> str:
        """What `digest` must be."""
        return digest_json({key: value for key, value in self.to_json().items() if key != "digest"})

    def signed(self) -> ExportManifest:
        """The manifest with its digest."""
        return self.model_copy(update={"digest": self.body_digest()})

    def to_bytes(self) -> bytes:
        """The file: indented JSON."""
        return (json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path, *, files: bool = True) -> ExportManifest:
    """The manifest of an exported folder.

    Args:
        folder: what `export` wrote.
        files: also compare every file with its digest.

    Raises:
        DataError: no manifest of this version, one that was changed, or a file that is missing or was changed.
    """
    place = folder.name
    try:
        manifest = _unchanged((folder / MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise DataError("holds no finished export", place=place, fix="export the audience") from error
    if manifest is None:
        raise DataError(f"{MANIFEST_FILE} is not of this version or was changed", place=place, fix="take the original")
    for file in manifest.files if files else ():
        path = folder / file.name
        if not path.is_file() or file_digest(path) != file.sha256:
            raise DataError(f"{file.name} is missing or was changed", place=place, fix="take the original")
    return manifest


def _unchanged(data: bytes) -> ExportManifest | None:
    """The manifest, or None when it is of another version or was changed."""
    try:
        manifest = ExportManifest.model_validate(json.loads(data))
        return manifest if manifest.body_digest() == manifest.digest else None
    except (ValueError, RecursionError):  # pydantic's message would repeat what stands there
        return None
