"""Attacks on a real federation: strangers learn nothing, members reach what is theirs, a stop leaves no process."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node as FlowerNode
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from cohortium.client.joining import client_context, read_transport_key
from cohortium.privacy.accounting import budget_for
from cohortium.privacy.ledger import Ledger, open_store
from cohortium.server.bell import GATE, ring
from cohortium.server.control import connect
from cohortium.server.members import load_members, revoke
from cohortium.simulations.loopback import PASSWORD, Deployment, processes_of, wait_until
from cohortium.study.contract import Contract
from cohortium.study.plan import Plan

REGIONS = {"north": "EU", "south": "EU", "west": "EU"}


class People:
    """Three hundred customers in each of three institutions."""

    def tables(self, contract: Contract, work: Path) -> dict[str, dict[str, Any]]:
        work.mkdir()
        found = {}
        for number, name in enumerate(REGIONS):
            lines = ["id,visits,spend,score"]
            for one in range(300):
                kind = one % 3
                lines.append(f"c{number}{one:03d},{3 + 12 * kind},{50 + 600 * kind},{kind - 1}")
            (work / f"{name}.csv").write_text("\n".join(lines) + "\n")
            found[name] = {"people": work / f"{name}.csv"}
        return found


@pytest.fixture(scope="module")
def federation(small_contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = Deployment(tmp_path_factory.mktemp("federation"))
    contract = small_contract.model_copy(update={"purposes": ("CustomerSegmentation",)})
    found.found(contract, People(), REGIONS)
    yield found
    found.close()


@pytest.fixture(scope="module")
def serving(federation: Any, make_plan: Any) -> Any:
    """The federation at work, one plan of it approved by everybody."""
    federation.plan = federation.propose(plan_of(federation, make_plan, name="approved"))
    federation.approve(federation.plan)
    federation.coordinator_process = federation.start_coordinator(wave=20)
    federation.nodes = {name: federation.start_node(name) for name in REGIONS}
    wait_until(lambda: len(federation.studies.approvals(federation.plan)) == 3, 60, "the approvals")
    return federation


def member(federation: Any, name: str = "north") -> tuple[ssl.SSLContext, dict[str, str]]:
    """What a member's node shows: its side of the TLS connection, and its key."""
    key = load_members(federation.coordinator)[name].current.transport.encode()
    context = client_context(federation.node(name), PASSWORD)
    return context, {"flwr-public-key": b64encode(key).decode(), "content-type": PROTOBUF_MEDIA_TYPE}


def at_gate(federation: Any, path: str, context: ssl.SSLContext, **more: Any) -> httpx.Response:
    return httpx.post(f"https://127.0.0.1:{federation.port}{path}", verify=context, timeout=10, **more)


def plan_of(federation: Any, make_plan: Any, **changes: Any) -> Plan:
    purpose = {"purpose": "CustomerSegmentation", "lawful_basis": "consent", "regions": ["EU"], "expires": "2099-12-31"}
    sums = {"trust": "distributed", "min_institutions": 3, "colluders": 1, "max_attempts": 3}
    settings = {"epsilon": 2.0, "delta": 1e-6, "min_cell": 100}
    found: Plan = make_plan(**{"contract": federation.contract.digest, **purpose, **sums, **settings, **changes})
    return found


def charges(federation: Any, name: str, plan: str) -> list[tuple[str, int, int]]:
    store = open_store(federation.node(name) / "node.sqlite", create=False)
    ledger = Ledger(store, name, budget_for(3.0, 1e-6))
    with closing(ledger):
        ledger.verify()
        return [(one.slot.phase, one.slot.step, one.slot.attempt) for one in ledger.charges() if one.slot.plan == plan]


def test_whoever_shows_no_certificate_of_the_authority_gets_no_further_than_the_handshake(serving: Any) -> None:
    plain = ssl.create_default_context(cafile=str(serving.node("north") / "authority.crt"))
    with pytest.raises(httpx.TransportError):
        at_gate(serving, "/v1/fleet/pull-messages", plain)


