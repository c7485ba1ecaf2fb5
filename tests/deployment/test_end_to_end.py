"""A coordinator and five institutions, each a process, run the Ta-Feng study and release what one process does."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from cohortium.cli.main import app
from cohortium.governance.evidence.pack import MANIFEST, Source, write_pack
from cohortium.simulations import datasets
from cohortium.simulations.loopback import PASSWORD, Deployment, wait_until
from cohortium.simulations.sources import public_data
from cohortium.study.canonical import canonical_bytes
from cohortium.study.contract import Contract
from cohortium.study.keys import read_identity_file
from cohortium.study.plans import parse_plan

SEEDED = Path(__file__).with_name("seeded_node.py")
REGIONS = dict.fromkeys(range(5), "EU")


def ta_feng_plan(contract: Contract) -> Any:
    return parse_plan(
        {
            "schema": "cohortium.plan/1",
            "study": "segments",
            "name": "loopback-segments",
            "purpose": "CustomerSegmentation",
            "lawful_basis": "consent",
            "regions": ["EU"],
            "contract": contract.digest,
            "expires": "2099-12-31",
            "trust": "distributed",
            "epsilon": 2.0,
            "delta": 1e-6,
            "min_institutions": 4,
            "colluders": 1,
            "min_cell": 100,
            "max_attempts": 2,
            "segments": {"k": [5, 8]},
            "shares": {"marginals": 15, "clustering": 60, "profiles": 20, "rfm": 5},
        }
    )


def cohortium(*words: object) -> Result:
    """A command as `cohortium` runs it."""
    return CliRunner().invoke(app, [str(word) for word in words])


def built(pack: Path, *words: object) -> Path:
    done = cohortium("evidence", "build", *words, "-o", pack)
    assert done.exit_code == 0, done.exception
    return pack


def verified(charter: Path, *packs: Path) -> tuple[int, str]:
    """Exit code and report."""
    done = cohortium("evidence", "verify", *packs, "--charter", charter)
    return done.exit_code, done.output


def forged(pack: Path, key: Ed25519PrivateKey, name: str, change: Callable[[Any], Any]) -> Path:
    """The pack with one document changed, signed anew by whose it is."""
    with zipfile.ZipFile(pack) as archive:
        manifest = json.loads(archive.read(MANIFEST))
        docs = {one["name"]: archive.read(one["name"]) for one in manifest["documents"]}
    held = json.loads(docs[name])
    change(held)
    docs[name] = canonical_bytes(held)
    out = pack.with_name(f"forged-{pack.name}")
    out.unlink(missing_ok=True)
    signer = {"federation": manifest["federation"], "signer": manifest["signer"], "key": key}
    write_pack(out, [Source(one, data) for one, data in docs.items()], **signer, plans=manifest["plans"])
    return out


@pytest.mark.online
@pytest.mark.slow
def test_five_institutions_and_a_coordinator_release_what_one_process_releases(
    deployment: Any, run_here: Any, seeded_bits: Any, tmp_path: Path
) -> None:
    if reason := datasets.unavailable_reason("ta-feng"):
        pytest.skip(reason)
    contract = datasets.load_packaged_contract("ta-feng")
    deployment.found(contract, public_data("ta-feng", "5", contract, lambda _line: None), REGIONS)
    plan = deployment.propose(ta_feng_plan(contract))
    deployment.approve(plan)
    for part in ("nodes", "coordinator"):
        shutil.copytree(deployment.root / part, tmp_path / "twin" / part)
    nodes = [deployment.start_node(name, SEEDED, str(seed)) for seed, name in enumerate(deployment.institutions)]
    started = deployment.start_coordinator()
    run = deployment.run(plan)
    alone = run_here(Deployment(tmp_path / "twin"), plan, run, seeded_bits)
    assert deployment.ended(plan) == "released", (deployment.coordinator / "flower" / "superlink.log").read_text()[
        -3000:
    ]
    ((name, released),) = deployment.studies.released(plan)
    assert name == "bundle.json"
    first = deployment.institutions[0]
    came = deployment.node(first) / "released" / plan[7:] / name
    wait_until(came.exists, 30, "the results at a node")
    assert [node.stop() for node in nodes] == [0] * 5
    assert started.stop() == 0
    assert released == alone
    evidence_verifies(deployment, plan, first, tmp_path)


def evidence_verifies(deployment: Any, plan: str, first: str, tmp_path: Path) -> None:
    """What the coordinator and a node hold of the run proves it, by the commands; what is altered in it is refused."""
    password, charter = ("--password-file", deployment.password_file), deployment.coordinator / "charter.json"
    asked = built(tmp_path / "coordinator.zip", "--coordinator", deployment.coordinator, *password)
    own = built(tmp_path / f"{first}.zip", "--node", deployment.node(first), "--plan", plan, *password)
    code, report = verified(charter, asked, own)
    assert code == 0, report
    everybody = ", ".join(f"'{name}'" for name in deployment.institutions)
    for part in (
        f"approvals      passed  'loopback-segments': {everybody} approved it; {everybody} answered",
        "bundle.json: 10 sums, 50 log entries of what they cost",
        f"charges        passed  {first}: 10 charges, each with its one log entry",
        "contributions  passed  50 entries of institutions, and 5 more",
    ):
        assert part in report, report
    assert report.splitlines()[-1] == "verified"

    whole = asked.read_bytes()
    at = whole.index(b'"centre":[') + 12
    altered = tmp_path / "altered.zip"
    altered.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    code, report = verified(charter, altered, own)
    assert code == 1
    assert f"the first altered byte lies in {altered}: released/{plan[7:]}/bundle.json" in report

    key = read_identity_file(deployment.coordinator / "identity.pem", PASSWORD)
    at_node = read_identity_file(deployment.node(first) / "identity.pem", PASSWORD)
    ledger, log = (f"parties/{first}/{part}.json" for part in ("ledger", "log"))
    with zipfile.ZipFile(asked) as archive:
        approval = next(name for name in archive.namelist() if name.startswith("approvals/"))
        by = json.loads(archive.read(approval))["approval"]["institution"]
        another = json.loads(archive.read("parties/coordinator/log.json"))["checkpoints"][1]
    for pack, signer, name, change, line in (
        (own, at_node, ledger, lambda held: held["charges"].pop(), "charges        FAILED"),
        (
            asked,
            key,
            approval,
            lambda held: held.update(signature=key.sign(b"by another key").hex()),
            f"approvals      FAILED  'loopback-segments': approval of '{by}': is not signed by the identity key of",
        ),
        (own, at_node, log, lambda held: held["checkpoints"].__setitem__(1, another), "checkpoints    FAILED"),
    ):
        packs = {asked: asked, own: own, pack: forged(pack, signer, name, change)}
        code, report = verified(charter, packs[asked], packs[own])
        assert (code, line in report) == (1, True), report
