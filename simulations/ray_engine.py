"""The same Flower apps on Flower's own Ray simulation, behind `--engine ray`.

`run_on_ray` takes what `run_in_process` takes. Client apps run in Ray's worker processes, several at once, on one
machine and its loopback address, or on the Ray cluster that this process is connected to. Apps therefore keep what
they must remember in `context.state` or in files whose folder a configuration names, and never in module globals or
closures.

Flower marks `flwr.simulation.run_simulation` as deprecated in favour of `flwr run`. It is used here all the same: it
is the only public function that takes app objects and hands exceptions back. `flwr run` wants a packaged app
directory, starts a server process of its own and returns neither exceptions nor results. The function knows no run or
node configuration and its clients send exception texts, so thin wrappers around both apps add what is missing.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from flwr.app import Context, Message, RecordDict, UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import telemetry
from flwr.supercore.run import Run

from cohortium.simulations.grid import answer, node_settings
from cohortium.study.errors import CohortiumError

__all__ = ["run_on_ray"]

_POLL_SECONDS = 0.02
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # a Ray of one machine: without it Ray replaces the loopback address by a public one and listens everywhere
    _LOOPBACK_ONLY: "0",
    # without it Ray announces a future default by a warning in every process
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_LOOPBACK = "127.0.0.1"
_FLOWER_LOG = "flwr"


def run_on_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    nodes: int,
    run_config: Mapping[str, UserConfigValue] | None = None,
    node_configs: Sequence[Mapping[str, UserConfigValue]] | None = None,
    cpus_per_node: float = 1.0,
) -> Context:
    """Runs a server app with the client apps of all institutions on Ray.

    The server app runs in a thread of this process, so it may leave results in objects of its own; it starts when all
    nodes have registered. Replies come back
    in no particular order, and the run id is a random one.

    Args:
        server_app: its main function gets a grid.
        client_app: the app of every institution; it travels to the workers by cloudpickle, so it should be defined in
            an importable module and refer to no data.
        nodes: how many institutions.
        run_config: what `context.run_config` holds, at the server and at every node.
        node_configs: for each institution, what its `context.node_config` holds besides "partition-id" and
            "num-partitions".
        cpus_per_node: processors set aside for an institution's answer: sets how many answer at once.

    Returns:
        The server app's context, with the state it left.

    Raises:
        CohortiumError: Ray is not installed or does not start, or the configurations do not fit the institutions.
        Exception: whatever the server app raised, unchanged.
        KeyboardInterrupt: after Ray's processes and the server app's thread were stopped.
    """
    settings = node_settings(nodes, node_configs)
    _check_ray()
    server = _SupervisedServer(server_app, dict(run_config or {}), nodes)
    client = _ConfiguredClient(client_app, dict(run_config or {}), settings)
    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": cpus_per_node, "num_gpus": 0.0},
        "init_args": {"include_dashboard": False, "_node_ip_address": _LOOPBACK},
    }
    with _quiet_environment():
        simulation = import_module("flwr.simulation")  # half a second, which only this engine needs
        try:
            simulation.run_simulation(server, client, nodes, backend_config=backend)
        except Exception as error:
            server.stop()
            if server.error is None:
                raise CohortiumError("Ray could not run the simulation", fix="run it in process instead") from error
        finally:
            server.stop()
    return server.result()


def _check_ray() -> None:
    """Ray is installed, and will listen on the loopback address only or belongs to a cluster of the caller's."""
    if importlib.util.find_spec("ray") is None:
        raise CohortiumError("the engine 'ray' is not installed", fix="pip install 'cohortium[ray]'")
    ray = sys.modules.get("ray")
    if ray is not None and not ray.is_initialized() and os.environ.get(_LOOPBACK_ONLY) != "0":
        raise CohortiumError(
            "Ray was imported before and would listen on every network interface",
            fix=f"set {_LOOPBACK_ONLY}=0 before importing ray, or connect to a cluster by ray.init",
        )


class _ConfiguredClient(ClientApp):
    """A client app that gets its configuration, and whose exceptions do not travel."""

    def __init__(self, app: ClientApp, run_config: UserConfig, settings: list[UserConfig]) -> None:
        super().__init__()
        self._app = app
        self._run_config = run_config
        self._settings = settings

    def __call__(self, message: Message, context: Context) -> Message:
        logging.getLogger(_FLOWER_LOG).setLevel(logging.ERROR)  # this is another process than the one that set it
        settings = self._settings[int(context.node_config[PARTITION_ID_KEY])]
        own = Context(context.run_id, context.node_id, settings, context.state, self._run_config)
        reply = answer(self._app, message, own)
        context.state = own.state
        return reply


class _SupervisedServer(ServerApp):
    """A server app that starts when all nodes are there, can be stopped, and whose exception is kept for the caller."""

    def __init__(self, app: ServerApp, run_config: UserConfig, nodes: int) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self._app = app
        self._run_config = run_config
        self._nodes = nodes
        self._context: Context | None = None
        self._stopped = threading.Event()
        self._ended = threading.Event()

    def __call__(self, grid: Grid, context: Context) -> None:
        self._context = Context(context.run_id, context.node_id, {}, RecordDict(), self._run_config)
        stoppable = _StoppableGrid(grid, self._stopped)
        try:
            while len(list(stoppable.get_node_ids())) < self._nodes:
                self._stopped.wait(_POLL_SECONDS)
            self._app(stoppable, self._context)
        except BaseException as error:  # noqa: BLE001 - raised again, unchanged, by `result` in the caller's thread
            self.error = error
        finally:
            self._ended.set()

    def stop(self) -> None:
        """Makes the next use of the grid raise, and waits for the app to end."""
        self._stopped.set()
        if self._context is not None:
            self._ended.wait()

    def result(self) -> Context:
        """The context the app left; raises what the app raised."""
        if self.error is not None:
            raise self.error
        if self._context is None:
            raise CohortiumError("Ray ended before the server app began", fix="run it in process instead")
        return self._context


class _Stopped(BaseException):
    """Ends a server app whose runtime is gone. Not an `Exception`, so that the app does not handle it."""


class _StoppableGrid(Grid):
    """Another grid until an event is set; then every use raises."""

    def __init__(self, grid: Grid, stopped: threading.Event) -> None:
        self._grid = grid
        self._stopped = stopped

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        self._check()
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._check()
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._check()
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            got = list(self.pull_messages(waiting))
            replies.extend(got)
            waiting.difference_update(reply.metadata.reply_to_message_id for reply in got)
            if waiting:
                self._stopped.wait(_POLL_SECONDS)
        return replies

    def _check(self) -> None:
        if self._stopped.is_set():
            raise _Stopped


@contextmanager
def _quiet_environment() -> Iterator[None]:
    """Nothing phones home, Flower's log shows errors only, and the module path that Flower exports is taken back."""
    before = os.environ.get("PYTHONPATH")
    logger = logging.getLogger(_FLOWER_LOG)
    level = logger.level
    os.environ.update(_ENVIRONMENT)
    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # read from the environment when Flower was imported, before this
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.pop("PYTHONPATH", None)
        if before is not None:
            os.environ["PYTHONPATH"] = before
