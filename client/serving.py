"""A node at work: pulls messages, answers those of approved runs, and rides out whatever the network does.

One process, one message at a time, and no child. A message whose run was started with an app bundle other than the one
that an approved plan names is declined unread; no bundle is ever fetched, unpacked or run. The process may be killed at
any moment: what was charged, answered or delivered is in the node's folder, and its next life goes on from there.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from prometheus_client import CollectorRegistry, Counter, Gauge

from cohortium.client.app import make_client_app
from cohortium.client.exchange import Exchange
from cohortium.client.fleet import HEARTBEAT_SECONDS, Delivered, FleetLink, LinkLostError, StrangerError
from cohortium.client.joining import certificate_end, client_context, read_link, read_transport_key
from cohortium.client.node import Node, open_node, read_contract
from cohortium.client.onboarding import load_customer_table
from cohortium.client.proposals import add_proposal
from cohortium.governance.operations import tell
from cohortium.privacy.randomness import BitSource
from cohortium.study.errors import RefusedError
from cohortium.study.packing import packed, unpacked
from cohortium.study.question import DECLINED, plain_reply, reply_kind, split_log
from cohortium.study.software import installed_software

__all__ = ["MESSAGE_TYPES", "Serving", "approved_bundle", "at_work"]

MESSAGE_TYPES = ("plan", "answer", "witness", "share", "consent", "unmask")
"""What may be asked of a node; anything else is declined unread."""

_PAUSE_SECONDS = 0.02
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_LOCK = "node.lock"
_log = logging.getLogger(__name__)


def approved_bundle(node: Node) -> Callable[[str], bool]:
    """Whether a bundle's digest is the one of an unexpired plan that is approved here, and of the installed package."""

    def allowed(bundle: str) -> bool:
        if bundle != installed_software().bundle:
            return False
        today = datetime.now(UTC).date()
        approvals = map(node.store.approved, node.store.plans())
        return any(
            one is not None
            and one.plan.software is not None
            and one.plan.software.bundle == bundle
            and one.plan.expires >= today
            for one in approvals
        )

    return allowed


