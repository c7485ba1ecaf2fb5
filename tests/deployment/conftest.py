"""A real federation on loopback for one test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cohortium.simulations.loopback import Deployment


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    yield made
    made.close()
