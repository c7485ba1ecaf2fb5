"""A federation founded once, and copied for every test."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cohortium.client.joining import found_node
from cohortium.client.node import NodeIdentity
from cohortium.server.founding import found_federation
from cohortium.study.contract import Contract
from cohortium.study.enrolment import EnrolmentRequest

from .house import NAME, PASSWORD, Found, House


@pytest.fixture
def found(small_contract: Contract) -> Found:
    """Makes a node's folder with its keys and request."""

    def make(
        folder: Path, name: str, federation: str = NAME, region: str = "EU", group: str | None = None
    ) -> EnrolmentRequest:
        identity = NodeIdentity(institution=name)
        return found_node(folder, identity, small_contract, PASSWORD, federation=federation, region=region, group=group)

    return make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    began = datetime.now(UTC) - timedelta(minutes=1)
    found_federation(folder / "coordinator", NAME, "127.0.0.1:9443", PASSWORD, began, ("localhost",))
    return folder


@pytest.fixture
def house(made: Path, tmp_path: Path, found: Found) -> House:
    """A coordinator that was founded a minute ago; nodes a and b have made their requests."""
    for name in ("a", "b"):
        if not (made / name).exists():
            found(made / name, name)
    shutil.copytree(made, tmp_path / "house")
    return House(tmp_path / "house", datetime.now(UTC).replace(microsecond=0))
