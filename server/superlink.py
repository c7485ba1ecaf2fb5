"""The coordinator's SuperLink: Flower's own program on loopback, under a keeper: it never outlives its parent."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from cohortium.server.control import SUPERLINK_FILE
from cohortium.server.keeper import adopt_orphans, end_children
from cohortium.study.errors import OutputError
from cohortium.study.keys import write_whole

__all__ = ["COORDINATOR_FOLDER", "PRINTED", "SuperLink", "turn_log"]

COORDINATOR_FOLDER = "COHORTIUM_COORDINATOR"
"""Environment variable by which the server app finds the coordinator's folder."""

PRINTED = "superlink.log"
"""What it prints, in `flower/`; what it printed before `turn_log` is beside it, in `superlink.log.1`."""

_HOST = "127.0.0.1"
_START_SECONDS, _STOP_SECONDS = 60.0, 15.0
_LOG_BYTES = 1 << 26
_SILENCE = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class SuperLink:
    """A SuperLink from construction until `close`.

    Args:
        folder: of the coordinator; its state is kept in `flower/`, what it prints in `flower/superlink.log`.
        environment: more variables for it and for the server apps that it starts.

    Raises:
        OutputError: it did not come up.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        if platform.system() != "Linux":
            raise OutputError(
                "a coordinator needs Linux", place=platform.system(), fix="run it on a machine with Linux"
            )
        adopt_orphans()
        self._folder, self._run, home = folder, folder / "run", folder / "flower"
        home.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir(mode=0o700)
        certificate = _make_certificate(self._run)
        self.context = ssl.create_default_context(cadata=certificate)
        self.address = f"{_HOST}:{_free_port()}"
        binaries = Path(sys.executable).parent
        command = [str(binaries / "flower-superlink"), *self._arguments(home)]
        path = os.pathsep.join([str(binaries), os.environ.get("PATH", "")])
        ours = {COORDINATOR_FOLDER: str(folder.resolve()), "FLWR_HOME": str(home.resolve()), "PATH": path}
        with open(home / PRINTED, "ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "cohortium.server.keeper", str(os.getpid()), *command],
                env={**os.environ, **_SILENCE, **environment, **ours},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        said = {"address": self.address, "certificate": certificate}
        write_whole(folder / SUPERLINK_FILE, json.dumps(said).encode())

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def close(self) -> None:
        """End it and every process it started, also those that were left behind."""
        (self._folder / SUPERLINK_FILE).unlink(missing_ok=True)
        if self.running:
            self._child.terminate()
            try:
                self._child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        end_children()
        shutil.rmtree(self._run, ignore_errors=True)

    def _arguments(self, home: Path) -> list[str]:
        files = {name: str(self._run / f"superlink.{name}") for name in ("crt", "key")}
        return [
            *("--ssl-certfile", files["crt"], "--ssl-keyfile", files["key"], "--ssl-ca-certfile", files["crt"]),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--database", str(home / "superlink.sqlite")),
            *("--host", _HOST, "--port", self.address.rpartition(":")[2]),
        ]

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.running:
            try:
                if httpx.get(f"https://{self.address}/health", verify=self.context, timeout=2).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise OutputError(
            "Flower's SuperLink did not come up",
            place=str(self._folder / "flower" / PRINTED),
            fix="its last lines say why",
        )


def turn_log(file: Path, most: int = _LOG_BYTES) -> None:
    """Begin a file that a process appends to anew, once it is longer than `most` bytes; the part before is kept."""
    if file.stat().st_size > most:
        shutil.copyfile(file, file.with_name(file.name + ".1"))
        os.truncate(file, 0)


def _make_certificate(folder: Path) -> str:
    """A certificate for loopback and its key, for one life of one process; the certificate in PEM."""
    key, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cohortium coordinator, loopback")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(_HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA384())
        .public_bytes(Encoding.PEM)
    )
    (folder / "superlink.crt").write_bytes(certificate)
    with open(os.open(folder / "superlink.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate.decode()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((_HOST, 0))
        port: int = one.getsockname()[1]
        return port
