"""Files that an institution is given: released models, seed lists, scores, contacts, manifests of exports.

Each `read_...` returns whether the bytes were accepted, and raises on a finding.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import traceback
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from cohortium.client.audience.lists import Contacts, IdList, load_contacts, load_lists
from cohortium.client.audience.manifest import MANIFEST_FILE, ExportColumn, ExportManifest, read_manifest
from cohortium.client.audience.scores import SCORES_COLUMNS, SCORES_SCHEMA, iterate_scores
from cohortium.client.onboarding.engine import Engine, Resources
from cohortium.client.seeds import SeedStore
from cohortium.models.released import read_encoded, read_ranker
from cohortium.privacy.stores import open_store
from cohortium.privacy.table import CustomerTable
from cohortium.simulations import FederatedLookalike
from cohortium.study.canonical import canonical_bytes
from cohortium.study.errors import CohortiumError, DataError
from cohortium.study.model import EncoderModel, LookalikeModel, Model, load_model, save_model
from cohortium.study.question import digest_array

__all__ = [
    "MARK",
    "contacts_seeds",
    "id_lists",
    "manifest_seeds",
    "model_parts",
    "quietly",
    "read_contacts",
    "read_list",
    "read_manifest_file",
    "read_model",
    "read_model_parts",
    "read_scores",
    "read_seed_list",
    "scores_seeds",
    "seed_lists",
    "signed_model",
]

_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_PUBLIC = _KEY.public_key().public_bytes_raw().hex()
_HEADER = "cohortium.model/1"
_MOST_NUMBERS = 2**16
_DIGEST = "sha256:" + "3" * 64
MARK = "Qx7"
"""Begins every id: what must stand in no error."""

_PEOPLE = CustomerTable(("x",), np.zeros((300, 1)), np.array([f"{MARK}{i:03d}" for i in range(300)]))
_LISTED = [str(key) for key in _PEOPLE.keys[:120]]

_Kind = TypeVar("_Kind", EncoderModel, LookalikeModel)


def quietly(read: Callable[[], Any], promised: type[CohortiumError]) -> bool:
    """Whether it was read; a refusal is one line, and neither it nor its causes hold an id."""
    try:
        read()
    except promised as error:
        if "\n" in str(error) or MARK in "".join(traceback.format_exception(error)):
            raise AssertionError("an error of several lines, or with an id") from error
        return False
    return True


# --- models ----------------------------------------------------------------------------------------------------------


@cache
def _released() -> dict[type[Any], Model[Any]]:
    """An encoder and a campaign on it, learnt from few people by the product itself."""
    rows = np.random.default_rng(0).normal(size=(600, 2)).clip(-3, 3)
    settings = {"rounds": 1, "hidden": 4, "width": 2}
    learnt = FederatedLookalike(bounds=(-3, 3), epsilon_encoder=3.0, epsilon_campaign=3.0, encoder=settings)
    learnt.fit(rows, np.argsort(rows[:, 0])[-150:], institutions=1)
    return {EncoderModel: learnt.encoder_model_, LookalikeModel: learnt.model_}


def signed_model(kind: type[_Kind]) -> Callable[[], list[bytes]]:
    """Makes a released file."""

    def seeds() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            save_model(_released()[kind], _KEY, Path(folder) / "model")
            return [(Path(folder) / "model").read_bytes()]

    return seeds


def read_model(kind: type[_Kind]) -> Callable[[bytes], bool]:
    """Reads a file as it comes. What was signed is one document alone: another under that signature is a finding."""

    def read(data: bytes) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            path.write_bytes(data)
            signed: list[Model[_Kind]] = []
            accepted = quietly(lambda: signed.append(load_model(path, kind, signer=_PUBLIC)), DataError)
            if any(model.digest != _released()[kind].digest for model in signed):
                raise AssertionError("accepted, and not what was signed")
            quietly(lambda: _used(load_model(path, kind, signer=None)), DataError)
            return accepted

    return read


def _used(model: Model[Any]) -> None:
    """What becomes of a model once it is accepted."""
    if isinstance(model.document, EncoderModel):
        read_encoded(model)
    else:
        ranker = read_ranker(model)
        ranker.parts()


def model_parts(kind: type[_Kind]) -> Callable[[], list[bytes]]:
    """Makes a document, a zero byte, and the numbers of all arrays in the order of the document."""

    def seeds() -> list[bytes]:
        model = _released()[kind]
        numbers = b"".join(model.arrays[name].astype("<f8").tobytes() for name in sorted(model.arrays))
        return [model.document.to_bytes() + b"\0" + numbers]

    return seeds


def read_model_parts(kind: type[_Kind]) -> Callable[[bytes], bool]:
    """Makes a file of those parts, as they are and with digests and spelling mended, and reads both unsigned."""

    def read(data: bytes) -> bool:
        text, _, numbers = data.partition(b"\0")
        document, arrays = _mended(text, numbers)
        written = text.decode(errors="replace")
        taken = [_reads(kind, each, arrays) for each in (written, document) if each is not None]
        return any(taken)

    return read


def _reads(kind: type[_Kind], text: str, arrays: dict[str, Any]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(save(arrays, metadata={_HEADER: "0" * 128 + text}))
        found: list[Model[_Kind]] = []
        accepted = quietly(lambda: found.append(load_model(path, kind, signer=None)), DataError)
        for model in found:
            if model.document.to_bytes().decode() != text:
                raise AssertionError("accepted, and not its own serialisation")
            quietly(lambda m=model: _used(m), DataError)
        return accepted


def _mended(text: bytes, numbers: bytes) -> tuple[str | None, dict[str, Any]]:
    """The document with its arrays' true digests in canonical JSON, where it is JSON; and the arrays it names."""
    arrays: dict[str, Any] = {}
    try:
        document = json.loads(text)
        for name, fact in sorted(document["arrays"].items()):
            shape, start = [int(axis) for axis in fact["shape"]], 8 * sum(array.size for array in arrays.values())
            count = int(np.prod(shape))
            if not 0 <= count <= _MOST_NUMBERS:
                continue
            cut = numbers[start : start + 8 * count].ljust(8 * count, b"\0")
            arrays[name] = np.frombuffer(cut, dtype="<f8").reshape(shape)
            fact["digest"] = digest_array(arrays[name])
        return canonical_bytes(document).decode(), arrays
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None, arrays


