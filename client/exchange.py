"""What a node exchanges with the coordinator beside Flower's messages: proposals in, signed approvals out, results in.

In the node's folder, by the digits of a plan's digest:

    proposals/HEX.json       proposed studies, verified when they came
    approvals/HEX.json       this institution's signed approvals; HEX.taken beside it once the coordinator has it
    released/HEX/FILE        what a run released
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from cohortium.client.fleet import LinkLostError
from cohortium.governance.operations import tell
from cohortium.study.errors import CohortiumError
from cohortium.study.keys import write_whole

__all__ = ["Exchange"]

_EVERY_SECONDS = 3.0
_MOST = 1 << 28
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_log = logging.getLogger(__name__)


class Exchange:
    """Keeps a node's folder and the coordinator's board in step; call it often.

    Args:
        folder: of the node.
        address, context, key: as for `FleetLink`.
        take: verifies a proposal and keeps it; `CohortiumError` when it does not hold.
        every: seconds between two looks.
    """

    def __init__(
        self,
        folder: Path,
        address: str,
        context: ssl.SSLContext,
        key: EllipticCurvePrivateKey,
        take: Callable[[bytes], object],
        every: float = _EVERY_SECONDS,
    ) -> None:
        self._folder, self._take, self._every = folder, take, every
        header = b64encode(public_key_to_bytes(key.public_key())).decode()
        self._client = httpx.Client(
            base_url=f"https://{address}/v1/cohortium",
            verify=context,
            timeout=10.0,
            headers={"flwr-public-key": header},
        )
        self._next = 0.0
        self._bad: set[bytes] = set()

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
        except (ValueError, TypeError, AttributeError) as error:
            raise LinkLostError("the coordinator's board cannot be read") from error

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _fetch_proposals(self) -> None:
        for text in self._client.get("/proposals").raise_for_status().json():
            data = text.encode()
            if data in self._bad:
                continue
            try:
                self._take(data)
            except CohortiumError as error:
                self._bad.add(data)
                tell(_log, "a proposal was not taken", logging.WARNING, problem=str(error))

    def _deliver_approvals(self) -> None:
        for path in sorted((self._folder / "approvals").glob("*.json")):
            taken = path.with_suffix(".taken")
            if taken.exists():
                continue
            answer = self._client.post("/approvals", content=path.read_bytes())
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
            if folder.exists():
                continue
            answer = self._client.get(f"/released/{path.stem}")
            if answer.status_code == httpx.codes.NOT_FOUND:
                continue
            files = {str(name): bytes.fromhex(data) for name, data in answer.raise_for_status().json().items()}
            if any(not _FILE.fullmatch(name) for name in files) or sum(map(len, files.values())) > _MOST:
                raise ValueError("released files with odd names or sizes")
            staged = folder.with_name(f".{folder.name}.partial")
            staged.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, data in files.items():
                write_whole(staged / name, data)
            staged.rename(folder)
            tell(_log, "results have come", plan=f"sha256:{path.stem}", files=", ".join(sorted(files)))
