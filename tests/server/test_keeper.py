"""Whatever ends first, a kept program leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

KEEPER = "cohortium.server.keeper"
PROGRAM = """
import pathlib, subprocess, sys, time
folder, stay = pathlib.Path(sys.argv[1]), sys.argv[2] == "stay"
orphan = [sys.executable, "-c", "import subprocess,sys; subprocess.Popen(['sleep','300'],start_new_session=True)"]
subprocess.run(orphan, check=True)  # a grandchild whose parent has ended already
subprocess.Popen(["sleep", "300"], start_new_session=True)
(folder / "up").touch()
time.sleep(300 if stay else 0)
"""
PARENT = """
import os, subprocess, sys
subprocess.run([sys.executable, "-m", sys.argv[1], str(os.getpid()), *sys.argv[2:]])
"""
STUBBORN = """
import signal, subprocess, sys
from cohortium.server.keeper import adopt_orphans, end_children
adopt_orphans()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):
    subprocess.Popen(["sleep", "300"], start_new_session=True)  # inherits what is ignored
end_children(0.2)
"""


def living(mark: Path) -> list[int]:
    """Processes of this test, by a variable of their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ours = f"KEPT={mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if ours and not zombie:
                found.append(int(entry.name))
    return found


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    def started(*command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, *command], env={**os.environ, "KEPT": str(tmp_path)})

    yield started
    for pid in living(tmp_path):
        os.kill(pid, signal.SIGKILL)


def test_a_parent_killed_outright_takes_the_program_and_its_orphans_with_it(start: Any, tmp_path: Path) -> None:
    parent = start("-c", PARENT, KEEPER, sys.executable, "-c", PROGRAM, str(tmp_path), "stay")
    until((tmp_path / "up").exists)
    assert len(living(tmp_path)) == 5  # parent, keeper, program, two that sleep
    parent.kill()
    parent.wait()
    until(lambda: not living(tmp_path))


def test_a_keeper_told_to_end_ends_everything_first(start: Any, tmp_path: Path) -> None:
    keeper = start("-m", KEEPER, str(os.getpid()), sys.executable, "-c", PROGRAM, str(tmp_path), "stay")
    until((tmp_path / "up").exists)
    keeper.terminate()
    assert keeper.wait(30) == 0
    assert not living(tmp_path)


def test_a_program_that_ends_by_itself_leaves_nothing_and_its_status(start: Any, tmp_path: Path) -> None:
    failing = PROGRAM + "raise SystemExit(7)"
    assert start("-m", KEEPER, str(os.getpid()), sys.executable, "-c", failing, str(tmp_path), "go").wait(30) == 7
    assert not living(tmp_path)


def test_a_keeper_killed_outright_takes_the_program_with_it(start: Any, tmp_path: Path) -> None:
    keeper = start("-m", KEEPER, str(os.getpid()), sys.executable, "-c", "import time; time.sleep(300)")
    until(lambda: len(living(tmp_path)) == 2)
    keeper.kill()
    keeper.wait()
    until(lambda: not living(tmp_path))


def test_a_keeper_of_a_parent_that_is_gone_starts_nothing(start: Any, tmp_path: Path) -> None:
    assert start("-m", KEEPER, "1", sys.executable, "-c", PROGRAM, str(tmp_path), "go").wait(30) == 1
    assert not (tmp_path / "up").exists()


def test_whoever_ignores_the_wish_is_killed(start: Any, tmp_path: Path) -> None:
    assert start("-c", STUBBORN).wait(30) == 0
    assert not living(tmp_path)
