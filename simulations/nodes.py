"""Opening an institution's node in another process, from the state folder that its configuration names."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from cohortium.client.app import make_client_app
from cohortium.client.node import Node, open_node, read_contract
from cohortium.client.onboarding import load_customer_table

__all__ = ["STATE_FOLDER", "ray_client_app"]

STATE_FOLDER = "state-folder"
"""Key of `context.node_config` under which an institution finds its state folder."""


@lru_cache(maxsize=64)
def _open(folder: str) -> Node:
    contract = read_contract(Path(folder))
    return open_node(Path(folder), load_customer_table(Path(folder) / "customers", contract))


def _open_configured(context: Context) -> Node:
    return _open(str(context.node_config[STATE_FOLDER]))


ray_client_app = make_client_app(_open_configured)
"""The client app for engines that run institutions in processes of their own."""
