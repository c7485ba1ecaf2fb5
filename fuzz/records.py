"""What governance reads from others: signed notes, proofs, rule packs, fact sheets, case files, what customers said.

Each `read_...` returns whether the bytes were accepted, and raises on a finding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from files import MARK, quietly
from sqlalchemy import create_engine

from cohortium.governance.consent import ConsentStore, import_signals, load_mapping, load_template
from cohortium.governance.log import (
    AuditLog,
    Checkpoint,
    Cosigner,
    Ed25519Signer,
    InclusionProof,
    Leaf,
    log_origin,
    parse_checkpoint,
    parse_leaf,
    parse_note,
    parse_proof,
    prove_consistency,
    prove_inclusion,
)
from cohortium.governance.review import Terms, export_case, open_case, parse_case_file, sign_statement
from cohortium.governance.rules import (
    FactError,
    Facts,
    RuleError,
    Stage,
    evaluate,
    export_cedar,
    fixture_problems,
    load_packs,
    parse_pack,
    read_facts,
)
from cohortium.study.charter import Charter, Function, enrol_reviewer, parse_charter, prove_possession
from cohortium.study.errors import CohortiumError, DataError

__all__ = [
    "case_files",
    "checkpoints",
    "consent_files",
    "fact_sheets",
    "leaves",
    "mappings",
    "notes",
    "packs",
    "proofs",
    "read_case_file",
    "read_checkpoint",
    "read_consents",
    "read_fact_sheet",
    "read_leaf",
    "read_mapping",
    "read_note",
    "read_pack_text",
    "read_proof",
    "read_template",
    "templates",
]

_ROOT = Path(__file__).resolve().parents[1]
_NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
_DAY = date(2026, 11, 23)


def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number] * 32))


def _public(number: int) -> str:
    return _key(number).public_key().public_bytes_raw().hex()


def _same(written: str | bytes, read: str | bytes) -> None:
    if written != read:
        raise AssertionError("accepted, and not its own serialisation")


def _taken(parse: Callable[[], Any], promised: type[CohortiumError]) -> Any:
    """What was read, None when it was refused; see `quietly`."""
    found: list[Any] = []
    return found[0] if quietly(lambda: found.append(parse()), promised) else None


# --- the audit log ---------------------------------------------------------------------------------------------------


@cache
def _proven() -> tuple[str, InclusionProof, bytes]:
    """A cosigned checkpoint of a log of seven entries, a proof of one of them, and the bytes of a proof of growth."""
    signer = Ed25519Signer(log_origin("sea", "north"), _key(1))
    log = AuditLog(create_engine("sqlite://"), signer.name, signer)
    log.append([{"event": "query", "step": step} for step in range(3)])
    old = log.checkpoint()
    log.append([{"event": "query", "step": step, "mu2": 0.5, "what": "Ü"} for step in range(3, 7)])
    new = log.checkpoint()
    cosigner = Cosigner(log_origin("sea", "west"), _key(2), 1_772_000_000)
    note = parse_note(new).signed(cosigner).to_text()
    return note, prove_inclusion(log, 4, note), prove_consistency(log, old, note).to_bytes()


def notes() -> list[bytes]:
    """A cosigned checkpoint."""
    return [_proven()[0].encode()]


def read_note(data: bytes) -> bool:
    """Reads a signed note, and who signed it. Another text under the log's signature is a finding."""
    text = data.decode(errors="surrogateescape")
    note = _taken(lambda: parse_note(text), DataError)
    if note is None:
        return False
    _same(note.to_text(), text)
    verifier = Ed25519Signer(log_origin("sea", "north"), _key(1)).verifier
    signed = _taken(lambda: note.signers([verifier]), DataError)
    if signed and note.text != parse_note(_proven()[0]).text:
        raise AssertionError("another text under this signature")
    return True


def checkpoints() -> list[bytes]:
    """The text of a checkpoint."""
    return [parse_note(_proven()[0]).text.encode(), Checkpoint("x", 0, bytes(32)).to_text().encode()]


def read_checkpoint(data: bytes) -> bool:
    """Reads the three lines of a checkpoint."""
    text = data.decode(errors="surrogateescape")
    checkpoint = _taken(lambda: parse_checkpoint(text), DataError)
    if checkpoint is not None:
        _same(checkpoint.to_text(), text)
    return checkpoint is not None


def leaves() -> list[bytes]:
    """Leaves with what JSON has, and with text and numbers that canonical JSON writes in its own way."""
    plain = {"event": "query", "step": 7, "of": [1, None, True, {"b": "", "a": -1}]}
    odd = {"Ü": "\u20ac\U0001f600\u0001", "x": 1e21, "y": 0.1, "z": -(2**53) + 1, "w": [1e-7]}
    return [Leaf(entry, "0f" * 32).to_bytes() for entry in (plain, odd)]


def read_leaf(data: bytes) -> bool:
    """Reads an entry with its salt."""
    leaf = _taken(lambda: parse_leaf(data), DataError)
    if leaf is not None:
        _same(leaf.to_bytes(), data)
    return leaf is not None


