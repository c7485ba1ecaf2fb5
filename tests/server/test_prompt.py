"""A coordinator's grid waits for nobody beyond the time-out, and believes no reply about who sent it."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from cohortium.server.prompt import PromptGrid
from cohortium.study.packing import packed

ASKED = RecordDict({"asked": ConfigRecord({"it": "x"})})


def message(content: RecordDict, source: int, to: int, answers: str) -> Message:
    said = {"run_id": 7, "message_id": "", "src_node_id": source, "dst_node_id": to, "reply_to_message_id": answers}
    rest = {"group_id": "", "created_at": time.time(), "ttl": 60.0, "message_type": "query.answer"}
    return make_message(metadata=Metadata(**said, **rest), content=content)


def reply_of(identity: str, node: int, content: RecordDict) -> Message:
    """What a node answers to a message."""
    reply = message(content, node, 1, identity)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


class SuperLink:
    """Replies that were announced, and those of their parts that have come; it tells of each once."""

    def __init__(self) -> None:
        self.announced: list[tuple[Any, Any]] = []
        self.parts: dict[str, bytes] = {}
        self.confirmed: list[str] = []
        self.asked: list[str] = []

    def announce(self, reply: Message, node: int | None = None, come: bool = True) -> None:
        said = message_to_proto(reply)
        said.metadata.src_node_id = reply.metadata.src_node_id if node is None else node
        self.announced.append((said, get_object_tree(reply)))
        whole = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        self.parts |= whole if come else dict.fromkeys(whole, b"")

    def PullMessages(self, request: Any) -> Any:  # noqa: N802 - Flower's name
        told = [one for one in self.announced if one[0].metadata.reply_to_message_id in request.message_ids]
        self.announced = [one for one in self.announced if one not in told]
        return SimpleNamespace(messages_list=[one for one, _ in told], message_object_trees=[tree for _, tree in told])

    def PullObject(self, request: Any) -> Any:  # noqa: N802 - Flower's name
        self.asked.append(request.object_id)
        data = self.parts.get(request.object_id)
        return SimpleNamespace(object_found=data is not None, object_available=bool(data), object_content=data or b"")

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802 - Flower's name
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def ask(superlink: SuperLink, tmp_path: Path) -> Any:
    """Asks nodes 1, 2, ...; their messages are named m1, m2, ..."""
    (tmp_path / "run").mkdir()
    grid: Any = SimpleNamespace(
        _runtime_client=superlink,
        node=Node(node_id=1),
        run=SimpleNamespace(run_id=7),
        push_messages=lambda messages: [f"m{one.metadata.dst_node_id}" for one in messages],
    )

    def asked(nodes: int, timeout: float) -> dict[int, RecordDict]:
        messages = [message(ASKED, 1, node + 1, "") for node in range(nodes)]
        with closing(PromptGrid(grid, tmp_path)) as prompt:
            replies = prompt.send_and_receive(messages, timeout=timeout)
        return {reply.metadata.src_node_id: reply.content for reply in replies}

    return asked


def says(word: str) -> RecordDict:
    return RecordDict({"reply": ConfigRecord({"word": word})})


def test_a_reply_whose_parts_never_come_holds_up_nobody_beyond_the_time_out(superlink: SuperLink, ask: Any) -> None:
    superlink.announce(reply_of("m1", 1, packed(says("late"))), come=False)
    superlink.announce(reply_of("m2", 2, packed(says("here"))))
    begun = time.monotonic()
    assert ask(2, timeout=0.3) == {2: says("here")}
    assert time.monotonic() - begun < 5
    assert len(superlink.confirmed) == 1


def test_a_reply_whose_parts_come_later_is_taken(superlink: SuperLink, ask: Any) -> None:
    reply = reply_of("m1", 1, packed(says("late")))
    superlink.announce(reply, come=False)
    pull, looks = superlink.PullObject, []

    def later(request: Any) -> Any:
        looks.append(request.object_id)
        if len(looks) == 3:
            superlink.announce(reply)
            superlink.announced.clear()
        return pull(request)

    superlink.PullObject = later  # type: ignore[method-assign]
    assert ask(1, timeout=10) == {1: says("late")}


def test_replies_that_cannot_be_used_are_no_replies_and_nobody_waits_for_them(superlink: SuperLink, ask: Any) -> None:
    superlink.announce(reply_of("m1", 2, packed(says("in another's name"))), node=1)
    superlink.announce(reply_of("m2", 2, says("not packed")))
    superlink.announce(reply_of("m3", 3, packed(says("expired"))))
    for part in get_all_nested_objects(reply_of("m3", 3, packed(says("expired")))):
        superlink.parts.pop(part, None)
    broken = reply_of("m4", 4, packed(says("broken")))
    superlink.announce(broken)
    superlink.parts[broken.object_id] = b"no object of Flower's"
    superlink.announce(reply_of("m5", 5, packed(says("fine"))))
    many = reply_of("m6", 6, RecordDict({str(part): ConfigRecord({"n": part}) for part in range(50)}))
    superlink.announce(many)
    assert ask(6, timeout=60) == {5: says("fine")}
    assert not set(superlink.asked) & set(get_all_nested_objects(many)), "parts without end were fetched"
