"""What a node exchanges with the coordinator beside Flower's messages: proposals in, signed approvals out, results in.

In the node's folder, by the digits of a plan's digest:

    proposals/HEX.json       proposed studies, verified when they came
    approvals/HEX.json       this institution's signed approvals; HEX.taken beside it once the coordinator has it
    released/HEX/FILE        what a run released
"""

from __future__ import annotations

import logging
import re
import shutil
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from cohortium.client.fleet import LinkLostError, http_client
from cohortium.governance.operations import tell
from cohortium.study.errors import CohortiumError
from cohortium.study.keys import write_whole

__all__ = ["Exchange"]

_EVERY_SECONDS = 3.0
_MOST_FILES = 16
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_log = logging.getLogger(__name__)


class Exchange:
    """Keeps a node's folder and the coordinator's board in step; call it often.

    Args:
        folder: of the node.
        address, context: as for `FleetLink`.
        take: verifies a proposal and keeps it; `CohortiumError` when it does not hold.
        every: seconds between two looks.
    """

    def __init__(
        self,
        folder: Path,
        address: str,
        context: ssl.SSLContext,
        take: Callable[[bytes], object],
        every: float = _EVERY_SECONDS,
    ) -> None:
        self._folder, self._take, self._every = folder, take, every
        self._board = f"https://{address}/v1/cohortium"
        self._client = http_client(context)
        self._next = 0.0
        self._seen: frozenset[str] = frozenset()

    def __call__(self) -> None:
        """Look, unless that was just done; `LinkLostError` when nobody answers."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        try:
            self._fetch_proposals()
            self._deliver_approvals()
            self._fetch_released()
        except httpx.HTTPError as error:
            raise LinkLostError(f"proposals were not exchanged: {type(error).__name__}") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise LinkLostError("the coordinator's board cannot be read") from error
        except OSError as error:  # a full disk: questions are declined while it lasts
            tell(_log, "the folder cannot be written", logging.ERROR, problem=error.strerror or type(error).__name__)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _fetch_proposals(self) -> None:
        texts = [str(text) for text in self._client.get(f"{self._board}/proposals").raise_for_status().json()]
        for text in texts:
            if text in self._seen:
                continue
            try:
                self._take(text.encode())
            except CohortiumError as error:
                tell(_log, "a proposal was not taken", logging.WARNING, problem=str(error))
        self._seen = frozenset(texts)

    def _deliver_approvals(self) -> None:
        for path in sorted((self._folder / "approvals").glob("*.json")):
            taken = path.with_suffix(".taken")
            if taken.exists():
                continue
            answer = self._client.post(f"{self._board}/approvals", content=path.read_bytes())
            if answer.is_success:
                write_whole(taken, b"")
                tell(_log, "an approval was delivered", plan=f"sha256:{path.stem}")
            elif answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
                tell(_log, "an approval was refused", logging.ERROR, plan=f"sha256:{path.stem}")
                write_whole(taken, b"refused")
            else:
                answer.raise_for_status()

    def _fetch_released(self) -> None:
        for path in sorted((self._folder / "approvals").glob("*.taken")):
            folder = self._folder / "released" / path.stem
            if folder.exists() or path.read_bytes():  # an approval that was refused
                continue
            answer = self._client.get(f"{self._board}/released/{path.stem}")
            if answer.status_code == httpx.codes.NOT_FOUND:
                continue
            files = {str(name): bytes.fromhex(data) for name, data in answer.raise_for_status().json().items()}
            if len(files) > _MOST_FILES or not all(map(_FILE.fullmatch, files)):
                raise ValueError("released files with odd names, or many of them")
            staged = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True, mode=0o700)
            for name, data in files.items():
                write_whole(staged / name, data)
            staged.rename(folder)
            tell(_log, "results have come", plan=f"sha256:{path.stem}", files=", ".join(sorted(files)))
