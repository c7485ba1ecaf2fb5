"""Bells: rung once, heard once; a killed process's is taken down; a long folder's has room in a socket's address."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from cohortium.server.bell import GATE, RUN, Bell, ring


@pytest.fixture(params=["f", "f" * 200])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = tmp_path / request.param
    (made / "run").mkdir(parents=True)
    return made


def test_a_bell_hears_how_often_its_kind_was_rung(folder: Path) -> None:
    with closing(Bell(folder, GATE)) as gate, closing(Bell(folder, RUN)) as run:
        assert gate.wait(0.0) == 0
        ring(folder, GATE)
        ring(folder, GATE)
        assert gate.wait(10.0) == 2
        assert gate.heard() == run.heard() == 0
        ring(folder, RUN)
        assert (run.wait(10.0), gate.heard()) == (1, 0)


def test_ringing_where_nobody_is_does_nothing_and_takes_dead_bells_down(folder: Path) -> None:
    ring(folder, GATE)
    bell = Bell(folder, GATE)
    bell._socket.close()  # what a kill leaves
    assert list((folder / "run").iterdir())
    ring(folder, GATE)
    assert not list((folder / "run").iterdir())
    with closing(Bell(folder, GATE)):
        assert len(list((folder / "run").iterdir())) == 1
    assert not list((folder / "run").iterdir())


def test_whoever_does_not_listen_holds_nobody_up(folder: Path) -> None:
    with closing(Bell(folder, GATE)) as bell:
        for _ in range(1000):
            ring(folder, GATE)
        assert 0 < bell.heard() < 1000
        ring(folder, GATE)
        assert bell.heard() == 1