# --- lists and tables ------------------------------------------------------------------------------------------------

_ENDINGS = (".csv", ".csv.gz", ".txt", ".parquet")


def _named(data: bytes, folder: str) -> Path:
    """A file of the bytes after the first, which says of what kind it is."""
    path = Path(folder) / f"list{_ENDINGS[data[0] % len(_ENDINGS) if data else 0]}"
    path.write_bytes(data[1:])
    return path


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def seed_lists() -> list[bytes]:
    """A list of ids in every kind of file."""
    text = "\n".join(["id,since", *(f" {key} ,2020" for key in _LISTED), '"nobody",']) + "\n"
    plain = "\ufeff" + "\r\n".join([*_LISTED, "", _LISTED[0]])
    table = pa.table({"id": [*_LISTED, None], "since": [2020] * (len(_LISTED) + 1)})
    contents = (text.encode(), gzip.compress(text.encode(), mtime=0), plain.encode(), _parquet(table))
    return [bytes([number]) + content for number, content in enumerate(contents)]


def read_seed_list(data: bytes) -> bool:
    """Adds a list to a store: whoever is on it is a customer, and every line is counted once."""
    with tempfile.TemporaryDirectory() as folder:
        path = _named(data, folder)
        database = open_store(Path(folder) / "node.sqlite")
        try:
            store = SeedStore(database)
            column = None if path.suffix == ".txt" else "id"
            accepted = quietly(lambda: store.add("vip", path, column, _PEOPLE), CohortiumError)
            if accepted != bool(store.lists()):
                raise AssertionError("a list that is neither kept nor refused")
            for kept in store.lists():
                counts, members = kept.counts, store.members("vip")
                together = counts.matched + counts.unknown + counts.duplicate + counts.blank + counts.malformed
                if together != counts.listed or len(members) != counts.matched:
                    raise AssertionError("lines that are not counted once")
                if not set(members) <= set(_PEOPLE.keys):
                    raise AssertionError("a seed who is no customer")
            return accepted
        finally:
            database.dispose()


