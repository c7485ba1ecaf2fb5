"""What is fuzzed: every parser of bytes that come from somebody else, and what it may do with them.

A target accepts or refuses with the error it promises. Any other exception is a finding, and so is a message that is
accepted although it is not, byte for byte, its own serialisation.
"""

from __future__ import annotations

import json
import re
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import files
import numpy as np
import packs
import records
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from sqlalchemy import create_engine

from cohortium.models.studies import phases
from cohortium.privacy.secure_sum import Aggregator, Participant, SqlOnceStore, SumRun, messages
from cohortium.study.bundle import load_bundle
from cohortium.study.charter import parse_charter
from cohortium.study.contract import parse_contract
from cohortium.study.document import parse_toml
from cohortium.study.errors import CohortiumError, DataError, PlanError, RefusedError
from cohortium.study.model import EncoderModel, LookalikeModel
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.question import Question, Release, SumMessage, parse_question_request, reply_kind

__all__ = ["TARGETS", "Target"]

_ROOT = Path(__file__).resolve().parents[1]
_DIGEST = "sha256:" + "3" * 64


@dataclass(frozen=True)
class Target:
    """One parser.

    Args:
        feed: parses; returns whether the bytes were accepted; raises on a finding.
        seeds: makes bytes to begin with.
    """

    feed: Callable[[bytes], bool]
    seeds: Callable[[], list[bytes]]


def _parsed(parse: Callable[[], Any], promised: type[CohortiumError]) -> Any:
    try:
        return parse()
    except promised:
        return None


def _message(kind: type[messages.Wire]) -> Callable[[bytes], bool]:
    def feed(data: bytes) -> bool:
        message = _parsed(lambda: kind.from_bytes(data), RefusedError)
        if message is not None and message.to_bytes() != data:
            raise AssertionError("accepted, and not its own serialisation")
        return message is not None

    return feed


def _one_sum() -> dict[str, list[bytes]]:
    """The messages of one small sum of three waves."""
    identities = {f"bank {place}": Ed25519PrivateKey.generate() for place in range(4)}
    public = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
    run = SumRun(_DIGEST, _DIGEST, "ab" * 16, public, 3, 1)
    parties = [
        Participant(run, name, key, SqlOnceStore(create_engine("sqlite://"))) for name, key in identities.items()
    ]
    coordinator = Aggregator(run, SqlOnceStore(create_engine("sqlite://")))
    for party in parties:
        coordinator.introduce(party.introduce())
    coordinator.close_roster()
    for place in range(3):
        coordinator.take_offer(parties[place].share(coordinator.share_request(0)), place, 0)
    attempt = coordinator.begin(0, _DIGEST)
    for place in range(3):
        masking = parties[place].begin(attempt.input_request(place), _DIGEST)
        attempt.take_vector(place, *masking.apply(np.arange(3)))
    chosen = attempt.choose_survivors()
    consents = [parties[place].consent(chosen) for place in range(3)]
    for place in range(3):
        attempt.take_consent(place, consents[place])
    unmask = attempt.unmask_request()
    offer = messages.Offer.from_bytes(parties[0].share(coordinator.share_request(1)))
    note = messages.Contributed(roster=_DIGEST, round=0, party=1, question=_DIGEST, asked=_DIGEST)
    return {
        "Introduction": [parties[0].introduce()],
        "Roster": [coordinator.roster.to_bytes()],
        "OfferHead": [offer.head.to_bytes()],
        "Offer": [offer.to_bytes()],
        "OfferTo": [messages.OfferTo(head=offer.head, box=offer.boxes[0]).to_bytes()],
        "SumInput": [attempt.input_request(0)],
        "Contributed": [note.to_bytes()],
        "SurvivorSet": [chosen],
        "Consent": consents,
        "UnmaskRequest": [unmask],
        "Opened": [parties[0].unmask(unmask)],
        "ShareRequest": [coordinator.share_request(0)],
    }


def _record(data: bytes) -> RecordDict:
    """A record whose parts are cut from the bytes: after the first four, header, shape and array by their lengths."""
    cut = int.from_bytes(data[:2], "big")
    header, rest = data[4 : 4 + cut], data[4 + cut :]
    text: str | bytes = header if data[2:3] == b"b" else header.decode(errors="replace")
    shape = [byte - 2 for byte in data[3:4]]
    content = RecordDict({"question": ConfigRecord({"json": text}), "shapes": ConfigRecord({"axes": shape})})
    dtype = "float64" if len(data) % 7 else "int64"
    content["arrays"] = ArrayRecord({"axes": Array(dtype, tuple(shape), "numpy.ndarray", rest)})
    return content


