"""Bells between the coordinator's processes: "look again", and not a word more.

The SuperLink tells nobody that a message has come, so whoever waits for one has to ask it again and again, and its
answers are what a wave waits for. A bell is a socket in the coordinator's folder that others of the coordinator's
processes ring (unix(7), datagrams without content): the gate's when messages were pushed, a run's when a reply was. A
ring may be lost; whoever waits therefore asks by itself too, but seldom.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["GATE", "RUN", "Bell", "ring"]

GATE, RUN = "gate", "run"
"""Whose bells there are."""

_FOLDER, _SUFFIX = "run", ".bell"


class Bell:
    """One's own bell, from construction until `close`.

    Args:
        folder: of the coordinator.
        whose: `GATE` or `RUN`; a process has one of each at most.
    """

    def __init__(self, folder: Path, whose: str) -> None:
        self._path = folder / _FOLDER / f"{whose}-{os.getpid()}{_SUFFIX}"
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with _short(self._path) as address:
            self._socket.bind(address)

    def fileno(self) -> int:
        """For select(2)."""
        return self._socket.fileno()

    def heard(self) -> int:
        """How often it was rung since it was asked last."""
        count = 0
        while True:
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return count
            count += 1

    def wait(self, seconds: float) -> int:
        """`heard`, as soon as that is more than 0 or so many seconds have passed."""
        select.select([self], [], [], max(seconds, 0.0))
        return self.heard()

    def close(self) -> None:
        """Take it down."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


def ring(folder: Path, whose: str) -> None:
    """Ring every such bell of the coordinator's processes; never waits, and whoever is not there is not missed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        for path in (folder / _FOLDER).glob(f"{whose}-*{_SUFFIX}"):
            try:
                with _short(path) as address:
                    sender.sendto(b"", address)
            except BlockingIOError:
                continue  # rung often enough
            except OSError:
                path.unlink(missing_ok=True)  # left by a process that was killed


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """The path by a name that fits into the 107 bytes of a socket's address, however long the folder's is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
