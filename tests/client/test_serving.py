"""A node at work over a link that a test holds: what is declined unread, dropped, sent again, and when it ends."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from prometheus_client import generate_latest

from cohortium.client import serving
from cohortium.client.fleet import Delivered, LinkLostError, StrangerError
from cohortium.client.serving import Serving, approved_bundle, at_work
from cohortium.study.errors import RefusedError
from cohortium.study.packing import packed, unpacked
from cohortium.study.question import ACCEPTED, plain_reply, reply_kind
from cohortium.study.software import installed_software

OURS = installed_software().bundle


def approved_plan(**changes: Any) -> Any:
    software = SimpleNamespace(bundle=changes.pop("bundle", OURS))
    plan = {"software": software, "expires": date.max, **changes}
    return SimpleNamespace(plan=SimpleNamespace(**plan))


def node_with(*approvals: Any) -> Any:
    store = SimpleNamespace(plans=lambda: range(len(approvals)), approved=lambda number: approvals[number])
    return SimpleNamespace(store=store, identity=SimpleNamespace(institution="north"))


def asked(kind: str = "query.plan", bundle: str = OURS, content: RecordDict | None = None) -> Delivered:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 5, 1, 1
    message = Message(packed(RecordDict()) if content is None else content, 7, kind, ttl=60)
    message.metadata.__dict__["_message_id"] = "m"
    return Delivered(5, bundle, message)


@dataclass
class Link:
    """An inbox, and what became of it; `faults` are raised by the call of that name, one at a time."""

    inbox: list[Delivered] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    node_id: int = 7
    beaten: threading.Event = field(default_factory=threading.Event)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    def connect(self) -> None:
        self._call("connect")

    def leave(self) -> None:
        self._call("leave")

    def beat(self) -> None:
        self.beaten.set()
        self._call("beat")

    def pull(self) -> str | None:
        self._call("pull")
        return "m.message" if self.inbox else None

    def open(self, name: str) -> Delivered:
        self._call("open")
        found = self.inbox[0]
        return Delivered(found.run, found.bundle, Message(found.message.content, metadata=found.message.metadata))

    def reply(self, name: str, reply: Message, asked: Message) -> None:
        self._call("reply")
        assert asked is not reply
        self.replies.append(reply)
        self.inbox.pop(0)

    def drop(self, name: str) -> None:
        self.dropped.append(name)
        self.inbox.pop(0)

    def said(self) -> list[str]:
        return [reply_kind(unpacked(reply.content)) for reply in self.replies]


@dataclass
class Work:
    link: Link
    serving: Serving
    answered: list[Message]

    def run(self) -> None:
        """Until the inbox is empty."""
        self.serving.run()

    def counted(self, kind: str, outcome: str) -> float | None:
        labels = {"type": kind, "outcome": outcome}
        return self.serving.registry.get_sample_value("cohortium_messages_total", labels)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Work]:
    monkeypatch.setattr(serving, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(serving, "_PAUSE_SECONDS", 0.001)

    def make(*inbox: Delivered, node: Any = None, **faults: list[Exception]) -> Work:
        answered: list[Message] = []

        def answer(message: Message, _context: Context) -> Message:
            answered.append(message)
            return Message(plain_reply(ACCEPTED), reply_to=message)

        link = Link(inbox=list(inbox), faults=faults)
        made = Serving(node or node_with(approved_plan()), link, lambda: made.stop(), answer)  # type: ignore[arg-type]
        return Work(link, made, answered)

    return make


def test_a_message_of_an_approved_run_is_answered(work: Callable[..., Work]) -> None:
    done = work(asked(), asked("query.answer"))
    done.run()
    assert done.link.said() == ["accepted", "accepted"]
    assert done.counted("plan", "accepted") == done.counted("answer", "accepted") == 1
    assert done.link.calls[0] == "connect"
    assert done.link.calls[-1] == "leave"


@pytest.mark.parametrize(
    ("delivered", "labels"),
    [
        (asked(bundle="sha256:" + "0" * 64), ("plan", "hostile-bundle")),
        (asked("query.evaluate"), ("other", "unknown")),
        (asked("query.other"), ("other", "unknown")),
        (asked("train.plan"), ("other", "unknown")),
        (asked("query"), ("other", "unknown")),
    ],
)
def test_anything_else_is_declined_unread(
    work: Callable[..., Work], delivered: Delivered, labels: tuple[str, str]
) -> None:
    done = work(delivered)
    done.run()
    assert done.link.said() == ["declined"]
    assert done.answered == []
    assert done.counted(*labels) == 1


def test_a_bundle_is_the_installed_one_of_an_unexpired_approved_plan() -> None:
    today = serving.datetime.now(serving.UTC).date()
    allowed = approved_plan(expires=today)
    refused = (
        None,
        approved_plan(software=None),
        approved_plan(bundle="sha256:" + "1" * 64),
        approved_plan(expires=today - timedelta(days=1)),
    )
    assert not approved_bundle(node_with())(OURS)
    assert not any(approved_bundle(node_with(one))(OURS) for one in refused)
    assert approved_bundle(node_with(*refused, allowed))(OURS)
    other = "sha256:" + "1" * 64
    assert not approved_bundle(node_with(approved_plan(bundle=other)))(other)  # approved, but not what is installed


def test_what_cannot_be_read_is_dropped_and_the_next_one_answered(work: Callable[..., Work]) -> None:
    done = work(asked(), asked(content=RecordDict()), asked(), open=[RefusedError("gone")])
    done.run()
    assert len(done.link.dropped) == 2
    assert done.link.said() == ["accepted"]
    assert done.counted("unreadable", "dropped") == 2


def test_a_reply_that_comes_late_is_dropped(work: Callable[..., Work]) -> None:
    done = work(asked(), reply=[RefusedError("the run has ended")])
    done.run()
    assert done.link.dropped == ["m.message"]
    assert done.counted("plan", "late") == 1


@pytest.mark.parametrize("where", ["connect", "pull", "open", "reply"])
def test_a_lost_connection_is_taken_up_again_and_loses_nothing(work: Callable[..., Work], where: str) -> None:
    done = work(asked(), **{where: [LinkLostError("lost"), LinkLostError("lost")]})
    done.run()
    assert done.link.said() == ["accepted"]
    assert done.link.dropped == []
    assert done.link.calls.count("connect") == 3
    assert done.serving.registry.get_sample_value("cohortium_connections_lost_total") == 2


@pytest.mark.parametrize("where", ["connect", "pull", "open", "reply"])
def test_a_node_that_is_no_member_ends_and_keeps_its_inbox(work: Callable[..., Work], where: str) -> None:
    done = work(asked(), **{where: [StrangerError("no")]})
    with pytest.raises(StrangerError):
        done.run()
    assert done.link.dropped == []
    assert len(done.link.inbox) == 1


@pytest.mark.parametrize("fault", [LinkLostError("lost"), StrangerError("no")])
def test_a_node_leaves_also_without_a_word(work: Callable[..., Work], fault: Exception) -> None:
    done = work(leave=[fault])
    done.run()
    assert done.link.calls[-1] == "leave"
    assert done.serving.health()["ok"] is False


def test_heartbeats_go_on_while_an_answer_is_computed(
    work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HEARTBEAT_SECONDS", 0.002)
    done = work(asked(), beat=[LinkLostError("lost")])

    def answer(message: Message, _context: Context) -> Message:
        for _ in range(2):  # also after one was lost
            done.link.beaten.clear()
            assert done.link.beaten.wait(10)
        return Message(plain_reply(ACCEPTED), reply_to=message)

    done.serving._app = answer  # type: ignore[assignment]
    done.run()
    assert done.link.said() == ["accepted"]
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_health_and_metrics_say_nothing_of_customers(work: Callable[..., Work]) -> None:
    done = work(asked())
    seen: list[dict[str, Any]] = []
    done.serving._each_round = lambda: (seen.append(done.serving.health()), done.serving.stop())  # type: ignore[assignment]
    done.run()
    keys = {"ok", "institution", "connected", "stopping", "up_since", "version", "certificate_until"}
    assert [set(seen[0]), seen[0]["ok"]] == [keys, True]
    names = {line.split("{")[0].split(" ")[0] for line in generate_latest(done.serving.registry).decode().splitlines()}
    told = {"cohortium_messages_total", "cohortium_messages_created", "cohortium_connected"}
    assert names - {"#"} == told | {"cohortium_connections_lost_total", "cohortium_connections_lost_created"}


def test_one_process_serves_a_folder(tmp_path: Path) -> None:
    with ExitStack() as stack:
        lock = stack.enter_context(open(tmp_path / "node.lock", "w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RefusedError, match="a node is at work"):
            stack.enter_context(at_work(tmp_path, "words"))
    with pytest.raises(RefusedError, match="joined no federation"), at_work(tmp_path, "words"):
        pass