def _question(data: bytes) -> bool:
    content = _record(data)
    asked = _parsed(lambda: parse_question_request(content), RefusedError)
    question = _parsed(lambda: Question.from_record(_record(data)), RefusedError)
    if question is not None and len(question.digest) != 71:
        raise AssertionError("a question without a digest")
    return asked is not None or question is not None


def _question_seeds() -> list[bytes]:
    header: dict[str, Any] = {
        "format": "cohortium.question/1",
        "plan": _DIGEST,
        "run": "b" * 32,
        "phase": "p",
        "step": 0,
    }
    header |= {"attempt": 1, "kind": "k", "scalars": {"a": [1, 2.5, None]}}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    array = Array(np.ones(3)).data
    return [len(text).to_bytes(2, "big") + b"t\x05" + text.encode() + array]


def _reply(data: bytes) -> bool:
    cut = data[0] if data else 0
    fields = {"question": data[1 : 1 + cut].decode(errors="replace"), "seal": data[-32:], "note": data[-64:]}
    content = RecordDict({"release": ConfigRecord(fields)})
    content["sum"] = ArrayRecord({"vector": Array("int64", (cut % 5,), "numpy.ndarray", data[1 + cut :])})
    words = RecordDict({"reply": ConfigRecord({"word": data.decode(errors="replace")})})
    message = RecordDict({"secure-sum": ConfigRecord({"payload": data, "seal": data[:32]})})
    taken = [
        _parsed(lambda: Release.from_record(content), RefusedError),
        _parsed(lambda: Release.from_record(content, 3), RefusedError),
        _parsed(lambda: SumMessage.from_record(message), RefusedError),
        *(_parsed(lambda c=c: reply_kind(c), RefusedError) for c in (content, words, message)),
    ]
    return any(answer is not None for answer in taken)


