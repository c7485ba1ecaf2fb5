"""A node's link to the coordinator: Flower's Fleet API over mutual TLS, with a durable inbox.

The node is a SuperNode with a built-in executor. It speaks the protocol through Flower's own client and authenticates
as SuperNodes do, by a signed timestamp; the same key's certificate is its side of the TLS connection. Unlike Flower's
own process it never fetches, unpacks or runs an app bundle: `Delivered.bundle` says which one the coordinator's run
was started with, and whoever answers decides whether that is the approved one.

A message is written to the inbox before it is answered and removed after its reply has been taken, so a killed node
answers after its restart what it had been asked; Flower would have forgotten the message.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node as FlowerNode
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import DecodeError

from cohortium.study.errors import CohortiumError, OutputError, RefusedError
from cohortium.study.keys import write_whole
from cohortium.study.packing import PARTS, whole_message

__all__ = ["HEARTBEAT_SECONDS", "Delivered", "FleetLink", "LinkLostError", "StrangerError", "http_client"]

HEARTBEAT_SECONDS = 10
"""A node that was not heard of for twice as long counts as gone; the shortest that Flower allows."""

MAX_BYTES = 1 << 26
"""Of one answer of the coordinator, and of one message."""

_ANSWER_SECONDS = 300.0
_NAME = re.compile(r"[0-9a-f]{64}")
_SUFFIX, _NODE = ".message", "node"
_PART_SECONDS = 30.0


class LinkLostError(CohortiumError):
    """The coordinator cannot be reached, or does not answer as it should; trying again may help."""


class StrangerError(RefusedError):
    """The coordinator does not know this node's key, or no longer."""


@dataclass(frozen=True)
class Delivered:
    """A message to be answered.

    Args:
        run: Flower's number of the run.
        bundle: SHA-256 of the app bundle that the run was started with, as `sha256:` and hexadecimal.
        message: with its content.
    """

    run: int
    bundle: str
    message: Message


def http_client(context: ssl.SSLContext) -> httpx.Client:
    """A client that takes from whom it asks so many bytes, as they are, in so much time; it follows nobody elsewhere.

    What exceeds that is an `httpx.RemoteProtocolError`.
    """
    headers = {"accept-encoding": "identity"}
    return httpx.Client(verify=context, timeout=30.0, headers=headers, event_hooks={"response": [_bound]})


