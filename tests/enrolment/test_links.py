"""A node's two links to a coordinator that says what it likes: Flower's messages, and the board."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import logging
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.run_pb2 import GetRunResponse, Run
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.task_identity import TaskIdentity

from cohortium.client import exchange, fleet
from cohortium.client.exchange import Exchange
from cohortium.client.fleet import FleetLink, LinkLostError, StrangerError
from cohortium.client.joining import client_context, found_node, read_transport_key
from cohortium.client.node import NodeIdentity
from cohortium.server.authority import server_context
from cohortium.study.contract import Contract
from cohortium.study.errors import OutputError, RefusedError
from cohortium.study.packing import packed, unpacked

from .house import NAME, PASSWORD, House

NODE, RUN = 7, 5
SAID = RecordDict({"asked": ConfigRecord({"what": "something"})})
Answer = tuple[int, dict[str, str], bytes]


def asked(content: RecordDict, node: int = NODE, run: int = RUN) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, 1, 1
    message = Message(content, node, "query.plan", ttl=60)
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


@dataclass
class Coordinator:
    """Flower's Fleet API as far as a node uses it, and whatever else is put into `says`."""

    port: int = 0
    online: bool = False
    says: dict[str, Callable[[bytes], Answer | bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    queue: list[bytes] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    replies: dict[str, PushMessagesRequest] = field(default_factory=dict)

    def send(self, message: Message, **changes: Any) -> PullMessagesResponse:
        self.objects.update({name: one.deflate() for name, one in get_all_nested_objects(message).items()})
        proto = message_to_proto(remove_content_from_message(message))
        for name, value in changes.items():
            setattr(proto.metadata, name, value)
        found = PullMessagesResponse(messages_list=[proto], message_object_trees=[get_object_tree(message)])
        self.queue.append(found.SerializeToString())
        return found

    def answer(self, path: str, body: bytes) -> Answer:
        self.requests.append(path)
        name = path.rpartition("/")[2]
        found = self.says[name](body) if name in self.says else getattr(self, name.replace("-", "_"))(body)
        if isinstance(found, bytes):
            return 200, {}, found
        return found if isinstance(found, tuple) else (200, {}, found.SerializeToString())

    def activate_node(self, _: bytes) -> Any:
        if self.online:
            return 412, {}, b""
        self.online = True
        return ActivateNodeResponse(node_id=NODE)

    def deactivate_node(self, body: bytes) -> Any:
        self.online = DeactivateNodeRequest.FromString(body).node_id != NODE
        return DeactivateNodeResponse()

    def send_node_heartbeat(self, _: bytes) -> Any:
        return SendNodeHeartbeatResponse(success=True)

    def pull_messages(self, _: bytes) -> bytes:
        return self.queue.pop(0) if self.queue else b""

    def get_run(self, _: bytes) -> Any:
        return GetRunResponse(run=Run(run_id=RUN, fab_hash="ab"))

    def pull_object(self, body: bytes) -> Any:
        content = self.objects.get(PullObjectRequest.FromString(body).object_id)
        return PullObjectResponse(
            object_found=content is not None, object_available=content is not None, object_content=content or b""
        )

    def push_messages(self, body: bytes) -> Any:
        request = PushMessagesRequest.FromString(body)
        self.replies[request.messages_list[0].metadata.message_id] = request
        parts = [one.object_id for one in iterate_object_tree(request.message_object_trees[0])]
        return PushMessagesResponse(objects_to_push=[part for part in parts if part not in self.objects])

    def push_object(self, body: bytes) -> Any:
        request = PushObjectRequest.FromString(body)
        self.objects[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def confirm_message_received(self, body: bytes) -> Any:
        self.objects.pop(ConfirmMessageReceivedRequest.FromString(body).message_object_id, None)
        return ConfirmMessageReceivedResponse()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    coordinator = Coordinator()

    def handle_error(self, *_: Any) -> None:
        return


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        status, headers, content = self.server.coordinator.answer(self.path, body)
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST  # noqa: N815 - http.server's way

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(scope="module")
def home(made: Path, small_contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> House:
    """A federation with one node, c, which joined."""
    folder = tmp_path_factory.mktemp("links")
    shutil.copytree(made / "coordinator", folder / "coordinator")
    house = House(folder, datetime.now(UTC).replace(microsecond=0))
    identity = NodeIdentity(institution="c")
    found_node(house.node("c"), identity, small_contract, PASSWORD, federation=NAME, region="EU")
    house.join("c")
    return house


@pytest.fixture(scope="module")
def server(home: House) -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.socket = server_context(home.coordinator, PASSWORD).wrap_socket(found.socket, server_side=True)
    thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture
def coordinator(server: Server) -> Coordinator:
    server.coordinator = Coordinator(server.server_port)
    return server.coordinator


@pytest.fixture(scope="module")
def context(home: House) -> ssl.SSLContext:
    return client_context(home.node("c"), PASSWORD)


@pytest.fixture(scope="module")
def key(home: House) -> EllipticCurvePrivateKey:
    return read_transport_key(home.node("c"), PASSWORD)


@pytest.fixture
def make_link(
    tmp_path: Path, coordinator: Coordinator, context: ssl.SSLContext, key: EllipticCurvePrivateKey
) -> Iterator[Callable[[], FleetLink]]:
    made: list[FleetLink] = []

    def make() -> FleetLink:
        made.append(FleetLink(f"127.0.0.1:{coordinator.port}", context, key, tmp_path / "inbox"))
        made[-1].connect()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def link(make_link: Callable[[], FleetLink]) -> FleetLink:
    return make_link()


def taken(link: FleetLink) -> str:
    name = link.pull()
    assert name is not None
    return name


def test_a_message_comes_whole_and_its_reply_goes(link: FleetLink, coordinator: Coordinator, tmp_path: Path) -> None:
    assert link.node_id == NODE
    assert link.pull() is None
    message = asked(packed(SAID))
    coordinator.send(message)
    name = taken(link)
    delivered = link.open(name)
    assert (delivered.run, delivered.bundle) == (RUN, "sha256:ab")
    assert dict(unpacked(delivered.message.content)["asked"]) == {"what": "something"}
    link.reply(name, Message(packed(SAID), reply_to=delivered.message), delivered.message)
    (reply,) = coordinator.replies.values()
    said = reply.messages_list[0].metadata
    assert (said.reply_to_message_id, said.src_node_id) == (message.metadata.message_id, NODE)
    assert (said.created_at, said.ttl) == (
        message.metadata.created_at,
        message.metadata.ttl,
    )  # not when it was answered
    assert list(reply.clientapp_runtime_list) == [0.0]
    assert said.message_id in coordinator.objects
    assert message.metadata.message_id not in coordinator.objects
    assert [path.name for path in (tmp_path / "inbox").iterdir()] == ["node"]
    assert not any("fab" in path for path in coordinator.requests)


def test_a_killed_node_answers_what_it_had_taken(make_link: Callable[[], FleetLink], coordinator: Coordinator) -> None:
    coordinator.send(asked(packed(SAID)))
    name = taken(make_link())
    again = make_link()  # takes the connection of before back
    assert coordinator.requests.count("/v1/fleet/deactivate-node") == 1
    assert again.pull() == name
    assert again.open(name).bundle == "sha256:ab"
    assert coordinator.requests.count("/v1/fleet/pull-messages") == 1


def test_a_reply_that_was_cut_off_goes_on_as_the_same_message(link: FleetLink, coordinator: Coordinator) -> None:
    coordinator.send(asked(packed(SAID)))
    name = taken(link)
    coordinator.says["push-object"] = lambda _: (503, {}, b"")
    for cut in (True, False):
        delivered = link.open(name)
        reply = Message(packed(SAID), reply_to=delivered.message)
        if cut:
            with pytest.raises(LinkLostError, match="status 503"):
                link.reply(name, reply, delivered.message)
            del coordinator.says["push-object"]
        else:
            link.reply(name, reply, delivered.message)
    assert len(coordinator.replies) == 1
    assert set(coordinator.replies) <= set(coordinator.objects)


def test_a_reply_that_is_not_kept_stays(link: FleetLink, coordinator: Coordinator) -> None:
    coordinator.send(asked(packed(SAID)))
    delivered = link.open(name := taken(link))
    coordinator.says["push-object"] = lambda _: PushObjectResponse(stored=False).SerializeToString()
    with pytest.raises(LinkLostError, match="not kept"):
        link.reply(name, Message(packed(SAID), reply_to=delivered.message), delivered.message)
    assert link.pull() == name


def test_a_message_has_a_digest_as_its_name(link: FleetLink, coordinator: Coordinator, tmp_path: Path) -> None:
    for name in ("", "../node", "a" * 63, "g" * 64, "A" * 64, "é" * 64, "0" * 64 + "\n"):
        coordinator.send(asked(packed(SAID)), message_id=name)
        with pytest.raises(LinkLostError, match="proper name"):
            link.pull()
    assert [path.name for path in (tmp_path / "inbox").iterdir()] == ["node"]


def test_one_message_at_a_time_and_all_of_it_in_the_inbox(link: FleetLink, coordinator: Coordinator) -> None:
    two = coordinator.send(asked(packed(SAID)))
    two.messages_list.append(two.messages_list[0])
    coordinator.queue[:] = [two.SerializeToString()]
    with pytest.raises(LinkLostError, match="proper name"):
        link.pull()
    coordinator.send(asked(packed(SAID)))
    first = taken(link)
    coordinator.send(asked(packed(RecordDict())))
    assert link.pull() == first


def test_what_is_no_packed_message_to_this_node_is_refused(link: FleetLink, coordinator: Coordinator) -> None:
    """Arrays would be inflated chunk by chunk, and one chunk may be named a million times."""
    array = ArrayRecord({"a": Array(dtype="int8", shape=(4,), stype="numpy.ndarray", data=b"1234")})
    two = RecordDict({**packed(SAID), "more": ConfigRecord()})
    for content in (two, RecordDict({"packed": array}), RecordDict(), RecordDict({"packed": ArrayRecord()})):
        coordinator.send(asked(content))
        with pytest.raises(RefusedError, match=r"not packed|cannot be read"):
            link.open(name := taken(link))
        link.drop(name)
        if len(content) > 1:
            assert "/v1/fleet/pull-object" not in coordinator.requests  # nor fetched: each part may keep a node waiting
    for message, fault in ((asked(packed(SAID), node=8), "to another node"), (asked(packed(SAID), run=6), "not what")):
        coordinator.send(message, run_id=RUN)
        with pytest.raises(RefusedError, match=fault):
            link.open(name := taken(link))
        link.drop(name)


def test_a_message_of_an_error_has_no_content_to_answer(link: FleetLink, coordinator: Coordinator) -> None:
    message = asked(packed(SAID))
    sent = coordinator.send(message)
    head, _, body = message.deflate().partition(HEAD_BODY_DIVIDER)
    told = FlowerMessage.FromString(body)
    told.error.code = 1
    kind, children, _ = head.decode().split(HEAD_VALUE_DIVIDER)
    body = told.SerializeToString()
    head = HEAD_VALUE_DIVIDER.join([kind, children, str(len(body))]).encode()
    whole = head + HEAD_BODY_DIVIDER + body
    name = hashlib.sha256(whole).hexdigest()
    coordinator.objects[name] = whole
    sent.messages_list[0].metadata.message_id = sent.message_object_trees[0].object_id = name
    coordinator.queue[:] = [sent.SerializeToString()]
    with pytest.raises(RefusedError, match="not what its name says"):
        link.open(taken(link))


def test_the_content_is_what_its_name_says(
    link: FleetLink, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = coordinator.send(asked(packed(SAID)))
    name, whole = taken(link), dict(coordinator.objects)
    coordinator.says["get-run"] = lambda _: GetRunResponse(run=Run(run_id=RUN + 1, fab_hash="ab")).SerializeToString()
    with pytest.raises(RefusedError, match="another run"):
        link.open(name)
    coordinator.says.clear()
    part = sent.message_object_trees[0].children[0].object_id
    coordinator.objects[part] += b"more"
    with pytest.raises(RefusedError, match="not what its name says"):
        link.open(name)
    del coordinator.objects[part]
    with pytest.raises(RefusedError, match="is gone"):
        link.open(name)
    coordinator.objects.update(whole)
    missing = PullObjectResponse(object_found=True, object_available=False).SerializeToString()
    coordinator.says["pull-object"] = lambda _: missing
    monkeypatch.setattr(fleet, "_PART_SECONDS", 0.05)
    with pytest.raises(RefusedError, match="did not come"):
        link.open(name)
    coordinator.says.clear()
    monkeypatch.setattr(fleet, "MAX_BYTES", sum(map(len, whole.values())) - 1)
    with pytest.raises(RefusedError, match="more than"):
        link.open(name)
    monkeypatch.undo()
    assert link.open(name).run == RUN


def test_an_inbox_that_cannot_be_read_is_refused(link: FleetLink, tmp_path: Path) -> None:
    for data in (b"\xff", b"", b"[]" * 9):
        (tmp_path / "inbox" / "x.message").write_bytes(data)
        with pytest.raises(RefusedError, match="cannot be read"):
            link.open("x.message")
    link.drop("x.message")
    assert link.pull() is None


def test_a_full_disk_says_so_and_leaves_nothing(
    make_link: Callable[[], FleetLink], coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, inbox = make_link(), tmp_path / "inbox"

    def full(*_: object) -> None:
        (inbox / ".x.message.partial").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fleet, "write_whole", full)
    coordinator.send(asked(packed(SAID)))
    with pytest.raises(OutputError, match="No space left"):
        link.pull()
    monkeypatch.undo()
    make_link()
    assert [path.name for path in inbox.iterdir()] == ["node"]


def test_the_coordinator_cannot_send_a_node_elsewhere(link: FleetLink, coordinator: Coordinator) -> None:
    """A node stands within an institution's walls."""
    elsewhere = {"location": f"https://127.0.0.1:{coordinator.port}/within"}
    for status in (301, 302, 303, 307, 308):
        coordinator.says["pull-messages"] = lambda _, status=status: (status, elsewhere, b"")
        with pytest.raises(LinkLostError, match=f"status {status}"):
            link.pull()
    assert "/within" not in coordinator.requests


def test_answers_are_bounded_and_not_inflated(
    link: FleetLink, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.says["pull-messages"] = lambda _: (200, {"content-encoding": "gzip"}, gzip.compress(bytes(1 << 20)))
    with pytest.raises(LinkLostError, match="RemoteProtocolError"):
        link.pull()
    coordinator.says["pull-messages"] = lambda _: bytes(1 << 12)
    monkeypatch.setattr(fleet, "MAX_BYTES", 1 << 11)
    with pytest.raises(LinkLostError, match="RemoteProtocolError"):
        link.pull()
    coordinator.says.clear()
    monkeypatch.setattr(fleet, "_ANSWER_SECONDS", -1.0)
    with pytest.raises(LinkLostError, match="RemoteProtocolError"):
        link.connect()


def test_what_a_status_means(link: FleetLink, coordinator: Coordinator) -> None:
    coordinator.send(asked(packed(SAID)))
    name = taken(link)
    message = link.open(name).message
    lost = dict.fromkeys((400, 412, 413, 500, 503), LinkLostError)
    for status, error in {401: StrangerError, 403: RefusedError, 404: RefusedError, **lost}.items():
        for path in ("send-node-heartbeat", "pull-object", "push-messages"):
            coordinator.says[path] = lambda _, status=status: (status, {}, b"<script>")
        calls = (link.beat, lambda: link.open(name), lambda: link.reply(name, Message(SAID, reply_to=message), message))
        for call in calls:
            with pytest.raises((LinkLostError, RefusedError)) as caught:
                call()
            expected = LinkLostError if call == link.beat and error is RefusedError else error  # no run is spoken of
            assert caught.type is expected
            assert "script" not in str(caught.value)


def test_answers_that_cannot_be_read_and_lost_heartbeats(link: FleetLink, coordinator: Coordinator) -> None:
    coordinator.says["send-node-heartbeat"] = lambda _: SendNodeHeartbeatResponse().SerializeToString()
    with pytest.raises(LinkLostError, match="does not know"):
        link.beat()
    coordinator.says["send-node-heartbeat"] = lambda _: b"\xff"
    with pytest.raises(LinkLostError, match="cannot be read"):
        link.beat()


# --- the board -------------------------------------------------------------------------------------------------------

PLAN = "ab" * 32


@dataclass
class Board:
    exchange: Exchange
    folder: Path
    proposals: list[bytes]


@pytest.fixture
def board(tmp_path: Path, coordinator: Coordinator, context: ssl.SSLContext) -> Iterator[Board]:
    proposals: list[bytes] = []

    def take(data: bytes) -> None:
        proposals.append(data)
        if data == b"bad":
            raise RefusedError("bad")

    coordinator.says["proposals"] = lambda _: b"[]"
    coordinator.says[PLAN] = lambda _: (404, {}, b"")
    coordinator.says["approvals"] = lambda _: b""
    with closing(Exchange(tmp_path, f"127.0.0.1:{coordinator.port}", context, take, every=0.0)) as found:
        (tmp_path / "approvals").mkdir()
        yield Board(found, tmp_path, proposals)


def test_a_proposal_is_looked_at_once(board: Board, coordinator: Coordinator, caplog: pytest.LogCaptureFixture) -> None:
    coordinator.says["proposals"] = lambda _: json.dumps(["good", "bad"]).encode()
    for _ in range(3):
        board.exchange()
    assert board.proposals == [b"good", b"bad"]
    assert caplog.text.count("a proposal was not taken") == 1
    coordinator.says["proposals"] = lambda _: json.dumps(["other"]).encode()
    board.exchange()
    assert board.exchange._seen == {"other"}  # what is not proposed any more is not remembered for ever


def test_a_board_that_cannot_be_read_is_no_reason_to_end(board: Board, coordinator: Coordinator) -> None:
    for said in (b"", b"{", b"3", b"[" * 100_000, b'["\\ud800"]', b"\xff"):
        coordinator.says["proposals"] = lambda _, said=said: said
        with pytest.raises(LinkLostError, match="cannot be read"):
            board.exchange()
    coordinator.says["proposals"] = lambda _: (302, {"location": "/within"}, b"")
    with pytest.raises(LinkLostError, match="not exchanged"):
        board.exchange()
    assert "/within" not in coordinator.requests


def test_an_approval_is_delivered_once(board: Board, coordinator: Coordinator) -> None:
    (board.folder / "approvals" / f"{PLAN}.json").write_bytes(b"signed")
    got: list[bytes] = []
    coordinator.says["approvals"] = lambda body: (503, {}, b"") if got.append(body) or len(got) == 1 else b""
    with pytest.raises(LinkLostError):
        board.exchange()
    for _ in range(2):
        board.exchange()
    assert got == [b"signed"] * 2


def test_a_refused_approval_is_not_sent_again_and_has_no_results(
    board: Board, coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    (board.folder / "approvals" / f"{PLAN}.json").write_bytes(b"signed")
    coordinator.says["approvals"] = lambda _: (422, {}, b"")
    for _ in range(2):
        board.exchange()
    assert coordinator.requests.count("/v1/cohortium/approvals") == 1
    assert not any("released" in path for path in coordinator.requests)
    assert "an approval was refused" in caplog.text


def test_results_come_once_and_whole(board: Board, coordinator: Coordinator) -> None:
    (board.folder / "approvals" / f"{PLAN}.taken").write_bytes(b"")
    left = board.folder / "released" / f".{PLAN}.partial"
    left.mkdir(parents=True)
    (left / "of before").write_bytes(b"half")
    for odd in ({"../x": "00"}, {".x": "00"}, {"a/b": "00"}, {"a": "no"}, {f"f{one}": "" for one in range(17)}):
        coordinator.says[PLAN] = lambda _, odd=odd: json.dumps(odd).encode()
        with pytest.raises(LinkLostError, match="cannot be read"):
            board.exchange()
    coordinator.says[PLAN] = lambda _: json.dumps({"bundle.json": b"done".hex()}).encode()
    for _ in range(2):
        board.exchange()
    folder = board.folder / "released" / PLAN
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"bundle.json": b"done"}
    assert [path.name for path in (board.folder / "released").iterdir()] == [PLAN]


def test_a_full_disk_is_told_and_survived(
    board: Board, coordinator: Coordinator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exchange, "write_whole", full)
    (board.folder / "approvals" / f"{PLAN}.json").write_bytes(b"signed")
    with caplog.at_level(logging.ERROR):
        board.exchange()
    assert "the folder cannot be written" in caplog.text