def _bundle(data: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle.json"
        path.write_bytes(data)
        bundle = _parsed(lambda: load_bundle(path), DataError)
        return bundle is not None and bool(bundle.digest)


def _bundle_seeds() -> list[bytes]:
    bundles = sorted((_ROOT / "docs").rglob("bundle.json"))
    return [path.read_bytes() for path in bundles[:1]] or [b'{"schema":"cohortium.bundle/1","plan":{},"run":"x"}']


def _toml(parse: Callable[[dict[str, Any], str], Any]) -> Callable[[bytes], bool]:
    def feed(data: bytes) -> bool:
        text = data.decode(errors="replace")
        document = _parsed(lambda: parse(parse_toml(text, "fuzz", PlanError), "fuzz"), PlanError)
        return document is not None and bool(document.digest)

    return feed


def _contract(data: bytes) -> bool:
    contract = _parsed(lambda: parse_contract(data.decode(errors="replace"), "fuzz"), CohortiumError)
    return contract is not None and bool(contract.digest)


def _files(pattern: str) -> Callable[[], list[bytes]]:
    return lambda: [path.read_bytes() for path in sorted((_ROOT / "simulations").rglob(pattern))]


def _plan(raw: dict[str, Any], place: str) -> Plan:
    """A plan that is read from TOML, and again from its own JSON, as a node does that approved it."""
    plan = parse_plan(raw, place)
    if parse_plan(json.loads(plan.to_bytes()), place) != plan:
        raise AssertionError("a plan that is not its own serialisation")
    if sum(phase.share for phase in phases(plan)) != 1:
        raise AssertionError("a plan whose phases do not add up")
    return plan


def _plan_seeds() -> list[bytes]:
    """The plans that come with the package, as they are once the digests of contract and encoder stand in them."""
    named = b'contract = "%s"\n' % _DIGEST.encode(), b'model = "%s"\n' % _DIGEST.encode()
    audited = named[1] + b'attributes = ["age"]\n'
    seeds = []
    for text in _files("*plan.toml")():
        bare = re.sub(rb'(?m)^(contract|model) = ".*"\n', b"", text)
        bare = re.sub(rb'(?m)^(of = "(?:audience|segments)"\n)', rb"\1" + audited, bare)
        bare = bare.replace(b'of = "segments"\n', b'of = "segments"\nsegments = 5\n')
        seeds.append(named[0] + (named[1] if b'study = "lookalike"' in bare else b"") + bare)
    return [*seeds, *(_with_locks(seed) for seed in seeds if b'name = "wide"' in seed), *_audit_seeds()]


def _audit_seeds() -> list[bytes]:
    """Audits of segments, of an audience and of a column, with all that each can ask for."""
    head = f"""schema = "cohortium.plan/1"
study = "audit"
name = "spring-audit"
purpose = "CustomerSegmentation"
lawful_basis = "legal_obligation"
regions = ["EU"]
contract = "{_DIGEST}"
expires = 2099-12-31
epsilon = 0.5
delta = 1e-6
"""
    groups = 'attributes = ["sex", "age"]\nintersections = "all"\ncuts = {age = [30, 60.5]}\n'
    model = f'model = "{_DIGEST}"\n'
    asked = (
        ("segments", model + "segments = 5\nbeneficial = [1]\ncostly = [2, 3]\ndistance = true\n", "distances"),
        ("audience", model + 'level = "broad"\nseed = "valued"\nlabel = "answered"\npositive = "yes"\n', "labels"),
        ("column", 'column = "treated"\nchosen = ["yes"]\nproxies = ["visits"]\n', "proxies"),
    )
    return [
        f'{head}[shares]\noutcomes = 80\n{part} = 20\n[audit]\nof = "{of}"\n{groups}{more}'.encode()
        for of, more, part in asked
    ]


def _with_locks(seed: bytes) -> bytes:
    """A campaign's plan with all that a campaign can ask for."""
    locks = b'locks = [{measure = "lift", at_least = 1.5}, {measure = "people", at_most = 9000}]'
    return seed.replace(b"share = 0.2}", locks + b"}") + b"bins = 5\nsteps = 1\nbefore = {narrow = 900.0, wide = 5e3}\n"


def _charter_seeds() -> list[bytes]:
    text = 'schema = "cohortium.charter/1"\nname = "north"\nmax_epsilon = 2.0\n'
    members = [f'[[institutions]]\nname = "bank {n}"\nregion = "EU"\nidentity = "{n:064x}"\n' for n in range(3)]
    tomllib.loads(text + "".join(members))
    return [(text + "".join(members)).encode()]


def _sum_seeds(name: str) -> Callable[[], list[bytes]]:
    return lambda: _one_sum()[name]


_KINDS = (
    messages.Introduction,
    messages.Roster,
    messages.OfferHead,
    messages.Offer,
    messages.OfferTo,
    messages.SumInput,
    messages.Contributed,
    messages.SurvivorSet,
    messages.Consent,
    messages.UnmaskRequest,
    messages.Opened,
    messages.ShareRequest,
)

TARGETS = {f"sum-{kind.__name__}": Target(_message(kind), _sum_seeds(kind.__name__)) for kind in _KINDS} | {
    "question": Target(_question, _question_seeds),
    "reply": Target(_reply, lambda: [b"\x47" + _DIGEST.encode() + Array(np.arange(1)).data]),
    "bundle": Target(_bundle, _bundle_seeds),
    "encoder-file": Target(files.read_model(EncoderModel), files.signed_model(EncoderModel)),
    "encoder-parts": Target(files.read_model_parts(EncoderModel), files.model_parts(EncoderModel)),
    "lookalike-file": Target(files.read_model(LookalikeModel), files.signed_model(LookalikeModel)),
    "lookalike-parts": Target(files.read_model_parts(LookalikeModel), files.model_parts(LookalikeModel)),
    "seed-list": Target(files.read_seed_list, files.seed_lists),
    "suppression-list": Target(files.read_list, files.id_lists),
    "contacts": Target(files.read_contacts, files.contacts_seeds),
    "scores": Target(files.read_scores, files.scores_seeds),
    "manifest": Target(files.read_manifest_file, files.manifest_seeds),
    "plan": Target(_toml(_plan), _plan_seeds),
    "charter": Target(_toml(lambda raw, place: parse_charter(raw, place)), _charter_seeds),
    "contract": Target(_contract, _files("*contract.toml")),
    "note": Target(records.read_note, records.notes),
    "checkpoint": Target(records.read_checkpoint, records.checkpoints),
    "leaf": Target(records.read_leaf, records.leaves),
    "proof": Target(records.read_proof, records.proofs),
    "rule-pack": Target(records.read_pack_text, records.packs),
    "fact-sheet": Target(records.read_fact_sheet, records.fact_sheets),
    "case-file": Target(records.read_case_file, records.case_files),
    "evidence-pack": Target(packs.read_pack, packs.packs),
    "evidence-document": Target(packs.read_document, packs.documents),
    "consent-template": Target(records.read_template, records.templates),
    "consent-mapping": Target(records.read_mapping, records.mappings),
    "consent-rows": Target(records.read_consents, records.consent_files),
}
"""Every target by name."""
