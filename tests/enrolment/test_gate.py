"""The coordinator's gate on loopback before a SuperLink that only writes down what reaches it."""

from __future__ import annotations

import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node as FlowerNode
from prometheus_client import CollectorRegistry

from cohortium.client.joining import client_context
from cohortium.server import gate as at
from cohortium.server.authority import server_context
from cohortium.server.bell import GATE, Bell, ring
from cohortium.server.gate import FLEET_PATHS, MOST_CONNECTIONS, Gate, Noticeboard
from cohortium.server.members import active_keys, load_members

from .house import PASSWORD, House

NORTH, SOUTH = 11, 22


@dataclass
class Behind:
    """What reached the SuperLink: path and body."""

    requests: list[tuple[str, bytes]] = field(default_factory=list)
    port: int = 0
    answer: bytes = b"ok"


@pytest.fixture
def behind() -> Iterator[Behind]:
    found = Behind()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.requests.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", str(len(found.answer)))
            self.end_headers()
            self.wfile.write(found.answer)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    found.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class AtGate:
    house: House
    port: int
    taken: list[bytes]
    replied: list[str]

    def key(self, name: str) -> str:
        return b64encode(load_members(self.house.coordinator)[name].current.transport.encode()).decode()

    def ask(self, name: str, path: str, headers: Any = None, **more: Any) -> httpx.Response:
        """What the gate answers to a node, which shows its certificate and by default its key."""
        context = client_context(self.house.node(name), PASSWORD)
        with httpx.Client(verify=context, timeout=10) as client:
            method = "GET" if path.endswith("proposals") or "released" in path else "POST"
            shown = {"flwr-public-key": self.key(name)} if headers is None else headers
            return client.request(method, f"https://127.0.0.1:{self.port}/v1/{path}", headers=shown, **more)


@pytest.fixture
def at_gate(house: House, behind: Behind) -> Iterator[AtGate]:
    house.join("a")
    house.join("b")
    taken: list[bytes] = []
    board = Noticeboard(lambda: [b"{}"], taken.append, lambda plan: {"a.json": b"x"} if plan == "0" * 64 else None)
    replied: list[str] = []
    (house.coordinator / "run").mkdir()
    bell = Bell(house.coordinator, GATE)
    gate = Gate(
        "127.0.0.1",
        0,
        server_context(house.coordinator, PASSWORD),
        f"http://127.0.0.1:{behind.port}",
        client_context(house.node("a"), PASSWORD),
        lambda: frozenset(active_keys(house.coordinator, datetime.now(UTC))),
        board,
        CollectorRegistry(),
        bell,
        lambda: replied.append("a reply"),
    )
    yield AtGate(house, gate.port, taken, replied)
    gate.close()
    bell.close()


def pushed(node: int, said: int) -> bytes:
    """A node's push of a reply that says which node it is of."""
    message = FlowerMessage(metadata=Metadata(src_node_id=said))
    return PushMessagesRequest(node=FlowerNode(node_id=node), messages_list=[message]).SerializeToString()


def test_a_member_is_served(at_gate: AtGate, behind: Behind) -> None:
    for path in FLEET_PATHS:
        body = pushed(NORTH, NORTH)
        assert at_gate.ask("a", f"fleet/{path}", content=body).content == b"ok"
        assert behind.requests.pop() == (f"/v1/fleet/{path}", body)
    assert at_gate.ask("a", "cohortium/proposals").json() == ["{}"]
    assert at_gate.ask("a", f"cohortium/released/{'0' * 64}").json() == {"a.json": "78"}
    assert at_gate.ask("a", "cohortium/approvals", content=b"mine").status_code == 200
    assert at_gate.taken == [b"mine"]


def test_a_member_s_key_is_of_no_use_under_another_certificate(at_gate: AtGate, behind: Behind) -> None:
    """The coordinator's TLS knows revocations as of its start: who was revoked since, and names a member's key."""
    stolen = {"flwr-public-key": at_gate.key("a")}
    for path in FLEET_PATHS:
        assert at_gate.ask("b", f"fleet/{path}", headers=stolen).status_code == 401
    at_gate.house.revoke("b")
    for path in ("cohortium/proposals", f"cohortium/released/{'0' * 64}", "cohortium/approvals", "fleet/get-run"):
        for headers in (stolen, None):
            assert at_gate.ask("b", path, headers=headers).status_code == 401
    assert behind.requests == at_gate.taken == []