def test_a_coordinator_under_another_authority_is_not_believed(serving: Any, tmp_path: Path) -> None:
    """A man in the middle has no certificate of this federation's CA."""
    context, _ = member(serving)
    address = json.loads((serving.coordinator / "run" / "superlink.json").read_text())["address"]
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.post(f"https://{address}/v1/fleet/pull-messages", verify=context)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/runtime/pull-task-input",
        "/docs",
        "/v1/fleet/register-node",
    ],
)
def test_a_member_reaches_flower_s_fleet_interface_and_nothing_else_of_flower_s(serving: Any, path: str) -> None:
    context, headers = member(serving)
    assert at_gate(serving, path, context, headers=headers, content=b"").status_code in (404, 405)


def test_the_superlink_is_there_for_this_machine_and_known_keys_alone(serving: Any) -> None:
    run = serving.coordinator / "run"
    said = json.loads((run / "superlink.json").read_text())
    port = int(said["address"].rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)  # every address would include this one
    trusted = ssl.create_default_context(cadata=said["certificate"])
    asked = httpx.post(
        f"https://{said['address']}/v1/fleet/pull-messages",
        verify=trusted,
        headers={"content-type": PROTOBUF_MEDIA_TYPE},
        content=PullMessagesRequest(node=FlowerNode(node_id=1)).SerializeToString(),
    )
    assert asked.status_code == 401
    modes = {path.name: path.stat().st_mode & 0o777 for path in (run, run / "superlink.key", run / "superlink.json")}
    assert modes == {"run": 0o700, "superlink.key": 0o600, "superlink.json": 0o600}


def test_a_member_s_certificate_is_not_enough_for_another_key(serving: Any) -> None:
    context, headers = member(serving)
    for key in ({}, {"flwr-public-key": "bm9ib2R5"}, {"flwr-public-key": "not base64!"}):
        answer = at_gate(serving, "/v1/fleet/pull-messages", context, headers={**headers, "flwr-public-key": "", **key})
        assert answer.status_code == 401
        assert answer.content == b""


def test_a_member_cannot_speak_for_another_one(serving: Any) -> None:
    """A signature of north's under south's key is refused by the SuperLink, north's certificate by the gate."""
    _, headers = member(serving, "south")
    with closing(connect(serving.coordinator)) as control:
        south = control.nodes()[b64decode(headers["flwr-public-key"])]
    beat = SendNodeHeartbeatRequest(node=FlowerNode(node_id=south), heartbeat_interval=10).SerializeToString()
    for signer, shown, status in (("north", "south", 401), ("south", "north", 401), ("south", "south", 200)):
        context, _ = member(serving, shown)
        now = datetime.now(UTC).isoformat()
        key = read_transport_key(serving.node(signer), PASSWORD)
        signed = {"flwr-timestamp": now, "flwr-signature": b64encode(sign_message(key, now.encode())).decode()}
        answer = at_gate(serving, "/v1/fleet/send-node-heartbeat", context, headers={**headers, **signed}, content=beat)
        assert answer.status_code == status


def test_an_oversized_request_is_refused(serving: Any) -> None:
    context, headers = member(serving)
    parts = (bytes(1 << 20) for _ in range(5))
    for content in (bytes(5 << 20), parts):  # with its length said beforehand, and without
        answer = at_gate(serving, "/v1/cohortium/approvals", context, headers=headers, content=content)
        assert answer.status_code == 413
        assert answer.content == b""


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_malformed_approval_is_refused_and_costs_nothing(serving: Any, data: bytes) -> None:
    context, headers = member(serving)
    answer = at_gate(serving, "/v1/cohortium/approvals", context, headers=headers, content=data)
    assert answer.status_code == 422
    assert answer.content == b""


