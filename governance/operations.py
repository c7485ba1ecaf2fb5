"""How a long-lived process tells what it is doing: structured log lines, counters and a health page.

Nothing here comes from customers. There are no durations and no sizes of what a node computes, because both follow how
many customers it has; a counter counts messages by what they are and how they ended.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import IO, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cohortium.study.errors import OutputError

__all__ = ["Health", "HealthPage", "log_as_json", "tell"]

Health = Callable[[], dict[str, Any]]
"""What the health page says; `ok` decides its status."""

_FIELDS = "cohortium_fields"


class _Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, _FIELDS, {}))
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__  # never its text: it could quote a value
        return json.dumps(line, ensure_ascii=False)


def log_as_json(stream: IO[str] | None = None, level: int = logging.INFO) -> None:
    """Send everything that is logged to `stream`, standard error by default, as JSON lines.

    Other libraries speak up from warnings on. A traceback is cut to the exception's type.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("cohortium").setLevel(level)
    flower = logging.getLogger("flwr")
    for old in list(flower.handlers):
        flower.removeHandler(old)
    flower.propagate = True
    flower.setLevel(logging.WARNING)


def tell(logger: logging.Logger, message: str, level: int = logging.INFO, **fields: str | int | float | bool) -> None:
    """Log a line with fields of its own beside the message."""
    logger.log(level, message, extra={_FIELDS: fields})


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Requests for health are not worth a line."""


class HealthPage:
    """`/healthz` (JSON; 200 when `ok`, else 503) and `/metrics` (Prometheus) on one port, for this machine by default.

    Args:
        host, port: where; port 0 takes a free one.
        health: what `/healthz` says.
        registry: of the counters behind `/metrics`; it holds nothing of the process that is not registered on purpose.

    Raises:
        OutputError: the port is in use.
    """

    def __init__(self, host: str, port: int, health: Health, registry: CollectorRegistry) -> None:
        self._health, self._registry = health, registry
        try:
            self._server: WSGIServer = make_server(host, port, self._answer, handler_class=_Quiet)
        except OSError as error:
            raise OutputError(
                error.strerror or "cannot listen",
                place=f"health page {host}:{port}",
                fix="choose another port, or end what uses it",
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/healthz":
            said = self._health()
            status = "200 OK" if said.get("ok") else "503 Service Unavailable"
            return _page(start, status, "application/json", (json.dumps(said) + "\n").encode())
        if path == "/metrics":
            return _page(start, "200 OK", CONTENT_TYPE_LATEST, generate_latest(self._registry))
        return _page(start, "404 Not Found", "text/plain", b"/healthz and /metrics\n")


def _page(start: StartResponse, status: str, kind: str, body: bytes) -> Iterable[bytes]:
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]