@dataclass
class _Counts:
    """What the metrics page shows. Messages, never people; and no durations, which would follow their number."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    messages: Counter = field(init=False)
    connected: Gauge = field(init=False)
    lost: Counter = field(init=False)

    def __post_init__(self) -> None:
        labels = ["type", "outcome"]
        self.messages = Counter("cohortium_messages", "Messages by type and outcome", labels, registry=self.registry)
        self.connected = Gauge(
            "cohortium_connected", "Whether the coordinator was reached last", registry=self.registry
        )
        self.lost = Counter(
            "cohortium_connections_lost", "Times the coordinator was out of reach", registry=self.registry
        )


class Serving:
    """The work of one node until `stop` is called.

    Args:
        node: opened.
        link: to the coordinator.
        each_round: called between messages, every few seconds: what else is to be exchanged with the coordinator.
        app: answers; the institution's client app by default.
        certificate_until: when the node's certificate ends.
    """

    def __init__(
        self,
        node: Node,
        link: FleetLink,
        each_round: Callable[[], None] = lambda: None,
        app: ClientApp | None = None,
        certificate_until: datetime | None = None,
    ) -> None:
        self._node, self._link, self._each_round = node, link, each_round
        self._certificate_until = certificate_until
        self._app = app or make_client_app(lambda _context: node)
        self._allowed = approved_bundle(node)
        self._counts = _Counts()
        self._stopping = threading.Event()
        self._since = time.time()
        self._connected = False

    @property
    def registry(self) -> CollectorRegistry:
        """Of the metrics page."""
        return self._counts.registry

    def health(self) -> dict[str, Any]:
        """What the health page says."""
        return {
            "ok": self._connected and not self._stopping.is_set(),
            "institution": self._node.identity.institution,
            "connected": self._connected,
            "stopping": self._stopping.is_set(),
            "up_since": datetime.fromtimestamp(self._since, UTC).isoformat(timespec="seconds"),
            "certificate_until": self._certificate_until and self._certificate_until.isoformat(timespec="seconds"),
            "version": installed_software().version,
        }

    def stop(self) -> None:
        """End after the message that is being answered; safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            StrangerError: the coordinator does not know this node: trying again would not help.
        """
        wait = _FIRST_WAIT
        while not self._stopping.is_set():
            try:
                self._link.connect()
                tell(_log, "connected", node_id=self._link.node_id)
                self._say_connected(True)
                wait = _FIRST_WAIT
                self._serve()
            except LinkLostError as error:
                self._say_connected(False)
                self._counts.lost.inc()
                tell(_log, "no connection", logging.WARNING, problem=str(error), again_in_seconds=wait)
                self._stopping.wait(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
        try:
            self._link.leave()
        except (LinkLostError, RefusedError):
            tell(_log, "left without a word: no connection")
        self._say_connected(False)
        tell(_log, "stopped")

    def _say_connected(self, connected: bool) -> None:
        self._connected = connected
        self._counts.connected.set(connected)

    def _serve(self) -> None:
        """Answer until the connection is lost or the end is near. Heartbeats go on while an answer is computed."""
        ended = threading.Event()
        beating = threading.Thread(target=self._beat, args=(ended,), name="heartbeat", daemon=True)
        beating.start()
        try:
            while not self._stopping.is_set():
                if not self._one():  # the coordinator lets the node wait for a while before it says so
                    self._each_round()
                    self._stopping.wait(_PAUSE_SECONDS)
        finally:
            ended.set()
            beating.join()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS / 2):
            try:
                self._link.beat()
            except (LinkLostError, RefusedError) as error:
                tell(_log, "a heartbeat was lost", logging.WARNING, problem=str(error))

    def _one(self) -> bool:
        """Answer one message, if there is one."""
        name = self._link.pull()
        if name is None:
            return False
        try:
            delivered = self._link.open(name)
            delivered.message.content = unpacked(delivered.message.content)
        except StrangerError:
            raise
        except RefusedError as error:
            tell(_log, "a message was dropped", logging.WARNING, problem=str(error))
            self._counts.messages.labels("unreadable", "dropped").inc()
            self._link.drop(name)
            return True
        kind = delivered.message.metadata.message_type.removeprefix("query.")
        kind = kind if f"query.{kind}" == delivered.message.metadata.message_type and kind in MESSAGE_TYPES else "other"
        reply, outcome = self._answer(delivered, kind)
        reply.content = packed(reply.content)
        try:
            self._link.reply(name, reply, delivered.message)
        except StrangerError:
            raise
        except RefusedError as error:
            tell(_log, "a reply was not taken", logging.WARNING, problem=str(error), type=kind)
            self._link.drop(name)
            outcome = "late"
        self._counts.messages.labels(kind, outcome).inc()
        return True

    def _answer(self, delivered: Delivered, kind: str) -> tuple[Message, str]:
        message = delivered.message
        node_id = message.metadata.dst_node_id
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = delivered.run, node_id, 1
        if not self._allowed(delivered.bundle):
            tell(
                _log,
                "declined: the run was started with an app bundle that no approved plan names",
                logging.ERROR,
                bundle=delivered.bundle,
                approved=installed_software().bundle,
            )
            return Message(plain_reply(DECLINED), reply_to=message), "hostile-bundle"
        if kind == "other":
            tell(_log, "declined: a message of an unknown type", logging.ERROR)
            return Message(plain_reply(DECLINED), reply_to=message), "unknown"
        reply = self._app(message, Context(delivered.run, node_id, {}, RecordDict(), {}))
        outcome = reply_kind(split_log(reply.content)[0])
        tell(_log, "answered", type=kind, outcome=outcome)
        return reply, outcome


@contextmanager
def at_work(folder: Path, password: str, bits: BitSource | None = None) -> Iterator[Serving]:
    """A node of a federation, opened on its customers and ready to `run`; closed afterwards.

    Args:
        folder: from `cohortium node init`, joined to a federation.
        password: of its keys.
        bits: source of noise; the operating system's CSPRNG by default.

    Raises:
        RefusedError: it has joined no federation, its certificate expired, or another process serves this folder.
        DataError: no customers, or something in the folder that cannot be read.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(open(folder / _LOCK, "w", encoding="utf-8"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError("a node is at work in this folder", place=str(folder), fix="stop it first") from None
        link, key = read_link(folder), read_transport_key(folder, password)
        people = load_customer_table(folder / "customers", read_contract(folder))
        node = open_node(folder, people, bits, password=password)
        stack.callback(node.close)
        context = client_context(folder, password)
        fleet = FleetLink(link.address, context, key, folder / "inbox")
        stack.callback(fleet.close)
        exchange = Exchange(folder, link.address, context, partial(add_proposal, folder))
        stack.callback(exchange.close)
        yield Serving(node, fleet, exchange, certificate_until=certificate_end(folder))