def _bound(response: httpx.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx.RemoteProtocolError("a compressed answer")
    if not isinstance(response.stream, httpx.SyncByteStream):
        raise httpx.RemoteProtocolError("an answer without a stream")
    response.stream = _Bounded(response.stream)


class _Bounded(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size, deadline = 0, time.monotonic() + _ANSWER_SECONDS
        for chunk in self._stream:
            size += len(chunk)
            if size > MAX_BYTES or time.monotonic() > deadline:
                raise httpx.RemoteProtocolError("an endless answer")
            yield chunk

    def close(self) -> None:
        self._stream.close()


class _Client(FleetHttpClient):
    """Flower's, which alone would follow the coordinator to any address, and read and inflate whatever comes."""

    def __init__(self, address: str, context: ssl.SSLContext, key: EllipticCurvePrivateKey) -> None:
        version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
        super().__init__(
            f"https://{address}",
            interceptors=[version, NodeAuthHttpInterceptor(key, key.public_key())],
            verify=context,
        )
        self._client.close()
        self._client = http_client(context)


class FleetLink:
    """The link of one node. One thread pulls and replies; another one may send heartbeats.

    Args:
        address: host:port of the coordinator.
        context: trusts the federation's authority alone and shows the node's certificate.
        key: the node's transport key, EC P-384; its public half is registered with the coordinator.
        inbox: folder for messages that are not answered yet; made when there is none.
    """

    def __init__(self, address: str, context: ssl.SSLContext, key: EllipticCurvePrivateKey, inbox: Path) -> None:
        self._client = _Client(address, context, key)
        self._public = public_key_to_bytes(key.public_key())
        self._address = address
        self._inbox = inbox
        self._node = FlowerNode()
        self._bundles: dict[int, str] = {}
        inbox.mkdir(mode=0o700, exist_ok=True)
        for left in inbox.glob(".*.partial"):
            left.unlink()

    @property
    def node_id(self) -> int:
        """Flower's number of this node; 0 before it is connected."""
        return self._node.node_id

    def connect(self) -> None:
        """Say that the node is here.

        Raises:
            LinkLostError: nobody answers.
            StrangerError: the coordinator does not know this node, or no longer.
        """
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_SECONDS)
        with self._talking():
            try:
                answer = self._client.ActivateNode(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                    raise
                self._take_back()
                answer = self._client.ActivateNode(request)
        self._node = FlowerNode(node_id=answer.node_id)
        self._keep(_NODE, str(answer.node_id).encode())

    def beat(self) -> None:
        """Say that the node is still here; errors as `connect`."""
        with self._talking():
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
            if not self._client.SendNodeHeartbeat(request).success:
                raise LinkLostError("the coordinator does not know this connection", place=self._address)

    def leave(self) -> None:
        """Say that the node goes; errors as `connect`."""
        with self._talking():
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def pull(self) -> str | None:
        """Fetch the next message into the inbox; its name there, or None when there is no message.

        What an earlier life of this node left unanswered comes first.

        Raises:
            LinkLostError, StrangerError: as `connect`.
            OutputError: the inbox cannot be written.
        """
        waiting = sorted(path.name for path in self._inbox.glob(f"*{_SUFFIX}"))
        if waiting:
            return waiting[0]
        with self._talking():
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        identity = str(response.messages_list[0].metadata.message_id)
        if len(response.messages_list) != 1 or not _NAME.fullmatch(identity):
            raise LinkLostError("a message without a proper name", place=self._address)
        self._keep(identity + _SUFFIX, response.SerializeToString())
        return identity + _SUFFIX

    def open(self, name: str) -> Delivered:
        """A message of the inbox, its content fetched and compared with its name.

        Raises:
            LinkLostError: the coordinator cannot be reached.
            RefusedError: its run has ended, its content is gone or too large, or is not what its name says.
        """
        response = PullMessagesResponse()
        try:
            response.ParseFromString((self._inbox / name).read_bytes())
            message, tree = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
        except Exception as error:  # Flower's decoders raise whatever foreign bytes make them raise
            raise RefusedError("a message that cannot be read") from error
        run, identity = message.metadata.run_id, message.metadata.message_id
        contents: dict[str, bytes] = {}
        with self._talking_of_a_run():
            bundle = self._bundle(run)
            parts = [part.object_id for part in iterate_object_tree(tree)]
            if len(parts) != PARTS:
                raise RefusedError("a message that is not packed")
            for part in parts:
                contents[part] = self._object(run, part)
                if sum(map(len, contents.values())) > MAX_BYTES:
                    raise RefusedError(f"a message of more than {MAX_BYTES} bytes")
        whole = whole_message(identity, contents)
        if not whole.has_content() or whole.metadata.run_id != run:
            raise RefusedError("a message that is not what its name says")
        if whole.metadata.dst_node_id != self._node.node_id:
            raise RefusedError("a message to another node")
        whole.metadata.__dict__["_message_id"] = identity
        return Delivered(run, bundle, whole)

    def reply(self, name: str, reply: Message, asked: Message) -> None:
        """Send the reply to a message of the inbox, and drop the message.

        The same reply again is the same message to Flower, which goes on where the connection was lost. So it carries
        the time at which it was asked for; when it was answered is nobody's business.

        Raises:
            LinkLostError: it was not taken.
            RefusedError: the run has ended.
        """
        run = reply.metadata.run_id
        times = {"_created_at": asked.metadata.created_at, "_ttl": asked.metadata.ttl}
        reply.metadata.__dict__.update(times)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = get_all_nested_objects(reply)
        with self._talking_of_a_run():
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.0],  # how long an answer takes is nobody's business
                )
            )
            for part in response.objects_to_push:
                request = PushObjectRequest(
                    node=self._node,
                    run_id=run,
                    session_id=response.session_id,
                    object_id=part,
                    object_content=objects[part].deflate(),
                )
                if not self._client.PushObject(request).stored:
                    raise LinkLostError("the reply was not kept", place=self._address)
            confirmed = name.removesuffix(_SUFFIX)
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=confirmed)
            )
        self.drop(name)

    def drop(self, name: str) -> None:
        """Forget a message of the inbox."""
        (self._inbox / name).unlink(missing_ok=True)

    def _keep(self, name: str, data: bytes) -> None:
        try:
            write_whole(self._inbox / name, data)
        except OSError as error:
            raise OutputError(
                error.strerror or "cannot be written", place=str(self._inbox), fix="check space and permissions"
            ) from error

    def _take_back(self) -> None:
        """End the connection that an earlier life of this node left open; the coordinator thinks that it stands."""
        try:
            known = int((self._inbox / _NODE).read_bytes())
        except (OSError, ValueError):
            raise LinkLostError("the coordinator thinks that this node is connected", place=self._address) from None
        self._client.DeactivateNode(DeactivateNodeRequest(node_id=known))

    def _bundle(self, run: int) -> str:
        if run not in self._bundles:
            answer = self._client.GetRun(GetRunRequest(node=self._node, run_id=run)).run
            if answer.run_id != run:
                raise RefusedError("the coordinator told of another run")
            self._bundles[run] = f"sha256:{answer.fab_hash}"
        return self._bundles[run]

    def _object(self, run: int, part: str) -> bytes:
        """A part of a message; a message is announced before all of it has reached the coordinator."""
        pause, deadline = 0.02, time.monotonic() + _PART_SECONDS
        while True:
            response = self._client.PullObject(PullObjectRequest(node=self._node, run_id=run, object_id=part))
            if not response.object_found:
                raise RefusedError("a message whose content is gone")
            if response.object_available:
                break
            if time.monotonic() > deadline:
                raise RefusedError("a message whose content did not come")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        if get_object_id(response.object_content) != part:
            raise RefusedError("a part of a message that is not what its name says")
        return bytes(response.object_content)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Errors of the network as ours; the text of a foreign error page is never shown."""
        try:
            yield
        except httpx.TransportError as error:
            raise LinkLostError(_why(error), place=self._address) from error
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            if code == httpx.codes.UNAUTHORIZED:
                raise StrangerError(
                    "the coordinator does not know this node's key, or no longer",
                    place=self._address,
                    fix="have it enrolled, and compare both clocks",
                ) from error
            raise LinkLostError(f"the coordinator answered with status {code}", place=self._address) from error
        except (DecodeError, RuntimeError, ValueError) as error:
            raise LinkLostError("the coordinator's answer cannot be read", place=self._address) from error

    @contextmanager
    def _talking_of_a_run(self) -> Iterator[None]:
        """As `_talking`, where a refusal means that the run has ended."""
        with self._talking():
            try:
                yield
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND):
                    raise
                raise RefusedError("the run has ended", place=self._address) from error


def _why(error: httpx.TransportError) -> str:
    """What went wrong with the connection, in one line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the coordinator's certificate is not trusted here: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"no TLS connection: {cause.reason or type(cause).__name__}"
        cause = cause.__cause__ or cause.__context__
    return f"no connection: {type(error).__name__}"
