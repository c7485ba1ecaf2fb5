"""Starting and stopping runs at the coordinator's own SuperLink, over loopback.

A running coordinator leaves `run/superlink.json` in its folder: where its SuperLink listens, and the certificate that
was made for this life of it alone.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from cohortium.study.errors import RefusedError
from cohortium.study.software import installed_software, study_bundle

__all__ = ["SUPERLINK_FILE", "Control", "connect"]

SUPERLINK_FILE = "run/superlink.json"
"""In the coordinator's folder while it runs."""


class Control:
    """Flower's Control API at one SuperLink.

    Args:
        address: host:port on loopback.
        context: trusts its certificate alone.
    """

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
        self._client = ControlHttpClient(f"https://{address}", interceptors=interceptors, verify=context)

    def start(self, plan: str, run: str) -> int:
        """Start a run of a proposed plan; Flower's number of it.

        Args:
            plan: its digest.
            run: 32 hexadecimal digits; the same again resumes it.
        """
        bundle = study_bundle(installed_software().version)
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        config = user_config_to_proto({"plan": plan, "run": run})
        with _asking():
            started = self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab), override_config=config))
        if not started.HasField("run_id"):
            raise RefusedError("the SuperLink did not start the run")
        return int(started.run_id)

    def stop(self, flower_run: int) -> None:
        """End a run; one that has ended stays as it is."""
        with _asking():
            self._client.StopRun(StopRunRequest(run_id=flower_run))

    def state(self, flower_run: int) -> str:
        """`pending`, `starting`, `running`, `finished:` with `completed`, `failed` or `stopped`, or `unknown`."""
        with _asking():
            listed = self._client.ListRuns(ListRunsRequest(run_id=flower_run)).run_dict
        if flower_run not in listed:
            return "unknown"
        status = listed[flower_run].status
        return f"{status.status}:{status.sub_status}" if status.sub_status else str(status.status)

    def nodes(self) -> dict[bytes, int]:
        """Flower's numbers of the registered SuperNodes by their public keys."""
        with _asking():
            listed = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {_bytes(node.public_key): int(node.node_id) for node in listed if node.status != "unregistered"}

    def register(self, key: bytes, name: str) -> int:
        """Register a SuperNode's public key."""
        with _asking():
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)

    def unregister(self, node: int) -> None:
        """Forget a SuperNode: its requests are refused from now on."""
        with _asking():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def connect(folder: Path) -> Control:
    """To the SuperLink of the coordinator that runs in a folder.

    Raises:
        RefusedError: none runs there.
    """
    try:
        said: Mapping[str, str] = json.loads((folder / SUPERLINK_FILE).read_bytes())
        context = ssl.create_default_context(cadata=said["certificate"])
        return Control(said["address"], context)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            "no coordinator runs here", place=str(folder), fix=f"cohortium coordinator start {folder}"
        ) from error


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise RefusedError(
            f"the coordinator's SuperLink cannot be reached: {type(error).__name__}",
            fix="cohortium coordinator start",
        ) from error
    except httpx.HTTPStatusError as error:
        raise RefusedError(f"the SuperLink refused with status {error.response.status_code}") from error


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