def proofs() -> list[bytes]:
    """A proof of an entry, and one of growth."""
    return [_proven()[1].to_bytes(), _proven()[2]]


def read_proof(data: bytes) -> bool:
    """Reads a proof and checks it. One that holds for an entry or a place that the log does not have is a finding."""
    proof = _taken(lambda: parse_proof(data), DataError)
    if proof is None:
        return False
    verifier = Ed25519Signer(log_origin("sea", "north"), _key(1)).verifier
    holds = _taken(lambda: proof.check(verifier), DataError)
    if holds is not None and isinstance(proof, InclusionProof):
        known = _proven()[1]
        if (proof.index, proof.entry, proof.salt) != (known.index, known.entry, known.salt):
            raise AssertionError("proven, and not in the log")
    return True


# --- rules -----------------------------------------------------------------------------------------------------------


def packs() -> list[bytes]:
    """The packs that ship, without the longest."""
    files = sorted((_ROOT / "governance" / "rules" / "packs").glob("*.toml"))
    return [path.read_bytes() for path in files if path.stem != "eu"]


def read_pack_text(data: bytes) -> bool:
    """Reads a rule pack, runs its fixtures, and decides by it and by Cedar's export of it."""
    pack = _taken(lambda: parse_pack(data.decode(errors="replace"), "fuzz"), RuleError)
    if pack is None:
        return False
    list(fixture_problems(pack, "fuzz"))
    for stage in get_args(Stage):
        evaluate([pack], Facts.of({}, "nobody"), stage, _DAY)
    export_cedar([pack], _DAY)
    return bool(pack.digest)


def fact_sheets() -> list[bytes]:
    """A sheet as TOML and as JSON; the first byte says which."""
    facts = {"run.purpose": "dpv:DirectMarketing", "cohort.objectors": 3, "transfer.crosses_border": True}
    facts |= {"docs.tia_ref": False, "privacy.epsilon": 1.5, "model.expires_on": "2027-06-30"}
    head = {"schema": "cohortium.fact-sheet/1", "provenance": "declared by the privacy office"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in head.items()]
    lines += ["[facts]", *(f"{name} = {json.dumps(value)}" for name, value in facts.items())]
    return [b"\0" + "\n".join(lines).encode(), b"\1" + json.dumps({**head, "facts": facts}).encode()]


