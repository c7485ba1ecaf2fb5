"""A keeper: it runs one program and sees to it that none of that program's processes outlives whoever wanted it.

`python -m cohortium.server.keeper PARENT COMMAND...` starts COMMAND and waits until COMMAND ends, PARENT ends or it is
told to end (SIGTERM); then it ends every process that is left, those that COMMAND started and left behind included, and
reaps them. Linux only: prctl(2), PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER. The standard library alone: it lives as
long as the program does, and should weigh little.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

__all__ = ["adopt_orphans", "end_children"]

_PDEATHSIG, _SUBREAPER = 1, 36  # prctl(2)
_GRACE_SECONDS, _POLL_SECONDS = 10.0, 0.05
_AWAITED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends.

    Raises:
        OSError: the kernel is not Linux.
    """
    _prctl(_SUBREAPER, 1)


def end_children(grace: float = _GRACE_SECONDS) -> None:
    """End every child of this process, and theirs as they become ours: SIGTERM once, SIGKILL after `grace` seconds.

    All children are reaped; no other thread may wait for one at the same time.
    """
    deadline, told = time.monotonic() + grace, set[int]()
    while left := set(_children()):
        late = time.monotonic() > deadline
        for child in left if late else left - told:
            os.kill(child, signal.SIGKILL if late else signal.SIGTERM)  # not reaped yet: the number is still its own
        told |= left
        time.sleep(_POLL_SECONDS)
        while _reap():
            pass


def _children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def _reap() -> tuple[int, int] | None:
    """A child that has ended, and its status."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _keep(parent: int, command: list[str]) -> int:
    adopt_orphans()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    _prctl(_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 1  # it has ended already
    keeper, program = os.getpid(), os.fork()
    if program == 0:
        _prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.execv(command[0], command)
    while signal.sigwait(_AWAITED) == signal.SIGCHLD:
        while ended := _reap():
            if ended[0] == program:
                end_children()
                return abs(os.waitstatus_to_exitcode(ended[1]))
    end_children()
    return 0


if __name__ == "__main__":
    raise SystemExit(_keep(int(sys.argv[1]), sys.argv[2:]))
