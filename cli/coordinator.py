"""`cohortium coordinator`: the coordinator of a federation at work."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli.access import authorised
from cohortium.governance.access import Act
from cohortium.governance.operations import log_as_json
from cohortium.server.coordinator import Coordinator, Listening
from cohortium.study.errors import DataError
from cohortium.study.keys import find_password

__all__ = ["app"]

app = typer.Typer(name="coordinator", no_args_is_help=True)


@app.callback()
def coordinator() -> None:
    """Run a federation's coordinator: Flower's SuperLink behind the one port that members reach."""


@app.command()
def start(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder, from `cohortium federation init`.")],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of the gate. Loopback unless told; members need to reach it.")
    ] = "127.0.0.1:9440",
    health_port: Annotated[int, typer.Option(help="Port on loopback of /healthz and /metrics.")] = 9441,
    wave_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that a wave waits for a node that is connected but does not answer.")
    ] = 600.0,
    gather_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that a run waits for all that approved before it begins with enough.")
    ] = 300.0,
    password_file: Annotated[
        Path | None, typer.Option(help="File whose first line is the password of the coordinator's keys.")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; runs that an earlier life did not end go on by themselves.

    Only members get in: by mutual TLS with certificates of this federation's authority, for keys that are enrolled and
    not revoked. Flower's own interfaces stay on loopback. Log lines are JSON on standard error.

    Example: cohortium coordinator start ~/coordinator --listen 0.0.0.0:9440
    """
    authorised(folder, Act.COORDINATOR_START)
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise DataError(f"'{listen}' is not HOST:PORT", place="--listen", fix="write it as 127.0.0.1:9440")
    listening = Listening(host.strip("[]"), int(port), health_port, wave_timeout, gather_timeout)
    working = Coordinator(folder, find_password(password_file), listening)
    log_as_json()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: working.stop())
    working.run()
