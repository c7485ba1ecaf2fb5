"""What `cohortium evidence verify` reads from others: packs, and documents in one that is genuinely signed."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from files import quietly
from sqlalchemy import create_engine

from cohortium.governance.evidence.pack import Source, write_pack
from cohortium.governance.evidence.pack_log import HeldLog
from cohortium.governance.evidence.pack_parts import ConsentOpening, ConsentOpenings, Stated, Witnessed, ledger_extract
from cohortium.governance.evidence.pack_reading import open_pack
from cohortium.governance.evidence.verify import verify_packs
from cohortium.governance.log import AuditLog, Ed25519Signer, log_origin, quorum_for
from cohortium.privacy.accounting import budget_for, price, sigma_for
from cohortium.privacy.ledger import Charge, Slot
from cohortium.privacy.release import consent_commitment
from cohortium.privacy.sharing import ALONE
from cohortium.study.charter import Charter, parse_charter
from cohortium.study.errors import CohortiumError
from cohortium.study.plan import Plan
from cohortium.study.plans import parse_plan
from cohortium.study.witness import Statement

__all__ = ["documents", "packs", "read_document", "read_pack"]

_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
_RUN, _QUESTION = "ab" * 16, "sha256:" + "3" * 64
_OWN = "parties/north/"
_PARTS = ("log", "ledger", "consent", "witnessed", "stated")
_FUZZED = (*(f"{_OWN}{part}.json" for part in _PARTS), "charter.json")
_WHOLE = (f"{_OWN}consent.json",)  # passes with these bytes alone


@cache
def _charter() -> Charter:
    member = {"name": "north", "region": "EU", "identity": _KEY.public_key().public_bytes_raw().hex()}
    return parse_charter({"schema": "cohortium.charter/1", "name": "sea", "institutions": [member]})


@cache
def _plan() -> Plan:
    return parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "segments",
            "name": "fuzz",
            "purpose": "research",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": _QUESTION,
            "expires": "2099-12-31",
            "trust": "local",
            "epsilon": 1.0,
            "delta": 1e-6,
            "min_institutions": 1,
            "segments": {"k": 2},
            "shares": {"marginals": 20, "clustering": 60, "profiles": 20, "rfm": 0},
        }
    )


@cache
def _documents() -> dict[str, bytes]:
    """Of one institution that answered two questions, without rules in force."""
    plan, origin = _plan(), log_origin("sea", "north")
    log = AuditLog(create_engine("sqlite://"), origin, Ed25519Signer(origin, _KEY))
    sigma = sigma_for(2**60, budget_for(plan.epsilon, plan.delta).mu2 // 4)
    spend, openings, charges, statements = price(2**60, sigma, 3), [], [], []
    run = {"plan": plan.digest, "run": _RUN}
    log.append([{"event": "admission", **run, "decision": "none", "admitted": "true"}])
    for number in (1, 2):
        slot = Slot(plan.digest, _RUN, "marginals", number - 1, 1)
        charges.append(
            Charge(number, "", slot, _QUESTION, "discrete-gaussian", ALONE, 3, 2**60, sigma, spend),
        )
        opening = ConsentOpening(charge=number, root="0" * 64, salt=f"{number:064x}")
        openings.append(opening)
        entry = {"event": "release", "charge": number, **run, "phase": "marginals", "step": number - 1, "attempt": 1}
        paid = {"question": _QUESTION, "mu2": str(spend.mu2), "tv": str(spend.tv), "decision": "none"}
        log.checkpoint()
        log.append([{**entry, **paid, "consent": consent_commitment(opening.root, opening.salt)}])
        statements.append(_statement(log, number))
    notes = (log.checkpoint_at(1), log.checkpoint_at(2), log.checkpoint())
    held = HeldLog(origin, notes, (), tuple(log.entries(0, log.size)), ())
    return {
        "charter.json": _charter().to_bytes(),
        f"plans/{plan.digest.removeprefix('sha256:')}.json": plan.to_bytes(),
        f"{_OWN}log.json": held.part(None, quorum_for(_charter(), "north")).to_bytes(),
        f"{_OWN}ledger.json": ledger_extract("north", charges, {plan.digest: plan}).to_bytes(),
        f"{_OWN}consent.json": ConsentOpenings(institution="north", openings=tuple(openings)).to_bytes(),
        f"{_OWN}stated.json": Stated(institution="north", statements=tuple(statements), closed=()).to_bytes(),
        f"{_OWN}witnessed.json": Witnessed(institution="north", checkpoints=()).to_bytes(),
    }


def _statement(log: AuditLog, index: int) -> Statement:
    """Of the log's last entry; nobody has to cosign a log of the only member."""
    return Statement(
        checkpoint=log.checkpoint(),
        index=index,
        entry=log.entry(index).leaf.to_bytes().hex(),
        inclusion=tuple(part.hex() for part in log.inclusion(index, index + 1)),
        cosigned=None,
    )


def _written(documents: dict[str, bytes], folder: Path) -> Path:
    out = folder / "pack.zip"
    sources = [Source(name, data) for name, data in documents.items()]
    write_pack(out, sources, federation="sea", signer=log_origin("sea", "north"), key=_KEY, plans=None)
    return out


@cache
def packs() -> list[bytes]:
    """A whole pack."""
    with tempfile.TemporaryDirectory() as folder:
        return [_written(_documents(), Path(folder)).read_bytes()]


def read_pack(data: bytes) -> bool:
    """Opens a pack. One that is accepted, and is not byte for byte what was signed, is a finding."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pack.zip"
        path.write_bytes(data)
        accepted = quietly(lambda: open_pack(path, _charter()), CohortiumError)
    if accepted and data not in packs():
        raise AssertionError("accepted, and not what was signed")
    return accepted


def documents() -> list[bytes]:
    """Each document of the pack, after a byte that says which it is."""
    return [bytes([place]) + _documents()[name] for place, name in enumerate(_FUZZED)]


def read_document(data: bytes) -> bool:
    """Verifies a genuinely signed pack with that document in it: what is wrong is said, and nothing is raised.

    Passing with other openings, or with other charges, is a finding.
    """
    name = _FUZZED[data[0] % len(_FUZZED)] if data else _FUZZED[0]
    held = {**_documents(), name: data[1:]}
    with tempfile.TemporaryDirectory() as folder:
        found = verify_packs([_written(held, Path(folder))], _charter())
    if found.passed and name in _WHOLE and data[1:] != _documents()[name]:
        raise AssertionError("passed, and not what the log commits to")
    if found.passed and name.endswith("ledger.json"):
        good, other = (json.loads(one)["charges"] for one in (_documents()[name], data[1:]))
        if good != other:
            raise AssertionError("passed, with other charges than the log has")
    return found.passed