def id_lists() -> list[bytes]:
    """The same with a header line in every text."""
    return [seed if seed[0] != 2 else b"\2id\r\n" + seed[4:] for seed in seed_lists()]


def read_list(data: bytes) -> bool:
    """Reads a list of customers who stay out of an audience."""
    with tempfile.TemporaryDirectory() as folder, closing(Engine(Path(folder), Resources(threads=1))) as engine:
        engine.connection.register("scored", pa.table({"id": [str(key) for key in _PEOPLE.keys]}))
        engine.run("making", "CREATE TABLE suppressed (id VARCHAR)", "fuzz")
        return quietly(lambda: load_lists(engine, [IdList(_named(data, folder))], "scored"), DataError)


def contacts_seeds() -> list[bytes]:
    """Identifiers by id, in every kind of file that can hold two columns."""
    rows = [(key, f"{key}@example.org", "+44 20 7946 0000") for key in _LISTED[:20]]
    text = "\n".join(["id;mail;phone", *(";".join(row) for row in rows)]) + "\n"
    table = pa.table(dict(zip(("id", "mail", "phone"), zip(*rows, strict=True), strict=True)))
    contents = {0: text.encode(), 1: gzip.compress(text.encode(), mtime=0), 3: _parquet(table)}
    return [bytes([number]) + content for number, content in contents.items()]


def read_contacts(data: bytes) -> bool:
    """Reads identifiers for an export."""
    with tempfile.TemporaryDirectory() as folder, closing(Engine(Path(folder), Resources(threads=1))) as engine:
        return quietly(lambda: load_contacts(engine, Contacts(_named(data, folder)), ("mail", "phone")), DataError)


# --- an institution's own files, changed -----------------------------------------------------------------------------


def scores_seeds() -> list[bytes]:
    """A scores file."""
    count = 50
    columns = {
        "id": _LISTED[:count],
        "score": [0.1 * i for i in range(count)],
        "reason_1": ["visits often"] * count,
        "reason_2": [None] * count,
        "reason_3": [None] * count,
        "seed": [i % 7 == 0 for i in range(count)],
    }
    labels = {"schema": SCORES_SCHEMA, "model": _DIGEST, "plan": _DIGEST, "expires": "2030-01-01"}
    labels |= {"node": "north", "customers": _DIGEST}
    return [_parquet(pa.table(columns, schema=SCORES_COLUMNS).replace_schema_metadata(labels))]


def read_scores(data: bytes) -> bool:
    """Reads every row of a scores file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.parquet"
        path.write_bytes(data)
        return quietly(lambda: [batch.to_pylist() for batch in iterate_scores(path)], DataError)


def manifest_seeds() -> list[bytes]:
    """The manifest of an export without files."""
    facts: dict[str, Any] = {
        "audience": "a-1",
        "name": "spring",
        "model": _DIGEST,
        "plan": _DIGEST,
        "level": "broad",
        "cutoff": 0.5,
        "reach": 0.1,
        "destination": "default",
        "kind": "full",
        "removal": False,
        "sequence": 1,
        "previous": None,
        "format": "csv",
        "columns": (ExportColumn(name="id", source="id", steps=("trim",)),),
        "files": (),
        "created": "2026-03-01T12:00:00+00:00",
        "expires": "2026-04-01",
        "exported": "2026-03-01T12:00:00+00:00",
        "unusable": {"id": 1},
        "decision": None,
        "case": "sha256:" + "e" * 64,
    }
    counts = dict.fromkeys(("added", "removed", "members", "unmatched", "not_allowed"), 0)
    return [ExportManifest(**facts, **counts).signed().to_bytes()]


def read_manifest_file(data: bytes) -> bool:
    """Reads a manifest as it is, and with its digest mended, which a changed one has too if its author wishes."""
    try:
        changed = json.loads(data)
        mended = ExportManifest.model_validate(changed).signed().to_bytes()
    except (ValueError, TypeError, RecursionError):
        mended = data
    with tempfile.TemporaryDirectory() as folder:
        taken = []
        for text in (data, mended):
            (Path(folder) / MANIFEST_FILE).write_bytes(text)
            taken.append(quietly(lambda: read_manifest(Path(folder)), DataError))
        return any(taken)