def test_an_approval_signed_by_another_member_is_not_taken(serving: Any) -> None:
    context, headers = member(serving)
    path = serving.node("north") / "approvals" / f"{serving.plan[7:]}.json"
    forged = path.read_bytes().replace(b'"north"', b'"south"')
    assert forged != path.read_bytes()
    assert at_gate(serving, "/v1/cohortium/approvals", context, headers=headers, content=forged).status_code == 422


ASKS_EVERYBODY = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    content = RecordDict({"packed": ConfigRecord({"records": b""})})
    asked = [Message(content, node, "query.witness") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(asked, timeout=30))
    open(PLACE + "/replies", "w").write(str([reply.content for reply in replies]))
"""
LEAVES_A_MARK = """
from flwr.clientapp import ClientApp

open(PLACE + "/unpacked-and-run", "w").close()
app = ClientApp()
"""


def hostile_bundle(place: Path) -> bytes:
    """A bundle whose server app asks every node, and whose client app leaves a mark if anybody unpacks and runs it."""
    config = '[project]\nname = "evil"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "evil"\n'
    config += '[tool.flwr.app.components]\nserverapp = "evil_server:app"\nclientapp = "evil_client:app"\n'
    config += '[tool.flwr.app.config]\nplan = ""\nrun = ""\n'
    files = {
        "pyproject.toml": config,
        "evil_server.py": f"PLACE = {str(place)!r}\n{ASKS_EVERYBODY}",
        "evil_client.py": f"PLACE = {str(place)!r}\n{LEAVES_A_MARK}",
    }
    bundle, _ = build_fab_from_files({name: text.encode() for name, text in files.items()})
    return bundle


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
def test_nobody_fetches_unpacks_or_answers_a_run_of_another_bundle(serving: Any, tmp_path: Path) -> None:
    """Whoever runs the SuperLink starts a run of a bundle of their own; the nodes decline what it asks."""
    bundle = hostile_bundle(tmp_path)
    fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
    config = user_config_to_proto({"plan": serving.plan, "run": "0" * 32})
    with closing(connect(serving.coordinator)) as control:
        run = control._client.StartRun(StartRunRequest(fab=fab_to_proto(fab), override_config=config)).run_id
        ids = control.nodes()
        assert len(ids) == 3

        def finished() -> bool:
            ring(serving.coordinator, GATE)  # or the nodes would look after half a minute
            return control.state(run).startswith("finished")

        wait_until(finished, 60, "the end of the hostile run")
    told = "declined: the run was started with an app bundle that no approved plan names"
    for node in serving.nodes.values():
        line = wait_until(lambda node=node: node.said(told), 60, "the node's refusal")
        assert line["bundle"] == f"sha256:{fab.hash_str}"
    assert "declined" in (tmp_path / "replies").read_text()
    assert not (tmp_path / "unpacked-and-run").exists()
    requests = (serving.coordinator / "flower" / "superlink.log").read_text()
    assert "POST /v1/fleet/get-fab" not in requests
    assert all(not charges(serving, name, serving.plan) for name in REGIONS)


def test_a_revoked_member_is_out_at_once_and_says_so(serving: Any) -> None:
    revoke(serving.coordinator, PASSWORD, "west", "left the federation", datetime.now(UTC))
    process = serving.nodes["west"]
    assert wait_until(lambda: process.process.poll() is not None, 60, "the end of the revoked node")
    assert process.process.returncode != 0
    assert "does not know this node's key, or no longer" in process.log.read_text()
    context, headers = member(serving, "west")
    assert at_gate(serving, "/v1/fleet/pull-messages", context, headers=headers, content=b"").status_code == 401


def test_a_stop_leaves_no_process_behind(serving: Any) -> None:
    assert serving.healthy()["ok"] is True
    assert [serving.nodes[name].stop() for name in ("north", "south")] == [0, 0]
    assert serving.coordinator_process.stop() == 0
    assert not processes_of(serving.root)