def _facts(data: bytes, ending: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"facts{ending}"
        path.write_bytes(data)
        return _taken(lambda: read_facts(path), FactError)


@cache
def _bahrain() -> Any:
    return load_packs(["bh"])


def read_fact_sheet(data: bytes) -> bool:
    """Reads a sheet and decides on it. It states far too little for anything but a refusal."""
    facts = _facts(data[1:], ".json" if data[:1] == b"\1" else ".toml")
    if facts is None:
        return False
    if evaluate(_bahrain(), facts, "admission", _DAY).admitted:
        raise AssertionError("admitted on too few facts")
    return bool(facts.digest)


# --- review ----------------------------------------------------------------------------------------------------------


@cache
def _reviewers() -> Charter:
    """One bank with two reviewers of two functions."""
    member = {"name": "north", "region": "EU", "identity": _public(1)}
    charter = parse_charter({"schema": "cohortium.charter/1", "name": "sea", "institutions": [member]})
    people: list[tuple[str, Function, int]] = [("p-1", "privacy", 3), ("p-2", "risk", 4)]
    asked = [prove_possession("sea", person, "north", function, _key(number)) for person, function, number in people]
    return charter.with_reviewers(enrol_reviewer("sea", one, _key(1)) for one in asked)


@cache
def case_files() -> list[bytes]:
    """A case that both approved, one that was returned, and one that nobody signed."""
    documents: Any = {part: {"of": part} for part in ("card", "audit", "dpia", "decision")}
    who = {"federation": "sea", "institution": "north", "owner": "p-8", "builders": ["p-9"]}
    what = {"name": "spring-1", "kind": "audience_export", "about": "spring", "purpose": "Marketing"}
    case = open_case(documents, {}, **who, **what, opened_at=_NOW)
    first, second = _reviewers().reviewers
    terms = Terms(conditions=("by post alone",), expires=date(2026, 6, 1))
    one = sign_statement(case, case.digest, first, _key(3), "approve", terms, _NOW)
    both = [one, sign_statement(case, one.digest, second, _key(4), "approve", terms, _NOW)]
    back = sign_statement(case, one.digest, second, _key(4), "return", Terms(questions=("why so few?",)), _NOW)
    return [export_case(case, statements) for statements in (both, [one, back], [])]


def read_case_file(data: bytes) -> bool:
    """Reads a case file and weighs its statements. Approval of anything but what both signed is a finding."""
    found = _taken(lambda: parse_case_file(data, "fuzz"), DataError)
    if found is None:
        return False
    _same(found.to_bytes(), data)
    if found.standing(_reviewers(), _NOW).state == "approved" and data != case_files()[0]:
        raise AssertionError("approved, and not what was signed")
    return True


# --- consent ---------------------------------------------------------------------------------------------------------

_TEMPLATE = """schema = "cohortium.consent-record/1"
schema_version = "ISO/IEC TS 27560:2023"

[privacy_notice]
version = "1"
text_digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
language = "en"
profiling_disclosed = true

[[parties]]
party_id = "north"
party_name = "North Bank"
party_address = "1 Market Street"
party_contact = "the privacy office"
party_type = "controller"
role = "controller"

[[processings]]
purpose = "Marketing"
lawful_basis = "eu-gdpr:A6-1-a-explicit-consent"
pii_information = [{ pii_type = "purchases", pii_optional = true, special_pii_category = false }]
pii_controllers = ["north"]
collection_method = "form"
processing_method = "profiling"
storage_locations = ["EU"]
retention_period = "P5Y"
processing_locations = ["EU"]
geographic_restrictions = "EU"
jurisdiction = "EU"
recipient_third_parties = []
withdrawal_method = "letter"
privacy_rights = ["access", "withdrawal"]
"""

_HEAD = """schema = "cohortium.consent-import/1"
kind = "{kind}"
{more}
[columns]
person = "id"
time = "at"
state = "state"
"""

_MAPPINGS = {
    "consent": _HEAD.format(
        kind="consent", more='template = "template.toml"\nvalidity_duration = "P24M"\nzone = "Europe/Berlin"'
    )
    + 'purposes = "for"\n\n[states]\nyes = "ConsentGiven"\n',
    "marketing-objection": _HEAD.format(kind="marketing-objection", more=""),
    "age-band": _HEAD.format(kind="age-band", more=""),
    "open-banking": _HEAD.format(kind="open-banking", more="")
    + 'valid_until = "until"\nlast_authentication = "seen"\npulls_24h = "pulls"\n',
}
_STATES = {
    "consent": ("yes", "ConsentWithdrawn", "maybe"),
    "marketing-objection": ("set", "cleared", "x"),
    "age-band": ("under-13", "adult", "x"),
    "open-banking": ("authorised", "revoked", "x"),
}
_FORMS = (".csv", ".jsonl", ".json")


def templates() -> list[bytes]:
    """A record template."""
    return [_TEMPLATE.encode()]


def read_template(data: bytes) -> bool:
    """Reads what people agree to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.toml"
        path.write_bytes(data)
        template = _taken(lambda: load_template(path), DataError)
        return template is not None and bool(template.digest and template.purposes)


def mappings() -> list[bytes]:
    """A mapping of every kind."""
    return [text.encode() for text in _MAPPINGS.values()]


def read_mapping(data: bytes) -> bool:
    """Reads which column holds what."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mapping.toml"
        path.write_bytes(data)
        mapping = _taken(lambda: load_mapping(path), DataError)
        return mapping is not None and bool(mapping.digest)


def _rows(kind: str) -> list[dict[str, str]]:
    more = {"for": "Marketing", "until": "2026-12-31", "seen": "2026-02-01", "pulls": "3"}
    times = ("2026-01-10T09:00:00Z", "2026-01-11T09:00:00", "last week")
    return [
        {"id": f"{MARK}{number}", "at": at, "state": state, **more}
        for number, (at, state) in enumerate((at, state) for at in times for state in _STATES[kind])
    ]


def consent_files() -> list[bytes]:
    """Rows of every kind in every form; the first byte says which."""
    seeds = []
    for number, kind in enumerate(_MAPPINGS):
        rows = _rows(kind)
        text = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n"
        lines = "\n".join(json.dumps(row) for row in rows)
        for form, content in enumerate((text, lines, json.dumps(rows))):
            seeds.append(bytes([number * len(_FORMS) + form]) + content.encode())
    return seeds


def read_consents(data: bytes) -> bool:
    """Imports rows: each is counted once, nothing of them is in the file of rejects, and the store holds together."""
    number = data[0] % (len(_FORMS) * len(_MAPPINGS)) if data else 0
    kind, ending = list(_MAPPINGS)[number // len(_FORMS)], _FORMS[number % len(_FORMS)]
    database = create_engine("sqlite://")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "template.toml").write_text(_TEMPLATE)
        (folder / "mapping.toml").write_text(_MAPPINGS[kind])
        file, rejects = folder / f"rows{ending}", folder / "rejects.csv"
        file.write_bytes(data[1:])
        store = ConsentStore(database, lambda: _NOW)
        try:
            counts = _taken(lambda: import_signals(store, file, folder / "mapping.toml", rejects), DataError)
            events = store.verify()
            if counts is None:
                if events:
                    raise AssertionError("refused, and recorded")
                return False
            if counts.rows != counts.recorded + counts.repeated + counts.rejected or events != counts.recorded:
                raise AssertionError("rows that are not counted once")
            if MARK in rejects.read_text():
                raise AssertionError("an id in the file of rejects")
            return True
        finally:
            store.close()