def test_a_request_has_one_key(at_gate: AtGate, behind: Behind) -> None:
    """The gate would look at the first, the SuperLink at the last."""
    mine, other = ("flwr-public-key", at_gate.key("a")), ("flwr-public-key", at_gate.key("b"))
    for headers in ([mine, other], [other, mine], [mine, mine], []):
        assert at_gate.ask("a", "fleet/pull-messages", headers=headers).status_code == 401
    assert behind.requests == []


def test_a_reply_is_of_the_node_that_pushes_it(at_gate: AtGate, behind: Behind) -> None:
    """The SuperLink compares the node with the key, and does not compare the reply with the node."""
    for body in (pushed(NORTH, SOUTH), b"\xff"):
        assert at_gate.ask("a", "fleet/push-messages", content=body).status_code == 403
    assert behind.requests == []


def test_one_member_cannot_take_all_connections(at_gate: AtGate) -> None:
    with ExitStack() as stack:
        context = client_context(at_gate.house.node("a"), PASSWORD)
        opened = [
            context.wrap_socket(
                socket.create_connection(("127.0.0.1", at_gate.port), timeout=5), server_hostname="127.0.0.1"
            )
            for _ in range(MOST_CONNECTIONS + 1)
        ]
        for one in opened:
            stack.enter_context(one)
        assert opened[-1].recv(1) == b""  # hung up
        assert at_gate.ask("b", "cohortium/proposals").status_code == 200
        for one in opened[:-1]:
            one.settimeout(0.001)
            with pytest.raises(TimeoutError):
                one.recv(1)


def test_endless_headers_and_other_protocols_are_cut_off(at_gate: AtGate) -> None:
    assert at_gate.ask("a", "cohortium/proposals", headers={"x-long": "y" * (1 << 18)}).status_code == 400
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
    assert at_gate.ask("a", "cohortium/proposals", headers=upgrade).status_code == 200  # as if it had not asked


def test_who_asks_for_messages_waits_while_there_are_none_and_no_longer(
    at_gate: AtGate, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [("/v1/fleet/pull-messages", b"")]
    behind.answer = b""
    monkeypatch.setattr("cohortium.server.gate._HOLD_SECONDS", 0.2)
    for _ in range(2):  # the first is told what the SuperLink says, the second waited without asking it
        assert at_gate.ask("a", "fleet/pull-messages", content=b"").content == b""
        assert behind.requests == asked
    assert at_gate.ask("b", "fleet/pull-messages", content=b"").content == b""
    assert behind.requests == 2 * asked
    monkeypatch.setattr("cohortium.server.gate._HOLD_SECONDS", 60)
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(at_gate.ask, name, "fleet/pull-messages", content=b"") for name in ("a", "b")]
        assert wait(held, 0.3).done == set()
        behind.answer = b"a message"
        ring(at_gate.house.coordinator, GATE)
        assert [one.result(10).content for one in held] == [b"a message"] * 2
    assert behind.requests == 4 * asked


def test_nobody_having_rung_is_believed_for_a_while_only(
    at_gate: AtGate, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind.answer = b""
    monkeypatch.setattr("cohortium.server.gate._TRUST_SECONDS", -1)
    for asked in (1, 2):
        at_gate.ask("a", "fleet/pull-messages", content=b"")
        assert len(behind.requests) == asked


def test_a_reply_that_is_complete_is_told(at_gate: AtGate) -> None:
    at_gate.ask("a", "fleet/push-messages", content=pushed(NORTH, NORTH))
    at_gate.ask("a", "fleet/push-object", content=b"")
    assert at_gate.replied == []
    at_gate.ask("a", "fleet/confirm-message-received", content=b"")
    assert at_gate.replied == ["a reply"]


def test_large_endless_and_slow_bodies_and_other_paths_are_cut_off(
    at_gate: AtGate, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at, "MAX_BODY", 1000)
    for content in (bytes(1001), iter([bytes(600)] * 2)):  # with its length said beforehand, and without
        assert at_gate.ask("a", "fleet/get-run", content=content).status_code == 413
    monkeypatch.setattr(at, "_BODY_SECONDS", 0.01)
    context = client_context(at_gate.house.node("a"), PASSWORD)
    lines = ["POST /v1/fleet/get-run HTTP/1.1", "host: x", f"flwr-public-key: {at_gate.key('a')}", "content-length: 9"]
    head = "\r\n".join([*lines, "", ""])
    with (
        socket.create_connection(("127.0.0.1", at_gate.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as slow,
    ):
        slow.sendall(head.encode() + b"x")
        assert slow.recv(12) == b"HTTP/1.1 413"
    assert at_gate.ask("a", "fleet/register-node", content=b"").status_code == 404
    assert behind.requests == []
