"""The coordinator's one public port: mutual TLS, and behind it Flower's Fleet API and nothing else of Flower's.

Flower's SuperLink serves its Fleet, Runtime and Control API on one port, and the last two let whoever reaches them run
code. So the SuperLink listens on loopback alone, and this gate forwards what a SuperNode needs, request by request, for
keys of members only. A connection without a certificate of the federation's authority ends in the TLS handshake;
revocation is looked up with every request, so it also ends connections that are open. Who asks is told by the
certificate: the key that a SuperNode signs with is the one that its TLS connection was made with.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.x509 import load_der_x509_certificate
from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from cohortium.governance.operations import tell
from cohortium.server.bell import Bell
from cohortium.study.enrolment import transport_pem
from cohortium.study.errors import CohortiumError, OutputError

__all__ = ["FLEET_PATHS", "Gate", "Noticeboard"]

FLEET_PATHS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
"""What a SuperNode needs. Registration is not among them: the coordinator registers keys of enrolled members."""

MAX_BODY = 1 << 26
"""Bytes of one request; Flower cuts larger arrays into parts."""

MAX_NOTICE = 1 << 22
"""Bytes of one signed approval."""

MOST_CONNECTIONS = 16
"""Of one key at a time; a node needs three."""

_BODY_SECONDS = 60.0

_HOLD_SECONDS = 2.0
"""How long a node that asks for messages waits here while there are none."""

_TRUST_SECONDS = 30.0
"""How long nobody having rung means that there are none."""

_OURS = ("proposals", "approvals", "released")
_KEY_HEADER = "flwr-public-key"
_PASSED_ON = ("content-type", "flwr-")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Noticeboard:
    """What members exchange with the coordinator beside Flower's messages.

    Args:
        proposals: the studies that are proposed, each as its signed document.
        take_approval: keeps a member's signed approval; `CohortiumError` when it does not hold.
        released: of a plan, by the digits of its digest: what its run released, by file name; None while there is none.
    """

    proposals: Callable[[], list[bytes]]
    take_approval: Callable[[bytes], None]
    released: Callable[[str], dict[str, bytes] | None]


class _Connection(H11Protocol):
    """A connection whose requests know the key of its certificate, as `request.state.key`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`. One key has so many connections, and one that asks nothing is closed."""
        super().connection_made(transport)
        shown = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        public = load_der_x509_certificate(shown).public_key()
        key = transport_pem(public) if isinstance(public, EllipticCurvePublicKey) else b""
        self.app_state = {**self.app_state, "key": key}
        if sum(one.app_state.get("key") == key for one in self.connections) > MOST_CONNECTIONS:
            transport.close()
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._wait_for_request()

    def _wait_for_request(self) -> None:
        at_work = self.cycle is not None and not self.cycle.response_complete
        if self.timeout_keep_alive_task is None and not at_work:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


@dataclass(frozen=True)
class _Nothing:
    """The SuperLink's answer that there is no message for a node; it stands until somebody rings, or for a while."""

    rings: int
    until: float
    answer: Response


class Gate:
    """The gate, from construction until `close`.

    Args:
        host, port: where it listens; port 0 takes a free one.
        context: of the server: requires certificates of the federation's authority.
        superlink: base address of the SuperLink on loopback.
        trusted: trusts the SuperLink's certificate.
        keys: transport public keys of members whose enrolment stands now, as Flower writes them (PEM).
        board: proposals, approvals and results.
        registry: where its counters go.
        bell: rung when messages were pushed.
        replied: called when a node's reply is complete.

    Raises:
        OutputError: the port is in use.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        superlink: str,
        trusted: ssl.SSLContext,
        keys: Callable[[], frozenset[bytes]],
        board: Noticeboard,
        registry: CollectorRegistry,
        bell: Bell,
        replied: Callable[[], None],
    ) -> None:
        self._keys, self._board = keys, board
        self._bell, self._replied = bell, replied
        self._rings, self._rung = 0, asyncio.Event()
        self._nothing: dict[bytes, _Nothing] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._requests = Counter("cohortium_gate_requests", "Requests", ["path", "outcome"], registry=registry)
        self._back = httpx.AsyncClient(base_url=superlink, verify=trusted, timeout=60.0)
        routes = [Route(f"/v1/fleet/{path}", self._forward, methods=["POST"]) for path in FLEET_PATHS]
        routes += [
            Route("/v1/cohortium/proposals", self._proposals, methods=["GET"]),
            Route("/v1/cohortium/approvals", self._approvals, methods=["POST"]),
            Route("/v1/cohortium/released/{plan}", self._released, methods=["GET"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes, lifespan=self._listen),
            http=_Connection,
            ws="none",
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            limit_concurrency=512,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=1 << 16,
            ssl_context_factory=lambda _config, _default: context,
        )
        self._server = uvicorn.Server(config)
        try:
            socket = config.bind_socket()
        except SystemExit as error:  # uvicorn's way to say that the port is in use
            raise OutputError(
                "the port is in use, or not ours to use",
                place=f"gate {host}:{port}",
                fix="choose another one by --listen, or end what uses it",
            ) from error
        self.port: int = socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=([socket],), name="gate", daemon=True)
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            time.sleep(0.01)

    @property
    def listening(self) -> bool:
        """Whether it takes connections."""
        return self._server.started and self._thread.is_alive()

    def close(self) -> None:
        """End connections and stop."""
        self._server.should_exit = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)
        self._thread.join(timeout=10)

    @asynccontextmanager
    async def _listen(self, _app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._bell, self._hear)
        yield
        self._loop.remove_reader(self._bell)

    def _hear(self) -> None:
        self._rings += self._bell.heard()
        self._wake()

    def _wake(self) -> None:
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    async def _forward(self, request: Request) -> Response:
        """A request of a member's SuperNode, as it is; no other header and no other path goes through."""
        path = request.url.path.rpartition("/")[2]
        shown = request.headers.getlist(_KEY_HEADER)
        if not await self._is_member(request) or shown != [b64encode(request.state.key).decode()]:
            return self._refuse(path, "stranger", 401)
        body = await _body(request, MAX_BODY)
        if body is None:
            return self._refuse(path, "oversized", 413)
        if path == "push-messages" and not _is_its_own(body):
            return self._refuse(path, "forged", 403)
        headers = {name: value for name, value in request.headers.items() if name.startswith(_PASSED_ON)}
        if path == "pull-messages" and (nothing := await self._hold(request.state.key)) is not None:
            self._requests.labels(path, "held").inc()
            return nothing
        rings = self._rings
        try:
            answer = await self._back.post(request.url.path, content=body, headers=headers)
        except httpx.HTTPError:
            return self._refuse(path, "no-superlink", 503)
        self._requests.labels(path, "forwarded" if answer.is_success else "failed").inc()
        kept = {name: value for name, value in answer.headers.items() if name.startswith(_PASSED_ON)}
        response = Response(answer.content, answer.status_code, kept)
        if path == "pull-messages" and answer.is_success and not answer.content:
            self._nothing[request.state.key] = _Nothing(rings, time.monotonic() + _TRUST_SECONDS, response)
        if path == "confirm-message-received" and answer.is_success:
            self._replied()
        return response

    async def _hold(self, key: bytes) -> Response | None:
        """That there is no message, after a while, or None as soon as the SuperLink is to be asked."""
        nothing = self._nothing.get(key)
        if nothing is None or time.monotonic() > nothing.until:
            return None
        if nothing.rings == self._rings:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._rung.wait(), _HOLD_SECONDS)
        return nothing.answer if nothing.rings == self._rings else None

    async def _proposals(self, request: Request) -> Response:
        if not await self._is_member(request):
            return self._refuse("proposals", "stranger", 401)
        documents = await run_in_threadpool(self._board.proposals)
        self._requests.labels("proposals", "answered").inc()
        return JSONResponse([document.decode() for document in documents])

    async def _approvals(self, request: Request) -> Response:
        if not await self._is_member(request):
            return self._refuse("approvals", "stranger", 401)
        body = await _body(request, MAX_NOTICE)
        if body is None:
            return self._refuse("approvals", "oversized", 413)
        try:
            await run_in_threadpool(self._board.take_approval, body)
        except CohortiumError as error:
            tell(_log, "an approval was not taken", logging.WARNING, problem=str(error))
            return self._refuse("approvals", "refused", 422)
        self._requests.labels("approvals", "taken").inc()
        return JSONResponse({"taken": True})

    async def _released(self, request: Request) -> Response:
        if not await self._is_member(request):
            return self._refuse("released", "stranger", 401)
        plan = str(request.path_params["plan"])
        if len(plan) != 64 or set(plan) - set("0123456789abcdef"):
            return self._refuse("released", "malformed", 404)
        files = await run_in_threadpool(self._board.released, plan)
        if files is None:
            return self._refuse("released", "nothing", 404)
        self._requests.labels("released", "answered").inc()
        return JSONResponse({name: data.hex() for name, data in files.items()})

    async def _is_member(self, request: Request) -> bool:
        """Whether the certificate of the connection is of a member's key now."""
        return request.state.key in await run_in_threadpool(self._keys)

    def _refuse(self, path: str, outcome: str, status: int) -> Response:
        self._requests.labels(path if path in FLEET_PATHS or path in _OURS else "other", outcome).inc()
        if outcome in ("stranger", "oversized", "forged"):
            tell(_log, "a request was refused", logging.WARNING, path=path, outcome=outcome)
        return Response(status_code=status)


async def _body(request: Request, most: int) -> bytes | None:
    """The body, or None as soon as it is larger than that, or takes too long."""
    said = request.headers.get("content-length", "0")
    if not said.isdigit() or int(said) > most:
        return None
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    return None
    except (ClientDisconnect, TimeoutError):
        return None
    return bytes(body)


def _is_its_own(body: bytes) -> bool:
    """Whether the replies that a node pushes say that they are its own, which the SuperLink does not look at."""
    request = PushMessagesRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        return False
    return all(one.metadata.src_node_id == request.node.node_id for one in request.messages_list)
